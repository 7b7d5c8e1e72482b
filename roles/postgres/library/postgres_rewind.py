#!/usr/bin/python
"""Make a former primary a replica of the one that was promoted, by pg_rewind."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_rewind
short_description: Rewind a former primary's data to a promoted replica's and mark it as a standby
description:
  - The server has to be stopped. pg_rewind is tried without changing anything first.
  - What this server alone had is gone afterwards; a note beside the data says from where on, and keeps its last state.
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
    description: Whom to follow, as base64 of JSON with primary_host, port, user, password, ca, name and conninfo.
    type: str
    required: true
  ask_only:
    description: Only refuse what cannot work; the server may run.
    type: bool
    default: false
author: Stepladder
"""

import base64
import json
import os
import pwd
import shutil
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_replication import connect, there
from ansible.module_utils.postgres_server import Refused, Server, as_postgres, control, places, system_identifier
from ansible.module_utils.postgres_wire import Unreachable


def refuse(version, data, wanted):
    """Raise Refused unless the other server is a primary that these data can be rewound to."""
    other = there(wanted, wanted["primary_host"])
    if not other["reached"]:
        raise Refused("%s could not be asked: %s. postgres changed nothing." % (wanted["primary_host"], other["words"]))
    if other["system_identifier"] != system_identifier(data):
        raise Refused("%s holds another system than %s. postgres changed nothing." % (data, wanted["primary_host"]))
    if other["in_recovery"]:
        raise Refused("%s is no primary. postgres changed nothing. Promote it first." % wanted["primary_host"])
    mine = int(control(version, data).get("Latest checkpoint's TimeLineID", "0"))
    if other["timeline"] <= mine:
        raise Refused(
            "%s is on timeline %d and %s on %d, so it was not promoted after this one. postgres changed nothing."
            % (wanted["primary_host"], other["timeline"], data, mine)
        )


def command(version, configuration, data, wanted, *more):
    # The password comes from the file that the configuration names, which is there before and after.
    return as_postgres(
        "/usr/lib/postgresql/%s/bin/pg_rewind" % version, "--target-pgdata", data,
        "--config-file", os.path.join(configuration, "postgresql.conf"),
        "--source-server", "%s dbname=postgres passfile=%s/replication.pgpass" % (wanted["conninfo"], configuration),
        *more, timeout=None,
    )  # fmt: skip


def recover(version, configuration, data):
    """Bring the data of a server that died to where a start would: pg_rewind does it too, but not while it only tries."""
    done = as_postgres(
        "/usr/lib/postgresql/%s/bin/postgres" % version, "--single", "-D", data,
        "-c", "config_file=" + os.path.join(configuration, "postgresql.conf"), "template1", text="", timeout=None,
    )  # fmt: skip
    if done.returncode:
        raise Refused(
            "the data in %s are of a server that died, and do not recover: %s. Move them away and copy anew."
            % (data, done.stderr.strip())
        )


def note(data, words, said):
    """Keep the last state of what is about to be given up, beside the data; returns the file's path."""
    path = "%s.rewound-%s.txt" % (data, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    lines = ["%s: %s" % item for item in words.items()] + ["", said.strip(), ""]
    with open(path, "w") as out:
        user = pwd.getpwnam("postgres")
        os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
        os.fchmod(out.fileno(), 0o600)
        out.write("\n".join(lines))
    return path


def become_standby(data):
    """Mark the data as a standby's; slots that it kept as a primary would hold back its WAL for nobody."""
    slots = os.path.join(data, "pg_replslot")
    for name in os.listdir(slots):
        shutil.rmtree(os.path.join(slots, name))
    user = pwd.getpwnam("postgres")
    with open(os.path.join(data, "standby.signal"), "w") as out:
        os.fchown(out.fileno(), user.pw_uid, user.pw_gid)
        os.fsync(out.fileno())


def rewind(version, cluster, wanted):
    configuration, data = places(version, cluster)
    if Server(version, data).running:
        raise Refused("the server still runs. postgres changed nothing. Stop it first.")
    refuse(version, data, wanted)
    words = control(version, data)
    if not words.get("Database cluster state", "").startswith("shut down"):
        recover(version, configuration, data)
    tried = command(version, configuration, data, wanted, "--dry-run")
    if tried.returncode:
        raise Refused("pg_rewind cannot do it: %s. postgres changed nothing." % tried.stderr.strip())
    path = note(data, words, tried.stderr + tried.stdout)
    done = command(version, configuration, data, wanted)
    if done.returncode:
        raise Refused(
            "pg_rewind stopped half-way: %s. The data in %s can no longer be used: move them away and copy anew. %s says what"
            " they were." % (done.stderr.strip(), data, path)
        )
    become_standby(data)
    # It answers when it has replayed up to where the primary is now. If nobody writes there, say at night, that never comes.
    with connect(wanted, wanted["primary_host"]) as server:
        server.ask("select pg_current_xact_id()::text")
    return path


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "wanted": {"type": "str", "required": True, "no_log": True},
            "ask_only": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params, path = module.params, ""
    wanted = json.loads(base64.b64decode(params["wanted"]))
    try:
        if params["ask_only"]:
            refuse(params["version"], places(params["version"], params["cluster"])[1], wanted)
        elif not module.check_mode:
            path = rewind(params["version"], params["cluster"], wanted)
    except (Refused, Unreachable, subprocess.SubprocessError) as refusal:
        module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=not params["ask_only"], note=path)


if __name__ == "__main__":
    main()
