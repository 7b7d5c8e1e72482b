"""An instance on this host: its files, its unit, the way into it, and the proof that it answers."""

from __future__ import annotations

import contextlib
import glob
import grp
import os
import pwd
import re
import socket
import ssl
import stat
import subprocess
import time

from ansible.module_utils.redis_wire import LOCAL, ErrorReply, Refused, by_socket, by_tls, reachable, setting, sha256

PATIENCE = 60  # seconds that a started server may take to answer
UP = ("active", "reloading")

ARGUMENTS = {
    "acl": {"type": "str", "required": True, "no_log": True},
    "config": {"type": "str", "required": True, "no_log": True},
    "admin_password": {"type": "str", "required": True, "no_log": True},
    "bind": {"type": "list", "elements": "str", "required": True},
    "port": {"type": "int", "required": True},
    "key": {"type": "str", "required": True, "no_log": False},  # a path
    "tls_name": {"type": "str", "default": ""},
    **{
        name: {"type": "str", "required": True}
        for name in ("name", "flavor", "admin", "certificate", "ca", "tls_group")
    },
}


class Place:
    """One instance on this host and what is known about it."""

    def __init__(self, params):
        self.params = params
        self.name = params["name"]
        self.user = "redis-%s" % self.name
        self.unit = "redis-%s.service" % self.name
        self.etc, self.data = "/etc/redis-%s" % self.name, "/var/lib/redis-%s" % self.name
        self.socket = "/run/redis-%s/redis.sock" % self.name
        self.program = "/usr/bin/%s-server" % params["flavor"]
        self.secret = read("%s/local" % self.etc).strip()
        self.local_hash = sha256(self.secret) if self.secret else ""

    def units(self):
        """(whether the instance runs, its process, whether Debian's own one runs)."""
        names = [self.unit, "%s-server.service" % self.params["flavor"]]
        done = subprocess.run(
            ["systemctl", "show", "-p", "ActiveState,NRestarts,MainPID", "--", *names],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        blocks = [
            dict(line.split("=", 1) for line in block.splitlines()) for block in done.stdout.strip().split("\n\n")
        ]
        own, debian = [block.get("ActiveState", "") for block in blocks]
        # What starts again and again does not run: nobody can ask it, and this run may be what mends it.
        running = own in UP or (own == "activating" and blocks[0].get("NRestarts") == "0")
        return running, blocks[0].get("MainPID", "0"), debian in (*UP, "activating")

    def connect(self):
        """A connection of an administrator: by the host's own password, else by the one that the play gives."""
        client = by_socket(self.socket)
        for user, password in ((LOCAL, self.secret), (self.params["admin"], self.params["admin_password"])):
            try:
                if password:
                    client.call("AUTH", user, password)
                    return client
            except ErrorReply as error:
                if error.args[0].startswith("LOADING"):
                    client.close()
                    raise Loading(str(error))
        client.close()
        raise Refused(
            "redis: %s takes neither the password in %s/local nor redis_admin_password. The server was left alone. Restart %s: it "
            "then reads its users from %s/users.acl." % (self.unit, self.etc, self.unit, self.etc)
        )

    def connect_patiently(self):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                client = self.connect()
                client.call("PING")
                return client
            except (OSError, Loading, ErrorReply) as error:
                if time.monotonic() > end:
                    raise Refused(
                        "redis: %s runs and does not answer on %s after %d s: %s. Look at `journalctl -u %s`."
                        % (self.unit, self.socket, PATIENCE, error, self.unit)
                    )
                time.sleep(0.1)

    def facts(self):
        """What preflight asks about the host."""
        params = self.params
        running, pid, debian_runs = self.units()
        return {
            "installed": os.path.exists(self.program)
            and exists(pwd.getpwnam, self.user)
            and exists(grp.getgrnam, params["tls_group"]),
            "debian_runs": debian_runs,
            "running": running,
            "port_taken": bool(listeners(params["port"]) - sockets(pid)),
            "strange_addresses": [address for address in params["bind"] if strange(address)],
            "unreadable": [
                params[key] for key in ("certificate", "key", "ca") if not readable(params[key], params["tls_group"])
            ],
            "local_hash": self.local_hash,
            **self.made_as(),
        }

    def made_as(self):
        """What the unit of this name runs now."""
        found = re.search(r"^ExecStart=/usr/bin/(\w+)-server (.*)$", read("/etc/systemd/system/%s" % self.unit), re.M)
        return {"flavor": found[1] if found else "", "is_sentinel": "--sentinel" in found[2] if found else None}

    def proof(self):
        """Why an authenticated PING over verified TLS does not work, or "", and the certificate that was served."""
        params = self.params
        pair = (params["certificate"], params["key"]) if setting(params["config"], "tls-auth-clients") != "no" else None
        where = (reachable(params["bind"]), params["port"])
        served = None
        try:
            client, served = by_tls(*where, params["ca"], pair, params["tls_name"])
            try:
                client.call("AUTH", params["admin"], params["admin_password"])
                answer = client.call("PING")
            finally:
                client.close()
        except (OSError, ssl.SSLError, ErrorReply) as error:
            return "%s:%d: %s" % (*where, error), served
        return ("" if answer == "PONG" else "%s:%d answers %s" % (*where, answer)), served


class Loading(Exception):
    """The server reads its data and will answer later."""


def read(path):
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def listeners(port):
    """The inodes of the sockets that listen on a TCP port of this host."""
    found = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(path).splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and int(words[1].rsplit(":", 1)[1], 16) == port:
                found.add(words[9])
    return found


def sockets(pid):
    """The inodes of the sockets that a process has open."""
    found = set()
    for path in glob.glob("/proc/%s/fd/*" % pid):
        with contextlib.suppress(OSError):
            found.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(path)))
    return found


def strange(address):
    """Whether a server could not start on an address, because this host does not have it."""
    if address.startswith("-") or address in ("*", "::*"):
        return False
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return True
    return False


def readable(path, group):
    """Whether a member of the group may read a file."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    try:
        belongs = info.st_gid == grp.getgrnam(group).gr_gid
    except KeyError:
        belongs = False
    return bool(info.st_mode & stat.S_IROTH or (belongs and info.st_mode & stat.S_IRGRP))


def exists(lookup, name):
    try:
        lookup(name)
    except KeyError:
        return False
    return True


def bring_users(client, wanted, given):
    """Set the users that are not listed as `wanted`, by the rules in `given`; cut off all others; returns their names."""
    listed = client.users()
    done = []
    for name in sorted(wanted):
        if listed.get(name) != wanted[name]:
            command(client, "ACL", "SETUSER", name, *given[name])
            done.append(name)
    surplus = sorted(set(listed) - set(wanted))
    if surplus:
        command(client, "ACL", "DELUSER", *surplus)
    return done + surplus


def command(client, *words):
    try:
        return client.call(*words)
    except ErrorReply as error:
        # A command's arguments may be hashes; its first words are enough.
        raise Refused("redis: the server refused %s: %s" % (" ".join(words[:3]), error))
