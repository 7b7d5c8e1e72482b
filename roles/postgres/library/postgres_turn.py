#!/usr/bin/python
"""Turn a running replica: into a primary, or to another server that it follows."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_turn
short_description: Promote a replica, or reload it and wait until it receives from another server
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
    description: primary, or the name of the server to receive from.
    type: str
    required: true
  patience:
    description: Seconds to wait for it.
    type: int
    default: 60
author: Stepladder
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_server import Refused, Server, places

SENDER = "select coalesce((select sender_host from pg_stat_wal_receiver where status = 'streaming'), '')"


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
            "patience": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not module.check_mode:
        server = Server(params["version"], places(params["version"], params["cluster"])[1])
        try:
            if params["to"] == "primary":
                promote(server, params["patience"])
            else:
                follow(server, params["to"], params["patience"])
        except Refused as refusal:
            module.fail_json(msg="postgres: %s" % refusal)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
