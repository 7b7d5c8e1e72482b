"""What several tests share: an inventory in a folder of its own, and a playbook run on the controller alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

# The settings that have no default.
SITE = {
    "site_name": "shop",
    "site_hostnames": ["shop.example.com"],
    "site_source": {"path": "examples/shop"},
    "site_settings_module": "shop.settings",
    "site_wsgi_application": "shop.wsgi:application",
    "site_administrators": [{"name": "ada", "keys": ["ssh-ed25519 AAAA ada@example.com"]}],
}
HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


def run_playbook(playbook: Path | str, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """ansible-playbook as a person runs it: from the kit's folder, with the kit's ansible.cfg."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(playbook), *options]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    surroundings |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


@pytest.fixture
def make_inventory(tmp_path: Path) -> Callable[..., Path]:
    """make_inventory({"web": ["one"], ...}, settings, hosts={"one": {...}}) -> the inventory's folder."""

    def make(
        groups: dict[str, list[str]],
        settings: dict[str, Any] | None = None,
        hosts: dict[str, dict[str, Any]] | None = None,
        outside: tuple[str, ...] = (),
    ) -> Path:
        folder = tmp_path / "inventory"
        (folder / "group_vars").mkdir(parents=True)
        listed = {group: {"hosts": {host: (hosts or {}).get(host, {}) for host in groups[group]}} for group in groups}
        tree: dict[str, Any] = {group: listed.pop(group) for group in outside}
        tree["site"] = {"children": listed}
        (folder / "hosts.yml").write_text(yaml.safe_dump(tree))
        (folder / "group_vars/site.yml").write_text(yaml.safe_dump(SITE if settings is None else settings))
        return folder

    return make
