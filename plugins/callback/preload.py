"""Loads once, before Ansible forks, what every task's process would load anew: a third of a run's processor time.

Ansible runs each task of each host in a process forked from its own. What that process has to import is gone with it, and
the next one imports it again: the roles' filters (and the libraries behind them), the plugins of the connection, the builder
of modules. And Jinja compiles a template each time that it is used, the wiring's some thousand times in a run: here each is
compiled once in a process. Python's garbage collector goes through all objects again and again, most of them the ones that
the process was born with: it leaves those alone. Nothing depends on this plugin; without it a run takes longer.
"""

from __future__ import annotations

import functools
import gc
import os
from typing import Any

from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase
from jinja2 import Environment

DOCUMENTATION = """
name: preload
type: aggregate
short_description: loads before the fork what every task needs
description:
  - Loads filters, tests, lookups and the plugins of the connection when a play starts, when the plugins of its roles are known.
  - Has Jinja compile a template once in a process.
  - Keeps the garbage collector of a task's process to what that process has made.
"""

CLASSES = {
    loader.action_loader: ("assert", "normal", "set_fact"),
    loader.connection_loader: ("local", "ssh"),
    loader.become_loader: ("sudo",),
    loader.lookup_loader: ("file",),
    loader.shell_loader: ("sh",),
}


def remember_compiled() -> None:
    """Let Jinja keep what it has compiled, by the template's text and by what else makes a difference to the result.

    Ansible treats backslashes in one text in two ways, which Jinja is not told of: what has one is compiled anew.
    """
    compile_anew = Environment.compile
    if hasattr(compile_anew, "__wrapped__"):
        return
    compiled: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(compile_anew)
    def compile_once(
        self: Environment,
        source: Any,
        name: Any = None,
        filename: Any = None,
        raw: bool = False,
        defer_init: bool = False,
    ) -> Any:
        def anew() -> Any:
            return compile_anew(self, source, name, filename, raw, defer_init)

        if not isinstance(source, str) or "\\" in source:
            return anew()
        # The lexer is the same object for the same delimiters and treatment of blanks.
        key = (type(self), self.lexer, tuple(self.extensions), str(source), name, filename, raw, defer_init)
        if key not in compiled:
            compiled[key] = anew()
        return compiled[key]

    Environment.compile = compile_once  # type: ignore[method-assign]


class CallbackModule(CallbackBase):
    """Asks Ansible's own loaders, which remember what they have loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def __init__(self) -> None:
        super().__init__()
        remember_compiled()
        os.register_at_fork(after_in_child=gc.freeze)

    def v2_playbook_on_play_start(self, play) -> None:
        # Asking for one filter loads all of them: their names are known only to the files that hold them.
        loader.filter_loader.get("default")
        loader.test_loader.get("defined")
        for plugins, names in CLASSES.items():
            for name in names:
                plugins.get(name, class_only=True)
