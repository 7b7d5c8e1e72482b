#!/usr/bin/python
"""What a host has of pgBackRest, and what it lacks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pgbackrest_host
short_description: What a host has of pgBackRest, and what it lacks
description:
  - Changes nothing. Says whether everything is installed and was checked with the configuration that is there.
options:
  user: {description: The account that pgBackRest runs as., type: str, required: true}
  group: {description: The group that may read the key., type: str, required: true}
  files: {description: Files that the account must be able to read., type: list, elements: str, default: []}
  data: {description: Data directories that must hold a database., type: list, elements: str, default: []}
  control: {description: Path of the program that the role writes., type: str, required: true}
author: Stepladder
"""

import grp
import json
import os
import pwd
import stat
import subprocess

from ansible.module_utils.basic import AnsibleModule


def readable(path, user, group):
    """Whether the account, as a member of the group, can read a file; by its mode, as the account may not exist yet."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    try:
        groups = {grp.getgrnam(group).gr_gid}
    except KeyError:
        groups = set()
    if info.st_mode & stat.S_IROTH or (info.st_mode & stat.S_IRGRP and info.st_gid in groups):
        return True
    try:
        return bool(info.st_mode & stat.S_IRUSR) and info.st_uid == pwd.getpwnam(user).pw_uid
    except KeyError:
        return False


def exists(user):
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def ensured(control):
    """Whether the stanzas are there and were checked with today's configuration."""
    if not os.access(control, os.X_OK):
        return False
    done = subprocess.run([control, "look"], capture_output=True)
    try:
        return done.returncode == 0 and bool(json.loads(done.stdout.decode())["ensured"])
    except (ValueError, KeyError):
        return False


def main():
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "str", "default": []},
            "data": {"type": "list", "elements": "str", "default": []},
            "control": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    module.exit_json(
        changed=False,
        installed=os.path.exists("/usr/bin/pgbackrest") and exists(given["user"]),
        unreadable=[path for path in given["files"] if not readable(path, given["user"], given["group"])],
        without_data=[path for path in given["data"] if not os.path.exists(os.path.join(path, "PG_VERSION"))],
        ensured=ensured(given["control"]),
    )


if __name__ == "__main__":
    main()
