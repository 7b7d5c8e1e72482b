"""What modules that run a site's units share: files, systemctl, one run at a time, and secrets kept out of what is said."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess

SECRET = re.compile(r"PASS|SECRET|KEY|TOKEN|DSN|CREDENTIAL|URL|AUTH", re.I)
ADDRESS_PASSWORD = re.compile(r"(://[^\s:/@]*:)[^\s@]+@")


class Refused(Exception):
    """What stops the run; its text is the sentence for the operator."""


def read(path):
    """A file's text, None where there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def text_of(path):
    """A file's text, empty where it cannot be read."""
    try:
        return read(path) or ""
    except OSError:
        return ""


def write(path, text, mode=0o644):
    """Replace a file atomically and durably; its folder is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(temporary, mode)
    os.replace(temporary, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def run(*words, timeout=120):
    """Run a command; returns (exit code, standard output, standard error), 124 when it does not end in time."""
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return 124, "", "%s did not answer within %s s" % (words[0], timeout)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace").strip()


def systemctl(*words, timeout=120):
    """Run systemctl; returns (exit code, what it said)."""
    code, output, error = run("systemctl", "--no-ask-password", *words, timeout=timeout)
    return code, (output + error).strip()


def show(units, properties):
    """systemd's properties of units, by name."""
    if not units:
        return {}
    output = systemctl("show", "-p", properties, "--", *units)[1]
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in output.split("\n\n")]
    return dict(zip(units, blocks, strict=True))


def journal(unit, since, lines):
    """The last lines of a unit's journal since a time (seconds since the epoch)."""
    words = ("-n", str(lines), "-o", "cat", "--since", "@%d" % since, "-u", unit)
    return "".join(run("journalctl", "--no-pager", *words)[1:]).strip()


def masked(text, paths):
    """Text without the values of environment files whose names sound secret, and without passwords in addresses."""
    hidden = set()
    for path in paths:
        for line in (read(path) or "").splitlines():
            key, _, value = line.partition("=")
            value = value.strip().strip("\"'")
            if SECRET.search(key) and len(value) > 3:
                hidden.add(value)
    for value in sorted(hidden, key=len, reverse=True):
        text = text.replace(value, "********")
    return ADDRESS_PASSWORD.sub(r"\1********@", text)


def lock(path):
    """Hold a lock for as long as what is returned is open; None when another run holds it."""
    handle = open(path, "w")  # noqa: SIM115 (it is held until the caller ends)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return handle
