"""Render a service's files on the controller and ship them in one remote call.

The task's arguments and its result are described in roles/_common/README.md.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

TASK_KEYS = {"files", "directories", "owner", "group", "mode", "verify"}
FILE_KEYS = {
    "dest", "template", "content", "link", "state", "vars", "owner", "group", "mode",
    "validate", "secret", "effect", "once",
}  # fmt: skip
DIRECTORY_KEYS = {"path", "owner", "group", "mode", "state"}
MANAGED = "Ansible managed"  # what Ansible itself says in its templates unless ansible_managed is set
SOURCES = ("template", "content", "link")


def _refuse_unknown(found: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise AnsibleActionFail(
            f"config_files: {where} has the unknown key {', '.join(unknown)}. Known keys: {', '.join(sorted(known))}."
        )


def _mode(value: Any, where: str) -> str | None:
    """An octal mode as text ("0644"); a bare YAML number is refused because 0644 and 644 read alike and differ."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise AnsibleActionFail(f'config_files: {where} has the mode {value!r}. Write it as quoted octal, "0644".')
    try:
        int(value, 8)
    except ValueError:
        raise AnsibleActionFail(f'config_files: {where} has the mode {value!r}, not an octal number such as "0644".')
    return str(value)


def _searchable(mode: str | None) -> str | None:
    """The directory's mode that goes with a file's mode: search where the file may be read (0640 -> 0750)."""
    if mode is None:
        return None
    bits = int(mode, 8)
    return f"{bits | ((bits & 0o444) >> 2):04o}"


class ActionModule(ActionBase):
    """Validate the task, render what it names, and hand the lot to the module of the same name."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        args = self._task.args
        _refuse_unknown(args, TASK_KEYS, "the task")
        defaults = {
            "owner": args.get("owner", "root"),
            "group": args.get("group", "root"),
            "mode": _mode(args.get("mode", "0644"), "the task"),
        }
        payload = {
            "directories": [self._directory(item, defaults) for item in args.get("directories") or []],
            "files": [self._file(item, defaults, task_vars) for item in args.get("files") or []],
            "verify": args.get("verify"),
        }
        self._refuse_twice(payload["files"])
        packed = base64.b64encode(json.dumps(payload).encode()).decode()
        result.update(self._execute_module("config_files", {"payload": packed}, task_vars=task_vars))
        # The invocation would carry every file's content into -vvv output and log files.
        result.pop("invocation", None)
        return result

    def _directory(self, item: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(item, dict) or not item.get("path"):
            raise AnsibleActionFail(f"config_files: a directory needs a path, found {item!r}.")
        _refuse_unknown(item, DIRECTORY_KEYS, f"directory {item['path']}")
        return {
            "path": str(item["path"]),
            "owner": item.get("owner", defaults["owner"]),
            "group": item.get("group", defaults["group"]),
            "mode": _mode(item.get("mode"), str(item["path"])) or _searchable(defaults["mode"]),
            "state": item.get("state", "present"),
        }

    def _file(self, item: dict[str, Any], defaults: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(item, dict) or not item.get("dest"):
            raise AnsibleActionFail("config_files: a file needs a dest, found an entry without one.")
        dest = str(item["dest"])
        _refuse_unknown(item, FILE_KEYS, dest)
        state = item.get("state", "present")
        if state not in ("present", "absent"):
            raise AnsibleActionFail(f"config_files: {dest} has the state {state!r}; it is present or absent.")
        sources = [key for key in SOURCES if item.get(key) is not None]
        if state == "present" and len(sources) != 1:
            raise AnsibleActionFail(
                f"config_files: {dest} needs exactly one of {', '.join(SOURCES)}; found {', '.join(sources) or 'none'}."
            )
        file = {
            "dest": dest,
            "state": state,
            "owner": item.get("owner", defaults["owner"]),
            "group": item.get("group", defaults["group"]),
            "mode": _mode(item.get("mode"), dest) or defaults["mode"],
            "validate": item.get("validate"),
            "secret": bool(item.get("secret", False)),
            "effect": item.get("effect"),
            "once": bool(item.get("once", False)),
            "link": item.get("link"),
            "content": None,
        }
        if file["validate"] and "%s" not in file["validate"]:
            raise AnsibleActionFail(f"config_files: {dest}: validate must name the file as %s: {file['validate']}")
        if state == "present" and sources != ["link"]:
            text = (
                self._render(item["template"], item.get("vars") or {}, dest, task_vars)
                if sources == ["template"]
                else str(item["content"])
            )
            file["content"] = text
        return file

    def _render(self, template: str, extra: dict[str, Any], dest: str, task_vars: dict[str, Any]) -> str:
        """The text of a template; its variables are not copied deeply as the lookup of that name does for each file."""
        places = [place for path in task_vars.get("ansible_search_path", []) for place in (f"{path}/templates", path)]
        try:
            source = self._find_needle("templates", template)
            templar = self._templar.copy_with_new_env(
                searchpath=[*places, os.path.dirname(source)],
                available_variables={"ansible_managed": MANAGED, **task_vars, **extra},
            )
            text = trust_as_template(self._loader.get_text_file_contents(source))
            return str(templar.template(text, escape_backslashes=False, overrides={"trim_blocks": True}))
        except Exception as error:
            raise AnsibleActionFail(f"config_files: {template} for {dest}: {error}") from error

    @staticmethod
    def _refuse_twice(files: list[dict[str, Any]]) -> None:
        seen: set[str] = set()
        for file in files:
            if file["dest"] in seen:
                raise AnsibleActionFail(f"config_files: {file['dest']} is listed twice; keep one of the entries.")
            seen.add(file["dest"])
