#!/usr/bin/python
"""Choose the release to go back to, and say which migrations stand in the way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: django_rollback
short_description: Choose the release to go back to, and say which migrations stand in the way
description:
  - Chooses the last release that was live before the live one and that was not itself rolled back from.
  - Asks the live release's own Django which migrations the older one does not know, and whether they can be undone.
  - A rollback that was interrupted before its migrations were undone is chosen again, and not the release before.
  - Changes nothing.
options:
  directory: {description: The site's directory., type: path, required: true}
  user: {description: The service user., type: str, required: true}
  to: {description: The release to go back to; empty chooses., type: str, default: ""}
  databases: {description: Aliases of the databases., type: list, elements: str, default: [default]}
author: Stepladder
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.django_site import Refused, ask, choose_earlier, log_entries, site_runner, state


def choose(entries, live, known):
    """The last release that was healthy before the live one. Raises Refused when there is none."""
    name, lost = choose_earlier(entries, live, known)
    if name:
        return name
    found = (
        "the deploy log names %s, which are not kept on this host any more" % ", ".join(lost)
        if lost
        else "there is none"
    )
    raise Refused(
        "django: no release to go back to from %s: %s. What is live stays live. "
        "Deploy the version that you want, or raise django_keep_releases." % (live or "nothing", found)
    )


class Comparison:
    """What two releases say about each other's migrations, with the settings that are live."""

    def __init__(self, given, config):
        self.given, self.config = given, config

    def runner(self, release):
        return site_runner(self.given["directory"], release, self.config, self.given["user"])

    def undone(self, newer, older):
        """The migrations that going back from one to the other undoes. Raises Refused when one cannot be."""
        base, undo = self.given["directory"], []
        what = "django: the migrations between the releases could not be compared. What is live stays live"
        for database in self.given["databases"]:
            names = ask(self.runner(older), base, older, "names", what, database=database)["names"]
            between = ask(self.runner(newer), base, newer, "unknown", what, database=database, known=names)
            if between["irreversible"]:
                words = "; ".join("%s (%s)" % pair for pair in sorted(between["irreversible"].items()))
                raise Refused(
                    "django: going back from %s to %s needs migrations undone that cannot be: %s. What is live stays live. "
                    "Deploy a version that repairs what is wrong, or restore a backup." % (newer, older, words)
                )
            undo += between["undo"]
        return undo


def unfinished(entries, live, known, comparison):
    """(release, migrations) that the last rollback came from and still has to undo; ("", []) when it is finished."""
    changes = [entry for entry in entries if entry["kind"] != "settings"]
    last = changes[-1] if changes else {}
    left = last.get("previous", "")
    if last.get("kind") != "rollback" or last["release"] != live or left == live or left not in known:
        return "", []
    undo = comparison.undone(left, live)
    return (left, undo) if undo else ("", [])


def plan(given):
    base, now = given["directory"], state(given["directory"])
    live, config, known = now["live"], now["live_config"], now["releases"]
    if not live:
        raise Refused("django: no release is live on this host. Deploy one first.")
    entries, comparison = log_entries(base), Comparison(given, config)
    if not given["to"] or given["to"] == live:
        source, undo = unfinished(entries, live, known, comparison)
        if source:
            return {"from": source, "to": live, "config": config, "undo": undo, "record": known[live]}
    target = given["to"] or choose(entries, live, known)
    if target not in known:
        raise Refused(
            "django: the release %s is not on this host; it has %s. What is live stays live. "
            "Name one of them (django_rollback_to; with playbooks/rollback.yml -e to=...)." % (target, ", ".join(known))
        )
    undo = comparison.undone(live, target) if target != live else []
    return {"from": live, "to": target, "config": config, "undo": undo, "record": known[target]}


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
