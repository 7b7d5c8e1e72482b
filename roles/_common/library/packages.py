#!/usr/bin/python
"""Say which packages of a list dpkg does not have installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Say which packages of a list are not installed
description:
  - The action plugin of the same name calls this, and has apt install what is missing.
  - All that is installed is returned as well (C(installed), names with spaces between), so that a run need not ask again.
  - A name that dpkg cannot judge (a version, a pattern, a virtual package) counts as missing; apt knows.
options:
  names: {description: The packages' names., type: list, elements: str, required: true}
author: Stepladder
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule

FORMAT = "${db:Status-Status} ${Package} ${Package}:${Architecture}\n"


def installed(query="dpkg-query"):
    """The names of all packages that dpkg has installed, with and without their architecture."""
    done = subprocess.run([query, "-W", "-f", FORMAT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {name for status, *spellings in rows if status == "installed" for name in spellings}


def main():
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    names = module.params["names"]
    here = installed()
    missing = [name for name in names if name not in here]
    module.exit_json(changed=False, missing=missing, installed=" ".join(sorted(here)))


if __name__ == "__main__":
    main()
