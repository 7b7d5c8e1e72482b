#!/usr/bin/python
"""Bring several systemd units into their states in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: services
short_description: Bring several systemd units into their states in one call
description:
  - Asks systemd once for all units, then acts on those that differ, in the order given.
  - Reloads systemd's own configuration first when a unit file on disk is newer than what it has loaded.
  - When a unit does not come up, the message carries the last lines of its journal. One that dies again and again, and
    waits for its next try, counts as not running; it is started and watched for some seconds.
options:
  units:
    description: The units and what they should be.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The unit's whole name, C(nginx.service).
        type: str
        required: true
      state:
        description:
          - What it should be doing. C(restarted) and C(reloaded) act on every run.
          - C(reloaded_if_running) leaves a unit alone that is not running or does not exist.
        type: str
        choices: [started, stopped, restarted, reloaded, reloaded_if_running]
      enabled:
        description: Whether it starts at boot.
        type: bool
      masked:
        description: Whether it can be started at all.
        type: bool
  daemon_reload:
    description: Reload systemd's configuration even where it does not ask for it.
    type: bool
    default: false
author: Stepladder
"""

import os
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = "Id,Names,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,Result"
UP = ("active", "reloading", "activating")
# How long a unit that has been dying again and again is watched after its start.
WATCH_SECONDS = 3.0
# States of a unit file in which `systemctl enable` has nothing to do or cannot do anything.
ENABLED = ("enabled", "enabled-runtime", "static", "indirect", "generated", "alias", "linked", "transient")
STATES = ["started", "stopped", "restarted", "reloaded", "reloaded_if_running"]
# States that a unit which does not exist is in already.
CONTENT_WITHOUT = ("stopped", "reloaded_if_running")
JOURNAL_LINES = "30"


class Refused(Exception):
    """A unit that cannot be brought into its state; its text is the sentence for the operator."""


def systemctl(*words):
    """Run systemctl; returns (exit code, output)."""
    done = subprocess.run(
        ("systemctl", "--no-ask-password", *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def parse_show(output):
    """The blocks that `systemctl show` prints, as a list of dicts in the order of the units asked for."""
    return [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in output.split("\n\n")
        if block.strip()
    ]


def ask(names):
    code, output = systemctl("show", "-p", PROPERTIES, "--", *names)
    if code:
        raise Refused("systemd does not answer on this host: %s" % output)
    return dict(zip(names, parse_show(output), strict=True))


def journal(unit):
    done = subprocess.run(
        ("journalctl", "--no-pager", "-n", JOURNAL_LINES, "-o", "short-iso", "-u", unit),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout.decode("utf-8", "replace").strip()


def dies(now):
    """Whether a unit has died and waits for its next try; systemd calls that activating."""
    return now.get("SubState", "").startswith("auto-restart")


def runs(now):
    return now["ActiveState"] in UP and not dies(now)


def act(unit, verb, watch=0.0):
    """Do one thing to a unit; what comes up must stay so for some seconds. Raises Refused."""
    code, output = systemctl(verb, "--", unit)
    now = ask([unit])[unit]
    comes_up = verb in ("start", "restart", "reload")
    end = time.monotonic() + watch
    while comes_up and runs(now) and time.monotonic() < end:
        time.sleep(0.2)
        now = ask([unit])[unit]
    if code or (comes_up and not runs(now) and now.get("Result") != "success"):
        raise Refused(
            "%s did not %s: %s (%s). Its last lines:\n%s"
            % (unit, verb, now["ActiveState"], output or now.get("Result", ""), journal(unit))
        )


def steps(wanted, now):
    """The systemctl verbs that bring a unit from what it is to what it should be, in order."""
    verbs = []
    masked = now["LoadState"] == "masked"
    if wanted["masked"] is False and masked:
        verbs.append("unmask")
    if wanted["enabled"] is True and (now.get("UnitFileState") not in ENABLED or (masked and verbs)):
        verbs.append("enable")
    if wanted["enabled"] is False and now.get("UnitFileState") in ("enabled", "enabled-runtime", "linked"):
        verbs.append("disable")
    up = runs(now)
    state = wanted["state"]
    if state == "started" and not up:
        verbs.append("start")
    elif state == "stopped" and (up or dies(now)):
        verbs.append("stop")
    elif state == "restarted":
        verbs.append("restart" if up else "start")
    elif state == "reloaded":
        verbs.append("reload" if up else "start")
    elif state == "reloaded_if_running" and up:
        verbs.append("reload")
    if wanted["masked"] is True and not masked:
        verbs.append("mask")
    return verbs


def bring(units, daemon_reload, check):
    """Bring units into their states; returns the module's result. Raises Refused."""
    if not os.path.isdir("/run/systemd/system"):
        raise Refused("systemd does not run on this host, and the kit's services are systemd units.")
    if not units:
        return {"changed": False, "steps": []}
    now = ask([unit["name"] for unit in units])
    done = []
    if daemon_reload or any(state.get("NeedDaemonReload") == "yes" for state in now.values()):
        if not check:
            systemctl("daemon-reload")
            now = ask([unit["name"] for unit in units])
        done.append("daemon-reload")
    for unit in units:
        name = unit["name"]
        missing = now[name]["LoadState"] == "not-found"
        if missing and not check:
            if unit["state"] in CONTENT_WITHOUT and not unit["enabled"] and not unit["masked"]:
                continue
            raise Refused("%s does not exist on this host. Install what brings it before this task." % name)
        for verb in steps(unit, now[name]):
            if not check:
                act(name, verb, WATCH_SECONDS if dies(now[name]) else 0.0)
            done.append("%s %s" % (verb, name))
    return {"changed": any(step != "daemon-reload" for step in done), "steps": done}


def main():
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": STATES},
                    "enabled": {"type": "bool"},
                    "masked": {"type": "bool"},
                },
            },
            "daemon_reload": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = bring(module.params["units"], module.params["daemon_reload"], module.check_mode)
    except Refused as refusal:
        module.fail_json(msg=str(refusal))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
