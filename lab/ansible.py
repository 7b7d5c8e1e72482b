"""Running Ansible from the kit's own environment, with the lab's inventory, and reading what it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.model import ROOT, Lab

BIN = Path(sys.executable).parent
HEADING = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*?)\] \**$")
RECAP = re.compile(
    r"^(?P<host>\S+)\s+: ok=(?P<ok>\d+)\s+changed=(?P<changed>\d+)"
    r"\s+unreachable=(?P<unreachable>\d+)\s+failed=(?P<failed>\d+)"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def surroundings(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a tool from the virtual environment; Ansible refuses to start without a UTF-8 locale."""
    found = dict(os.environ)
    found["PATH"] = f"{BIN}:{found.get('PATH', '')}"
    if "UTF-8" not in found.get("LC_ALL", found.get("LANG", "")).upper().replace("UTF8", "UTF-8"):
        found["LC_ALL"] = "C.UTF-8"
    found["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
    return {**found, **(more or {})}


def playbook_command(lab: Lab, source: Path, arguments: list[str]) -> list[str]:
    """ansible-playbook with an inventory and the lab's addresses."""
    lab.need_control_folder()
    sources = ["-i", str(source), "-i", str(lab.hosts_file)]
    return [str(BIN / "ansible-playbook"), *sources, *arguments]


def run_logged(
    command: list[str],
    log: Path,
    update: Callable[[str], None],
    more: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> tuple[int, str]:
    """Run a command with its output in a log file; headings of Ansible go to `update` as they come.

    Gives the exit code and the whole output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=surroundings({"PYTHONUNBUFFERED": "1", **(more or {})}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        try:
            for line in process.stdout or ():
                stream.write(line)
                stream.flush()
                lines.append(line)
                heading = HEADING.match(COLOUR.sub("", line.rstrip()))
                if heading:
                    update(heading[2])
            return process.wait(), "".join(lines)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)


def recap(output: str) -> dict[str, dict[str, int]]:
    """What the last PLAY RECAP in Ansible's output counts, by host; empty without one."""
    plain = COLOUR.sub("", output)
    _, mark, end = plain.rpartition("PLAY RECAP")
    found = (RECAP.match(line.strip()) for line in end.splitlines()) if mark else ()
    return {
        match["host"]: {name: int(match[name]) for name in ("ok", "changed", "unreachable", "failed")}
        for match in found
        if match
    }


def failure(output: str, lines: int = 40) -> str:
    """The part of Ansible's output that tells why it failed: from the failing task on, at most so many lines."""
    plain = COLOUR.sub("", output).rstrip().splitlines()
    for number, line in enumerate(plain):
        if line.startswith(("fatal:", "failed:", "[ERROR]", "ERROR!")):
            start = max((before for before in range(number) if HEADING.match(plain[before])), default=number)
            return "\n".join(plain[start : start + lines])
    return "\n".join(plain[-lines:])
