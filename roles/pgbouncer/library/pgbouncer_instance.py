#!/usr/bin/python
"""Look at a host's PgBouncer instance, or bring its running processes to what its files say."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_instance
short_description: Look at a host's PgBouncer instance, or bring its processes to what its files say
description:
  - Asks the instance's own program (C(/etc/pgbouncer-<name>/control)) where it is there.
  - C(look) changes nothing. C(apply) reloads what a reload is enough for and restarts the rest, one process after the
    other; in check mode it only says what it would do.
options:
  action:
    description: What to do.
    type: str
    choices: [look, apply]
    required: true
  name:
    description: The instance's name.
    type: str
    required: true
  port:
    description: The port that it is to have (C(look)).
    type: int
  files:
    description: Files that the service's account must be able to read (C(look)).
    type: list
    elements: str
    default: []
  tls_group:
    description: The group by which it reads them.
    type: str
    default: ""
  restart:
    description: Whether processes may be restarted (C(apply)).
    type: bool
    default: false
author: Stepladder
"""

import grp
import json
import os
import pwd
import subprocess

from ansible.module_utils.basic import AnsibleModule

DEBIANS = "pgbouncer.service"
KERNEL_SETTING = "/proc/sys/net/ipv4/tcp_migrate_req"
LISTEN = "0A"


def listeners(text, port):
    """The accounts (uid) of sockets that listen on a port, of a table like /proc/net/tcp."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[3] == LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
            found.add(int(fields[7]))
    return found


def taken(port, uid):
    """Whether another account's program listens on the port; two of the same account share it."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as stream:
                if listeners(stream.read(), port) - {uid}:
                    return True
        except OSError:
            continue
    return False


def readable(path, group):
    """Whether somebody else may read a file, or the group may. Folders above are not asked about."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    if info.st_mode & 0o004:
        return True
    try:
        return bool(group) and info.st_gid == grp.getgrnam(group).gr_gid and bool(info.st_mode & 0o040)
    except KeyError:
        return False


def kernel(path=KERNEL_SETTING):
    """Whether clients in a closing process's queue go to another process, and whether this host may decide that.

    A container may not: its host sets it. A kernel before 5.14 does not know it.
    """
    try:
        with open(path) as stream:
            return {"migrates": stream.read().strip() == "1", "own_kernel": not os.statvfs(path).f_flag & os.ST_RDONLY}
    except OSError:
        return {"migrates": False, "own_kernel": False}


def run(module, command):
    code, output, errors = module.run_command(command)
    if code:
        module.fail_json(msg=(errors or output).strip())
    return output


def look(module):
    name = module.params["name"]
    try:
        uid = pwd.getpwnam("pgbouncer-" + name).pw_uid
    except KeyError:
        uid = -1
    control = "/etc/pgbouncer-%s/control" % name
    installed = os.path.exists("/usr/sbin/pgbouncer")
    active = subprocess.run(["systemctl", "is-active", "--quiet", DEBIANS], stdin=subprocess.DEVNULL)
    now = {"processes": {}, "surplus": []}
    if installed and uid >= 0 and os.path.exists(control):
        now = json.loads(run(module, [control, "state"]))
    return {
        "changed": False,
        "installed": installed and uid >= 0,
        "package": installed,
        "debian_runs": active.returncode == 0,
        "port_taken": taken(module.params["port"], uid),
        "unreadable": [path for path in module.params["files"] if not readable(path, module.params["tls_group"])],
        **kernel(),
        **now,
    }


def pending(now, may_restart):
    """What `apply` would do, and which processes would wait for a restart."""
    todo, waits = [], []
    for number, one in sorted(now["processes"].items(), key=lambda item: int(item[0])):
        if one["restart"] and may_restart:
            todo.append("restarted process %s" % number)
        elif one["reload"]:
            todo.append("reloaded process %s" % number)
        if one["restart"] and not may_restart:
            waits.append(int(number))
    todo += ["ended process %s" % number for number in now["surplus"]]
    return todo, waits


def apply(module):
    control = "/etc/pgbouncer-%s/control" % module.params["name"]
    if module.check_mode:
        now = (
            json.loads(run(module, [control, "state"])) if os.path.exists(control) else {"processes": {}, "surplus": []}
        )
        done, waits = pending(now, module.params["restart"])
        return {"changed": bool(done), "done": done, "waits": waits, "sent_away": 0}
    answer = json.loads(run(module, [control, "apply"] + (["--restart"] if module.params["restart"] else [])))
    return {"changed": bool(answer["done"]), **answer}


def main():
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["look", "apply"], "required": True},
            "name": {"type": "str", "required": True},
            "port": {"type": "int"},
            "files": {"type": "list", "elements": "str", "default": []},
            "tls_group": {"type": "str", "default": ""},
            "restart": {"type": "bool", "default": False},
        },
        required_if=[("action", "look", ["port"])],
        supports_check_mode=True,
    )
    module.exit_json(**(look if module.params["action"] == "look" else apply)(module))


if __name__ == "__main__":
    main()
