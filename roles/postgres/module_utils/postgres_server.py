"""What the role's modules share: files of an instance, programs run as postgres, and a running server asked by psql."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import struct
import subprocess

ETC, LIB = "/etc/postgresql", "/var/lib/postgresql"
# A standby must have at least what its primary has, else it stops replaying (or does not start).
AT_LEAST = (
    "max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions", "max_locks_per_transaction",
)  # fmt: skip


class Refused(Exception):
    """What keeps the question from being answered, in words."""


def literal(text):
    return "'" + str(text).replace("'", "''") + "'"


def read(path):
    try:
        with open(path) as handle:
            return handle.read()
    except OSError:
        return ""


def data_directory(configuration, default):
    """The data directory that postgresql.conf names; Debian writes it there for every instance."""
    found = re.findall(r"(?m)^\s*data_directory\s*=\s*'([^']+)'", read(os.path.join(configuration, "postgresql.conf")))
    return found[-1] if found else default


def places(version, cluster):
    """(configuration directory, data directory) of an instance."""
    configuration = "%s/%s/%s" % (ETC, version, cluster)
    return configuration, data_directory(configuration, "%s/%s/%s" % (LIB, version, cluster))


def as_postgres(*command, text=None, timeout=60, cwd="/", pass_fds=()):
    """Run a program as the system user postgres; KeyError where there is none."""
    user = pwd.getpwnam("postgres")
    groups = os.getgrouplist("postgres", user.pw_gid)
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=cwd, timeout=timeout, pass_fds=pass_fds,
        user=user.pw_uid, group=grp.getgrgid(user.pw_gid).gr_gid, extra_groups=groups,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10", "PGAPPNAME": "stepladder"},
    )  # fmt: skip


def system_identifier(data):
    """The number that initdb gave to the data, and that every copy of it has; empty where there is none."""
    try:
        with open(os.path.join(data, "global/pg_control"), "rb") as handle:
            return str(struct.unpack("=Q", handle.read(8))[0])
    except (OSError, struct.error):
        return ""


def control(version, data):
    """What pg_controldata says, by its own words; empty where it or the data is not there."""
    program = "/usr/lib/postgresql/%s/bin/pg_controldata" % version
    if not os.path.exists(program) or not system_identifier(data):
        return {}
    lines = as_postgres(program, "-D", data).stdout.splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def primary_settings(found):
    """AT_LEAST as the primary had them when it wrote the WAL that this data has replayed."""
    names = {
        "max_locks_per_transaction": "max_locks_per_xact setting",
        "max_prepared_transactions": "max_prepared_xacts setting",
    }
    values = {name: found.get(names.get(name, name + " setting"), "") for name in AT_LEAST}
    return {name: int(value) for name, value in values.items() if value.isdigit()}


class Server:
    """A running instance, asked through psql; port and socket as its own postmaster.pid says."""

    def __init__(self, version, data):
        lines = read(os.path.join(data, "postmaster.pid")).splitlines()
        self.port = int(lines[3]) if len(lines) > 4 and lines[3].isdigit() else 0
        self.socket = lines[4] if self.port else ""
        self.psql = "/usr/lib/postgresql/%s/bin/psql" % version
        self.running = bool(self.port) and os.path.exists("/proc/%s" % lines[0]) and os.path.exists(self.psql)

    def run(self, database, sql):
        """What psql prints; raises Refused."""
        target = "dbname=%s host='%s' port=%d" % (
            "'" + database.replace("\\", "\\\\").replace("'", "\\'") + "'", self.socket, self.port,
        )  # fmt: skip
        done = as_postgres(self.psql, "-XqAtw", "-v", "ON_ERROR_STOP=1", "-d", target, text=sql, timeout=120)
        if done.returncode:
            raise Refused("the server on port %d did not answer: %s" % (self.port, done.stderr.strip()))
        return done.stdout

    def ask(self, database, sql):
        return json.loads(self.run(database, sql))


def start_mode(configuration):
    """auto, manual or disabled: what Debian's start.conf says about starting the instance."""
    lines = [line.split("#")[0].strip() for line in read(os.path.join(configuration, "start.conf")).splitlines()]
    return next((line for line in lines if line), "auto")


def manager(configuration, data, server):
    """plain or patroni: who starts the instance, by the running server's own arguments, else by Debian's start.conf."""
    if start_mode(configuration) == "auto":
        return "plain"  # Patroni keeps Debian's scripts away; without that lock the instance was given back
    if not server.running:
        return "patroni" if os.path.exists(os.path.join(configuration, "patroni.conf")) else "plain"
    process = read(os.path.join(data, "postmaster.pid")).splitlines()[0]
    return "patroni" if "%s/patroni.conf" % configuration in read("/proc/%s/cmdline" % process) else "plain"
