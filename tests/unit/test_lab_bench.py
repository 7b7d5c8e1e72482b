"""Numbers of the benchmark come from reports that are whole, and calls are counted where they are made."""

from __future__ import annotations

import configparser
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit import ROOT
from lab import bench
from lab.machine import MachineError

WRK = "  1000 requests in 8.00s, 1.2MB read\nRequests/sec:    125.31\nTransfer/sec:    150KB\n"
PGBENCH = "latency average = 6.1 ms\ninitial connection time = 9 ms\ntps = 1311.47 (without initial connection time)\n"


def test_rates_are_read_from_the_reports() -> None:
    assert bench.wrk_rate(WRK) == 125.31
    assert bench.pgbench_rate(PGBENCH) == 1311.47


@pytest.mark.parametrize("report", ["", f"{WRK}  Non-2xx or 3xx responses: 12\n"])
def test_a_rate_of_refusals_is_no_rate(report: str) -> None:
    with pytest.raises(MachineError, match="cannot be used"):
        bench.wrk_rate(report)


def test_both_sides_get_the_same_number_of_turns_in_turns() -> None:
    order: list[str] = []
    first, second = iter([1.0, 3.0, 2.0, 1.0]), iter([5.0, 4.0, 1.0, 2.0])

    def turn(name: str, values) -> float:
        order.append(name)
        return next(values)

    assert bench.take_turns(lambda: turn("a", first), lambda: turn("b", second)) == (3.0, 5.0)
    assert order == ["a", "b"] * 4


def test_a_run_that_is_counted_loads_what_every_run_loads(tmp_path: Path) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "ansible.cfg")
    folders = bench.counting(tmp_path)["ANSIBLE_CALLBACK_PLUGINS"].split(":")
    assert str(ROOT / config["defaults"]["callback_plugins"]) in folders
    assert any(Path(folder, "remote_calls.py").is_file() for folder in folders)


def test_what_is_measured_of_a_fleet_says_how_many_hosts_were_talked_with_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults]\nforks = 7\n")
    (tmp_path / "remote-calls").write_text("192.0.2.1\n192.0.2.2\n192.0.2.1\n")
    known = SimpleNamespace(addresses={"web1": "192.0.2.1", "web2": "192.0.2.2"})
    lab = SimpleNamespace(root=tmp_path, folder=tmp_path, load=lambda: known)
    recap = "PLAY RECAP ****\nweb1 : ok=2 changed=0 unreachable=0 failed=0\n"
    monkeypatch.setattr(bench, "play_stage", lambda *given: recap)

    def rows() -> dict[str, str]:
        return {row.what.partition(": ")[2]: row.value for row in bench.no_change_of_fleet(lab, tmp_path, tmp_path)}

    monkeypatch.delenv("ANSIBLE_FORKS", raising=False)
    assert (rows()["remote calls"], rows()["hosts that Ansible talks with at a time"]) == ("3", "7")
    monkeypatch.setenv("ANSIBLE_FORKS", "9")
    assert rows()["hosts that Ansible talks with at a time"] == "9"
