#!/usr/bin/python
"""Reload a running server's configuration and wait until it has read it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_reload
short_description: Reload a running PostgreSQL server and wait until it has read its configuration
options:
  version:
    description: Major version.
    type: str
    required: true
  data_directory:
    description: The instance's data directory.
    type: str
    required: true
author: Stepladder
"""

import os
import pwd
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

PATIENCE = 15  # seconds


def ask(version, socket, port, sql):
    """One value from the server; raises CalledProcessError."""
    user = pwd.getpwnam("postgres")
    done = subprocess.run(
        ["/usr/lib/postgresql/%s/bin/psql" % version, "-XqAtw", "-h", socket, "-p", port, "-d", "postgres", "-c", sql],
        capture_output=True, text=True, check=True, cwd="/", user=user.pw_uid, group=user.pw_gid, extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGAPPNAME": "stepladder"},
    )  # fmt: skip
    return done.stdout.strip()


def main():
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "data_directory": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    with open(os.path.join(module.params["data_directory"], "postmaster.pid")) as handle:
        lines = handle.read().splitlines()
    server = (module.params["version"], lines[4], lines[3])
    try:
        before = ask(*server, "select pg_conf_load_time()")
        ask(*server, "select pg_reload_conf()")
        end = time.monotonic() + PATIENCE
        while ask(*server, "select pg_conf_load_time()") == before:
            if time.monotonic() > end:
                module.fail_json(
                    msg="postgres: the server was told to reload and has not taken its configuration after %d s."
                    " It goes on with the old one; its log says why." % PATIENCE
                )
            time.sleep(0.1)
    except subprocess.CalledProcessError as error:
        module.fail_json(msg="postgres: the server did not answer: %s" % error.stderr.strip())
    # The postmaster reads first; what it finds to be waiting for a restart is in each new session's pg_settings.
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
