"""Change files that can cut the controller off, with a way back that does not need the controller.

The task's arguments and its result are described in roles/_common/README.md.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import connection_loader

KEYS = {
    "name", "files", "verify", "expect", "snapshot", "apply", "restore", "loaded", "seconds", "port", "key_only", "advice",
}  # fmt: skip
FILE_KEYS = {"dest", "content", "mode", "validate"}
# A fresh connection is tried this often, because sshd takes a moment to come back from a reload.
TRIES = 2
# A shorter time could be over before the proof is; none at all would leave no way back.
SHORTEST_SECONDS = 5


class ActionModule(ActionBase):
    """Compare, change with the host's timer running, prove a new SSH connection, confirm; or put everything back."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        self._refuse_unknown(args)
        self._task_vars = task_vars or {}
        self._payload = {
            "name": args["name"],
            "files": [
                {
                    "dest": item["dest"],
                    "content": item.get("content"),
                    "mode": item.get("mode", "0644"),
                    "validate": item.get("validate"),
                }
                for item in args["files"]
            ],
            "seconds": int(args.get("seconds", 60)),
            **{key: args.get(key) for key in ("verify", "snapshot", "apply", "restore", "loaded")},
            "expect": args.get("expect") or [],
        }
        compared = self._stage("compare")
        result.update(compared)
        if compared.get("failed") or not compared["changed"] or self._task.check_mode:
            return result
        proved = self._connection.transport == "ssh"
        if proved:
            result.update(self._change_with_proof(args))
        else:
            result.update(self._stage("apply", seconds=0))
            result["msg"] = (
                f"Applied without a second connection: this run does not use SSH but {self._connection.transport}."
            )
        result["changed"] = not result.get("failed", False)
        return result

    def _change_with_proof(self, args: dict[str, Any]) -> dict[str, Any]:
        key_only = bool(args.get("key_only", False))
        where = self._connection.get_option("host") or self._play_context.remote_addr
        refused = self._fresh_connection(None, key_only)
        if refused:
            how = " with a key" if key_only else ""
            raise AnsibleActionFail(
                f"{args['name']}: a second SSH connection to {where}{how} does not work even now ({refused}), so a way "
                f"back in could not be proved. The old files stay. {args.get('advice', '')}".strip()
            )
        applied = self._stage("apply")
        if applied.get("failed"):
            return applied
        refused = self._fresh_connection(args.get("port"), key_only)
        if refused:
            back = self._put_back()
            raise AnsibleActionFail(
                f"{args['name']}: with the new configuration no new SSH connection to {where} succeeds ({refused}). "
                f"{back} {args.get('advice', '')}".strip()
            )
        confirmed = self._stage("confirm")
        return confirmed if confirmed.get("failed") else {}

    def _put_back(self) -> str:
        """Put the old configuration back over the connection that stands, or wait for the host to do it; says which."""
        seconds = self._payload["seconds"]
        deadline = time.monotonic() + seconds + 15
        while time.monotonic() < deadline:
            try:
                back = self._stage("rollback")
            except AnsibleConnectionFailure:
                time.sleep(2)
                continue
            if back.get("failed"):
                return f"Putting the old one back failed: {back.get('msg')}. The host's timer tries again within {seconds} s."
            if back.get("by_timer"):
                return "The host put the old one back by itself."
            return "The old one was put back."
        return f"The host puts the old one back by itself within {seconds} s, but could not be asked."

    def _fresh_connection(self, port: int | None, key_only: bool) -> str:
        """Log in over a new SSH connection, past any shared one; gives ssh's words when that fails."""
        fresh = connection_loader.get("ssh", self._play_context)
        fresh._options = dict(self._connection._options)
        fresh._origins = dict(self._connection._origins)
        alone = "-o ControlMaster=no -o ControlPath=none -o ConnectTimeout=5"
        if key_only:
            # Ansible's password, if it has one, must not hide that the key is missing.
            alone += " -o PreferredAuthentications=publickey"
        fresh._options["ssh_args"] = f"{alone} {fresh._options.get('ssh_args') or ''}".strip()
        fresh._options["reconnection_retries"] = 0
        fresh._options["timeout"] = 5
        if port:
            fresh._options["port"] = int(port)
        words = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(1)
            try:
                code, _out, error = fresh.exec_command("true", sudoable=False)
            except AnsibleError as failure:
                words = str(failure)
            else:
                if code == 0:
                    return ""
                words = error.decode("utf-8", "replace")
        return (words.strip().splitlines() or ["no answer"])[-1].strip()

    def _stage(self, stage: str, **more: Any) -> dict[str, Any]:
        packed = base64.b64encode(json.dumps({**self._payload, **more, "stage": stage}).encode()).decode()
        result = self._execute_module("guarded_files", {"payload": packed}, task_vars=self._task_vars)
        result.pop("invocation", None)
        if result.get("unreachable"):
            raise AnsibleConnectionFailure(str(result.get("msg", "")))
        return result

    @staticmethod
    def _refuse_unknown(args: dict[str, Any]) -> None:
        unknown = sorted(set(args) - KEYS) + sorted(
            {key for item in args.get("files") or [] for key in set(item) - FILE_KEYS}
        )
        if unknown or not args.get("name") or not args.get("files") or not args.get("apply"):
            raise AnsibleActionFail(
                f"guarded_files: needs name, files and apply; knows {', '.join(sorted(KEYS))}, and for a file "
                f"{', '.join(sorted(FILE_KEYS))}. Unknown: {', '.join(unknown) or 'none'}."
            )
        if int(args.get("seconds", SHORTEST_SECONDS)) < SHORTEST_SECONDS:
            raise AnsibleActionFail(
                f"{args['name']}: {args['seconds']} seconds are too short to prove a way back in. The old files stay. "
                f"Allow at least {SHORTEST_SECONDS}."
            )
