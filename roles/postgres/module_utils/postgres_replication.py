"""What an instance is in its replication: primary or replica, of whom, and what stands in the way of what is wanted."""

from __future__ import annotations

import json
import os
import re
import socket
import time

from ansible.module_utils.postgres_server import AT_LEAST, control, literal, primary_settings, system_identifier
from ansible.module_utils.postgres_wire import Connection, Unreachable

SETTINGS = "json_build_object(%s)" % ", ".join("'%s', current_setting('%s')::int" % (name, name) for name in AT_LEAST)
HERE = (
    """
select json_build_object(
  'settings', """
    + SETTINGS
    + """,
  'conninfo', current_setting('primary_conninfo'),
  'sender', (select sender_host from pg_stat_wal_receiver where status = 'streaming'),
  'slots', (select coalesce(json_agg(slot_name), '[]') from pg_replication_slots where slot_type = 'physical'),
  'senders', (select coalesce(json_agg(json_build_object('name', application_name, 'address', host(client_addr))), '[]')
              from pg_stat_replication where client_addr is not null),
  'may_rewind', (select coalesce(bool_and(has_function_privilege(r.oid, p.oid, 'execute')
                 and has_database_privilege(r.oid, 'postgres', 'connect')), false)
                 from pg_roles r, pg_proc p where r.rolname = %s
                 and p.oid = any (array[%s]::regprocedure[])))
"""
)
# What pg_rewind reads the primary's files by.
FUNCTIONS = (
    "pg_ls_dir(text, boolean, boolean)", "pg_stat_file(text, boolean)", "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)  # fmt: skip
THERE = """
select json_build_object(
  'system_identifier', (select system_identifier::text from pg_control_system()),
  'version', current_setting('server_version_num')::int / 10000,
  'in_recovery', pg_is_in_recovery(),
  'timeline', case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())
      else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
  'settings', %s,
  'slot', (select json_build_object('active', active, 'wal_status', wal_status, 'user', host(client_addr))
           from pg_replication_slots left join pg_stat_replication on pid = active_pid where slot_name = %s))
"""


def connect(wanted, host, **words):
    return Connection(host, wanted["port"], wanted["user"], wanted["password"], wanted["ca"], **words)


def there(wanted, host, **words):
    """What another member is: {reached, words, ...}; `words` say why it was not reached."""
    try:
        with connect(wanted, host, **words) as server:
            [[found]] = server.ask(THERE % (SETTINGS, literal(wanted["name"])))
    except Unreachable as error:
        return {"reached": False, "words": str(error)}
    return {"reached": True, "words": "", **json.loads(found)}


def is_this_host(host):
    """Whether a name or an address leads to this machine itself: only then can it be bound to."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                continue
            return True
    return False


def role_of(data, running, in_recovery):
    """primary, replica, restoring (recovery to a point in time), or none; by its own word where it runs."""
    signal = [kind for kind in ("standby", "recovery") if os.path.exists(os.path.join(data, kind + ".signal"))]
    if running:
        return "primary" if not in_recovery else ("replica" if "standby" in signal else "restoring")
    if not os.path.exists(os.path.join(data, "PG_VERSION")):
        return "none"
    return {"standby": "replica", "recovery": "restoring"}.get(signal[0] if signal else "", "primary")


def hosts_of(conninfo):
    """The hosts that a primary_conninfo names."""
    found = re.search(r"(?:^|\s)host=(?:'([^']*)'|(\S+))", conninfo)
    return [name for name in (found[1] or found[2]).split(",") if name] if found else []


def ask_here(server, wanted, until_streams):
    """The running server's own view; waits up to so many seconds for a stream."""
    sql = HERE % (literal(wanted["user"]), ", ".join(literal(name) for name in FUNCTIONS))
    end = time.monotonic() + until_streams
    while True:
        here = server.ask("postgres", sql)
        if here["sender"] or time.monotonic() >= end:
            return here
        time.sleep(0.3)


def slower(wanted, here):
    """Attached replicas that have less of a setting than this primary is about to get: they would stop replaying."""
    raised = {name: value for name, value in wanted["settings"].items() if int(value) > here["settings"][name]}
    found = []
    for sender in here["senders"] if raised else []:
        if sender["name"] not in wanted["slots"]:
            continue
        # The address is all that is known of it; its certificate's name is another.
        answer = there(wanted, sender["address"], verify_name=False)
        found += [
            {"name": sender["name"], "setting": name, "wanted": int(value), "found": answer["settings"][name]}
            for name, value in raised.items() if answer["reached"] and answer["settings"][name] < int(value)
        ]  # fmt: skip
        if not answer["reached"]:
            found.append({"name": sender["name"], "setting": next(iter(raised)), "wanted": 0, "found": answer["words"]})
    return found


def look(version, data, server, in_recovery, wanted):
    """Everything about replication that the role decides by; `wanted` is empty for an instance without replicas."""
    role = role_of(data, server.running, in_recovery)
    found = {
        "role": role, "system_identifier": system_identifier(data), "timeline": "", "itself": False, "sender": "",
        "foreign": role == "none" and os.path.isdir(data) and bool(os.listdir(data)), "mount": os.path.ismount(data),
        "follows": [], "upstream": {}, "primary_settings": {}, "missing_slots": [], "slower": [], "may_rewind": True,
    }  # fmt: skip
    if role != "none" and (wanted or role == "replica"):
        words = control(version, data)
        found["timeline"] = words.get("Latest checkpoint's TimeLineID", "")
        found["primary_settings"] = primary_settings(words) if role == "replica" else {}
    if server.running and role == "replica" and not wanted:
        found["follows"] = hosts_of(server.run("postgres", "show primary_conninfo"))
    if not wanted:
        return found
    found["itself"] = (
        bool(wanted["primary_host"]) and wanted["port"] == wanted["own_port"] and is_this_host(wanted["primary_host"])
    )
    if server.running:
        here = ask_here(server, wanted, wanted["patience"] if role == "replica" else 0)
        found.update(
            sender=here["sender"] or "", follows=hosts_of(here["conninfo"]), may_rewind=here["may_rewind"],
            missing_slots=[name for name in wanted["slots"] if name not in here["slots"]],
            slower=slower(wanted, here) if role == "primary" else [],
        )  # fmt: skip
    if wanted["primary_host"] and not found["itself"] and role in ("none", "replica") and not found["sender"]:
        found["upstream"] = there(wanted, wanted["primary_host"])
        if role == "none" and found["upstream"]["reached"]:
            found["primary_settings"] = found["upstream"]["settings"]
    return found
