"""Install what is missing of a list of packages; what is there already costs one look at dpkg, not a load of apt's lists.

The task's arguments are described in roles/_common/README.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

TASK_KEYS = {"names", "cache_valid_time", "lock_timeout"}


class ActionModule(ActionBase):
    """Ask the module of the same name; only when something is missing does ansible.builtin.apt load its lists."""

    TRANSFERS_FILES = False

    def _note(self, task_vars: dict[str, Any]) -> Path | None:
        """Where this run of Ansible keeps what the host has had installed; the folder goes with the run."""
        host = task_vars.get("inventory_hostname")
        if not host or self._task.delegate_to:
            return None
        return Path(constants.DEFAULT_LOCAL_TMP) / f"packages-{hashlib.sha256(host.encode()).hexdigest()[:16]}"

    def _missing(self, names: list[str], task_vars: dict[str, Any]) -> dict[str, Any]:
        """The answer of the module; without asking the host when it has told of all these names earlier in this run."""
        note = self._note(task_vars)
        if note and note.exists() and set(names) <= set(note.read_text().split()):
            return {"changed": False, "missing": []}
        answer = self._execute_module("packages", {"names": names}, task_vars=task_vars)
        told = answer.pop("installed", "")
        if note and told:
            note.write_text(told)
        return answer

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        if unknown := sorted(set(args) - TASK_KEYS):
            known = ", ".join(sorted(TASK_KEYS))
            raise AnsibleActionFail(
                f"packages: the task has the unknown key {', '.join(unknown)}. Known keys: {known}."
            )
        names = args.get("names")
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise AnsibleActionFail(f"packages: names is a list of packages' names; found {names!r}.")
        answer = self._missing(names, task_vars or {})
        if answer.get("failed") or not answer["missing"]:
            return {**result, **answer}
        wanted = {
            "name": names,
            "state": "present",
            "install_recommends": False,
            "update_cache": True,
            "cache_valid_time": args.get("cache_valid_time", 86400),
            "lock_timeout": args.get("lock_timeout", 300),
        }
        return {**result, **self._execute_module("ansible.builtin.apt", wanted, task_vars=task_vars)}
