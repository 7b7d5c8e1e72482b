#!/usr/bin/python
"""Copy a primary's data to a host that has none, so that PostgreSQL starts there as its replica."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_clone
short_description: Copy a primary's data directory with pg_basebackup where there is none
description:
  - The copy is made beside the data directory and moved to its name when it is whole. The system refuses to move it over
    a directory that has anything in it, so nothing is ever overwritten.
options:
  version:
    description: Major version.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
  wanted:
    description: Whom to copy, as base64 of JSON with primary_host, port, user, password, ca, name and conninfo.
    type: str
    required: true
author: Stepladder
"""

import base64
import fcntl
import json
import os
import pwd
import shutil
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_replication import connect
from ansible.module_utils.postgres_server import Refused, literal, places, system_identifier
from ansible.module_utils.postgres_wire import Unreachable

# What initdb finds out and writes into postgresql.conf, which is no part of the copy.
INITDB = (
    "DateStyle", "TimeZone", "log_timezone", "lc_messages", "lc_monetary", "lc_numeric", "lc_time", "default_text_search_config",
)  # fmt: skip


def ready_slot(wanted):
    """See that the primary has a slot for this host that can still serve; returns its identifier and initdb's settings."""
    name = literal(wanted["name"])
    with connect(wanted, wanted["primary_host"]) as server:
        for lost, active in server.ask(
            "select wal_status = 'lost', active from pg_replication_slots where slot_name = %s" % name
        ):
            if active == "t":
                raise Refused("the slot %s is in use by another host. postgres changed nothing." % wanted["name"])
            if lost == "t":  # it keeps nothing, and serves nobody any more
                server.ask("select pg_drop_replication_slot(%s)" % name)
        server.ask(
            "select pg_create_physical_replication_slot(%s)"
            " where not exists (select from pg_replication_slots where slot_name = %s)" % (name, name)
        )
        names = ", ".join(literal(setting) for setting in INITDB)
        settings = server.ask("select name, reset_val from pg_settings where name in (%s) order by 1" % names)
        return server.ask("select system_identifier from pg_control_system()")[0][0], settings


def password_file(folder, wanted, user):
    """A file that only postgres can read, for as long as the copy takes."""
    handle, path = tempfile.mkstemp(prefix=".stepladder-", dir=folder)
    with os.fdopen(handle, "w") as out:
        os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
        out.write(wanted["passfile"])
    return path


def copy(version, target, wanted, user, lock):
    passfile = password_file(os.path.dirname(target), wanted, user)
    try:
        done = subprocess.run(
            ["/usr/lib/postgresql/%s/bin/pg_basebackup" % version, "--pgdata", target, "--wal-method", "stream",
             "--slot", wanted["name"], "--checkpoint", "fast", "--no-password",
             "--dbname", "%s passfile=%s" % (wanted["conninfo"], passfile)],
            capture_output=True, text=True, cwd="/", user=user.pw_uid, group=user.pw_gid, extra_groups=[],
            # The copy holds the lock as long as it lives, even when this module is gone.
            pass_fds=[lock], env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}, umask=0o077,
        )  # fmt: skip
    finally:
        os.unlink(passfile)
    if done.returncode:
        raise Refused("the copy of %s failed: %s" % (wanted["primary_host"], done.stderr.strip()))


def configuration(version, settings):
    """The files that pg_createcluster expects beside the data and moves to /etc."""
    texts = {}
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        with open("/usr/share/postgresql/%s/%s.sample" % (version, name)) as sample:
            texts[name] = sample.read()
    texts["pg_hba.conf"] = "local all postgres peer\n"
    texts["postgresql.conf"] += "".join("%s = %s\n" % (name, literal(value)) for name, value in settings)
    return texts


def settle(target, data, user, texts):
    """Mark the copy as a standby's, write it out and give it its name."""
    for name, text in {**texts, "standby.signal": ""}.items():
        with open(os.path.join(target, name), "w") as out:
            os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
            os.fchmod(out.fileno(), 0o600)
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
    try:
        os.rename(target, data)  # over an empty directory or none; the system refuses any other
    except OSError as error:
        raise Refused("the copy in %s cannot take the name %s: %s" % (target, data, error.strerror)) from error
    folder = os.open(os.path.dirname(data), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def clone(version, cluster, wanted):
    user = pwd.getpwnam("postgres")
    data = places(version, cluster)[1]
    if os.path.isdir(data) and os.listdir(data):
        raise Refused("%s is not empty. postgres changed nothing." % data)
    folder = os.path.dirname(data)
    if not os.path.isdir(folder):
        os.makedirs(folder)
        os.chown(folder, user.pw_uid, user.pw_gid)
    target = data + ".stepladder-clone"
    lock = os.open(target + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Refused(
            "another copy into %s is still running. postgres changed nothing. Wait for it." % target
        ) from error
    identifier, settings = ready_slot(wanted)
    shutil.rmtree(target, ignore_errors=True)  # an earlier copy of this module's that was cut off
    copy(version, target, wanted, user, lock)
    if system_identifier(target) != identifier:
        raise Refused("the copy in %s is not of %s. It was left there." % (target, wanted["primary_host"]))
    settle(target, data, user, configuration(version, settings))
    os.unlink(target + ".lock")


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "wanted": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    wanted = json.loads(base64.b64decode(module.params["wanted"]))
    if not module.check_mode:
        try:
            clone(module.params["version"], module.params["cluster"], wanted)
        except (Refused, Unreachable) as refusal:
            module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
