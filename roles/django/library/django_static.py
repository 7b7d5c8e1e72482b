#!/usr/bin/python
"""Collect a release's static files and lay them beside those of the other releases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_static
short_description: Collect a release's static files and lay them beside those of the other releases
description:
  - The service user collects into a directory of its own; root takes the regular files from there, so that the service
    user cannot write what is served.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  release: {description: The release whose programs run., type: str, required: true}
  config: {description: The fingerprint of the settings to run with., type: str, required: true}
  timeout: {description: Seconds that collecting may take., type: int, default: 1800}
author: Stepladder
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_files import link_union, merge
from ansible.module_utils.django_site import Refused, ask, site_runner

FAILED = "django: collectstatic failed. What is live was not touched"


def collect(given):
    """Collect and publish; returns the number of files that differed. Raises Refused."""
    base, release = given["directory"], given["release"]
    runner = site_runner(base, release, given["config"], given["user"], given["timeout"])
    staging = os.path.join(base, "shared", ".static-" + release)
    target = os.path.join(base, "releases", release, "static")
    shutil.rmtree(staging, ignore_errors=True)
    os.mkdir(staging, 0o700)
    try:
        os.chown(staging, runner.account.pw_uid, runner.account.pw_gid)
        runner.environment["SITE_STATIC_ROOT"] = staging
        ask(runner, base, release, "static", FAILED)
        os.makedirs(target, mode=0o755, exist_ok=True)
        changed = merge(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return changed + link_union(target, os.path.join(base, "shared", "static"), replace=False)


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "config": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 1800},
        }
    )
    # The web server reads what is laid down here, however strict the administrator's own umask is.
    os.umask(0o022)
    try:
        module.exit_json(changed=bool(collect(module.params)))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
