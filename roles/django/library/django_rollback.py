#!/usr/bin/python
"""Choose the release to go back to, and say which migrations stand in the way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_rollback
short_description: Choose the release to go back to, and say which migrations stand in the way
description:
  - Chooses the last release that was live before the live one and that was not itself rolled back from.
  - Asks the live release's own Django which migrations the older one does not know, and whether they can be undone.
  - Changes nothing.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  to: {description: The release to go back to; empty chooses., type: str, default: ""}
  databases: {description: Aliases of the databases., type: list, elements: str, default: [default]}
author: Stepladder
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import Refused, ask, log_entries, site_runner, state


def choose(entries, live, known):
    """The last release that was healthy before the live one. Raises Refused when there is none."""
    bad = set()
    lost = []
    for entry in reversed(entries):
        name = entry["release"]
        if entry["kind"] == "rollback" and name != entry["previous"]:
            bad.add(entry["previous"])
        if name == live or name in bad:
            continue
        if name in known:
            return name
        lost.append(name)
    found = (
        "the deploy log names %s, which are not kept on this host any more" % ", ".join(lost)
        if lost
        else "there is none"
    )
    raise Refused(
        "django: no release to go back to from %s: %s. Nothing was changed. "
        "Deploy the version that you want, or raise django_keep_releases." % (live or "nothing", found)
    )


def plan(given):
    base, now = given["directory"], state(given["directory"])
    live, config = now["live"], now["live_config"]
    if not live:
        raise Refused("django: no release is live on this host. Nothing was changed. Deploy one first.")
    target = given["to"] or choose(log_entries(base), live, now["releases"])
    if target not in now["releases"]:
        raise Refused(
            "django: the release %s is not on this host; it has %s. Nothing was changed. "
            "Set django_rollback_to to one of them." % (target, ", ".join(now["releases"]))
        )
    undo = []
    if target != live:
        newer, older = (site_runner(base, name, config, given["user"]) for name in (live, target))
        asked = "django: the migrations between the releases could not be compared. Nothing was changed"
        for database in given["databases"]:
            names = ask(older, base, target, "names", asked, database=database)["names"]
            between = ask(newer, base, live, "unknown", asked, database=database, known=names)
            if between["irreversible"]:
                words = "; ".join("%s (%s)" % pair for pair in sorted(between["irreversible"].items()))
                raise Refused(
                    "django: going back from %s to %s needs migrations undone that cannot be: %s. Nothing was changed. "
                    "Deploy a version that repairs what is wrong, or restore a backup." % (live, target, words)
                )
            undo += between["undo"]
    return {"from": live, "to": target, "config": config, "undo": undo, "record": now["releases"][target]}


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "user": {"type": "str", "required": True},
            "to": {"type": "str", "default": ""},
            "databases": {"type": "list", "elements": "str", "default": ["default"]},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, plan=plan(module.params))
    except Refused as refusal:
        module.fail_json(msg=str(refusal))


if __name__ == "__main__":
    main()
