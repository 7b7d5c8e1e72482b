"""What the drills of the database judge by: each sentence and each order that they look for must be able to be missing."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from kit import ROOT
from lab import database_drills as drills
from lab import patroni_drills
from lab.machine import MachineError
from lab.traffic import Answer, Traffic, Visit

MOMENT = drills.Moment("2031-05-01 12:00:00.123456+00", 10.0, 10.5)
SENT = {"early": 1.0, "unanswered": 2.0, "under-way": 9.9, "at-it": 10.2, "late": 11.0, "refused": 12.0}
ANSWERED = {"early": 1.2, "under-way": 10.1, "at-it": 10.4, "late": 11.3}
# As Ansible prints it: broken at 80 columns, quoted where it has a colon.
PROOF = """
    msg:
    - shop as of 2031-05-01 12:00:00.5+00:00 was there 12.5 s after the restore began
        (RTO)
    - 11 tables equal to the last bit, 5 that were written to hold what they may; no damage
        in any page or index
    - had the database's host gone when this began, the writes of at most 3.2 s would
        have been lost (RPO)
"""
SAID = """
    msg: |-
        shop as it was is on backup1 in /var/lib/restored/20310501T130000Z
        look:    sudo runuser -u pgbackrest -- psql -h /var/lib/restored/20310501T130000Z -p 5499 -U postgres shop
        take:    sudo runuser -u pgbackrest -- pg_dump -h /var/lib/restored/20310501T130000Z -p 5499 -U postgres
        remove:  sudo /etc/pgbackrest/control discard /var/lib/restored/20310501T130000Z
"""


@pytest.mark.parametrize("more", [set(), {"under-way", "at-it", "unanswered"}])
def test_a_copy_has_what_was_acknowledged_before_and_may_have_what_was_under_way(more: set[str]) -> None:
    assert drills.judge_copy(MOMENT, SENT, ANSWERED, {"early", "another"} | more) == (1, 2)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"at-it"}, "lacks 1 orders of 1 .* early"),
        ({"early", "late"}, "1 of 2 that were sent after: late"),
        ({"early", "refused"}, "1 of 2 that were sent after: refused"),
    ],
)
def test_a_copy_that_lacks_an_order_or_has_a_later_one_is_refused(there: set[str], words: str) -> None:
    with pytest.raises(MachineError, match=words):
        drills.judge_copy(MOMENT, SENT, ANSWERED, there)


@pytest.mark.parametrize("key", ["early", "late"])
def test_a_copy_with_nothing_to_compare_proves_nothing(key: str) -> None:
    with pytest.raises(MachineError, match="nothing was compared"):
        drills.judge_copy(MOMENT, {key: SENT[key]}, {key: ANSWERED[key]}, {"early"})


class Shop:
    """A front door that takes every other order, a tenth of a second after it has come."""

    hostname = "shop.example.com"

    def __init__(self) -> None:
        self.came: list[str] = []

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        if path != "/api/orders":
            return Answer(200, {}, b'{"state": "ready"}' if path.startswith("/reports/") else b"<html></html>")
        key = (headers or {})["Idempotency-Key"]
        self.came.append(key)
        refused = len(self.came) % 2
        time.sleep(0.1)
        said = {"key": key, "created": "2031-05-01T12:00:00+00:00", **json.loads(body)}
        return Answer(400 if refused else 201, {}, json.dumps(said).encode())


def test_a_load_knows_when_each_order_was_sent_and_when_it_was_acknowledged(tmp_path: Path) -> None:
    shop = Shop()
    with Traffic(shop, 20.0, tmp_path / "ledger", "session") as made:
        time.sleep(1)
    assert set(made.sent) == set(shop.came) > set(made.answered) == set(made.ledger.read_text().split())
    assert all(made.sent[key] > 0 and made.answered[key] - made.sent[key] >= 0.1 for key in made.answered)


def test_each_sentence_of_the_proof_is_looked_for() -> None:
    assert [words[-5:] for words in drills.proven(PROOF)] == ["(RTO)", "index", "(RPO)"]
    for lost in ("(RTO)", "no damage", "12.5 s"):
        with pytest.raises(MachineError, match="did not say"):
            drills.proven(PROOF.replace(lost, ""))


def test_the_copy_is_asked_and_removed_by_the_commands_that_the_run_says() -> None:
    look, remove = drills.commands_said(SAID)
    assert look == "runuser -u pgbackrest -- psql -h /var/lib/restored/20310501T130000Z -p 5499 -U postgres shop"
    assert remove == "/etc/pgbackrest/control discard /var/lib/restored/20310501T130000Z"
    with pytest.raises(MachineError, match="did not say how"):
        drills.commands_said(SAID.replace("remove:", ""))


def load(*visits: Visit, now: float = 60.0) -> SimpleNamespace:
    return SimpleNamespace(visits=list(visits), now=now)


READS = [Visit(float(second), 0.1, "page") for second in range(60)]


def test_a_write_that_waits_is_seen_though_replicas_serve_all_reads() -> None:
    quick, slow = Visit(5.0, 0.2, "order"), Visit(6.0, 10.5, "upload")
    drills.writes_waited(load(*READS, quick), 0.0, 10)
    with pytest.raises(MachineError, match="A write took 10.5 s, more than 10"):
        drills.writes_waited(load(*READS, quick, slow), 0.0, 10)
    with pytest.raises(MachineError, match="10.5 s"):
        drills.writes_waited(load(quick, Visit(6.0, 10.5, "order", "no answer in time")), 0.0, 10)
    assert drills.longest_write([slow, Visit(7.0, 0.3, "order")], 6.5) == 0.3, "what was due before is not counted"
    with pytest.raises(MachineError, match="Nothing was written"):
        drills.writes_waited(load(*READS), 0.0, 10)


def test_a_time_without_writes_is_seen_though_replicas_serve_all_reads() -> None:
    often = [Visit(float(second), 0.1, "order") for second in range(0, 60, 20)]
    drills.writes_paused(load(*READS, *often), 30)
    with pytest.raises(MachineError, match="no write went well, more than 30"):
        drills.writes_paused(load(*READS, often[0], Visit(20.0, 0.1, "order", "status 503"), often[2]), 30)


def test_a_first_write_that_comes_too_late_breaks_the_promise() -> None:
    drills.written_again(load(Visit(1.0, 14.0, "order"), now=20.0), 0.0, 15)
    with pytest.raises(MachineError, match="went well after 16.0 s, more than 15"):
        drills.written_again(load(Visit(1.0, 15.0, "order"), now=20.0), 0.0, 15)


@pytest.mark.parametrize(
    ("recap", "words"),
    [
        ("db1 : ok=3 changed=0 unreachable=0 failed=1", ""),
        ("db1 : ok=3 changed=0 unreachable=0 failed=1\ndb2 : ok=3 changed=1 unreachable=0 failed=0", "changed db2"),
        ("", "nobody knows what"),
    ],
)
def test_a_run_that_refuses_has_changed_nothing(recap: str, words: str) -> None:
    output = f"PLAY RECAP ****\n{recap}\n"
    if not words:
        drills.see_unchanged("playbooks/stage5.yml", output)
        return
    with pytest.raises(MachineError, match=words):
        drills.see_unchanged("playbooks/stage5.yml", output)


def test_a_writer_that_says_nothing_has_not_counted_as_one_that_wrote_nothing() -> None:
    def host(said: str) -> SimpleNamespace:
        return SimpleNamespace(name="db1", exec_run=lambda command: SimpleNamespace(output=said.encode()))

    assert patroni_drills.write_alone(host("written 12\n"), 1) == 12
    with pytest.raises(MachineError, match="said nothing that could be read"):
        patroni_drills.write_alone(host("bash: runuser: not found\n"), 1)


def said_by(page: str) -> set[str]:
    """The playbooks with their words, as a page of docs/operations has them."""
    text = (ROOT / f"docs/operations/{page}.md").read_text()
    return set(re.findall(r"^ *ansible-playbook -i inventories/<env> (\S.*)$", text, re.M))


def test_a_replica_is_removed_and_added_by_the_commands_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[str] = []
    asked: list[str] = []
    smaller: dict[str, bool] = {}

    def play(lab, name, *words, fails="", source=None):
        found = source or drills.inventory.stage_file(ROOT, 5)
        smaller[name] = "db2" not in drills.inventory.read_hosts(found)
        played.append(" ".join(words))
        return ""

    def ask(lab, host, sql, database="postgres"):
        asked.append(f"{host}: {sql}")
        return "0"

    calls: list[str] = []
    container = SimpleNamespace(kill=lambda: calls.append("off"), start=lambda: calls.append("on"))
    client = SimpleNamespace(containers=SimpleNamespace(get=lambda name: container))
    for target, name, fake in (
        (drills, "play", play),
        (drills, "ask", ask),
        (drills, "wait_for", lambda lab, replica, there: 0.0),
        (drills, "streams", lambda lab, who: False),
        (drills.commands, "connect", lambda: client),
        (drills.hosts, "wait_until_up", lambda *_: None),
        (drills.time, "sleep", lambda seconds: None),
    ):
        monkeypatch.setattr(target, name, fake)
    state = SimpleNamespace(stage=5, addresses={"db2": "198.18.7.12"})
    lab = SimpleNamespace(name="lab", root=ROOT, load=lambda: state, close_connections=lambda: None)
    drills.remove_replica(lab, SimpleNamespace(mark=lambda what: None))

    assert said_by("remove-replica") | said_by("add-replica") == {
        words.replace(' -e {"site_pooler": true}', "") for words in played
    }
    assert [name for name, gone in smaller.items() if gone] == ["leaves"] and calls == ["off", "on"]
    [dropped] = re.findall(
        r'psql -c "(select pg_drop\S+ *\S*)"', (ROOT / "docs/operations/remove-replica.md").read_text()
    )
    assert f"db1: {dropped}" in asked


@pytest.mark.parametrize(
    "said", ["", "still on a replica", "OperationalError: server closed the connection unexpectedly"]
)
def test_a_read_that_was_cut_or_saw_no_promotion_fails_the_drill(said: str) -> None:
    drills.read_went_on("ended on the primary")
    with pytest.raises(MachineError, match="was not kept"):
        drills.read_went_on(said)
