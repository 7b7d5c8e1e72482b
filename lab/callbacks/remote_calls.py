"""Counts what Ansible asks of each host over SSH: every command that is run there and every file that is carried."""

from __future__ import annotations

import collections
import functools
import os
import tempfile
from pathlib import Path

from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection import ssh

DOCUMENTATION = """
name: remote_calls
type: aggregate
short_description: counts remote calls by host
description:
  - Writes one line for each host, its name and the number of calls, into the file that LADDER_REMOTE_CALLS names.
"""


def counted(method, tally: Path):
    """Wrap a method of the connection; workers are processes, so each call appends a line to a file."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        handle = os.open(tally, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, f"{self.host}\n".encode())
        finally:
            os.close(handle)
        return method(self, *args, **kwargs)

    return wrapper


class CallbackModule(CallbackBase):
    """Wraps the SSH connection when the run starts, adds up when it ends."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "remote_calls"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        handle, name = tempfile.mkstemp(prefix="remote-calls-")
        os.close(handle)
        self.tally = Path(name)
        for method in ("exec_command", "put_file", "fetch_file"):
            setattr(ssh.Connection, method, counted(getattr(ssh.Connection, method), self.tally))

    def v2_playbook_on_stats(self, stats) -> None:
        calls = collections.Counter(self.tally.read_text().split())
        self.tally.unlink()
        lines = "".join(f"{address} {count}\n" for address, count in sorted(calls.items()))
        Path(os.environ["LADDER_REMOTE_CALLS"]).write_text(lines)
