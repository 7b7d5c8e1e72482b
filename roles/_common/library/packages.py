#!/usr/bin/python
"""Say which packages of a list dpkg does not have installed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packages
short_description: Say which packages of a list are not installed
description:
  - The action plugin of the same name calls this, and has apt install what is missing.
  - A name that dpkg cannot judge (a version, a pattern, a virtual package) counts as missing; apt knows.
options:
  names: {description: The packages' names., type: list, elements: str, required: true}
author: Stepladder
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule

FORMAT = "${db:Status-Status} ${Package} ${Package}:${Architecture}\n"


def installed(names, query="dpkg-query"):
    """The names among those that dpkg lists for them, with and without their architecture.

    dpkg-query ends with 1 when it knows nothing of some of the names, and lists the others all the same.
    """
    done = subprocess.run(
        [query, "-W", "-f", FORMAT, *names], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    rows = (line.split() for line in done.stdout.splitlines())
    return {name for status, *spellings in rows if status == "installed" for name in spellings}


def main():
    module = AnsibleModule(
        argument_spec={"names": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    names = module.params["names"]
    here = installed(names)
    module.exit_json(changed=False, missing=[name for name in names if name not in here])


if __name__ == "__main__":
    main()
