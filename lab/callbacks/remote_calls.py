"""Counts what Ansible asks of each host over SSH: every command that is run there and every file that is carried."""

from __future__ import annotations

import functools
import os

from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection import ssh

DOCUMENTATION = """
name: remote_calls
type: aggregate
short_description: counts remote calls by host
description:
  - Appends the host's address for each call to the file that LADDER_REMOTE_CALLS names.
"""


def counted(method, tally: str):
    """Wrap a method of the connection; workers are processes of their own, so each call appends a line to a file."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        with open(tally, "a") as stream:
            stream.write(f"{self.host}\n")
        return method(self, *args, **kwargs)

    return wrapper


class CallbackModule(CallbackBase):
    """Wraps the SSH connection when the run starts."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_calls"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        tally = os.environ["LADDER_REMOTE_CALLS"]
        for method in ("exec_command", "put_file", "fetch_file"):
            setattr(ssh.Connection, method, counted(getattr(ssh.Connection, method), tally))
