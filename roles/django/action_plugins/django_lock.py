"""Hold a site's deploy lock for the length of a run of ansible-playbook, or by hand until it is let go.

Arguments: path, what ("deploy of v2"), who, why, state (present, absent), by_hand, force. A lock that a run of this
controller left behind when it died is taken over; any other is respected, and the refusal says whose it is.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

BY_HAND = "by hand"


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" when there is none of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def identity(pid: int) -> str:
    """What tells one run from all others: the controller's name, the process, and when it started."""
    return f"{platform.node()}:{pid}:{started(pid)}"


def abandoned(lock_id: str) -> bool:
    """Whether a lock was taken by a run of this controller that is no more."""
    node, _, process = lock_id.partition(":")
    pid, _, tick = process.partition(":")
    return node == platform.node() and pid.isdigit() and bool(tick) and started(int(pid)) != tick


def refusal(found: dict[str, Any]) -> str:
    """The sentence for a lock that somebody else holds."""
    why = f" ({found['why']})" if found.get("why") else ""
    where = f" from {found['controller']}" if found.get("controller") else ""
    held = f"{found.get('who') or 'somebody'} holds the deploy lock{where} since {found.get('since')}: {found.get('what')}{why}"
    if found["id"] == BY_HAND:
        return f"django: {held}. No release was touched. When the reason is gone: playbooks/lock.yml -e state=off"
    return (
        f"django: {held}. No release was touched. Wait until that run has ended. If it has died, and you have seen to that, "
        "let go of its lock: playbooks/lock.yml -e state=off"
    )


def already(found: dict[str, Any]) -> str:
    """The sentence for a lock by hand that is to get another reason."""
    held = f"{found.get('who') or 'somebody'} holds the deploy lock since {found.get('since')}: {found.get('what')}"
    return (
        f"django: {held} ({found.get('why')}). django changed nothing. "
        "To give another reason, let go of it first: playbooks/lock.yml -e state=off"
    )


def by_hand_changes(state: str, found: dict[str, Any]) -> bool:
    """Whether a person's word changed something: any lock that was let go, and one that was not there before."""
    return bool(found) if state == "absent" else found.get("id") != BY_HAND


class ActionModule(ActionBase):
    """Calls the module of the same name once, or twice where a lock is taken over."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("path", "what", "who", "why", "state", "by_hand", "force"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        # The parent of this worker is ansible-playbook itself, the same for all plays of a run.
        holder = {
            "id": BY_HAND if args.get("by_hand") else identity(os.getppid()),
            "who": str(args.get("who") or ""),
            "why": str(args.get("why") or ""),
            "what": str(args.get("what") or ""),
            "controller": platform.node(),
        }
        wanted = {"path": args["path"], "holder": holder, "state": args.get("state") or "present"}
        answer = self._ask(wanted, task_vars)
        if answer.get("failed"):
            return {**result, **answer}
        found = answer["found"]
        over = not answer["done"] and (args.get("force") or abandoned(found["id"]))
        if over:
            answer = self._ask({**wanted, "over": found["id"]}, task_vars)
        if not answer["done"] and wanted["state"] == "present":
            raise AnsibleActionFail(refusal(answer["found"]))
        if (
            wanted["state"] == "present"
            and holder["id"] == found.get("id") == BY_HAND
            and holder["why"] != found["why"]
        ):
            raise AnsibleActionFail(already(found))
        changed = bool(args.get("by_hand")) and by_hand_changes(wanted["state"], answer["found"])
        return {**result, "changed": changed, "found": found, "over": bool(over)}

    def _ask(self, wanted: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return self._execute_module("django_lock", wanted, task_vars=task_vars, wrap_async=False)
