"""A load's report says what its visitors saw, and its picture is one."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lab import picture, rehearsal, traffic
from lab.traffic import Answer, Count, Failed, Mark, Traffic, Visit, longest_gap, percentile, report


class Site:
    """A front door that answers as a test wants, and keeps what it was asked."""

    def __init__(self, answer) -> None:
        self.hostname, self.answer, self.asked = "shop.example.com", answer, []

    def request(self, method, path, body=b"", headers=None):
        self.asked.append((method, path))
        return self.answer(method, path)


def fine(method: str, path: str) -> Answer:
    body = b'{"state": "ready"}' if path.startswith("/reports/") else b"<html></html>"
    return Answer(201 if path == "/api/orders" else 200, {}, body)


def load(tmp_path: Path, answer, seconds: float, rate: float = 50.0) -> tuple[Traffic, Site]:
    site = Site(answer)
    made = Traffic(site, rate, tmp_path / "ledger", "session")
    with made:
        time.sleep(seconds)
    return made, site


def counted(**counts: int):
    return lambda ledger: Count(**counts)


def test_every_acknowledged_order_is_in_the_ledger_and_no_other(tmp_path: Path) -> None:
    def answer(method: str, path: str) -> Answer:
        if path == "/api/orders" and len(site_orders) % 2:
            site_orders.append("refused")
            return Answer(503, {}, b"")
        if path == "/api/orders":
            site_orders.append("taken")
        return fine(method, path)

    site_orders: list[str] = []
    made, _ = load(tmp_path, answer, 0.6)
    keys = made.ledger.read_text().split()
    assert len(keys) == len(set(keys)) == site_orders.count("taken") > 3
    summed = report(made, counted(lost=2))
    assert (summed.orders, summed.lost, summed.kept) == (len(keys), 2, False)
    assert sum(summed.failures["order: status 503"].values()) == site_orders.count("refused")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, ""),
        ({"lost": 1}, "1 acknowledged orders are lost"),
        ({"doubled": 2}, "2 acknowledged orders are doubled"),
        ({"unconfirmed": 3}, "3 acknowledged orders were never confirmed"),
        ({"confirmed_twice": 4}, "4 acknowledged orders were confirmed twice"),
    ],
)
def test_an_order_that_is_not_there_or_not_confirmed_exactly_once_breaks_the_promise(
    tmp_path: Path, counts: dict[str, int], words: str
) -> None:
    made = Traffic(Site(fine), 10.0, tmp_path / "none", "")
    summed = report(made, counted(**counts))
    assert (summed.kept, summed.broken) == (not words, words)


def test_visits_start_on_time_while_others_hang_and_their_waiting_counts(tmp_path: Path) -> None:
    free = threading.Event()

    def answer(method: str, path: str) -> Answer:
        free.wait(5)
        return fine(method, path)

    timer = threading.Timer(0.5, free.set)
    timer.start()
    made, site = load(tmp_path, answer, 0.7)
    assert len(site.asked) >= 25
    summed = report(made, counted())
    assert summed.latency_ms["max"] >= 450
    assert summed.longest_gap >= 0.4


def test_failures_are_told_by_kind_and_second(tmp_path: Path) -> None:
    def answer(method: str, path: str) -> Answer:
        raise Failed("connection refused")

    made, _ = load(tmp_path, answer, 0.3)
    summed = report(made, counted())
    assert summed.failed == summed.requests > 5
    assert set(summed.failures["page: connection refused"]) == {"0"}
    assert summed.longest_gap == pytest.approx(summed.seconds, abs=0.1)


def test_longest_gap_counts_from_the_start_and_to_the_end() -> None:
    visits = [Visit(1.0, 0.1, "page"), Visit(2.0, 0.1, "page"), Visit(3.0, 0.1, "page", "status 500")]
    assert longest_gap(visits, 2.5) == pytest.approx(1.1)
    assert longest_gap(visits, 6.1) == pytest.approx(4.0)
    assert longest_gap([], 5.0) == 5.0


def test_percentiles_are_of_the_nearest_rank() -> None:
    ordered = [float(number) for number in range(100)]
    assert [percentile(ordered, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 99.0]
    assert percentile([], 0.5) == 0.0


def test_picture_has_every_visit_and_every_mark() -> None:
    visits = [Visit(0.5, 0.02, "page"), Visit(1.5, 9.0, "order", "no answer in time")]
    root = ElementTree.fromstring(picture.svg(visits, [Mark(1.0, "deploy <b> & more")], 3.0, "drill"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "deploy <b> & more" in texts
    circles = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if c.get("fill-opacity")]
    assert len(circles) == 2
    assert sum(c.get("fill") == picture.FAILED for c in circles) == 1


def summary(failed: int = 0, gap: float = 0.1):
    visits = [Visit(number / 10, 0.01, "page", "status 502" if number < failed else "") for number in range(100)]
    made = Traffic(Site(fine), 10.0, Path("none"), "")
    made.visits, made.seconds = visits, 10.0
    summed = report(made, counted())
    summed.longest_gap = gap
    return summed


def test_a_drill_without_failures_keeps_its_promise_and_one_with_breaks_it() -> None:
    assert rehearsal.DRILLS["deploy"].allowed(summary(), 1) == ""
    assert "1 visits failed" in rehearsal.DRILLS["deploy"].allowed(summary(failed=1), 1)
    assert rehearsal.DRILLS["kill-web"].allowed(summary(failed=5, gap=9), 1) == ""
    assert "at most 10 s" in rehearsal.DRILLS["kill-web"].allowed(summary(failed=5, gap=11), 1)


def test_a_web_host_among_others_may_cost_what_it_had_begun_and_no_more() -> None:
    most = round(summary().rate * rehearsal.IN_FLIGHT_SECONDS)
    assert rehearsal.DRILLS["kill-web"].allowed(summary(failed=most, gap=1), 2) == ""
    assert "more than" in rehearsal.DRILLS["kill-web"].allowed(summary(failed=max(most, 2) + 1, gap=1), 2)


def test_no_kind_of_visit_falls_to_one_of_several_hosts_that_take_turns() -> None:
    kinds = [traffic.kind_of(number) for number in range(200)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        kind: 20 * traffic.ROUND.count(kind) for kind in traffic.ROUND
    }
    writes = [kind for kind in kinds if kind in ("order", "upload")]  # those have turns of their own at the edge
    for hosts in (2, 3):
        assert {place % hosts for place, kind in enumerate(writes) if kind == "upload"} == set(range(hosts))
