"""One lab: its name, its folder, and what it remembers there between two commands."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from lab import inventory, names
from lab.machine import MachineError

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class State:
    """What a lab remembers: its subnet, the hosts' Debian, the highest stage that was run, the hosts' addresses, and on which
    of them Patroni votes (none: nobody replaces a lost primary by himself)."""

    subnet: str = ""
    debian: str = ""
    stage: int = 0
    addresses: dict[str, str] = field(default_factory=dict)
    voters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lab:
    """A lab of this checkout; two labs share nothing but images and package caches."""

    name: str
    root: Path = ROOT

    @property
    def folder(self) -> Path:
        return self.root / ".lab" / self.name

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def key(self) -> Path:
        return self.folder / "ssh_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def hosts_file(self) -> Path:
        return self.folder / "hosts.yml"

    @property
    def control_folder(self) -> Path:
        """Where SSH keeps its shared connections: a short path, for a socket's has at most 107 bytes."""
        digest = hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"ladder-{os.getuid()}-{digest}"

    @contextmanager
    def alone(self, command: str) -> Iterator[None]:
        """Keep other commands that change this lab out; raises MachineError when one is at work already.

        The lock is not in the lab's folder, which comes and goes, and ends with the process.
        """
        path = self.folder.with_name(f"{self.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise MachineError(
                    f"Another ./ladder is at work on the lab {self.name} ({handle.read().strip()}). Nothing was changed. Wait until "
                    "it is done."
                ) from None
            handle.truncate(0)
            handle.write(f"{command}, process {os.getpid()}")
            handle.flush()
            yield

    def load(self) -> State:
        path = self.folder / "lab.json"
        return State(**json.loads(path.read_text())) if path.exists() else State()

    def save(self, state: State) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / "lab.json.new"
        fresh.write_text(json.dumps(asdict(state), indent=2) + "\n")
        fresh.replace(self.folder / "lab.json")

    def need_key(self) -> str:
        """Make the lab's SSH key unless it is there; gives the public half."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(self.key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return self.key.with_suffix(".pub").read_text()

    def need_control_folder(self) -> None:
        """Make the folder of the shared connections; raises MachineError when someone else made it."""
        self.control_folder.mkdir(mode=0o700, exist_ok=True)
        if self.control_folder.is_symlink() or self.control_folder.stat().st_uid != os.getuid():
            raise MachineError(f"{self.control_folder} belongs to another user. Remove it and run this again.")

    def close_connections(self) -> None:
        """End shared SSH connections: a host that was restarted or replaced would leave them hanging."""
        for socket in self.control_folder.glob("*") if self.control_folder.exists() else []:
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "lab"], capture_output=True)
            socket.unlink(missing_ok=True)

    def write_inventory(self, addresses: dict[str, str]) -> None:
        """Write the lab's own inventory source and what holds for all its hosts."""
        voters = self.load().voters
        write_yaml(self.hosts_file, inventory.reach(addresses, voters))
        settings = inventory.settings(self.folder, self.control_folder, automatic=bool(voters))
        write_yaml(self.folder / "group_vars/site.yml", settings)

    def ssh_command(self, host: str) -> list[str]:
        """The command that logs in to a host; raises MachineError for one that the lab does not have."""
        addresses = self.load().addresses
        if host not in addresses:
            raise MachineError(f"The lab {self.name} has no host {host}. Hosts: {', '.join(addresses) or 'none'}.")
        options = ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"]
        return ["ssh", "-i", str(self.key), "-o", "IdentitiesOnly=yes", *options, f"admin@{addresses[host]}"]

    def forget(self) -> None:
        """Remove what the lab remembers, its key and its secrets; its hosts must be gone by now."""
        self.close_connections()
        shutil.rmtree(self.control_folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def write_yaml(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("---\n" + yaml.safe_dump(content, sort_keys=False))


def this_lab(name: str | None = None) -> Lab:
    """The lab that the environment names (STEPLADDER_LAB), or this checkout's own."""
    try:
        return Lab(name or names.lab_name(ROOT, os.environ.get("STEPLADDER_LAB")))
    except ValueError as error:
        raise MachineError(str(error)) from error
