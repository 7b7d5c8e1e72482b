#!/usr/bin/python
"""Take or let go of a site's deploy lock on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_lock
short_description: Take or let go of a site's deploy lock
description:
  - The lock is one JSON file that says who holds it, why, and since when. It is made and replaced under a lock of the
    kernel's, so that of two runs one gets it.
  - The action plugin of the same name calls this, and decides whose lock may be taken over.
options:
  path: {description: The lock's file., type: path, required: true}
  holder: {description: "Who takes it: id, who, why, what, controller.", type: dict, required: true}
  over: {description: The id of a lock that may be taken over or let go., type: str, default: ""}
  state: {description: Take it or let it go., type: str, choices: [present, absent], default: present}
author: Stepladder
"""

import fcntl
import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import now, read_json


def take(path, holder, over, check):
    """(whether it was taken, the lock that was found). Its own lock is taken again without a change."""
    found = read_json(path) or {}
    if found and found["id"] not in (holder["id"], over):
        return False, found
    if not check and found.get("id") != holder["id"]:
        temporary = path + ".new"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "w", encoding="utf-8") as stream:
            json.dump(dict(holder, since=now()), stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    return True, found


def let_go(path, holder, over, check):
    """(whether it is gone, the lock that was found)."""
    found = read_json(path) or {}
    if not found or found["id"] not in (holder["id"], over):
        return not found, found
    if not check:
        os.unlink(path)
    return True, found


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "holder": {"type": "dict", "required": True},
            "over": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    given = module.params
    folder = os.path.dirname(given["path"])
    if module.check_mode and not os.path.isdir(folder):
        module.exit_json(changed=False, done=True, found={})
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    act = take if given["state"] == "present" else let_go
    done, found = act(given["path"], given["holder"], given["over"], module.check_mode)
    # A run that takes the lock and lets it go again has changed nothing.
    module.exit_json(changed=False, done=done, found=found)


if __name__ == "__main__":
    main()
