"""What the modules of the django role share: a site's paths, its environment file, and running commands as its users."""

from __future__ import annotations

import ctypes
import errno
import fcntl
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
ANSWER_MARK = "stepladder: "
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
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
        os.fchown(handle.fileno(), uid, gid)
        os.fchmod(handle.fileno(), mode)
        os.fsync(handle.fileno())
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


def noted(entries, live, live_config):
    """Whether the deploy log ends with what is live; a run that was killed right before writing it left it out."""
    return bool(entries) and (entries[-1]["release"], entries[-1]["config"]) == (live, live_config)


def state(directory):
    """What a host says about a site: its live release and settings, and what it has of both."""
    config = os.path.join(directory, "config")
    live, live_config = (link_name(os.path.join(directory, name)) for name in ("current", "current-config"))
    known = releases(directory)
    return {
        "live": live if live in known else "",
        "live_config": live_config,
        "noted": noted(log_entries(directory), live, live_config),
        "releases": known,
        "configs": sorted(os.listdir(config)) if os.path.isdir(config) else [],
    }


def parse_environment(text):
    """(variables, names of the secret ones) of an environment file written by this role.

    The format is systemd's EnvironmentFile= with every value in double quotes, which a shell reads alike.
    """
    values, secrets, secret = {}, [], False
    # Not splitlines(): a value may hold what Unicode calls a line's end.
    for line in text.split("\n"):
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
        # A command does not outlive a run that was killed. After setuid, which clears it.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def clean(self, text):
        for value in self.secrets:
            text = text.replace(value, "********")
        return URL_CREDENTIALS.sub("********@", text)

    def run(self, argv, input_file=None, environment=None, umask=0o027):
        """(exit code, standard output as it was, all it said without secrets). A shell line is text, a command a list."""
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
        out, err = (part.decode("utf-8", "replace") for part in (out, err))
        return process.returncode, out, self.clean(out + err).strip()

    def must(self, argv, what, **more):
        """Run and return standard output as it was. Raises Refused with the command's own last words."""
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
    environment["SITE_DATABASE_DIRECT"] = "1"
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
    """Ask the kit's helper inside a release; returns its answer. Raises Refused with the helper's sentence.

    The answer is read as it was written: a secret that is also a word in it ("orders", say) must not mask the word, or
    a migration would count as one that the other release does not know, and be undone.
    """
    out = runner.must(helper(directory, release, [verb, json.dumps(given)]), what)
    marked = [line for line in out.split("\n") if line.startswith(ANSWER_MARK)]
    if not marked:
        raise Refused("%s: it ended without an answer. Its last words:\n%s" % (what, tail(runner.clean(out))))
    answer = json.loads(marked[-1][len(ANSWER_MARK) :])
    if "refused" in answer:
        raise Refused("django: " + runner.clean(answer["refused"]))
    return answer


def choose_earlier(entries, live, known):
    """The last release that was healthy before the live one and was not rolled back from, "" when none is left.

    Returns (release, those that would have come first but are not on the host any more).
    """
    bad, lost = set(), []
    for entry in reversed(entries):
        name = entry["release"]
        if entry["kind"] == "rollback" and name != entry["previous"]:
            bad.add(entry["previous"])
        if name == live or name in bad:
            continue
        if name in known:
            return name, lost
        if name not in lost:
            lost.append(name)
    return "", lost


class OneBuild:
    """A site's builds one at a time: a run that lost its controller may still be building when the next one comes."""

    def __init__(self, directory, wait):
        self.path, self.wait, self.handle = directory + "/.building", wait, None

    def __enter__(self):
        self.handle = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")
        end = time.monotonic() + self.wait
        while True:
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= end:
                raise Refused(
                    "django: another run has been building on this host for %d seconds (see `fuser -v %s`). "
                    "Run again when it has ended." % (self.wait, self.path)
                )
            time.sleep(0.5)

    def __exit__(self, *_error):
        self.handle.close()


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
