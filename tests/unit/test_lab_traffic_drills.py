"""What drills judge, against a fleet that is pretended: each can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import inventory, rehearsal
from lab.machine import MachineError
from lab.model import ROOT
from lab.traffic import Count, Traffic, Visit

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


class Rehearsed(Traffic):
    """Ten visits a second by a clock that only the steps of a rehearsal move; none fails unless a test says so."""

    def __init__(self, folder: Path, fails: dict[int, float], stalls: dict[int, float]) -> None:
        super().__init__(SimpleNamespace(address=""), 10.0, folder / "ledger", "")
        self.fails, self.stalls, self.clock = fails, stalls, 0.0

    @property
    def now(self) -> float:
        return self.clock

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self.clock

    def passes(self, seconds: float) -> None:
        for tenth in range(round(seconds * 10)):
            self.visits.append(Visit(round(self.clock + tenth / 10, 3), 0.01, "page"))
        self.clock += seconds

    def runs(self, stage: int) -> None:
        """A stage's run of 20 s: in it one visit fails, or nobody is served for a while, where the test says so."""
        self.passes(20)
        if stage in self.fails:
            self.visits[-100] = Visit(self.visits[-100].due, 0.01, "page", "status 502")
        self.clock += self.stalls.get(stage, 0)


@pytest.fixture
def rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rehearses without a lab; gives the exit code and the report."""

    def run(start: int, end: int, back: bool = False, fails=(), stalls=None, count: Count | None = None):
        made = Rehearsed(tmp_path, dict.fromkeys(fails), stalls or {})
        lab = SimpleNamespace(
            root=ROOT, folder=tmp_path, name="lab", load=lambda: SimpleNamespace(stage=0, debian="13")
        )
        monkeypatch.setattr(rehearsal.commands, "up", lambda _lab, stage, _debian: stage > start and made.runs(stage))
        monkeypatch.setattr(rehearsal, "go_back", lambda _lab, _made, stage: made.runs(-stage))
        monkeypatch.setattr(rehearsal, "ready_traffic", lambda *_: made)
        monkeypatch.setattr(rehearsal, "front_door", lambda _: SimpleNamespace(address=""))
        monkeypatch.setattr(rehearsal, "count_orders", lambda *_: lambda _ledger: count or Count())
        monkeypatch.setattr(rehearsal.time, "sleep", made.passes)
        code = rehearsal.rehearse(lab, start, end, 10.0, back)
        name = f"rehearse-{start}-{end}{'-back' if back else ''}.json"
        return code, json.loads((tmp_path / "reports" / name).read_text())

    return run


def test_every_way_between_the_stages_may_cost_no_visit() -> None:
    stages = inventory.stages(ROOT)
    ways = {(one, one + 1) for one in stages[:-1]} | {(one + 1, one) for one in stages[:-1]}
    assert set(rehearsal.EXPECTED) == ways
    assert {cost.failed for cost in rehearsal.EXPECTED.values()} == {0}


def test_a_rehearsal_that_costs_nobody_anything_keeps_its_promise_and_reports_each_way(rehearse) -> None:
    code, report = rehearse(3, 5, back=True)
    assert code == 0
    assert [(climb["start"], climb["end"]) for climb in report["climbs"]] == [(3, 4), (4, 5), (5, 4), (4, 3)]
    for climb in report["climbs"]:
        assert climb["expected"] == {"failed": 0, "longest_gap": 10.0}
        assert climb["measured"]["failed"] == 0
        assert climb["measured"]["longest_gap"] < 1


@pytest.mark.parametrize(("stage", "place"), [(4, 0), (5, 1), (-5, 2), (-4, 3)])
def test_one_failed_visit_breaks_the_way_that_it_happened_on(rehearse, stage: int, place: int) -> None:
    code, report = rehearse(3, 5, back=True, fails=[stage])
    assert code == 1
    assert [climb["measured"]["failed"] for climb in report["climbs"]] == [int(one == place) for one in range(4)]


@pytest.mark.parametrize(("seconds", "code"), [(9, 0), (11, 1)])
def test_a_way_on_which_nobody_is_served_for_too_long_is_broken(rehearse, seconds: float, code: int) -> None:
    found, report = rehearse(1, 2, stalls={2: seconds})
    assert found == code
    assert report["climbs"][0]["measured"]["longest_gap"] == pytest.approx(seconds, abs=0.2)


def test_a_lost_order_breaks_a_rehearsal_on_which_no_visit_failed(rehearse) -> None:
    assert rehearse(1, 2, count=Count(lost=1))[0] == 1


def stylesheet(source: str) -> bytes:
    copy = Path(json.loads(source)["site_source"]["path"])
    return (copy / "catalogue/static/catalogue/shop.css").read_bytes()


def test_every_release_that_is_deployed_has_a_stylesheet_of_its_own(tmp_path: Path) -> None:
    lab = SimpleNamespace(root=ROOT)
    made = [stylesheet(rehearsal.changed_shop(lab, str(tmp_path / name))) for name in ("one", "two")]
    own = (ROOT / "examples/shop/catalogue/static/catalogue/shop.css").read_bytes()
    assert len({own, *made}) == 3
    assert all(sheet.startswith(own) for sheet in made)


@pytest.mark.parametrize("seen", [1, 2])
def test_a_deploy_whose_stylesheet_nobody_got_proves_nothing(
    seen: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = SimpleNamespace(root=ROOT, logs=tmp_path, load=lambda: SimpleNamespace(stage=4))
    monkeypatch.setattr(rehearsal, "play", lambda *_: (0, ""))
    made = no_traffic()
    made.stylesheets = {f"/static/{number}.css" for number in range(seen)}
    if seen == 2:
        rehearsal.deploy(lab, made)
        return
    with pytest.raises(MachineError, match="never got the new release's stylesheet"):
        rehearsal.deploy(lab, made)


class Deploys:
    """A fleet on which a deploy does what a test says, and the sources that it was given."""

    def __init__(self, code: int = 2, says: str = "", moves: str = "") -> None:
        self.code, self.says, self.moves = code, says, moves
        self.live = {"web1": "a-1", "web2": "a-1", "worker1": "a-1"}
        self.sources: list[dict[str, str]] = []

    def play(self, _lab, _made, _stage, words, _log) -> tuple[int, str]:
        copy = Path(json.loads(words[-1])["site_source"]["path"])
        self.sources.append({bad.file: (copy / bad.file).read_text() for bad in rehearsal.BAD_RELEASES})
        if self.moves:
            self.live[self.moves] = "b-1"
        return self.code, self.says or rehearsal.BAD_RELEASES[len(self.sources) - 1].words.replace(" ", "\n  ")

    def on(self, _lab, host: str, command: str) -> str:
        live = self.live[host]
        links = {"/srv/shop/current": f"/srv/shop/releases/{live}", "/run/gunicorn-shop/live.sock": f"{live}/web.sock"}
        return "".join(f"{links[part.split()[1]]}\n" for part in command.split(" && "))


@pytest.fixture
def bad_deploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(deploys: Deploys) -> Deploys:
        groups = {"edge1": ["edge"], "web1": ["web"], "web2": ["web"], "worker1": ["worker"]}
        monkeypatch.setattr(rehearsal, "stage_hosts", lambda _: groups)
        monkeypatch.setattr(rehearsal, "play", deploys.play)
        monkeypatch.setattr(rehearsal.database_drills, "on", deploys.on)
        monkeypatch.setattr(rehearsal.commands, "site_settings", lambda _: {"site_name": "shop"})
        lab = SimpleNamespace(root=ROOT, logs=tmp_path, load=lambda: SimpleNamespace(stage=4))
        rehearsal.bad_deploy(lab, no_traffic())
        return deploys

    return run


def test_a_release_that_cannot_start_and_one_that_is_not_well_are_both_tried(bad_deploy) -> None:
    sources = bad_deploy(Deploys()).sources
    own = {bad.file: (ROOT / "examples/shop" / bad.file).read_text() for bad in rehearsal.BAD_RELEASES}
    assert len(sources) == 2
    for bad, source in zip(rehearsal.BAD_RELEASES, sources, strict=True):
        assert {file for file in own if source[file] != own[file]} == {bad.file}
        compile(source[bad.file], bad.file, "exec")
        assert source[bad.file].rstrip().endswith(bad.appended)


def test_a_bad_release_that_is_deployed_breaks_the_promise(bad_deploy) -> None:
    with pytest.raises(MachineError, match="a release that cannot start did not fail"):
        bad_deploy(Deploys(code=0))


def test_a_deploy_that_fails_without_saying_why_breaks_the_promise(bad_deploy) -> None:
    with pytest.raises(MachineError, match="without saying “/healthz answered 500 instead of 200”"):
        bad_deploy(Deploys(says="this release cannot serve"))


@pytest.mark.parametrize("host", ["web1", "web2", "worker1"])
def test_a_host_that_moves_to_a_release_whose_deploy_failed_breaks_the_promise(bad_deploy, host: str) -> None:
    with pytest.raises(MachineError, match=f"{host} has .*b-1.* instead of .*a-1"):
        bad_deploy(Deploys(moves=host))
