"""The lab's hosts come from its inventory, and what is generated beside it is an ordinary inventory source."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab import inventory
from lab.machine import MachineError
from lab.model import ROOT, Lab, State


def test_hosts_come_in_the_inventorys_order_with_their_groups() -> None:
    tree = {"site": {"children": {"web": {"hosts": {"b": None, "a": None}}, "database": {"hosts": {"a": {"x": 1}}}}}}
    assert inventory.groups_of(tree) == {"b": ["web"], "a": ["web", "database"]}
    assert list(inventory.groups_of(tree)) == ["b", "a"]


def test_empty_groups_are_no_hosts(tmp_path: Path) -> None:
    path = tmp_path / "stage1.yml"
    path.write_text("site:\n  children:\n    web:\n    cache: {hosts: }\n")
    with pytest.raises(MachineError, match="names no hosts"):
        inventory.read_hosts(path)


def test_a_stage_exists_with_its_playbook_and_its_lab(tmp_path: Path) -> None:
    for name in (
        "inventories/lab/stage1.yml",
        "inventories/lab/stage2.yml",
        "playbooks/stage1.yml",
        "playbooks/stage3.yml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert inventory.stages(tmp_path) == [1]
    with pytest.raises(MachineError, match="Stage 2 does not exist yet. Stages that do: 1."):
        inventory.stage_file(tmp_path, 2)


def test_ansible_reads_both_sources_as_one_inventory(tmp_path: Path) -> None:
    lab = Lab("demo", tmp_path)
    lab.folder.mkdir(parents=True)
    lab.write_inventory({"web1": "198.18.7.10", "db1": "198.18.7.11"})
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(ROOT / "inventories/lab/stage1.yml")]
    done = subprocess.run(
        [*command, "-i", str(lab.hosts_file), "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    listed = json.loads(done.stdout)
    assert listed["web"]["hosts"] == ["web1"]
    web1 = listed["_meta"]["hostvars"]["web1"]
    assert (web1["ansible_host"], web1["ansible_user"], web1["host_memory_mb"]) == ("198.18.7.10", "admin", 1536)
    assert "StrictHostKeyChecking=yes" in web1["ansible_ssh_common_args"]
    assert web1["site_secrets_dir"] == str(lab.folder / "secrets")


def test_two_labs_of_a_checkout_share_no_secrets_and_no_connections(tmp_path: Path) -> None:
    one, two = Lab("one", tmp_path), Lab("two", tmp_path)
    for lab in (one, two):
        lab.folder.mkdir(parents=True)
        lab.write_inventory({"web1": "198.18.7.10"})
    texts = [yaml.safe_load((lab.folder / "group_vars/site.yml").read_text()) for lab in (one, two)]
    shared = texts[0].items() & texts[1].items()
    assert {name for name, _ in shared} == {"ansible_user", "host_memory_mb"}


def test_a_lab_remembers_what_it_is(tmp_path: Path) -> None:
    lab = Lab("demo", tmp_path)
    assert lab.load() == State()
    state = State("198.18.7.0/24", "13", 1, {"web1": "198.18.7.10"})
    lab.save(state)
    assert Lab("demo", tmp_path).load() == state


def test_login_is_to_known_hosts_with_the_labs_own_key(tmp_path: Path) -> None:
    lab = Lab("demo", tmp_path)
    lab.save(State("198.18.7.0/24", "13", 1, {"web1": "198.18.7.10"}))
    command = " ".join(lab.ssh_command("web1"))
    assert command.endswith("admin@198.18.7.10")
    assert f"UserKnownHostsFile={lab.known_hosts}" in command
    with pytest.raises(MachineError, match=r"no host web9. Hosts: web1\."):
        lab.ssh_command("web9")


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    lab = Lab("demo", tmp_path)
    public = lab.need_key()
    assert public.startswith("ssh-ed25519 ")
    assert stat.S_IMODE(lab.key.stat().st_mode) == 0o600
    assert lab.need_key() == public


def test_an_inventory_without_a_host_names_all_the_others(tmp_path: Path) -> None:
    whole = inventory.read_hosts(inventory.stage_file(ROOT, 4))
    smaller = inventory.read_hosts(inventory.without(ROOT, 4, "web2", tmp_path))
    assert set(whole) - set(smaller) == {"web2"}
    assert (tmp_path / "inventories/lab/group_vars/site.yml").is_file() and (tmp_path / "examples/shop").is_dir()
