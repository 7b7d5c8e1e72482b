#!/usr/bin/python
"""Bring the administrators' accounts into their states, and tell what this host is like, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: base_host
short_description: Bring administrators' accounts into their states, and tell what the host is like
description:
  - Makes, unlocks, locks or deletes accounts and sets their additional groups. Keys and sudo rules are files, and not its business.
  - An account that is not listed is never touched. When one of the accounts may not be changed, none is.
  - Returns what the role's other tasks must know (C(own_clock), C(own_kernel), C(ssh_client), C(ssh_port), C(locale_ready), C(locale_file),
    C(timezone_file)).
options:
  administrators:
    description: The accounts, as in the role's C(base_administrators).
    type: list
    elements: dict
    required: true
  timezone:
    description: The time zone that the host is to have; refused when the host does not know it.
    type: str
    required: true
  locale:
    description: The locale that the host is to have.
    type: str
    required: true
author: Stepladder
"""

import grp
import os
import pwd
import re
import signal
import subprocess

from ansible.module_utils.basic import AnsibleModule

FIRST_PERSON = 1000
LOCKED_DAY = "1"  # the second of January 1970: an account that expired then takes no key either
CLOCK = 25  # CAP_SYS_TIME
ZONES = "/usr/share/zoneinfo"
LOCALES = "/usr/share/i18n/locales"
BUILT_IN_LOCALES = ("C", "POSIX", "C.UTF-8")


class Refused(Exception):
    """An account that must not be changed; its text is the sentence for the operator."""


def run(*command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def account(name):
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def shadow(name):
    """The (password field, day of expiry) of an account."""
    with open("/etc/shadow") as handle:
        for line in handle:
            fields = line.rstrip("\n").split(":")
            if fields[0] == name:
                return fields[1], fields[7]
    return "", ""


def groups_of(name):
    return sorted(group.gr_name for group in grp.getgrall() if name in group.gr_mem)


def has_own_clock():
    """Whether this host may set its clock: a container has its host's."""
    with open("/proc/self/status") as handle:
        capabilities = next((line.split()[1] for line in handle if line.startswith("CapEff")), "0")
    return bool(int(capabilities, 16) >> CLOCK & 1) and not os.path.exists("/run/systemd/container")


def has_own_kernel():
    """Whether kernel settings can be written here: in a container they belong to its host."""
    return not os.statvfs("/proc/sys").f_flag & os.ST_RDONLY


def parent(pid):
    with open("/proc/%d/stat" % pid) as handle:
        return int(handle.read().rpartition(")")[2].split()[1])


def ssh_connection():
    """The (client's address, port of sshd) by which this run came in; sudo hides them from us, but not from our parents."""
    pid = os.getpid()
    while pid > 1:
        try:
            with open("/proc/%d/environ" % pid, "rb") as handle:
                words = dict(item.split(b"=", 1) for item in handle.read().split(b"\0") if b"=" in item)
            if b"SSH_CONNECTION" in words:
                client, _port, _server, port = words[b"SSH_CONNECTION"].decode().split()
                return client, int(port)
            pid = parent(pid)
        except OSError:
            break
    return "", 0


def locale_is_ready(name):
    """Whether a locale is there and will be made again when the C library is upgraded."""
    if name in BUILT_IN_LOCALES:
        return True
    have = {line.strip().lower().replace("utf-8", "utf8") for line in run("locale", "-a")[1].splitlines()}
    try:
        with open("/etc/locale.gen") as handle:
            kept = any(line.split()[:1] == [name] for line in handle)
    except FileNotFoundError:
        kept = False
    return kept and name.lower().replace("utf-8", "utf8") in have


def log_out(uid):
    """End whatever runs under an account; sessions are among it."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat("/proc/" + name).st_uid == uid:
                os.kill(int(name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


def refuse(entries, timezone, locale):
    """Raise Refused when an account must not be touched, or for a name that this host does not know."""
    if os.path.isdir(ZONES) and not os.path.isfile(os.path.join(ZONES, timezone)):
        raise Refused(
            "this host does not know the time zone %s. Set base_timezone to a name under %s." % (timezone, ZONES)
        )
    source = re.sub(r"\.[^@]*", "", locale)
    if os.path.isdir(LOCALES) and locale not in BUILT_IN_LOCALES and not os.path.exists(os.path.join(LOCALES, source)):
        raise Refused("this host does not know the locale %s. Set base_locale to one of %s." % (locale, LOCALES))
    connecting = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    for entry in entries:
        name, now = entry["name"], account(entry["name"])
        if now and now.pw_uid < FIRST_PERSON:
            raise Refused("%s is one of the system's own accounts. Take it out of base_administrators." % name)
        if entry.get("state") == "absent" and name == connecting:
            raise Refused(
                "this run is logged in as %s, which base_administrators lists as absent: it would lock itself out. "
                "Run it as another administrator." % name
            )
    known = {group.gr_name for group in grp.getgrall()}
    for entry in entries:
        missing = sorted(set(entry.get("groups") or []) - known)
        if missing and entry.get("state") != "absent":
            raise Refused(
                "%s should be in the group %s, which does not exist on this host. Make it first, or take it out of "
                "base_administrators." % (entry["name"], ", ".join(missing))
            )


def steps(entry):
    """The commands that bring one account into its state, each with the words for the diff."""
    name, now = entry["name"], account(entry["name"])
    if entry.get("state") == "absent":
        return steps_away(entry, now)
    wanted = list(entry.get("groups") or [])
    if not now:
        command = ["useradd", "--create-home", "--shell", "/bin/bash"]
        command += ["--groups", ",".join(wanted)] if wanted else []
        same_group = name in {group.gr_name for group in grp.getgrall()}
        return [("made", [*command, *(["--gid", name] if same_group else []), name])]
    found = []
    password, expires = shadow(name)
    if expires == LOCKED_DAY:
        found.append(("unlocked", ["usermod", "--expiredate", "", name]))
        if password.startswith("!$"):
            found.append(("password unlocked", ["usermod", "--unlock", name]))
    missing = sorted(set(wanted) - set(groups_of(name)) - {grp.getgrgid(now.pw_gid).gr_name})
    if missing:
        found.append(("put into " + ", ".join(missing), ["usermod", "--append", "--groups", ",".join(missing), name]))
    if entry.get("sudo", True) is False and "sudo" in groups_of(name):
        found.append(("taken out of sudo", ["gpasswd", "--delete", name, "sudo"]))
    return found


def steps_away(entry, now):
    name = entry["name"]
    if not now:
        return []
    found = []
    _password, expires = shadow(name)
    keys = [os.path.join(now.pw_dir, ".ssh", file) for file in ("authorized_keys", "authorized_keys2")]
    keys = [path for path in keys if os.path.lexists(path)]
    if expires != LOCKED_DAY:
        found.append(("locked", ["usermod", "--lock", "--expiredate", LOCKED_DAY, name]))
        found.append(("logged out", None))
    if keys:
        found.append(("keys removed", ["rm", "-f", "--", *keys]))
    if "sudo" in groups_of(name):
        found.append(("taken out of sudo", ["gpasswd", "--delete", name, "sudo"]))
    if entry.get("remove"):
        found.append(("deleted, its files stay", ["userdel", name]))
    return found


def bring(entries, check):
    """Bring the accounts into their states; returns what was done, in words."""
    done = []
    for entry in entries:
        for words, command in steps(entry):
            done.append("%s: %s" % (entry["name"], words))
            if check:
                continue
            if command is None:
                log_out(pwd.getpwnam(entry["name"]).pw_uid)
                continue
            code, output = run(*command)
            if code:
                raise Refused("%s could not be %s: %s" % (entry["name"], words, output))
    return done


def main():
    module = AnsibleModule(
        argument_spec={
            "administrators": {"type": "list", "elements": "dict", "required": True, "no_log": False},
            "timezone": {"type": "str", "required": True},
            "locale": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    entries = module.params["administrators"]
    try:
        refuse(entries, module.params["timezone"], module.params["locale"])
        done = bring(entries, module.check_mode)
    except Refused as refusal:
        module.fail_json(msg="base: %s" % refusal)
    client, port = ssh_connection()
    module.exit_json(
        changed=bool(done),
        steps=done,
        diff={
            "before_header": "accounts",
            "after_header": "accounts",
            "before": "",
            "after": "".join(s + "\n" for s in done),
        },
        own_clock=has_own_clock(),
        own_kernel=has_own_kernel(),
        ssh_client=client,
        ssh_port=port,
        locale_ready=locale_is_ready(module.params["locale"]),
        locale_file=os.path.realpath("/etc/default/locale"),
        timezone_file=os.path.exists("/etc/timezone"),
    )


if __name__ == "__main__":
    main()
