"""git as a site's build user, with a deploy key that lives as long as the command."""

from __future__ import annotations

import os
import shutil
import tempfile

from ansible.module_utils.django_site import Runner


class Access:
    """A context in which git reaches one repository; the key is gone when it ends."""

    def __init__(self, user, directory, url, deploy_key, known_hosts):
        self.user, self.directory, self.url = user, directory, url
        self.files = {"key": deploy_key.strip() + "\n" if deploy_key.strip() else "", "known_hosts": known_hosts}
        self.folder = None
        self.runner = None

    def __enter__(self):
        # /run is a memory file system: the key never reaches a disk.
        self.folder = tempfile.mkdtemp(prefix="django-git-", dir="/run")
        environment = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "0"}
        ssh = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=20"]
        self.runner = Runner(self.user, self.directory + "/build", environment, timeout=1800)
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
