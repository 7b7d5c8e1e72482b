"""What drills judge, against a fleet that is pretended: each can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import rehearsal
from lab.machine import MachineError
from lab.traffic import Traffic

WORKERS = {"worker1": ["worker"], "worker2": ["worker"]}


class Fleet:
    """Workers and a broker of which a test decides what a kill leaves of the queue."""

    def __init__(self, keeps: bool = True, stops: bool = True) -> None:
        self.keeps, self.stops = keeps, stops
        self.running = dict.fromkeys(WORKERS, True)
        self.queue = self.sent = self.ended = 0
        self.done: list[str] = []

    def hosts(self, _lab) -> dict[str, list[str]]:
        return {"web1": ["web"], "cache1": ["cache"], **WORKERS}

    def on(self, _lab, host: str, command: str) -> str:
        self.done.append(f"{host}: {command}")
        if command.startswith("systemctl list-units"):
            return "celery-shop@default.service\n"
        if command.startswith("systemctl stop"):
            self.running[host] = not self.stops
        if command.startswith("systemctl start"):
            self.running[host] = True
        return ""

    def ssh(self, _lab, host: str, words: list[str]) -> int:
        self.done.append(f"{host}: {words[0]}")
        if "KILL redis-broker" in words[0] and not self.keeps:
            self.queue = 0
        return 0

    def manage(self, _lab, *words: str, given: str = "") -> str:
        if "--of" not in words:
            self.sent = self.queue = int(words[words.index("--count") + 1])
            return "word\n"
        if any(self.running.values()):
            self.ended, self.queue = self.ended + self.queue, 0
        return f"{self.sent} tasks, {self.ended} begun, {self.ended} ended, 0 begun again\n"


@pytest.fixture
def play_fleet(monkeypatch: pytest.MonkeyPatch):
    """Puts a pretended fleet, and a clock that a sleep moves, under the drills."""

    def put(fleet: Fleet) -> Fleet:
        clock = [0.0]
        monkeypatch.setattr(rehearsal, "stage_hosts", fleet.hosts)
        monkeypatch.setattr(rehearsal, "manage", fleet.manage)
        monkeypatch.setattr(rehearsal.commands, "ssh", fleet.ssh)
        monkeypatch.setattr(rehearsal.commands, "site_settings", lambda lab: {"site_name": "shop"})
        monkeypatch.setattr(rehearsal.database_drills, "on", fleet.on)
        monkeypatch.setattr(rehearsal.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(rehearsal.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
        return fleet

    return put


def no_traffic() -> Traffic:
    return Traffic(None, 10.0, Path("none"), "")


def test_a_broker_that_keeps_its_queue_through_a_kill_keeps_the_promise(play_fleet) -> None:
    fleet = play_fleet(Fleet())
    rehearsal.kill_broker(None, no_traffic())
    assert fleet.ended == rehearsal.QUEUED_TASKS == 50
    killed = next(place for place, line in enumerate(fleet.done) if "KILL redis-broker" in line)
    for host in WORKERS:
        stop = fleet.done.index(
            f"{host}: systemctl stop celery-health-shop.timer celery-health-shop.service celery-shop@default.service"
        )
        start = fleet.done.index(f"{host}: systemctl start celery-shop@default.service celery-health-shop.timer")
        assert stop < killed < start, "the tasks have to lie in the queue while the broker is killed"


def test_a_broker_that_forgets_its_queue_breaks_the_promise_and_the_workers_run_again(play_fleet) -> None:
    fleet = play_fleet(Fleet(keeps=False))
    with pytest.raises(MachineError, match="Of 50 tasks only 0 have ended"):
        rehearsal.kill_broker(None, no_traffic())
    assert all(fleet.running.values())


def test_a_queue_that_workers_emptied_meanwhile_proves_nothing(play_fleet) -> None:
    with pytest.raises(MachineError, match="50 tasks ran while the workers were stopped"):
        rehearsal.kill_broker(None, play_fleet(Fleet(stops=False)) and no_traffic())


def test_workers_start_again_when_the_broker_cannot_be_harmed(play_fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = play_fleet(Fleet())
    monkeypatch.setattr(rehearsal.commands, "ssh", lambda *_: 1)
    with pytest.raises(MachineError, match="failed on cache1"):
        rehearsal.kill_broker(None, no_traffic())
    assert all(fleet.running.values())
