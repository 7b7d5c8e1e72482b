"""Fixtures that several tests use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# What the tests import: the lab, what tests share, the tools.
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "tools")]
from kit import SITE, load_plugin  # noqa: E402

# The tests template as often as a run does.
load_plugin("plugins/callback/preload.py").remember()


def pytest_collection_finish() -> None:
    """Python looks for garbage again and again in all that there is: not in what is loaded by now, and more rarely in the rest."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


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
