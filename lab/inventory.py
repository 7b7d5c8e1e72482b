"""The lab's inventories: which hosts a stage has, and the generated source that says how to reach them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lab.machine import MachineError

HOST_MEMORY_MB = 1536  # /proc/meminfo in a container shows the machine's, not what the host may take


def stages(root: Path) -> list[int]:
    """The stages that exist: those with a playbook and a lab inventory."""
    found = []
    for path in (root / "inventories/lab").glob("stage*.yml"):
        match = re.fullmatch(r"stage(\d+)\.yml", path.name)
        if match and (root / "playbooks" / path.name).exists():
            found.append(int(match[1]))
    return sorted(found)


def stage_file(root: Path, stage: int) -> Path:
    """A stage's inventory; raises MachineError with the list of those that exist."""
    existing = stages(root)
    if stage not in existing:
        listed = ", ".join(map(str, existing)) or "none"
        raise MachineError(f"Stage {stage} does not exist yet. Stages that do: {listed}.")
    return root / f"inventories/lab/stage{stage}.yml"


def groups_of(inventory: dict[str, Any]) -> dict[str, list[str]]:
    """Each host, in the inventory's order, with the groups that name it directly."""
    hosts: dict[str, list[str]] = {}

    def walk(name: str, group: dict[str, Any] | None) -> None:
        for host in (group or {}).get("hosts") or {}:
            hosts.setdefault(str(host), []).append(name)
        for child, content in ((group or {}).get("children") or {}).items():
            walk(child, content)

    for name, group in inventory.items():
        walk(name, group)
    return hosts


def read_hosts(path: Path) -> dict[str, list[str]]:
    """Each host of an inventory file with its groups; raises MachineError when it has none."""
    hosts = groups_of(yaml.safe_load(path.read_text()) or {})
    if not hosts:
        raise MachineError(f"{path} names no hosts.")
    return hosts


def reach(addresses: dict[str, str], voters: Sequence[str] = ()) -> dict[str, Any]:
    """A second inventory source: where the hosts are, and which of them a drill has made etcd's."""
    found: dict[str, Any] = {"all": {"hosts": {host: {"ansible_host": address} for host, address in addresses.items()}}}
    if voters:
        found["site"] = {"children": {"etcd": {"hosts": dict.fromkeys(voters, {})}}}
    return found


def settings(folder: Path, control_folder: Path, automatic: bool = False) -> dict[str, Any]:
    """What holds for every host of one lab: how to log in, and where this lab keeps its secrets.

    For a group_vars file beside the second source: variables inside an inventory file lose to the kit's group_vars/all.
    """
    known_hosts = f"-o UserKnownHostsFile={folder / 'known_hosts'} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    return {
        "ansible_user": "admin",
        "ansible_ssh_private_key_file": str(folder / "ssh_key"),
        "ansible_ssh_common_args": known_hosts,
        "ansible_control_path_dir": str(control_folder),
        "site_secrets_dir": str(folder / "secrets"),
        "site_artifacts_dir": str(folder / "artifacts"),
        "host_memory_mb": HOST_MEMORY_MB,
        **({"site_database_failover": "automatic"} if automatic else {}),
    }


def without(root: Path, stage: int, host: str, folder: Path) -> Path:
    """A copy of a stage's inventory that does not name a host, at the same distance from the example shop."""
    place = folder / "inventories/lab"
    place.mkdir(parents=True)
    (place / "group_vars").symlink_to(root / "inventories/lab/group_vars")
    (folder / "examples").symlink_to(root / "examples")
    lines = stage_file(root, stage).read_text().splitlines(keepends=True)
    (place / "smaller.yml").write_text("".join(line for line in lines if line.strip() != f"{host}:"))
    return place / "smaller.yml"
