#!/usr/bin/python
"""Turn a running replica into a primary or to another server that it follows; or stop a primary whose place is taken."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_turn
short_description: Stop a primary, promote a replica, or reload it and wait until it receives from another server
options:
  version:
    description: Major version.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
  to:
    description: primary, stopped, or the name of the server to receive from. C(stopped) returns C(lsn), where it ended.
    type: str
    required: true
  after:
    description: Promote only when everything up to this position was replayed.
    type: str
    default: ""
  patience:
    description: Seconds to wait for it.
    type: int
    default: 60
author: Stepladder
"""

import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_server import Refused, Server, control, literal, places

SENDER = "select coalesce((select sender_host from pg_stat_wal_receiver where status = 'streaming'), '')"


def stop(version, cluster, data):
    """Stop a server the clean way, in which it sends its replicas all it has first. Returns its last checkpoint's position."""
    unit = "postgresql@%s-%s.service" % (version, cluster)
    done = subprocess.run(["systemctl", "stop", unit], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    words = control(version, data)
    if done.returncode or words.get("Database cluster state") != "shut down":
        raise Refused(
            "%s did not stop the clean way; it is %s. %s"
            % (unit, words.get("Database cluster state"), done.stderr.strip())
        )
    return words["Latest checkpoint location"]


def replayed(server, position, patience):
    end = time.monotonic() + patience
    while server.run("postgres", "select pg_last_wal_replay_lsn() >= %s" % literal(position)).strip() != "t":
        if time.monotonic() > end:
            raise Refused(
                "after %d s it has not replayed everything up to %s, and was not promoted." % (patience, position)
            )
        time.sleep(0.05)


def promote(server, patience):
    if server.run("postgres", "select pg_promote(true, %d)" % patience).strip() != "t":
        raise Refused(
            "the promotion was not done within %d s; it goes on. The server's log says what it waits for." % patience
        )


def follow(server, host, patience):
    server.run("postgres", "select pg_reload_conf()")
    end, found = time.monotonic() + patience, ""
    while found != host:
        if time.monotonic() > end:
            raise Refused(
                "after %d s it receives %s, not from %s. The server's log says why."
                % (patience, "from " + found if found else "from nobody", host)
            )
        time.sleep(0.2)
        found = server.run("postgres", SENDER).strip()


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "cluster": {"type": "str", "required": True},
            "to": {"type": "str", "required": True},
            "after": {"type": "str", "default": ""},
            "patience": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params, found = module.params, {}
    if not module.check_mode:
        version, data = params["version"], places(params["version"], params["cluster"])[1]
        server = Server(version, data)
        try:
            if params["to"] == "stopped":
                found["lsn"] = stop(version, params["cluster"], data)
            elif params["to"] == "primary":
                if params["after"]:
                    replayed(server, params["after"], params["patience"])
                promote(server, params["patience"])
            else:
                follow(server, params["to"], params["patience"])
        except Refused as refusal:
            module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=True, **found)


if __name__ == "__main__":
    main()
