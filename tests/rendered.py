"""The files that a role would write, rendered on this machine by Ansible's own templar from the role's own tasks.

The role's defaults and vars are taken as they are; a sample gives what a play, the facts and earlier tasks would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit import FACTS, load_collections

WRITERS = ("config_files", "guarded_files", "ansible.builtin.template", "ansible.builtin.copy")

LOOKUP = re.compile(r"""lookup\('ansible\.builtin\.template', '([^']+)'\)""")


@dataclass(frozen=True)
class File:
    dest: str
    text: str
    template: str | None


class Role:
    """A role's tasks with the variables that a sample gives."""

    def __init__(self, path: Path, sample: dict[str, Any]) -> None:
        from ansible.parsing.dataloader import DataLoader
        from ansible.plugins.loader import add_all_plugin_dirs
        from ansible.template import trust_as_template

        load_collections()
        for folder in (path, path.parent / "_common"):
            add_all_plugin_dirs(str(folder))
        self.path = path
        self._loader = DataLoader()
        self._loader.set_basedir(str(path))
        self._trust = trust_as_template
        self._variables = {
            **self._load("defaults/main.yml"),
            **self._load("vars/main.yml"),
            "ansible_facts": FACTS,
            "ansible_check_mode": False,
            "ansible_managed": "Ansible managed",
            "ansible_search_path": [str(path), str(path / "tasks")],
            "role_path": str(path),
            **sample,
        }

    def _load(self, name: str) -> Any:
        file = self.path / name
        return (self._loader.load_from_file(str(file), trusted_as_template=True) or {}) if file.is_file() else {}

    def _templar(self, more: dict[str, Any]) -> Any:
        from ansible.template import Templar

        return Templar(loader=self._loader, variables={**self._variables, **more})

    def value(self, name: str) -> Any:
        """One of the role's variables, as a task sees it."""
        return self._templar({}).template(self._variables[name])

    def files(self) -> Iterator[File]:
        """Every file that a task of the role writes under this sample; an undefined variable is an error."""
        for path in sorted((self.path / "tasks").glob("*.yml")):
            for task, variables in flat(self._load(f"tasks/{path.name}") or [], {}):
                for writer in WRITERS:
                    if writer in task:
                        yield from self._of_task(task, writer, variables)
                yield from self._of_module(task, variables)

    def _of_module(self, task: dict[str, Any], variables: dict[str, Any]) -> Iterator[File]:
        """Templates that a module of the role's own takes as text; the template's name says of what kind they are."""
        for module, args in task.items():
            if module not in WRITERS and module not in ("vars", "environment") and isinstance(args, dict):
                for text in args.values():
                    found = LOOKUP.fullmatch(text.strip("{} \n")) if isinstance(text, str) else None
                    if found:
                        yield File(
                            f"/{found[1].removesuffix('.j2')}", str(self._templar(variables).template(text)), found[1]
                        )

    def _of_task(self, task: dict[str, Any], writer: str, variables: dict[str, Any]) -> Iterator[File]:
        items = self._templar(variables).template(task["loop"]) if "loop" in task else [None]
        name = (task.get("loop_control") or {}).get("loop_var", "item")
        for item in items:
            known = {**variables, **({name: item} if "loop" in task else {})}
            if not self._wanted(task, known):
                continue
            args = task[writer]
            if writer in ("config_files", "guarded_files"):
                files = args.get("files") or []
                files = self._templar(known).template(files) if isinstance(files, str) else files
                for file in files:
                    yield from self._file(file, known)
            elif writer == "ansible.builtin.template":
                yield from self._file({"dest": args["dest"], "template": args["src"]}, known)
            elif "content" in args:
                yield from self._file({"dest": args["dest"], "content": args["content"]}, known)

    def _wanted(self, task: dict[str, Any], known: dict[str, Any]) -> bool:
        conditions = task.get("when", [])
        conditions = conditions if isinstance(conditions, list) else [conditions]
        return all(
            condition if isinstance(condition, bool) else self._templar(known).evaluate_conditional(condition)
            for condition in conditions
        )

    def _file(self, file: dict[str, Any], known: dict[str, Any]) -> Iterator[File]:
        from ansible.plugins.loader import lookup_loader

        templar = self._templar(known)
        if templar.template(file.get("state", "present")) == "absent" or not {"content", "template"} & set(file):
            return
        dest = str(templar.template(file["dest"]))
        if "template" not in file:
            looked_up = LOOKUP.search(str(file["content"]))
            yield File(dest, str(templar.template(file["content"])), looked_up[1] if looked_up else None)
            return
        template = str(templar.template(file["template"]))
        extra = templar.template(file.get("vars") or {})
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=templar)
        [text] = lookup.run([template], variables={**self._variables, **known}, template_vars=dict(extra))
        yield File(dest, str(text), template)


def flat(tasks: list[dict[str, Any]], variables: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Tasks with the variables of their own and of the blocks around them."""
    for task in tasks:
        inner = {**variables, **(task.get("vars") or {})}
        yield task, inner
        for key in ("block", "rescue", "always"):
            yield from flat(task.get(key) or [], inner)
