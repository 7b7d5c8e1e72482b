#!/usr/bin/python
"""Give the data directory of a stopped instance another name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgres_aside
short_description: Move a stopped instance's data directory aside
description:
  - Its new name, in C(path), is the old one with C(.aside-) and the time. Nothing is deleted.
options:
  version:
    description: Major version.
    type: str
    required: true
  cluster:
    description: The instance's name.
    type: str
    required: true
author: Stepladder
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.postgres_server import Server, places


def main():
    module = AnsibleModule(
        argument_spec={"version": {"type": "str", "required": True}, "cluster": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    version = module.params["version"]
    data = places(version, module.params["cluster"])[1]
    if not module.check_mode and Server(version, data).running:
        module.fail_json(msg="postgres: the server still runs. postgres changed nothing. Stop it first.")
    if not os.path.exists(data):
        module.exit_json(changed=False, path="")
    path = "%s.aside-%s" % (data, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    if not module.check_mode:
        os.rename(data, path)
    module.exit_json(changed=True, path=path)


if __name__ == "__main__":
    main()
