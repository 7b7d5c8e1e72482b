#!/usr/bin/python
"""What a host has of its backups by restic, and what it lacks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: restic_host
short_description: What a host has of its backups by restic, and what it lacks
description:
  - Changes nothing. Says whether everything is installed and was tried with the configuration that is there.
options:
  user: {description: The account that everything runs as., type: str, required: true}
  group: {description: The group that may read the key., type: str, required: true}
  files: {description: Files that the account must be able to read., type: list, elements: str, default: []}
  directories: {description: What is backed up., type: list, elements: str, default: []}
  programs: {description: Programs that must be there., type: list, elements: str, required: true}
  control: {description: Path of the program that the role writes., type: str, required: true}
author: Stepladder
"""

import grp
import os
import pwd
import stat
import subprocess

from ansible.module_utils.basic import AnsibleModule


def known(lookup, name):
    """The entry of an account or group, None when there is none of this name."""
    try:
        return lookup(name)
    except KeyError:
        return None


def readable(path, user, group):
    """Whether the account, as a member of the group, can read a file; by its mode, as the account may not exist yet."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    account, members = known(pwd.getpwnam, user), known(grp.getgrnam, group)
    of_group = members and info.st_gid == members.gr_gid and info.st_mode & stat.S_IRGRP
    of_user = account and info.st_uid == account.pw_uid and info.st_mode & stat.S_IRUSR
    return bool(info.st_mode & stat.S_IROTH or of_group or of_user)


def main():
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "str", "default": []},
            "directories": {"type": "list", "elements": "str", "default": []},
            "programs": {"type": "list", "elements": "str", "required": True},
            "control": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    given, control = module.params, module.params["control"]
    group = known(grp.getgrnam, given["group"])
    member = known(pwd.getpwnam, given["user"]) and (not given["files"] or group and given["user"] in group.gr_mem)
    module.exit_json(
        changed=False,
        installed=bool(member and all(map(os.path.exists, given["programs"]))),
        unreadable=[path for path in given["files"] if not readable(path, given["user"], given["group"])],
        missing=[path for path in given["directories"] if not os.path.isdir(path)],
        ensured=os.access(control, os.X_OK) and subprocess.run([control, "look"], capture_output=True).returncode == 0,
    )


if __name__ == "__main__":
    main()
