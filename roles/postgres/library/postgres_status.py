#!/usr/bin/python
"""One read-only look at an instance's replication: who it is, how far it is, whom it serves, and what that costs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_status
short_description: Role, positions, lag, slots and synchronous state of a PostgreSQL instance
description:
  - Asks the server over its socket as the system user postgres; where it does not run, its data directory answers.
  - Changes nothing. See "Status" in the role's README for what it returns.
options:
  version:
    description: Major version.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
author: Stepladder
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_replication import hosts_of, role_of
from ansible.module_utils.postgres_server import Refused, Server, control, manager, places, system_identifier

# Positions are compared with where this server is: what it has written, or on a replica what it has received.
SERVER = """
with here as (
  select pg_is_in_recovery() as recovers,
         case when pg_is_in_recovery() then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
              else pg_current_wal_lsn() end as lsn)
select json_build_object(
  'server_version', current_setting('server_version'),
  'in_recovery', recovers,
  'timeline', case when recovers
      -- Not of the last checkpoint: for minutes after a promotion that is still one of the timeline before.
      then coalesce((select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'),
                    (select timeline_id from pg_control_checkpoint()))
      else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
  'lsn', lsn,
  'replay_lsn', pg_last_wal_replay_lsn(),
  'replay_paused', case when recovers then pg_is_wal_replay_paused() else false end,
  'primary_lsn', (select greatest(latest_end_lsn, lsn) from pg_stat_wal_receiver),
  'lag_bytes', case when recovers then (select greatest(latest_end_lsn, lsn) from pg_stat_wal_receiver) - pg_last_wal_replay_lsn()
      else 0 end,
  'lag_seconds', case when not recovers then 0
      when (select greatest(latest_end_lsn, lsn) from pg_stat_wal_receiver where status = 'streaming') <= pg_last_wal_replay_lsn() then 0
      else round(extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::numeric, 1) end,
  'conninfo', current_setting('primary_conninfo'),
  'slot', current_setting('primary_slot_name'),
  'receiver', (select json_build_object('host', sender_host, 'port', sender_port, 'state', status,
      'silent_seconds', round(extract(epoch from clock_timestamp() - last_msg_receipt_time)::numeric, 1)) from pg_stat_wal_receiver),
  'synchronous_names', current_setting('synchronous_standby_names'),
  'waiting_commits', (select count(*) from pg_stat_activity where wait_event = 'SyncRep'),
  'replicas', (select coalesce(json_agg(json_build_object(
      'name', application_name, 'address', host(client_addr), 'state', state, 'synchronous', sync_state,
      'lag_bytes', lsn - replay_lsn, 'lag_seconds', round(coalesce(extract(epoch from replay_lag), 0)::numeric, 1))
      order by application_name), '[]') from pg_stat_replication),
  'slots', (select coalesce(json_agg(json_build_object(
      'name', slot_name, 'type', slot_type, 'active', active, 'wal_status', wal_status,
      'retained_bytes', case when restart_lsn is null then 0 else lsn - restart_lsn end,
      'left_bytes', safe_wal_size) order by slot_name), '[]') from pg_replication_slots))
from here
"""


def last_timeline(data):
    """The last timeline that there is WAL of, from the names of its files; 0 where there is none."""
    try:
        names = os.listdir(os.path.join(data, "pg_wal"))
    except OSError:
        return 0
    return max((int(name[:8], 16) for name in names if re.fullmatch("[0-9A-F]{24}", name)), default=0)


def upstream_of(here):
    """Whom a replica follows: the server that it receives from, else those that it looks for."""
    if not here["in_recovery"]:
        return {}
    receiver = here["receiver"] or {}
    return {
        "host": receiver.get("host") or "", "port": receiver.get("port") or 0, "slot": here["slot"],
        "state": receiver.get("state") or "none", "silent_seconds": receiver.get("silent_seconds"),
        "hosts": hosts_of(here["conninfo"]),
    }  # fmt: skip


def synchronous_of(here):
    """Whether commits wait for replicas, for which are there, and how many wait right now."""
    wanted = here["synchronous_names"]
    there = [item["name"] for item in here["replicas"] if item["synchronous"] in ("sync", "quorum")]
    return {"on": bool(wanted), "names": wanted, "there": there, "waiting_commits": here["waiting_commits"]}


def status(version, cluster):
    configuration, data = places(version, cluster)
    server = Server(version, data)
    found = {
        "running": server.running, "manager": manager(configuration, data, server), "role": role_of(data, False, False),
        "server_version": "", "lsn": "", "replay_lsn": "",
        "system_identifier": system_identifier(data), "timeline": 0, "primary_lsn": "", "lag_bytes": None, "lag_seconds": None,
        "replay_paused": False, "upstream": {}, "replicas": [], "slots": [], "data_state": "",
        "synchronous": {"on": False, "names": "", "there": [], "waiting_commits": 0},
    }  # fmt: skip
    if not server.running:
        words = control(version, data)
        checkpoint = int(words.get("Latest checkpoint's TimeLineID", "0"))
        return {
            **found, "timeline": max(checkpoint, last_timeline(data)), "lsn": words.get("Latest checkpoint location", ""),
            "data_state": words.get("Database cluster state", ""),
        }  # fmt: skip
    here = server.ask("postgres", SERVER)
    same = ("server_version", "timeline", "lsn", "replay_paused", "lag_bytes", "lag_seconds", "replicas", "slots")
    return {
        **found, **{name: here[name] for name in same},
        "role": role_of(data, True, here["in_recovery"]), "replay_lsn": here["replay_lsn"] or "",
        "primary_lsn": here["primary_lsn"] or "", "upstream": upstream_of(here), "synchronous": synchronous_of(here),
    }  # fmt: skip


def main():
    module = AnsibleModule(
        argument_spec={"version": {"type": "str", "required": True}, "cluster": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    try:
        found = status(module.params["version"], module.params["cluster"])
    except Refused as refusal:
        module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=False, status=found)


if __name__ == "__main__":
    main()
