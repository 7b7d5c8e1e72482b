#!/usr/bin/python
"""Drain a server of a running HAProxy, readmit it, or say how all of them are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: Drain a server of a running HAProxy, readmit it, or say how all of them are
description:
  - Speaks to the instance's sockets. What it sets outlives reloads and restarts of HAProxy.
  - Returns C(servers), a dictionary of how they are then, by C(backend/server).
options:
  instance:
    description: The instance's name.
    type: str
    required: true
  server:
    description: The server, or backend/server where it is in several backends. Not for C(asked).
    type: str
  state:
    description:
      - C(drained) waits until no session is left; C(ready) until the server passes its health checks anew;
        C(asked) only says how the servers are.
    type: str
    choices: [drained, ready, asked]
    required: true
  seconds:
    description: How long to wait.
    type: int
    default: 60
  leftover:
    description: What becomes of sessions that do not end in time, C(fail) the task or C(close) them.
    type: str
    choices: [fail, close]
    default: fail
  healthy:
    description: Whether a server that is readmitted has to pass its health checks; a database that is not the primary does not.
    type: bool
    default: true
  last:
    description: Whether the last server that is up may be drained.
    type: bool
    default: false
author: Stepladder
"""

import contextlib
import csv
import fcntl
import os
import re
import socket
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

PAUSE = 0.2
# Bits of a server's administrative state.
FORCED_MAINTENANCE, FORCED_DRAIN = 0x01, 0x08
OWN = "stepladder_"  # what the role's configuration has for itself
OUT_OF_ROTATION = ("DRAIN", "MAINT", "DOWN", "NOLB")


class Refused(Exception):
    """What cannot be done; its text is the sentence for the operator."""


class Instance:
    """A running HAProxy, through its sockets."""

    def __init__(self, name):
        self.name = name
        self.run = "/run/haproxy-%s" % name

    def ask(self, command, sock="admin"):
        """What HAProxy answers. Raises Refused when it does not."""
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(10)
            connection.connect("%s/%s.sock" % (self.run, sock))
            connection.sendall((command + "\n").encode())
            connection.shutdown(socket.SHUT_WR)  # else the master waits for more
            parts = []
            while True:
                part = connection.recv(65536)
                parts.append(part)
                # The master says so and then waits on: that process has just ended.
                if not part or part.startswith(b"Can't find the target"):
                    break
            connection.close()
        except OSError as error:
            raise Refused(
                "HAProxy's instance %s does not answer at %s/%s.sock (%s). Start haproxy-%s.service first."
                % (self.name, self.run, sock, error.strerror or error, self.name)
            )
        return b"".join(parts).decode("utf-8", "replace")

    def tell(self, command):
        """A command that answers with nothing when it is carried out. Raises Refused."""
        said = self.ask(command).strip()
        if said:
            raise Refused("HAProxy refused `%s`: %s" % (command, said))

    def servers(self, worker=None):
        """Rows of `show stat` for servers, of the current process or of one that a reload has left."""
        text = self.ask("show stat") if worker is None else self.ask("@!%s show stat" % worker, "master")
        start = text.find("# pxname")
        rows = csv.DictReader(text[start + 2 :].splitlines()) if start >= 0 else []
        return [row for row in rows if row.get("type") == "2" and not row["pxname"].startswith(OWN)]

    def administrative(self):
        """What somebody has set for each server, as bits; the status in `servers` also says what checks find."""
        lines = self.ask("show servers state").splitlines()
        columns = next(line for line in lines if line.startswith("# ")).split()[1:]
        rows = [dict(zip(columns, line.split(), strict=False)) for line in lines[2:] if line.strip()]
        return {"%s/%s" % (row["be_name"], row["srv_name"]): int(row["srv_admin_state"]) for row in rows}

    def is_taken_out(self, name):
        return bool(self.administrative()[name] & (FORCED_MAINTENANCE | FORCED_DRAIN))

    def old_workers(self):
        table = self.ask("show proc", "master")
        found = re.search(r"(?ms)^# old workers\n(.*?)(^#|\Z)", table)
        return re.findall(r"(?m)^(\d+)\s+worker", found.group(1)) if found else []

    def sessions(self, name):
        """Sessions that are on a server or queue for it, in all processes and by way of those that track it."""
        rows = self.servers()
        for worker in self.old_workers():
            try:
                rows += self.servers(worker)
            except Refused:
                continue  # it has just ended
        return sum(int(row["scur"] or 0) + int(row["qcur"] or 0) for row in rows if name in (path(row), row["tracked"]))

    @contextlib.contextmanager
    def alone(self):
        """Nobody else changes a server meanwhile: two at once could each leave the other as the last one."""
        folder = os.open("/var/lib/haproxy-%s" % self.name, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def save(self):
        """Have the states written down for the next process."""
        done = subprocess.run(
            ["/etc/haproxy-%s/control" % self.name, "save-state"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise Refused(done.stdout.decode("utf-8", "replace").strip())


def path(row):
    return "%s/%s" % (row["pxname"], row["svname"])


def checked(rows):
    """Servers that stand for themselves; one that tracks another follows it."""
    return [row for row in rows if not row["tracked"]]


def find(rows, wanted):
    """The row of a server named `server` or `backend/server`. Raises Refused."""
    found = [row for row in checked(rows) if wanted in (row["svname"], path(row))]
    if not found:
        known = ", ".join(sorted(path(row) for row in checked(rows))) or "none"
        raise Refused("there is no server %s. There are: %s." % (wanted, known))
    if len(found) > 1:
        raise Refused("%s is the name of several servers. Say which: %s." % (wanted, ", ".join(map(path, found))))
    return found[0]


def is_up(row):
    """Whether new requests go to the server; one without health checks counts as up."""
    return not row["status"].startswith(OUT_OF_ROTATION)


def is_healthy(row):
    return row["status"].startswith(("UP", "no check"))


def check_said(row):
    return ("%s %s" % (row["check_code"] or row["check_status"], row["last_chk"])).strip()


def condition(row, bits):
    """One word for how a server is. What somebody has set comes first: checks go on at a drained server, too."""
    if bits & FORCED_MAINTENANCE:
        return "maintenance"
    if bits & FORCED_DRAIN:
        return "drained"
    return "up" if is_up(row) else "down"


def states(instance):
    """How each server is: condition, HAProxy's status, what its last check found, sessions in all processes."""
    bits = instance.administrative()
    return {
        path(row): {
            "state": condition(row, bits[path(row)]),
            "status": row["status"],
            "check": check_said(row),
            "since_seconds": int(row["lastchg"] or 0),
            "sessions": instance.sessions(path(row)),
        }
        for row in checked(instance.servers())
    }


def drain(instance, name, params, check):
    with instance.alone():
        changed = not instance.is_taken_out(name)
        if changed and not params["last"]:
            refuse_the_last(instance, name)
        if check:
            return {"changed": changed}
        if changed:
            instance.tell("set server %s state drain" % name)
            instance.save()
    started = time.monotonic()
    left = instance.sessions(name)
    while left and time.monotonic() < started + params["seconds"]:
        time.sleep(PAUSE)
        left = instance.sessions(name)
    if left and params["leftover"] == "fail":
        raise Refused(
            "%s still has %d sessions after %d s. It stays drained: run this again to wait on, readmit it, or set "
            "haproxy_drain_leftover: close to end them." % (name, left, params["seconds"])
        )
    if left:
        close(instance, name)
    return {
        "changed": changed or bool(left),
        "closed_sessions": left,
        "waited_seconds": round(time.monotonic() - started, 1),
    }


def refuse_the_last(instance, name):
    """A server that is down already takes nothing away."""
    rows = checked(instance.servers())
    backend = find(rows, name)["pxname"]
    up = [path(row) for row in rows if row["pxname"] == backend and is_up(row)]
    if up == [name]:
        raise Refused(
            "%s is the last server that is up; drained, nobody would be answered. It stays up. "
            "Readmit another one first, or set haproxy_drain_last: true." % name
        )


def close(instance, name):
    """End a server's sessions; those of a process that a reload has left can only be ended one by one."""
    for row in instance.servers():
        if name in (path(row), row["tracked"]):
            instance.tell("shutdown sessions server %s" % path(row))
            theirs = re.compile(r"(?m)^(0x[0-9a-f]+): .* be=%s srv=%s " % tuple(map(re.escape, path(row).split("/"))))
            for worker in instance.old_workers():
                for session in theirs.findall(instance.ask("@!%s show sess" % worker, "master")):
                    instance.ask("@!%s shutdown session %s" % (worker, session), "master")


def readmit(instance, name, params, check):
    changed = instance.is_taken_out(name)
    if check:
        return {"changed": changed}
    if changed:
        with instance.alone():
            # What its last check said may be from before the restart that it was drained for.
            if find(instance.servers(), name)["check_status"]:
                instance.tell("set server %s health down" % name)
            instance.tell("set server %s state ready" % name)
            instance.save()
    started = time.monotonic()
    row = find(instance.servers(), name)
    while params["healthy"] and not is_healthy(row) and time.monotonic() < started + params["seconds"]:
        time.sleep(PAUSE)
        row = find(instance.servers(), name)
    if params["healthy"] and not is_healthy(row):
        raise Refused(
            "%s was readmitted, but is %s after %d s: its health check says %s. HAProxy sends it nothing until it "
            "passes." % (name, row["status"], params["seconds"], check_said(row))
        )
    instance.save()
    return {"changed": changed, "waited_seconds": round(time.monotonic() - started, 1)}


def main():
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "server": {"type": "str"},
            "state": {"type": "str", "required": True, "choices": ["drained", "ready", "asked"]},
            "seconds": {"type": "int", "default": 60},
            "leftover": {"type": "str", "choices": ["fail", "close"], "default": "fail"},
            "last": {"type": "bool", "default": False},
            "healthy": {"type": "bool", "default": True},
        },
        required_if=[("state", "drained", ["server"]), ("state", "ready", ["server"])],
        supports_check_mode=True,
    )
    params = module.params
    instance = Instance(params["instance"])
    if module.check_mode and not os.path.exists(instance.run):
        module.exit_json(changed=params["state"] != "asked", servers={})
    try:
        done = {"changed": False}
        if params["state"] != "asked":
            name = path(find(instance.servers(), params["server"]))
            act = drain if params["state"] == "drained" else readmit
            done = act(instance, name, params, module.check_mode)
        module.exit_json(servers=states(instance), **done)
    except Refused as refusal:
        module.fail_json(msg="haproxy: %s" % refusal)


if __name__ == "__main__":
    main()
