"""What tests of preflight share: inventories that fit, and what the part that looks at an inventory alone says of one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kit import ROOT, Environment, load_module

preflight = load_module(ROOT / "plugins/action/preflight.py")
values = preflight.values

TWO = {"web": ["web1"], "database": ["db1"]}
# Nothing listens on port 1, so that SSH is refused at once.
APART = {f: {"ansible_host": a, "ansible_port": 1} for f, a in (("web1", "127.0.0.2"), ("db1", "127.0.0.3"))}
NEEDS = {"preflight_groups": {"web": "the site runs there", "database": "PostgreSQL runs there"}}


def hosts(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: {**APART[host], **more.get(host, {})} for host in APART}


def verdict_problems(inventory: Path, debian: dict[str, str] | None = None) -> list[str]:
    """What the part says that reads all hosts' answers; `debian` has the release of those that do not run 13."""
    site = Environment(inventory)
    for host in site.hosts:
        release = (debian or {}).get(host, "13")
        answer = {"answer": {"distribution": "Debian", "version": release, "skew": 0.0}}
        site.learn(host, {"ansible_distribution_major_version": release}, {"_preflight_host": answer})
    action = object.__new__(preflight.ActionModule)
    try:
        action._verdict({"groups": site.all_groups, "hostvars": site.hostvars})
    except preflight.Refusal as refusal:
        return refusal.problems
    return []


def inventory_problems(inventory: Path, **more: Any) -> list[str]:
    """What that part says, without a run of a playbook; `more` are variables of the run (version)."""
    site = Environment(inventory)
    action = object.__new__(preflight.ActionModule)
    action._task = SimpleNamespace(args={"groups": NEEDS["preflight_groups"], **more.pop("args", {})})
    variables = {"groups": site.all_groups, "hostvars": site.hostvars, "ansible_inventory_sources": [str(inventory)]}
    try:
        action._inventory({**variables, **more})
    except preflight.Refusal as refusal:
        assert "nothing was changed" in str(refusal)
        return refusal.problems
    finally:
        assert not (inventory / "secrets").exists()
    return []
