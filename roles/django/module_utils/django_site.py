"""What the modules of the django role share: a site's paths, its environment file, and running commands as its users."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import time
import urllib.parse

TAIL_LINES = 40
SECRETS_MARK = "# Secrets"
URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


class Refused(Exception):
    """Something that cannot or must not go on; its text is the sentence for the operator."""


def read_json(path):
    """The JSON document at a path, or None where there is none (or half of one)."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError):
        return None


def write_json(path, value, uid=0, gid=0, mode=0o640):
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=1, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.chown(temporary, uid, gid)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def link_name(path):
    """The last part of what a symbolic link points at, "" where there is no link."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def releases(directory):
    """{release: its RELEASE.json} for every complete release of a site."""
    folder = os.path.join(directory, "releases")
    found = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        record = read_json(os.path.join(folder, name, "RELEASE.json"))
        if record:
            found[name] = record
    return found


def log_entries(directory):
    """The lines of the deploy log, oldest first."""
    entries = []
    try:
        with open(os.path.join(directory, "shared", "deploys.log"), encoding="utf-8") as handle:
            for line in handle:
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    continue
    except FileNotFoundError:
        pass
    return entries


def state(directory):
    """What a host says about a site: its live release and settings, and what it has of both."""
    config = os.path.join(directory, "config")
    live = link_name(os.path.join(directory, "current"))
    known = releases(directory)
    return {
        "live": live if live in known else "",
        "live_config": link_name(os.path.join(directory, "current-config")),
        "releases": known,
        "configs": sorted(os.listdir(config)) if os.path.isdir(config) else [],
    }


def parse_environment(text):
    """(variables, names of the secret ones) of an environment file written by this role.

    The format is systemd's EnvironmentFile= with every value in double quotes, which a shell reads alike.
    """
    values, secrets, secret = {}, [], False
    for line in text.splitlines():
        if line.startswith(SECRETS_MARK):
            secret = True
        if not line or line.startswith("#"):
            continue
        name, quoted = line.split("=", 1)
        values[name] = re.sub(r"\\(.)", r"\1", quoted[1:-1])
        if secret:
            secrets.append(name)
    return values, secrets


def read_environment(path):
    with open(path, encoding="utf-8") as handle:
        return parse_environment(handle.read())


class Runner:
    """Runs commands as one of the site's users, with a clean environment and secrets kept out of what is reported."""

    def __init__(self, user, cwd, environment=None, path=(), secrets=(), timeout=3600):
        self.account = pwd.getpwnam(user)
        self.cwd, self.timeout = cwd, timeout
        forms = (str, lambda value: json.dumps(value)[1:-1], repr, lambda value: urllib.parse.quote(value, safe=""))
        self.secrets = sorted(
            {form(value) for value in secrets if len(value) > 3 for form in forms}, key=len, reverse=True
        )
        kept = {name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")}
        self.environment = dict(
            kept,
            PATH=":".join([*path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]),
            HOME=self.account.pw_dir,
            USER=user,
            LOGNAME=user,
            LANG="C.UTF-8",
            **(environment or {}),
        )

    def become(self):
        os.initgroups(self.account.pw_name, self.account.pw_gid)
        os.setgid(self.account.pw_gid)
        os.setuid(self.account.pw_uid)
        os.setsid()

    def clean(self, text):
        for value in self.secrets:
            text = text.replace(value, "********")
        return URL_CREDENTIALS.sub("********@", text)

    def run(self, argv, input_file=None, environment=None, umask=0o027):
        """(exit code, standard output, everything it said). A shell line is given as text, a command as a list."""
        shell = isinstance(argv, str)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", argv] if shell else argv,
                stdin=input_file or subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.cwd,
                env=dict(self.environment, **(environment or {})),
                preexec_fn=self.become,
                umask=umask,
            )
        except FileNotFoundError as error:
            return 127, "", "%s is not there" % error.filename
        try:
            out, err = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return 124, "", "no end within %d seconds; it was stopped" % self.timeout
        out, err = (self.clean(part.decode("utf-8", "replace")) for part in (out, err))
        return process.returncode, out, (out + err).strip()

    def must(self, argv, what, **more):
        """Run and return standard output. Raises Refused with the command's own last words."""
        code, out, said = self.run(argv, **more)
        if code:
            raise Refused("%s (exit %d). Its last words:\n%s" % (what, code, tail(said)))
        return out


def tail(text):
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:]) or "(none)"


def site_runner(directory, release, config, user, timeout=3600):
    """A Runner with a release's programs and a configuration's environment, as the service user."""
    home = os.path.join(directory, "releases", release)
    record = read_json(os.path.join(home, "RELEASE.json"))
    if not record:
        raise Refused("django: the release %s is not on this host (looked in %s)." % (release, home))
    environment, secrets = read_environment(os.path.join(directory, "config", config, "env"))
    environment["SITE_RELEASE"] = release
    return Runner(
        user,
        record["code"],
        environment,
        path=(os.path.join(home, "venv", "bin"),),
        secrets=[environment[name] for name in secrets],
        timeout=timeout,
    )


def management(directory, release, words):
    """The argv that runs a management command: the project's own manage.py where it has one."""
    home = os.path.join(directory, "releases", release)
    python = os.path.join(home, "venv", "bin", "python")
    manage = os.path.join(read_json(os.path.join(home, "RELEASE.json"))["code"], "manage.py")
    return [python, manage, *words] if os.path.exists(manage) else [python, "-m", "django", *words]


def helper(directory, release, words):
    """The argv that runs the kit's own helper inside a release."""
    python = os.path.join(directory, "releases", release, "venv", "bin", "python")
    return [python, "/usr/local/lib/stepladder/django_helper.py", *words]


def ask(runner, directory, release, verb, what, **given):
    """Ask the kit's helper inside a release; returns its answer. Raises Refused with the helper's sentence."""
    out = runner.must(helper(directory, release, [verb, json.dumps(given)]), what)
    answer = json.loads(out.strip().splitlines()[-1])
    if "refused" in answer:
        raise Refused("django: " + answer["refused"])
    return answer


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
