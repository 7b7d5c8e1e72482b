#!/usr/bin/python
"""Apply a release's pending migrations, or undo those that an older release does not know."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_migrate
short_description: Apply a release's pending migrations, or undo those that an older release does not know
description:
  - On PostgreSQL one run at a time, under an advisory lock, with a lock_timeout and a statement_timeout.
  - What was applied is recorded in the release's RELEASE.json.
  - Check mode tells what is pending; of undoing it tells nothing.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  release: {description: The release whose programs run., type: str, required: true}
  config: {description: The fingerprint of the settings to run with., type: str, required: true}
  databases: {description: Aliases of the databases to migrate., type: list, elements: str, default: [default]}
  undo_to: {description: The older release whose migrations stay., type: str}
  lock_timeout: {description: How long a statement waits for a table's lock., type: str, default: 5s}
  statement_timeout: {description: How long a statement may take; 0 is without an end., type: str, default: "0"}
  attempts: {description: How often a migration is tried when a table's lock is not to be had., type: int, default: 3}
  wait: {description: Seconds to wait for another migration of the same database., type: int, default: 60}
  timeout: {description: Seconds that all of it may take., type: int, default: 3600}
author: Stepladder
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import Refused, ask, read_json, site_runner, write_json

FAILED = "django: the migrations could not be run. What is live was not touched"
LIMITS = ("lock_timeout", "statement_timeout", "attempts", "wait")


def record(given, applied):
    path = os.path.join(given["directory"], "releases", given["release"], "RELEASE.json")
    release = read_json(path)
    release["migrations"] = release.get("migrations", []) + [
        name for name in applied if name not in release["migrations"]
    ]
    write_json(path, release, gid=os.stat(path).st_gid)


def pending(given, runner):
    found = []
    for database in given["databases"]:
        found += ask(runner, given["directory"], given["release"], "pending", FAILED, database=database)["pending"]
    return {"changed": bool(found), "pending": found}


def migrate(given, runner):
    applied = []
    for database in given["databases"]:
        limits = {name: given[name] for name in LIMITS}
        answer = ask(runner, given["directory"], given["release"], "migrate", FAILED, database=database, **limits)
        if answer["applied"]:
            record(given, answer["applied"])
        applied += answer["applied"]
    return {"changed": bool(applied), "applied": applied}


def undo(given, runner):
    older = site_runner(given["directory"], given["undo_to"], given["config"], given["user"], given["timeout"])
    undone = []
    for database in given["databases"]:
        known = ask(older, given["directory"], given["undo_to"], "names", FAILED, database=database)["names"]
        limits = {name: given[name] for name in LIMITS}
        answer = ask(
            runner, given["directory"], given["release"], "undo",
            "django: the migrations could not be undone; %s is live and the database is the newer one" % given["undo_to"],
            database=database, known=known, **limits,
        )  # fmt: skip
        undone += answer["undone"]
    return {"changed": bool(undone), "undone": undone}


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "config": {"type": "str", "required": True},
            "databases": {"type": "list", "elements": "str", "default": ["default"]},
            "undo_to": {"type": "str"},
            "lock_timeout": {"type": "str", "default": "5s"},
            "statement_timeout": {"type": "str", "default": "0"},
            "attempts": {"type": "int", "default": 3},
            "wait": {"type": "int", "default": 60},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    given = module.params
    step = undo if given["undo_to"] else pending if module.check_mode else migrate
    try:
        runner = site_runner(given["directory"], given["release"], given["config"], given["user"], given["timeout"])
        module.exit_json(**step(given, runner))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
