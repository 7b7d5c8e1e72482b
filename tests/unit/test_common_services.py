"""services acts on exactly the units that differ from what they should be.

Without a container there is no systemd: a program of its name answers from files and notes what it was told to do.
"""

from __future__ import annotations

import importlib.util
import os
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


def is_now(active="active", file="enabled", load="loaded", sub=""):
    return {"LoadState": load, "ActiveState": active, "UnitFileState": file, "SubState": sub}


DYING = is_now("activating", sub="auto-restart")


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
        (unit(state="started"), is_now("activating", sub="start"), []),
        (unit(state="started"), DYING, ["start"]),
        (unit(state="started"), is_now("activating", sub="auto-restart-queued"), ["start"]),
        (unit(state="stopped"), DYING, ["stop"]),
        (unit(state="reloaded"), DYING, ["start"]),
        (unit(state="reloaded_if_running"), DYING, []),
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


SYSTEMCTL = """#!/bin/sh
shift  # --no-ask-password
echo "$*" >> "$UNITS/calls"
if [ "$1" = show ]; then
  while [ "$1" != -- ]; do shift; done
  shift
  for unit in "$@"; do cat "$UNITS/$unit" 2> /dev/null || printf 'LoadState=not-found\\nActiveState=inactive\\n'; echo; done
fi
if [ "$1" = start ]; then sed -i "s/ActiveState=inactive/ActiveState=$BECOMES/" "$UNITS/$3"; fi
"""


class Systemd:
    """The units of a host, and what was asked of its systemd."""

    def __init__(self, folder):
        self.folder = folder

    def has(self, name, active="active", file="enabled", reload="no", sub=""):
        lines = (
            f"LoadState=loaded\nActiveState={active}\nSubState={sub}\nUnitFileState={file}\nNeedDaemonReload={reload}\n"
            "Result=exit-code\n"
        )
        (self.folder / name).write_text(lines)

    def told(self):
        """What it was told to do, questions apart."""
        calls = (self.folder / "calls").read_text().splitlines()
        return [call.replace(" -- ", " ") for call in calls if not call.startswith("show")]

    def questions(self):
        return (self.folder / "calls").read_text().count("show")


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    for name, text in (("systemctl", SYSTEMCTL), ("journalctl", "#!/bin/sh\necho it went wrong because of x\n")):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("UNITS", str(tmp_path))
    monkeypatch.setenv("BECOMES", "active")
    monkeypatch.setattr(services.os.path, "isdir", lambda path: True)
    return Systemd(tmp_path)


def bring(*units, check=False):
    return services.bring(list(units), False, check)


def test_units_that_are_right_cost_one_question(systemd):
    systemd.has("a.service")
    systemd.has("b.timer", active="inactive", file="disabled")
    wanted = unit(name="a.service", state="started", enabled=True), unit(name="b.timer", state="stopped", enabled=False)
    assert bring(*wanted) == {"changed": False, "steps": []}
    assert (systemd.told(), systemd.questions()) == ([], 1)


def test_only_the_unit_that_differs_is_acted_on(systemd):
    systemd.has("a.service")
    systemd.has("b.service", active="inactive")
    done = bring(unit(name="a.service", state="started"), unit(name="b.service", state="started"))
    assert done == {"changed": True, "steps": ["start b.service"]} and systemd.told() == ["start b.service"]


def test_check_mode_tells_and_does_nothing(systemd):
    systemd.has("a.service", active="inactive", reload="yes")
    done = bring(unit(name="a.service", state="started"), unit(name="new.service", enabled=True), check=True)
    assert done["changed"] and done["steps"] == ["daemon-reload", "start a.service", "enable new.service"]
    assert systemd.told() == []


def test_a_newer_unit_file_is_read_and_is_no_change_by_itself(systemd):
    systemd.has("a.service", reload="yes")
    assert bring(unit(name="a.service", state="started"))["changed"] is False
    assert systemd.told() == ["daemon-reload"]


def test_a_unit_that_does_not_come_up_is_refused_with_its_journal(systemd, monkeypatch):
    monkeypatch.setenv("BECOMES", "failed")
    systemd.has("a.service", active="inactive")
    with pytest.raises(services.Refused, match=r"(?s)a.service did not start: failed.*it went wrong because of x"):
        bring(unit(name="a.service", state="started"))


def test_a_unit_that_dies_again_and_again_is_not_running(systemd, monkeypatch):
    monkeypatch.setattr(services, "WATCH_SECONDS", 0.5)
    systemd.has("a.service", active="activating", sub="auto-restart")
    with pytest.raises(services.Refused, match=r"(?s)a.service did not start.*it went wrong because of x"):
        bring(unit(name="a.service", state="started"))
    assert systemd.told() == ["start a.service"]


def test_a_unit_that_died_and_now_dies_a_moment_after_its_start_is_refused(systemd, monkeypatch):
    monkeypatch.setattr(services, "WATCH_SECONDS", 5.0)
    answers = [
        {"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart"},
        *[{"LoadState": "loaded", "ActiveState": "active", "SubState": "running"}] * 2,
        {"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
    ]
    monkeypatch.setattr(services, "ask", lambda names: {names[0]: answers.pop(0)})
    with pytest.raises(services.Refused, match=r"(?s)a.service did not start: activating.*it went wrong"):
        bring(unit(name="a.service", state="started"))


def test_a_missing_unit_is_refused_unless_it_should_be_stopped(systemd):
    with pytest.raises(services.Refused, match="a.service does not exist on this host. Install what brings it"):
        bring(unit(name="a.service", state="started"))
    for state in ("stopped", "reloaded_if_running"):
        assert bring(unit(name="a.service", state=state, enabled=False))["changed"] is False
    assert systemd.told() == []


def test_reload_where_it_runs_and_nowhere_else(systemd):
    systemd.has("a.service")
    systemd.has("b.service", active="inactive")
    done = bring(*(unit(name=name, state="reloaded_if_running") for name in ("a.service", "b.service")))
    assert done["steps"] == ["reload a.service"]
