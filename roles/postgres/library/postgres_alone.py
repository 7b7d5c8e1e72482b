#!/usr/bin/python
"""What a former primary wrote after the position at which another member was promoted: bytes and commits."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_alone
short_description: Count what a former primary has and the promoted one does not
description:
  - Asks the promoted server for the history of its timeline, and reads this one's own WAL from there on (C(pg_waldump)).
  - Returns C(bytes), C(commits), C(from) and C(to) (positions) and C(words), a sentence. Changes nothing.
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
    description: Whom to ask, as base64 of JSON with primary_host, port, user, password, ca and name.
    type: str
    required: true
author: Stepladder
"""

import base64
import json
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_replication import connect, there
from ansible.module_utils.postgres_server import Refused, as_postgres, control, places
from ansible.module_utils.postgres_wire import Unreachable

# The file is the promoted server's own; its right to be read is part of what pg_rewind needs.
HISTORY = "select convert_from(pg_read_binary_file('pg_wal/' || lpad(upper(to_hex(%d)), 8, '0') || '.history'), 'UTF8')"


def position(lsn):
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def branched_at(history, timeline):
    """Where a timeline was left, from the text of a later one's history file. Raises Refused."""
    for line in history.splitlines():
        found = re.match(r"\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)", line)
        if found and int(found[1]) == timeline:
            return found[2]
    raise Refused("the primary's timeline does not descend from timeline %d of this server" % timeline)


def counted(dumped, start):
    """What pg_waldump printed of the WAL from a position on: its bytes, its commits, and where it ends."""
    records = re.findall(r"len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*\d+, lsn: ([0-9A-F]+/[0-9A-F]+)", dumped)
    # A position is where a record begins; the last one is whole.
    end = position(records[-1][1]) + int(records[-1][0]) if records else position(start)
    return {
        "from": start, "to": "%X/%X" % (end >> 32, end & 0xFFFFFFFF) if records else start,
        "bytes": max(end - position(start), 0), "commits": len(re.findall(r"rmgr: Transaction .*desc: COMMIT", dumped)),
    }  # fmt: skip


def count(version, cluster, wanted):
    data = places(version, cluster)[1]
    words = control(version, data)
    timeline = int(words.get("Latest checkpoint's TimeLineID", "0"))
    other = there(wanted, wanted["primary_host"])
    if not other["reached"]:
        raise Refused("%s could not be asked: %s" % (wanted["primary_host"], other["words"]))
    if other["timeline"] <= timeline:
        raise Refused("%s is on timeline %d, and this server is too" % (wanted["primary_host"], other["timeline"]))
    with connect(wanted, wanted["primary_host"]) as server:
        [[history]] = server.ask(HISTORY % other["timeline"])
    start = branched_at(history, timeline)
    # Reads to where valid WAL ends, and says so with an error that is none here.
    dumped = as_postgres(
        "/usr/lib/postgresql/%s/bin/pg_waldump" % version, "-p", os.path.join(data, "pg_wal"), "-t", str(timeline),
        "-s", start, timeout=600,
    ).stdout  # fmt: skip
    return counted(dumped, start)


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "wanted": {"type": "str", "required": True, "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = count(params["version"], params["cluster"], json.loads(base64.b64decode(params["wanted"])))
    except (Refused, Unreachable) as refusal:
        module.fail_json(msg="postgres: what this server alone has cannot be counted: %s." % refusal)
    words = "This server alone has %d commits (%d bytes of WAL, from %s to %s); they are given up." % (
        found["commits"], found["bytes"], found["from"], found["to"],
    )  # fmt: skip
    module.exit_json(changed=False, words=words, **found)


if __name__ == "__main__":
    main()
