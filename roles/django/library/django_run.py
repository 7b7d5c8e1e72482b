#!/usr/bin/python
"""Run management commands and shell lines in a release, as the service user with the site's environment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_run
short_description: Run management commands and shell lines in a release, as the service user
description:
  - Runs one after the other and stops at the first that fails. Secrets of the environment are masked in what is returned.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  release: {description: The release whose programs run., type: str, required: true}
  config: {description: The fingerprint of the settings to run with., type: str, required: true}
  commands:
    description: "What to run, each C({manage: words}) or C({shell: line})."
    type: list
    elements: dict
    required: true
  what: {description: What the commands are, for the message of a failure., type: str, default: command}
  timeout: {description: Seconds that one command may take., type: int, default: 3600}
author: Stepladder
"""

import shlex

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import Refused, management, site_runner, tail


def run_all(given):
    """Run the commands; returns what each of them said. Raises Refused at the first that fails."""
    runner = site_runner(given["directory"], given["release"], given["config"], given["user"], given["timeout"])
    said = []
    for command in given["commands"]:
        if "manage" in command:
            words = command["manage"]
            words = words if isinstance(words, list) else shlex.split(words)
            argv, name = management(given["directory"], given["release"], words), shlex.join(["manage.py", *words])
        else:
            argv = name = command["shell"]
        code, _out, text = runner.run(argv)
        if code:
            raise Refused(
                "django: the %s `%s` failed (exit %d). What is live was not touched. Its last words:\n%s"
                % (given["what"], name, code, tail(text))
            )
        said.append({"command": name, "said": tail(text) if text else ""})
    return said


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "release": {"type": "str", "required": True},
            "config": {"type": "str", "required": True},
            "commands": {"type": "list", "elements": "dict", "required": True},
            "what": {"type": "str", "default": "command"},
            "timeout": {"type": "int", "default": 3600},
        }
    )
    try:
        module.exit_json(changed=False, results=run_all(module.params))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
