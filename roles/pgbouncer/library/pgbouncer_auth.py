#!/usr/bin/python
"""Make the function by which a pooler asks for SCRAM verifiers, in databases of this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbouncer_auth
short_description: Make the function by which a pooler asks for SCRAM verifiers
description:
  - Runs the SQL in one transaction as the system user postgres and keeps it only when it changed something.
  - On a standby nothing is done; what it needs comes from its primary.
options:
  databases:
    description: The databases that are to have it.
    type: list
    elements: str
    required: true
  role:
    description: The role that may call it; it must be there.
    type: str
    required: true
  sql:
    description: What makes it. Running it again must do no harm.
    type: str
    required: true
author: Stepladder
"""

import os
import pwd
import subprocess

from ansible.module_utils.basic import AnsibleModule

STATE = """
SELECT coalesce((SELECT concat_ws(' ', n.nspowner::regrole, n.nspacl) FROM pg_namespace n WHERE n.nspname = 'pgbouncer'), '')
    || coalesce((SELECT string_agg(concat_ws(' ', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl), E'\\n' ORDER BY p.oid)
                 FROM pg_proc p WHERE p.pronamespace = to_regnamespace('pgbouncer')), '') AS {name}
\\gset
"""
SCRIPT = """
\\set ON_ERROR_STOP on
SELECT pg_is_in_recovery() AS standby
\\gset
\\if :standby
  \\echo standby
  \\quit
\\endif
SELECT count(*) = 0 AS missing FROM pg_roles WHERE rolname = :'role'
\\gset
\\if :missing
  \\echo missing
  \\quit
\\endif
BEGIN;
{before}
{sql}
{after}
SELECT :'before' = :'after' AS same, :check AS check
\\gset
\\if :same
  ROLLBACK;
  \\echo same
\\elif :check
  ROLLBACK;
  \\echo changed
\\else
  COMMIT;
  \\echo changed
\\endif
"""


def make(database, role, sql, check):
    """Run the SQL in a database; returns standby, missing, same or changed, or (None, the server's words)."""
    script = SCRIPT.format(before=STATE.format(name="before"), after=STATE.format(name="after"), sql=sql)
    account = pwd.getpwnam("postgres")
    variables = ["-v", "role=" + role, "-v", "check=" + ("true" if check else "false")]
    done = subprocess.run(
        ["psql", "-XqAt", *variables, "-d", database],
        input=script, capture_output=True, text=True, cwd="/", user=account.pw_uid, group=account.pw_gid,
        extra_groups=os.getgrouplist("postgres", account.pw_gid),
    )  # fmt: skip
    words = done.stdout.split()
    return (None, done.stderr.strip()) if done.returncode or not words else (words[-1], "")


def main():
    module = AnsibleModule(
        argument_spec={
            "databases": {"type": "list", "elements": "str", "required": True},
            "role": {"type": "str", "required": True},
            "sql": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    role = module.params["role"]
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        if module.check_mode:
            module.exit_json(changed=True, databases=module.params["databases"])
        module.fail_json(msg="pgbouncer: this host has no PostgreSQL. Run this part of the role on the database host.")
    changed = []
    for database in module.params["databases"]:
        result, words = make(database, role, module.params["sql"], module.check_mode)
        if result == "missing" and module.check_mode:
            result = "changed"
        if result == "missing":
            module.fail_json(
                msg="pgbouncer: the role %s is not there. The database was left alone. Make it first (with the role postgres: an entry "
                "in postgres_roles, and CONNECT on %s in postgres_privileges)." % (role, database)
            )
        if result is None and module.check_mode and 'database "%s" does not exist' % database in words:
            result = "changed"  # an earlier task would have made it
        if result is None:
            module.fail_json(msg="pgbouncer: the function could not be made in %s: %s" % (database, words))
        if result == "changed":
            changed.append(database)
    module.exit_json(changed=bool(changed), databases=changed)


if __name__ == "__main__":
    main()
