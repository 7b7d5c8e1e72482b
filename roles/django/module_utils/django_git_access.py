"""git as a site's build user, with a deploy key that lives as long as the command."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
import urllib.parse

from ansible.module_utils.django_site import Runner


class Access:
    """A context in which git reaches one repository; the key is gone when it ends.

    `given` are a module's parameters: directory, build_user, url and those of OPTIONS.
    """

    OPTIONS = {
        "url_user": {"type": "str", "default": ""},
        "url_password": {"type": "str", "default": "", "no_log": True},
        "deploy_key": {"type": "str", "default": "", "no_log": True},
        "known_hosts": {"type": "str", "default": "", "no_log": False},
    }

    def __init__(self, given):
        self.user, self.directory, self.url = given["build_user"], given["directory"], given["url"]
        self.login = (given["url_user"], given["url_password"])
        key = given["deploy_key"].strip()
        self.files = {"key": key + "\n" if key else "", "known_hosts": given["known_hosts"]}
        self.folder = None
        self.runner = None

    def __enter__(self):
        # /run is a memory file system: the key never reaches a disk.
        self.folder = tempfile.mkdtemp(prefix="django-git-", dir="/run")
        environment = {"GIT_TERMINAL_PROMPT": "0"}
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"]
        secrets = []
        if self.login[1]:
            parts = urllib.parse.urlsplit(self.url)
            header = base64.b64encode(":".join(self.login).encode()).decode()
            secrets = [self.login[1], header]
            # In the environment, because git's own helpers get the address on their command line; for this server only.
            environment.update(
                GIT_CONFIG_COUNT="1",
                GIT_CONFIG_KEY_0="http.%s://%s/.extraHeader" % (parts.scheme, parts.netloc),
                GIT_CONFIG_VALUE_0="Authorization: Basic " + header,
            )
        self.runner = Runner(self.user, self.directory + "/build", environment, secrets=secrets, timeout=1800)
        for name, text in self.files.items():
            if text:
                path = os.path.join(self.folder, name)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o400), "w", encoding="utf-8") as handle:
                    handle.write(text if text.endswith("\n") else text + "\n")
                os.chown(path, self.runner.account.pw_uid, self.runner.account.pw_gid)
        os.chown(self.folder, self.runner.account.pw_uid, self.runner.account.pw_gid)
        if self.files["key"]:
            ssh += ["-o", "IdentitiesOnly=yes", "-i", self.folder + "/key"]
        if self.files["known_hosts"]:
            ssh += ["-o", "UserKnownHostsFile=" + self.folder + "/known_hosts"]
        self.runner.environment["GIT_SSH_COMMAND"] = " ".join(ssh)
        if self.url.startswith(("file:", "/")):
            # A repository on this very disk may have submodules there too; git refuses them otherwise.
            self.runner.environment["GIT_ALLOW_PROTOCOL"] = "file:https:ssh"
        return self

    def __exit__(self, *_error):
        shutil.rmtree(self.folder, ignore_errors=True)

    def git(self, words, what):
        """Run git; returns what it printed. Raises Refused."""
        return self.runner.must(["git", *words], what)
