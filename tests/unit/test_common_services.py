"""services acts on exactly the units that differ from what they should be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_module():
    spec = importlib.util.spec_from_file_location("services", ROOT / "roles/_common/library/services.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


services = load_module()


def unit(**wanted):
    return {"name": "x.service", "state": None, "enabled": None, "masked": None, **wanted}


def is_now(active="active", file="enabled", load="loaded"):
    return {"LoadState": load, "ActiveState": active, "UnitFileState": file}


@pytest.mark.parametrize(
    ("wanted", "now", "verbs"),
    [
        (unit(state="started", enabled=True), is_now(), []),
        (unit(state="started", enabled=True), is_now("inactive", "disabled"), ["enable", "start"]),
        (unit(state="started", enabled=True), is_now("failed", "static"), ["start"]),
        (unit(state="stopped", enabled=False), is_now(), ["disable", "stop"]),
        (unit(state="restarted"), is_now("inactive"), ["start"]),
        (unit(state="reloaded"), is_now(), ["reload"]),
        (unit(state="started", enabled=True), is_now("active", "generated"), []),
        (unit(state="stopped", masked=True), is_now(), ["stop", "mask"]),
        (
            unit(masked=False, enabled=True, state="started"),
            is_now("inactive", "masked", "masked"),
            ["unmask", "enable", "start"],
        ),
    ],
)
def test_only_what_differs_is_done(wanted, now, verbs):
    assert services.steps(wanted, now) == verbs


def test_several_units_are_read_from_one_answer():
    answer = "Id=a.service\nActiveState=active\n\nId=b.service\nActiveState=inactive"
    assert [block["ActiveState"] for block in services.parse_show(answer)] == ["active", "inactive"]
