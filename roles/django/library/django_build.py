#!/usr/bin/python
"""Build a release of a site at its final place: its code and its own Python environment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_build
short_description: Build a release of a site at its final place
description:
  - Brings the code (an archive, a commit of the mirror, or the code of another release), makes the virtual environment
    and installs into it with uv where the host has it, with pip otherwise; RELEASE.json is written last.
  - A build that fails is removed and leaves nothing. One that was killed is built again; one that still runs, because
    its controller went away, is waited for and taken.
  - The release's own directory is root's, so that what runs during the build cannot plant links where root writes later.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  build_user: {description: The user that owns the release., type: str, required: true}
  release: {description: The release's id., type: str, required: true}
  revision: {description: The source's revision., type: str, required: true}
  kind: {description: The kind of the source., type: str, required: true}
  archive: {description: A tar archive of the code on this host., type: path}
  commit: {description: A commit of the site's mirror., type: str}
  copy_from: {description: A release on this host whose code is taken., type: str}
  requirement: {description: A requirement that is the project itself., type: str}
  url: {description: The repository's address, which submodules may be relative to., type: str, default: ""}
  submodules: {description: Whether submodules are fetched., type: bool, default: false}
  url_user: {description: The user of a repository behind HTTPS., type: str, default: ""}
  url_password: {description: That user's password or token., type: str, default: ""}
  deploy_key: {description: A private key for the repository., type: str, default: ""}
  known_hosts: {description: Lines of a known_hosts file., type: str, default: ""}
  subdirectory: {description: Where in the source the project lies., type: str, default: ""}
  python: {description: The Python that the environment is made with., type: str, default: python3}
  installer: {description: What installs the packages., type: str, choices: [auto, uv, pip], default: auto}
  requirements_file: {description: The file that lists what the project needs., type: str, default: requirements.txt}
  packages: {description: What is installed besides., type: list, elements: str, default: []}
  index_url: {description: A package index in place of PyPI., type: str, default: ""}
  index_user: {description: The user of the index., type: str, default: ""}
  index_password: {description: The password of the index., type: str, default: ""}
  index_trusted: {description: Whether the index may do without a valid certificate., type: bool, default: false}
  environment: {description: Environment variables of the build., type: dict, default: {}}
  cache_mb: {description: Megabytes that the installers' caches may keep after a build., type: int, default: 2048}
  before: {description: Shell commands before the packages are installed., type: list, elements: str, default: []}
  after: {description: Shell commands after the packages are installed., type: list, elements: str, default: []}
  timeout: {description: Seconds that one command of the build may take., type: int, default: 1800}
author: Stepladder
"""

import json
import os
import pwd
import shutil
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_git_access import Access
from ansible.module_utils.django_site import OneBuild, Refused, Runner, now, read_json, write_json

PROJECT_DEPENDENCIES = """
import json, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb")).get("project", {})
print(json.dumps(None if "dependencies" in project.get("dynamic", []) or not project else project.get("dependencies", [])))
"""


class Build:
    """One release while it is built."""

    def __init__(self, given):
        self.given = given
        self.base = given["directory"]
        self.home = "%s/releases/%s" % (self.base, given["release"])
        self.tree = self.home + "/code"
        self.code = os.path.normpath(os.path.join(self.tree, given["subdirectory"]))
        self.venv = self.home + "/venv"
        self.caches = [self.base + "/build/pip", self.base + "/build/uv"]
        self.uv = shutil.which("uv", path="/usr/local/bin:/usr/bin:/bin") if given["installer"] != "pip" else None
        if given["installer"] == "uv" and not self.uv:
            raise Refused("django: django_installer is uv, which is not on this host. Install it, or set auto or pip.")
        environment = {
            "PIP_CACHE_DIR": self.caches[0],
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "UV_CACHE_DIR": self.caches[1],
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NATIVE_TLS": "true",
            "UV_LINK_MODE": "copy",
            **self.index(),
            **given["environment"],
        }
        self.runner = Runner(
            given["build_user"], self.base + "/build", environment, (self.venv + "/bin",),
            [given["index_password"]], given["timeout"],
        )  # fmt: skip

    def index(self):
        """The environment that names the package index; its password stays out of every command line."""
        given = self.given
        if not given["index_url"]:
            return {}
        parts = urllib.parse.urlsplit(given["index_url"])

        def with_login(encoding):
            if not given["index_user"]:
                return given["index_url"]
            both = (given[key].encode().decode(encoding) for key in ("index_user", "index_password"))
            login = ":".join(urllib.parse.quote(text, safe="") for text in both)
            return urllib.parse.urlunsplit(parts._replace(netloc=login + "@" + parts.netloc))

        # pip sends a login as latin-1; servers, uv and everyone else take it for UTF-8. Read wrongly first, it arrives right.
        names = {"PIP_INDEX_URL": with_login("latin-1"), "UV_DEFAULT_INDEX": with_login("utf-8")}
        if given["index_trusted"]:
            names.update(PIP_TRUSTED_HOST=parts.netloc, UV_INSECURE_HOST=parts.netloc)
        return names

    def bring_code(self):
        given, runner = self.given, self.runner
        if given["copy_from"]:
            source = "%s/releases/%s/code/." % (self.base, given["copy_from"])
            runner.must(["cp", "-a", source, self.tree], "django: the live release's code could not be copied")
        elif given["archive"]:
            with open(given["archive"], "rb") as archive:
                runner.must(
                    ["tar", "-xzf", "-", "-C", self.tree, "--no-same-owner"],
                    "django: the archive of the code could not be unpacked", input_file=archive,
                )  # fmt: skip
        elif given["commit"]:
            self.check_out()
        if not os.path.isdir(self.code):
            raise Refused(
                "django: the source has no directory %s. Set django_source.subdirectory." % given["subdirectory"]
            )

    def check_out(self):
        given = self.given
        with Access(given) as access:
            mirror = self.base + "/repository.git"
            access.git(
                ["clone", "--quiet", "--no-checkout", mirror, self.tree], "django: the code could not be checked out"
            )
            inside = ["-C", self.tree]
            access.git([*inside, "remote", "set-url", "origin", given["url"]], "django: git refused the address")
            access.git(
                [*inside, "checkout", "--quiet", "--detach", given["commit"]],
                "django: the commit could not be checked out",
            )
            if given["submodules"]:
                access.git(
                    [*inside, "submodule", "--quiet", "update", "--init", "--recursive"],
                    "django: the submodules could not be fetched. Check that the deploy key may read them",
                )
        for folder, names, files in os.walk(self.tree):
            if ".git" in names:
                shutil.rmtree(os.path.join(folder, ".git"))
                names.remove(".git")
            if ".git" in files:
                os.unlink(os.path.join(folder, ".git"))

    def install(self, words, what="django: the packages could not be installed"):
        if self.uv:
            argv = [
                self.uv,
                "pip",
                "install",
                "--quiet",
                "--compile-bytecode",
                "--python",
                self.venv + "/bin/python",
                *words,
            ]
        else:
            argv = [self.venv + "/bin/pip", "install", "--quiet", *words]
        self.runner.must(argv, what)

    def make_venv(self):
        python = self.given["python"]
        argv = (
            [self.uv, "venv", "--quiet", "--python", python, self.venv]
            if self.uv
            else [python, "-m", "venv", self.venv]
        )
        self.runner.must(
            argv, "django: no environment could be made with %s. Set django_python to one of the host" % python
        )

    def wanted(self):
        """(arguments for a first installation that asks for hashes, arguments for the rest)."""
        given = self.given
        extra = list(given["packages"])
        if given["requirement"]:
            return [], [given["requirement"], *extra]
        path = os.path.join(self.code, given["requirements_file"])
        if os.path.exists(path):
            with open(path, encoding="utf-8") as handle:
                hashed = "--hash=" in handle.read()
            return (["--require-hashes", "-r", path], extra) if hashed else ([], ["-r", path, *extra])
        project = os.path.join(self.code, "pyproject.toml")
        if os.path.exists(project):
            out = self.runner.must(
                [self.venv + "/bin/python", "-c", PROJECT_DEPENDENCIES, project],
                "django: pyproject.toml could not be read",
            )
            listed = json.loads(out)
            return [], [*([self.code] if listed is None else listed), *extra]
        return [], extra

    def make(self):
        given = self.given
        self.bring_code()
        self.runner.cwd = self.code
        for line in given["before"]:
            self.runner.must(line, "django: the hook `%s` before the build failed" % line)
        self.make_venv()
        hashed, rest = self.wanted()
        if hashed:
            self.install(hashed)
        if rest:
            self.install(rest)
        python = self.venv + "/bin/python"
        packages = self.runner.must(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "django: no Python"
        )
        # The code is importable in whatever runs from this environment, wherever it was started.
        self.runner.must(
            ["sh", "-c", 'printf "%s\\n" "$1" >"$2"', "sh", self.code, packages.strip() + "/site.pth"],
            "django: no path",
        )
        self.runner.run([python, "-m", "compileall", "-q", self.tree])
        for line in given["after"]:
            self.runner.must(line, "django: the hook `%s` after the build failed" % line)
        versions = "import django, platform; print(platform.python_version(), django.get_version())"
        found = self.runner.must(
            [python, "-c", versions],
            "django: Django is not among the installed packages. List it in %s" % given["requirements_file"],
        )
        write_json(
            self.home + "/RELEASE.json",
            {
                "release": given["release"], "revision": given["revision"], "kind": given["kind"], "code": self.code, "built": now(),
                "python": found.split()[0], "django": found.split()[1], "installer": "uv" if self.uv else "pip",
                "migrations": [],
            },
            gid=self.group,
        )  # fmt: skip

    def directory(self, path, uid, mode):
        os.mkdir(path, 0o700)
        os.chown(path, uid, self.group)
        os.chmod(path, mode)

    def run(self):
        """Build it; whatever stops the build, nothing of it stays. Raises Refused."""
        self.group = pwd.getpwnam(self.given["user"]).pw_gid
        # What an interrupted build has left is not a release.
        shutil.rmtree(self.home, ignore_errors=True)
        self.directory(self.home, 0, 0o2751)
        for path in (self.tree, self.venv):
            self.directory(path, self.runner.account.pw_uid, 0o2750)
        try:
            self.make()
        except BaseException:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        finally:
            self.bound_caches()

    def bound_caches(self):
        """Empty the installers' caches once they are too large: they keep every version that was ever fetched.

        As the build user, who can put links there.
        """
        there = [path for path in self.caches if os.path.lexists(path)]
        if not there:
            return
        self.runner.cwd = self.base
        sizes = self.runner.must(["du", "-scm", *there], "django: the installers' caches could not be measured")
        if int(sizes.split("\n")[-2].split()[0]) > self.given["cache_mb"]:
            self.runner.must(["rm", "-rf", *there], "django: the installers' caches could not be emptied")


def main():
    text = {"type": "str", "default": ""}
    lines = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "build_user": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            "kind": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "commit": {"type": "str"},
            "copy_from": {"type": "str"},
            "requirement": {"type": "str"},
            "url": text,
            "submodules": {"type": "bool", "default": False},
            **Access.OPTIONS,
            "subdirectory": text,
            "python": {"type": "str", "default": "python3"},
            "installer": {"type": "str", "choices": ["auto", "uv", "pip"], "default": "auto"},
            "requirements_file": {"type": "str", "default": "requirements.txt"},
            "packages": lines,
            "index_url": text,
            "index_user": text,
            "index_password": {"type": "str", "default": "", "no_log": True},
            "index_trusted": {"type": "bool", "default": False},
            "environment": {"type": "dict", "default": {}},
            "cache_mb": {"type": "int", "default": 2048},
            "before": lines,
            "after": lines,
            "timeout": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    given = module.params
    if read_json("%s/releases/%s/RELEASE.json" % (given["directory"], given["release"])):
        module.exit_json(changed=False)
    if not module.check_mode:
        try:
            with OneBuild(given["directory"], given["timeout"]):
                if read_json("%s/releases/%s/RELEASE.json" % (given["directory"], given["release"])):
                    module.exit_json(changed=True)
                Build(given).run()
                if given["archive"]:
                    os.unlink(given["archive"])
        except Refused as refusal:
            module.fail_json(msg="%s\nThe build was removed; what is live was not touched." % refusal)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
