#!/usr/bin/python
"""Drain a server of a running HAProxy, or readmit it, and wait until that is so."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: Drain a server of a running HAProxy, or readmit it
description:
  - Speaks to the instance's sockets. What it sets outlives reloads and restarts of HAProxy.
options:
  instance:
    description: The instance's name.
    type: str
    required: true
  server:
    description: The server, or backend/server where it is in several backends.
    type: str
    required: true
  state:
    description: C(drained) waits until no session is left; C(ready) until the server passes its health checks.
    type: str
    choices: [drained, ready]
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
  last:
    description: Whether the last server that is up may be drained.
    type: bool
    default: false
author: Stepladder
"""

import csv
import os
import re
import socket
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

PAUSE = 0.2
# Bits of a server's administrative state: forced maintenance, forced drain.
TAKEN_OUT = 0x01 | 0x08
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
        return [row for row in rows if row.get("type") == "2"]

    def is_taken_out(self, backend, server):
        """Whether somebody has drained the server or put it into maintenance; its status also says what checks find."""
        lines = self.ask("show servers state").splitlines()
        columns = next(line for line in lines if line.startswith("# ")).split()[1:]
        for line in lines:
            row = dict(zip(columns, line.split(), strict=False))
            if (row.get("be_name"), row.get("srv_name")) == (backend, server):
                return bool(int(row["srv_admin_state"]) & TAKEN_OUT)
        return False

    def old_workers(self):
        table = self.ask("show proc", "master")
        found = re.search(r"(?ms)^# old workers\n(.*?)(^#|\Z)", table)
        return re.findall(r"(?m)^(\d+)\s+worker", found.group(1)) if found else []

    def sessions(self, backend, server):
        """Sessions that are on a server or queue for it, in all processes."""
        rows = self.servers()
        for worker in self.old_workers():
            try:
                rows += self.servers(worker)
            except Refused:
                continue  # it has just ended
        return sum(
            int(row["scur"] or 0) + int(row["qcur"] or 0)
            for row in rows
            if (row["pxname"], row["svname"]) == (backend, server)
        )

    def save(self):
        """Have the states written down for the next process."""
        done = subprocess.run(
            ["/etc/haproxy-%s/control" % self.name, "save-state"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise Refused(done.stdout.decode("utf-8", "replace").strip())


def find(rows, wanted):
    """The row of a server named `server` or `backend/server`. Raises Refused."""
    found = [row for row in rows if wanted in (row["svname"], "%s/%s" % (row["pxname"], row["svname"]))]
    if not found:
        known = ", ".join(sorted("%s/%s" % (row["pxname"], row["svname"]) for row in rows)) or "none"
        raise Refused("there is no server %s. There are: %s." % (wanted, known))
    if len(found) > 1:
        listed = ", ".join("%s/%s" % (row["pxname"], row["svname"]) for row in found)
        raise Refused("%s is the name of several servers. Say which: %s." % (wanted, listed))
    return found[0]


def is_up(row):
    """Whether new requests go to the server; one without health checks counts as up."""
    return not row["status"].startswith(OUT_OF_ROTATION)


def drain(instance, row, params, check):
    backend, server = row["pxname"], row["svname"]
    others = [other for other in instance.servers() if other["pxname"] == backend and other["svname"] != server]
    changed = not instance.is_taken_out(backend, server)
    if changed and not params["last"] and not any(is_up(other) for other in others):
        raise Refused(
            "%s/%s is the last server that is up; drained, nobody would be answered. Nothing was changed. "
            "Readmit another one first, or set haproxy_drain_last: true." % (backend, server)
        )
    if check:
        return {"changed": changed}
    if changed:
        instance.tell("set server %s/%s state drain" % (backend, server))
        instance.save()
    started = time.monotonic()
    left = instance.sessions(backend, server)
    while left and time.monotonic() < started + params["seconds"]:
        time.sleep(PAUSE)
        left = instance.sessions(backend, server)
    if left and params["leftover"] == "fail":
        raise Refused(
            "%s/%s still has %d sessions after %d s. It stays drained: run this again to wait on, readmit it, or set "
            "haproxy_drain_leftover: close to end them." % (backend, server, left, params["seconds"])
        )
    if left:
        close(instance, backend, server)
    return {
        "changed": changed or bool(left),
        "closed_sessions": left,
        "waited_seconds": round(time.monotonic() - started, 1),
    }


def close(instance, backend, server):
    """End a server's sessions; those of a process that a reload has left can only be ended one by one."""
    instance.tell("shutdown sessions server %s/%s" % (backend, server))
    theirs = re.compile(r"(?m)^(0x[0-9a-f]+): .* be=%s srv=%s " % (re.escape(backend), re.escape(server)))
    for worker in instance.old_workers():
        for session in theirs.findall(instance.ask("@!%s show sess" % worker, "master")):
            instance.ask("@!%s shutdown session %s" % (worker, session), "master")


def readmit(instance, row, params, check):
    backend, server = row["pxname"], row["svname"]
    changed = instance.is_taken_out(backend, server)
    if check:
        return {"changed": changed}
    if changed:
        instance.tell("set server %s/%s state ready" % (backend, server))
        instance.save()
    started = time.monotonic()
    row = find(instance.servers(), "%s/%s" % (backend, server))
    while not row["status"].startswith(("UP", "no check")) and time.monotonic() < started + params["seconds"]:
        time.sleep(PAUSE)
        row = find(instance.servers(), "%s/%s" % (backend, server))
    if not row["status"].startswith(("UP", "no check")):
        said = "%s %s" % (row["check_code"] or row["check_status"], row["last_chk"])
        raise Refused(
            "%s/%s was readmitted, but is %s after %d s: its health check says %s. HAProxy sends it nothing until it "
            "passes." % (backend, server, row["status"], params["seconds"], said.strip())
        )
    instance.save()
    return {"changed": changed, "waited_seconds": round(time.monotonic() - started, 1)}


def main():
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "state": {"type": "str", "required": True, "choices": ["drained", "ready"]},
            "seconds": {"type": "int", "default": 60},
            "leftover": {"type": "str", "choices": ["fail", "close"], "default": "fail"},
            "last": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    instance = Instance(params["instance"])
    if module.check_mode and not os.path.exists(instance.run):
        module.exit_json(changed=True)
    try:
        row = find(instance.servers(), params["server"])
        act = drain if params["state"] == "drained" else readmit
        module.exit_json(**act(instance, row, params, module.check_mode))
    except Refused as refusal:
        module.fail_json(msg="haproxy: %s" % refusal)


if __name__ == "__main__":
    main()
