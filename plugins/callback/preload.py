"""Loads once, before Ansible forks, what every task's process would load anew: a third of a run's processor time.

Ansible runs each task of each host in a process forked from its own. What that process has to import is gone with it, and
the next one imports it again: the roles' filters (and the libraries behind them), the plugins of the connection, the builder
of modules. And Jinja compiles a template each time that it is used, the wiring's some thousand times in a run: here each is
compiled once in a process. Ansible wraps all of a host's variables each time too: here once, until one of them is another. Python's
garbage collector goes through all objects again and again, most of them the ones that
the process was born with: it leaves those alone. Nothing depends on this plugin; without it a run takes longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ansible._internal._templating import _lazy_containers
from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase
from ansible.utils.collection_loader import _collection_finder
from jinja2 import Environment

DOCUMENTATION = """
name: preload
type: aggregate
short_description: loads before the fork what every task needs
description:
  - Loads filters, tests, lookups and the plugins of the connection when a play starts, when the plugins of its roles are known.
  - Has Jinja compile a template, and Ansible wrap a host's variables and list a folder of plugins, once in a process.
  - Keeps the garbage collector of a task's process to what that process has made.
"""

CLASSES = {
    loader.action_loader: ("assert", "normal", "set_fact"),
    loader.connection_loader: ("local", "ssh"),
    loader.become_loader: ("sudo",),
    loader.lookup_loader: ("file",),
    loader.shell_loader: ("sh",),
}
# From this number of variables on, comparing them with the last time costs less than wrapping them.
MANY = 100
# So many sets of variables are kept: a task's own, its hosts', and what a filter is given.
KEPT = 16


def remember() -> None:
    """Have this process, and all that are forked from it, keep what costs most to make anew."""
    remember_compiled()
    remember_wrapped()
    remember_files_of_plugins()


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


def remember_wrapped() -> None:
    """Let Ansible keep the wrappers of a dictionary's values as long as the dictionary holds the very same keys and objects.

    A wrapper says that its value is not templated yet. It never changes; a result takes its place in a dictionary of the
    template's own, which is a copy here as there.
    """
    kind = _lazy_containers._AnsibleLazyTemplateDict
    wrap_anew: Callable[..., Any] = kind._lazy_values
    if hasattr(wrap_anew, "__wrapped__"):
        return
    wrapped: dict[int, tuple[list[Any], list[Any], dict[Any, Any]]] = {}

    @functools.wraps(wrap_anew)
    def wrap_once(values: Mapping[Any, Any], options: Any) -> Any:
        made = wrap_anew(values, options)
        if len(values) < MANY:
            return made
        keys, objects = list(values), list(values.values())
        known = wrapped.get(id(values))
        if not (known and known[0] == keys and all(map(operator.is_, known[1], objects))):
            wrapped.pop(id(values), None)
            while len(wrapped) >= KEPT:
                del wrapped[next(iter(wrapped))]
            known = wrapped[id(values)] = (keys, objects, dict(made.source))
        return dataclasses.replace(made, source=known[2])

    kind._lazy_values = staticmethod(wrap_once)


def remember_files_of_plugins() -> None:
    """Let Ansible keep the list of a folder's plugins: it asks for it once per process and filter of Jinja's own."""
    list_anew = _collection_finder._iter_modules_impl
    if hasattr(list_anew, "__wrapped__"):
        return

    @functools.cache
    def listed(paths: tuple[str, ...], prefix: str) -> tuple[Any, ...]:
        return tuple(list_anew(paths, prefix))

    @functools.wraps(list_anew)
    def list_once(paths: list[str], prefix: str = "") -> Iterator[Any]:
        return iter(listed(tuple(paths), prefix))

    _collection_finder._iter_modules_impl = list_once


class CallbackModule(CallbackBase):
    """Asks Ansible's own loaders, which remember what they have loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def __init__(self) -> None:
        super().__init__()
        remember()
        os.register_at_fork(after_in_child=gc.freeze)

    def v2_playbook_on_play_start(self, play) -> None:
        # Asking for one filter loads all of them: their names are known only to the files that hold them.
        loader.filter_loader.get("default")
        loader.test_loader.get("defined")
        # One of Jinja's own: Ansible looks through the folders of its own for that name, and keeps what it found there.
        with contextlib.suppress(KeyError):
            loader.filter_loader.get("map")
        for plugins, names in CLASSES.items():
            for name in names:
                plugins.get(name, class_only=True)
