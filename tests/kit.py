"""What several tests share: a playbook run on the controller alone, and the variables that an inventory ends up with."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3yJ4kB8o7Qm0m2b4d8v1cV5p9x8qz7r6s5t4u3w2x1 ada@example.com"
# The settings that have no default.
SITE = {
    "site_name": "shop",
    "site_hostnames": ["shop.example.com"],
    "site_source": {"path": "examples/shop"},
    "site_settings_module": "shop.settings",
    "site_wsgi_application": "shop.wsgi:application",
    "site_administrators": [{"name": "ada", "keys": [KEY]}],
}
HERE = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
# What the kit's own files of variables hold, by path, from the first inventory on that has read them: it is the same for all.
WIRING: dict[str, Any] = {}


def load_plugin(path: str) -> ModuleType:
    """A module or plugin of a role by its path in the kit, with what the roles lend it where Ansible would put it."""
    import ansible.module_utils

    for utils in ROOT.glob("roles/*/module_utils"):
        if str(utils) not in ansible.module_utils.__path__:
            ansible.module_utils.__path__.append(str(utils))
    return load_module(ROOT / path)


def load_module(path: Path, name: str = "") -> ModuleType:
    """A Python file as a module; under a name such as ansible.module_utils.x others can import it, all the same one."""
    known = sys.modules.get(name)
    if known and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    if name:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_shared_utilities() -> None:
    """What _common lends to the roles' modules, where Ansible would put it."""
    for path in (ROOT / "roles/_common/module_utils").glob("*.py"):
        load_module(path, f"ansible.module_utils.{path.stem}")


def run_playbook(playbook: Path | str, inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """ansible-playbook as a person runs it: from the kit's folder, with the kit's ansible.cfg."""
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory), str(playbook), *options]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    surroundings |= {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip


FACTS = {"memtotal_mb": 4000, "processor_vcpus": 2, "distribution": "Debian", "distribution_major_version": "13",
         "distribution_release": "trixie", "hostname": "host", "python_version": "3.13.5"}  # fmt: skip


@functools.cache
def load_collections() -> None:
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader()


class Environment:
    """An inventory with the kit's group_vars, read by Ansible's own managers; facts are made up."""

    def __init__(self, inventory: Path, beside: str = "playbooks", facts: dict[str, Any] | None = None) -> None:
        # Imported here: Ansible takes a while, and many tests do without.
        from ansible.inventory.manager import InventoryManager
        from ansible.parsing.dataloader import DataLoader
        from ansible.vars.hostvars import HostVars
        from ansible.vars.manager import VariableManager

        load_collections()
        self._loader = DataLoader()
        self._loader.set_basedir(str(ROOT / beside))
        self._loader._FILE_CACHE.update(WIRING)
        self._inventory = InventoryManager(loader=self._loader, sources=[str(inventory)])
        self._variables = VariableManager(loader=self._loader, inventory=self._inventory)
        self.hostvars = HostVars(self._inventory, self._variables, self._loader)
        self.all_groups: dict[str, list[str]] = self._inventory.get_groups_dict()
        for host in self._inventory.get_hosts():
            made_up = {f"ansible_{name}": value for name, value in {**FACTS, **(facts or {})}.items()}
            self._variables.set_host_facts(host.name, made_up)

    def learn(self, host: str, facts: dict[str, Any], variables: dict[str, Any]) -> None:
        """What a play has found out about one host."""
        self._variables.set_host_facts(host, facts)
        self._variables.set_nonpersistent_facts(host, variables)

    @property
    def hosts(self) -> list[str]:
        return sorted(host.name for host in self._inventory.get_hosts("site"))

    def groups(self, host: str) -> set[str]:
        return {group.name for group in self._inventory.get_host(host).get_groups()}

    def names(self, host: str) -> set[str]:
        return set(self._variables.get_vars(host=self._inventory.get_host(host)))

    @functools.cached_property
    def _known(self) -> dict[str, dict[str, Any]]:
        """The variables by host: Ansible gathers them anew each time that it is asked."""
        known = {host.name: self._variables.get_vars(host=host) for host in self._inventory.get_hosts()}
        for path, held in self._loader._FILE_CACHE.items():
            if path not in WIRING and Path(path).resolve().is_relative_to(ROOT / "group_vars"):
                WIRING[path] = held
        return known

    def value(self, host: str, name: str, **more: Any) -> Any:
        """A variable as a task on this host sees it."""
        from ansible.template import Templar

        variables = self._known[host] | more
        return Templar(loader=self._loader, variables=variables).template(variables[name])
