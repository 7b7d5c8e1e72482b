#!/usr/bin/python
"""Make a release the live one, note it in the deploy log, and remove what is not needed any more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_activate
short_description: Make a release the live one, note it in the deploy log, and remove what is not needed any more
description:
  - Flips C(current) and C(current-config) atomically and appends one line to shared/deploys.log when either changed.
  - Keeps the live release, the one before it, the one that a rollback would choose, those that are named as protected,
    and the newest of the others.
options:
  directory: {description: The site's directory., type: path, required: true}
  release: {description: The release to make live., type: str, required: true}
  config: {description: The fingerprint of its settings., type: str, required: true}
  keep: {description: How many releases stay., type: int, default: 5}
  protected: {description: Releases that stay whatever their age., type: list, elements: str, default: []}
  by: {description: Who deploys., type: str, default: ""}
  reason: {description: Why., type: str, default: ""}
  kind: {description: What this is., type: str, choices: [deploy, rollback], default: deploy}
author: Stepladder
"""

import json
import os
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_files import drop_orphans, link_union
from ansible.module_utils.django_site import (
    Refused,
    choose_earlier,
    link_name,
    log_entries,
    noted,
    now,
    read_json,
    releases,
)


def flip(link, target):
    temporary = link + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.replace(temporary, link)


def note(base, entry):
    path = os.path.join(base, "shared", "deploys.log")
    with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+b") as log:
        end = log.seek(0, os.SEEK_END)
        if end:
            log.seek(end - 1)
        # Half a line is what a host that lost power has left; the next one does not join it.
        torn = b"\n" if end and log.read(1) != b"\n" else b""
        log.write(torn + json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        log.flush()
        os.fsync(log.fileno())


def entry_of(given, previous, previous_config, entries):
    record = read_json(os.path.join(given["directory"], "releases", given["release"], "RELEASE.json"))
    told = {name for entry in entries if entry["release"] == given["release"] for name in entry.get("migrations", [])}
    return {
        "at": now(),
        "by": given["by"],
        "kind": "settings" if previous == given["release"] else given["kind"],
        "release": given["release"],
        "revision": record["revision"],
        "config": given["config"],
        "previous": previous,
        "previous_config": previous_config,
        "migrations": [name for name in record.get("migrations", []) if name not in told],
        "reason": given["reason"],
        "result": "live",
    }


def recent(entries, field, live):
    """What the deploy log names, the newest first, without what is live now."""
    seen = []
    for entry in reversed(entries):
        if entry[field] != live and entry[field] not in seen:
            seen.append(entry[field])
    return seen


def prune(given, entries):
    """Remove releases and settings that are not needed; returns their names."""
    base, live = given["directory"], given["release"]
    known = releases(base)
    before = [name for name in recent(entries, "release", live) if name in known]
    earlier, _lost = choose_earlier(entries, live, known)
    never_live = sorted(
        (name for name in known if name != live and name not in before), key=lambda n: known[n]["built"]
    )[::-1]
    kept = {live, earlier, *before[:1], *given["protected"], *(before + never_live)[: max(given["keep"] - 1, 0)]}
    removed = []
    for name in sorted(os.listdir(base + "/releases")):
        if name not in kept:
            shutil.rmtree(os.path.join(base, "releases", name))
            removed.append(name)
    # A generation that runs is named by its release; with it stay the settings that it was live with.
    used = {entry["config"] for entry in entries if entry["release"] in kept} | {given["config"]}
    for name in sorted(os.listdir(base + "/config")):
        if name not in used:
            shutil.rmtree(os.path.join(base, "config", name))
            removed.append("config " + name)
    drop_orphans(base + "/shared/static", [os.path.join(base, "releases", name, "static") for name in kept if name])
    return removed


def activate(given):
    base, release, config = given["directory"], given["release"], given["config"]
    previous, previous_config = link_name(base + "/current"), link_name(base + "/current-config")
    entries = log_entries(base)
    if (previous, previous_config) == (release, config) and noted(entries, release, config):
        return {"changed": False, "removed": []}
    if not os.path.exists("%s/releases/%s/RELEASE.json" % (base, release)) or not os.path.isdir(
        "%s/config/%s" % (base, config)
    ):
        raise Refused(
            "django: the release %s with the settings %s is not on this host. What is live stays live."
            % (release, config)
        )
    entry = entry_of(given, previous, previous_config, entries)
    link_union("%s/releases/%s/static" % (base, release), base + "/shared/static", replace=True)
    flip(base + "/current-config", "config/" + config)
    flip(base + "/current", "releases/" + release)
    note(base, entry)
    return {"changed": True, "entry": entry, "removed": prune(given, [*entries, entry])}


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "config": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 5},
            "protected": {"type": "list", "elements": "str", "default": []},
            "by": {"type": "str", "default": ""},
            "reason": {"type": "str", "default": ""},
            "kind": {"type": "str", "choices": ["deploy", "rollback"], "default": "deploy"},
        }
    )
    # The web server reads the static files that are linked here, however strict the administrator's own umask is.
    os.umask(0o022)
    try:
        module.exit_json(**activate(module.params))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
