"""A load's report says what its visitors saw, and its picture is one."""

from __future__ import annotations

import json
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest

from lab import picture, rehearsal, traffic
from lab.machine import MachineError
from lab.traffic import Answer, Count, Failed, Mark, Traffic, Visit, longest_gap, percentile, report


class Site:
    """A front door that answers as a test wants, and keeps what it was asked."""

    def __init__(self, answer) -> None:
        self.hostname, self.answer, self.asked, self.shop = "shop.example.com", answer, [], Shop()

    def request(self, method, path, body=b"", headers=None):
        self.asked.append((method, path))
        return self.orders(body, headers) if path == "/api/orders" else self.answer(method, path)

    def orders(self, body, headers):
        """What becomes of an order; a test puts something else in its place."""
        failed = self.answer("POST", "/api/orders")
        return failed if failed.status >= 400 else self.shop.place(body, headers)


class Shop:
    """Takes orders as the real one: a key names one order, and the same again is answered with it."""

    def __init__(self) -> None:
        self.placed: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def place(self, body, headers) -> Answer:
        key = headers["Idempotency-Key"]
        with self.lock:
            status = 200 if key in self.placed else 201
            made = json.dumps(
                {"key": key, **json.loads(body), "created": f"at {time.time()}", "confirmed": status == 200}
            )
            return Answer(status, {}, self.placed.setdefault(key, made.encode()))


SHEET = "/static/catalogue/shop.0123456789ab.css"
PAGE = f'<html><link rel="stylesheet" href="{SHEET}"></html>'.encode()


def fine(method: str, path: str) -> Answer:
    return Answer(200, {}, b'{"state": "ready"}' if path.startswith("/reports/") else PAGE)


def load(tmp_path: Path, answer, seconds: float, rate: float = 50.0, orders=None) -> tuple[Traffic, Site]:
    site = Site(answer)
    if orders:
        site.orders = lambda body, headers: orders(site.shop, body, headers)
    made = Traffic(site, rate, tmp_path / "ledger", "session")
    with made:
        time.sleep(seconds)
    return made, site


def of_orders(summed) -> set[str]:
    """The kinds of failure that orders and their repeats had."""
    return {kind for kind in summed.failures if kind.startswith(("order", "again"))}


def counted(**counts: int):
    return lambda ledger: Count(**counts)


def test_every_acknowledged_order_is_in_the_ledger_and_no_other(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}
    lock = threading.Lock()

    def every_other_is_refused(shop: Shop, body, headers) -> Answer:
        with lock:
            answers = seen.setdefault(headers["Idempotency-Key"], [])
            refused = len(seen) % 2 if not answers else answers[0] == 422
            answers.append(422 if refused else 201)
        return Answer(422, {}, b"") if refused else shop.place(body, headers)

    made, site = load(tmp_path, fine, 0.6, orders=every_other_is_refused)
    keys = made.ledger.read_text().split()
    assert len(keys) == len(set(keys)) > 3
    assert set(keys) == set(site.shop.placed) == {key for key, answers in seen.items() if answers[0] == 201}
    summed = report(made, counted(lost=2))
    assert (summed.orders, summed.lost, summed.kept) == (len(keys), 2, False)
    refused = [answers for answers in seen.values() if answers[0] == 422]
    assert sum(summed.failures["order: status 422"].values()) == len(refused)
    assert all(len(answers) == 1 for answers in refused), "who was told no has no reason to ask again"


def test_some_acknowledged_orders_are_sent_again_and_answered_with_the_same(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def counting(shop: Shop, body, headers) -> Answer:
        asked[headers["Idempotency-Key"]] += 1
        if asked[headers["Idempotency-Key"]] > 1:
            time.sleep(1)
        return shop.place(body, headers)

    made, _ = load(tmp_path, fine, 1.0, rate=100, orders=counting)
    summed = report(made, counted())
    again = sum(number - 1 for number in asked.values())
    assert summed.repeated == again > 2
    assert set(asked.values()) == {1, 2}
    assert (of_orders(summed), summed.orders, len(made.ledger.read_text().split())) == (set(), len(asked), len(asked))
    slowest = {kind: max(visit.seconds for visit in made.visits if visit.kind == kind) for kind in ("order", "again")}
    assert slowest["order"] < 0.9 < slowest["again"], "a repeat is beside the visits, of which none waits for it"


def spoiled(answer: Answer, **changes: str) -> Answer:
    return Answer(200, {}, json.dumps({**json.loads(answer.body), **changes}).encode())


@pytest.mark.parametrize(
    ("second", "failure"),
    [
        (lambda first: Answer(201, {}, first.body), "again: written a second time"),
        (lambda first: spoiled(first, created="later"), "again: another order"),
        (lambda first: spoiled(first, customer="Somebody else"), "again: another order"),
        (lambda first: Answer(200, {}, b"<html>"), "again: half an order"),
        (lambda first: Answer(409, {}, b""), "again: status 409"),
        (lambda first: Answer(502, {}, b""), "again: status 502"),
    ],
)
def test_a_repeat_that_is_answered_with_anything_else_fails(tmp_path: Path, second, failure: str) -> None:
    def spoil(shop: Shop, body, headers) -> Answer:
        answer = shop.place(body, headers)
        return second(answer) if answer.status == 200 else answer

    made, _ = load(tmp_path, fine, 0.3, orders=spoil)
    summed = report(made, counted())
    assert (of_orders(summed), summed.repeated) == ({failure}, 0)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("answer", [None, Answer(502, {}, b"")])
def test_an_order_without_an_answer_fails_is_repeated_and_then_acknowledged(tmp_path: Path, applied, answer) -> None:
    asked: Counter[str] = Counter()

    def cut_off_at_first(shop: Shop, body, headers) -> Answer:
        key = headers["Idempotency-Key"]
        asked[key] += 1
        if asked[key] > 1:
            return shop.place(body, headers)
        if applied:
            shop.place(body, headers)
        if answer is None:
            raise Failed("no answer in time")
        return answer

    made, site = load(tmp_path, fine, 0.6, orders=cut_off_at_first)
    summed = report(made, counted())
    orders = [visit for visit in made.visits if visit.kind == "order"]
    assert len(orders) == len(asked) == summed.repeated == summed.orders > 3
    assert all(visit.failure for visit in orders), "the visitor got no answer, whatever is said to the second try"
    assert set(made.ledger.read_text().split()) == set(site.shop.placed) == set(asked)


def test_an_order_that_is_never_answered_is_in_no_ledger_and_ends_the_load(tmp_path: Path) -> None:
    def away(shop: Shop, body, headers) -> Answer:
        raise Failed("connection refused")

    made, _ = load(tmp_path, fine, 0.3, orders=away)
    assert made.ledger.read_text() == ""
    assert of_orders(report(made, counted())) == {"order: connection refused"}


SAID = "3 keys, 0 missing, 0 doubled, 0 unconfirmed, 0 confirmed twice"


@pytest.mark.parametrize(
    ("said", "before", "count"),
    [
        (SAID, 30, Count()),
        (f"{SAID}; sent again 2, ran again 1; 30 pieces in stock and sold", 30, Count(sent_again=2, ran_again=1)),
        (f"{SAID}; sent again 0, ran again 0; 28 pieces in stock and sold", 30, Count(0, 0, 0, 0, 2, 0, 0)),
        (f"{SAID}; sent again 0, ran again 0; 31 pieces in stock and sold", 30, Count(0, 0, 0, 0, 1, 0, 0)),
        (f"{SAID}; sent again 0, ran again 0; 31 pieces in stock and sold", None, Count(sent_again=0, ran_again=0)),
        (SAID.replace("0 doubled", "4 doubled"), None, Count(doubled=4)),
    ],
)
def test_what_the_ledger_says_is_read_of_older_releases_too(said: str, before: int | None, count: Count) -> None:
    assert rehearsal.read_count(said, before) == count


def test_a_ledger_that_says_nothing_is_no_proof() -> None:
    with pytest.raises(MachineError, match="nothing that could be read"):
        rehearsal.read_count("", 30)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, ""),
        ({"lost": 1}, "1 acknowledged orders are lost"),
        ({"doubled": 2}, "2 acknowledged orders are doubled"),
        ({"unconfirmed": 3}, "3 acknowledged orders were never confirmed"),
        ({"confirmed_twice": 4}, "4 acknowledged orders were confirmed twice"),
        ({"astray": 5}, "5 pieces are neither in stock nor sold, or both: an order was applied twice, or in part"),
        ({"sent_again": 6, "ran_again": 7}, ""),
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


@pytest.mark.parametrize(
    ("page", "sheet", "failure"),
    [
        (PAGE, 200, None),
        (PAGE, 404, "page: stylesheet: status 404"),
        (PAGE, 503, "page: stylesheet: status 503"),
        (b"<html></html>", 200, "page: a page without its stylesheet"),
        (PAGE.replace(b".0123456789ab", b""), 200, "page: a page without its stylesheet"),
        (PAGE.replace(b"</html>", b""), 200, "page: half a page"),
    ],
)
def test_a_page_is_whole_when_the_stylesheet_that_it_names_is_there(tmp_path: Path, page, sheet, failure) -> None:
    def answer(method: str, path: str) -> Answer:
        if path.startswith("/static/"):
            return Answer(sheet, {}, b"body {}")
        return Answer(200, {}, page) if path == "/" or path.startswith("/products/") else fine(method, path)

    made, site = load(tmp_path, answer, 0.3)
    pages = [visit for visit in made.visits if visit.kind == "page"]
    assert {visit.failure for visit in pages} == {failure.removeprefix("page: ") if failure else ""}
    assert made.stylesheets == (set() if failure else {SHEET})
    assert site.asked.count(("GET", SHEET)) == (len(pages) if page == PAGE else 0)


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
