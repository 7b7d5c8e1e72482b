"""Who is primary: what stops a stage run, a switchover, a failover and a rejoin, in which words, and what the report says."""

from __future__ import annotations

from typing import Any

import pytest

from kit import load_plugin

primary = load_plugin("plugins/action/primary.py")


def member(role: str = "replica", **changes: Any) -> dict[str, Any]:
    usual = {
        "running": role != "none", "role": role, "timeline": 1, "lsn": "0/5000000", "replay_lsn": "0/5000000", "primary_lsn": "",
        "lag_bytes": 0, "lag_seconds": 0, "replay_paused": False,
        "upstream": {"state": "streaming"} if role == "replica" else {}, "replicas": [],
        "slots": [{"name": "db1", "active": False, "wal_status": "reserved", "retained_bytes": 0, "left_bytes": None}],
        "synchronous": {"on": False, "names": "", "there": [], "waiting_commits": 0},
    }  # fmt: skip
    return {**usual, **changes}


WELL = {"db1": member("primary"), "db2": member()}
MOVED = {"db1": member(), "db2": member("primary", timeline=2)}
BOTH = {"db1": member("primary"), "db2": member("primary", timeline=2)}
LOST = {"db2": member(), "db3": member(lsn="0/6000000")}


@pytest.mark.parametrize(
    "found",
    [
        WELL,
        {"db1": member("none"), "db2": member("none")},  # nothing is there yet
        {"db1": member("primary"), "db2": member("none")},  # a replica that is to be made
        {"db1": member("primary", running=False), "db2": member()},  # a stage run starts it
    ],
)
def test_a_run_goes_on_where_the_hosts_say_what_the_inventory_says(found: dict[str, Any]) -> None:
    assert primary.disagreements(found, "db1") == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            MOVED,
            "db2 is the primary, and the inventory says db1. Set site_database_primary: db2 in group_vars/site.yml.",
        ),
        (BOTH, "db1 and db2 each say that they are the primary (db1 on timeline 1, db2 on timeline 2)."),
        (
            {"db1": member(), "db2": member()},
            "There is no primary: db1, which the inventory names, is a replica, and db1 and db2 have data.",
        ),
        (
            {"db1": member("none"), "db2": member()},
            "There is no primary: db1, which the inventory names, is without data",
        ),
        (
            {"db1": member("primary"), "db2": member("primary", running=False)},
            "playbooks/rejoin.yml -e host=db2 makes it a replica.",
        ),
    ],
)
def test_a_run_stops_where_the_hosts_say_something_else(found: dict[str, Any], words: str) -> None:
    [problem] = primary.disagreements(found, "db1")
    assert words in problem


@pytest.mark.parametrize(
    ("found", "to", "words"),
    [
        (WELL, "", "Say which replica becomes the primary: -e to=<one of db1, db2>."),
        (WELL, "db9", "to is db9, and the group database has db1, db2."),
        (WELL, "db1", "db1 is the primary already."),
        (BOTH, "db2", "each say that they are the primary"),
        ({"db1": member("primary", running=False), "db2": member()}, "db2", "No primary runs"),
        ({**WELL, "db2": member(running=False)}, "db2", "db2 is a replica that does not run"),
        ({**WELL, "db2": member("none")}, "db2", "db2 is without data"),
        ({**WELL, "db2": member(upstream={"state": "none"})}, "db2", "db2 receives nothing from db1"),
        ({**WELL, "db2": member(replay_lsn="0/3000000")}, "db2", "db2 is 32 MB behind db1"),
        ({**WELL, "db2": member(replay_paused=True)}, "db2", "On db2 replay is paused."),
        ({**WELL, "db2": member(slots=[])}, "db2", "db2 keeps no replication slot for db1."),
    ],
)
def test_a_switchover_that_cannot_be_is_refused(found: dict[str, Any], to: str, words: str) -> None:
    assert primary.switchover_problems(WELL, "db2", ["db1"]) == []
    [problem] = primary.switchover_problems(found, to, ["db1"])
    assert words in problem


def test_a_failover_takes_the_replica_that_has_received_the_most() -> None:
    assert primary.most_advanced(LOST) == "db3"
    assert primary.most_advanced({"db2": member(lsn="0/FFFFFFFF"), "db3": member(lsn="1/0")}) == "db3"
    assert primary.most_advanced({"db2": member(timeline=3), "db3": member(lsn="9/0", timeline=2)}) == "db2"
    assert primary.most_advanced({"db2": member(running=False)}) == ""
    assert primary.failover_problems(LOST, "") == primary.failover_problems(LOST, "db3") == []


@pytest.mark.parametrize(
    ("found", "to", "words"),
    [
        (WELL, "", "db1 runs and is the primary, so nothing failed."),
        (BOTH, "", "each say that they are the primary"),
        ({}, "", "There is no running replica to promote: no host of database answers."),
        ({"db2": member(running=False)}, "", "db2 is a replica that does not run"),
        (LOST, "db2", "db2 has 16777216 bytes less than db3, which would be lost."),
        (LOST, "db1", "to is db1, which is no host that could be asked."),
    ],
)
def test_a_failover_that_cannot_be_is_refused(found: dict[str, Any], to: str, words: str) -> None:
    [problem] = primary.failover_problems(found, to)
    assert words in problem


def test_what_could_be_lost_is_the_most_that_anybody_knows_of_this_timeline() -> None:
    older = member("primary", running=False, timeline=1, lsn="9/0")
    found = {"db1": older, "db2": member(timeline=2), "db3": member(timeline=2, primary_lsn="0/5000008")}
    assert "at least 8 bytes" in primary.lost_words(found, "db2")
    found["db2"]["primary_lsn"] = "0/5000100"
    assert "at least 256 bytes" in primary.lost_words(found, "db2")
    assert "nobody who answers knows" in primary.lost_words({"db1": older, "db2": member(timeline=2)}, "db2")


@pytest.mark.parametrize(
    ("found", "host", "words"),
    [
        (MOVED, "", "host is not given, and of the group database db1, db2 could be asked."),
        (MOVED, "db3", "host is db3"),
        (MOVED, "db2", "db2 is the primary and runs, so there is nothing to rejoin."),
        (
            {"db1": member(), "db2": member("primary", running=False)},
            "db2",
            "No other host than db2 is a primary that runs.",
        ),
        ({**MOVED, "db1": member("none")}, "db1", "db1 has no data"),
    ],
)
def test_a_rejoin_that_cannot_be_is_refused(found: dict[str, Any], host: str, words: str) -> None:
    assert primary.rejoin_problems({**MOVED, "db1": member("primary", running=False)}, "db1") == []
    [problem] = primary.rejoin_problems(found, host)
    assert words in problem


def test_a_second_primary_that_still_runs_may_rejoin() -> None:
    assert primary.rejoin_problems(BOTH, "db1") == []


def test_the_report_says_what_is_not_well() -> None:
    lines, problems = primary.report(WELL, [], 5)
    assert problems == [] and len(lines) == 3
    lost = [{"name": "db2", "active": False, "wal_status": "lost", "retained_bytes": 9 * 1024**3, "left_bytes": 0}]
    ill = {
        "db1": member("primary", slots=lost, synchronous={"on": True, "there": [], "waiting_commits": 3, "names": "ANY 1"}),
        "db2": member(lag_seconds=7.5), "db3": member(upstream={"state": "none"}), "db4": member(running=False),
    }  # fmt: skip
    lines, problems = primary.report(ill, ["db5"], 5)
    assert "9.0 GB, nobody reads it" in lines[1]
    for words in ("db5 does not answer", "slot db2 on db1 was lost", "3 commits wait", "db2 is 7.5 s behind", "db3 receives nothing",
                  "PostgreSQL on db4 does not run"):  # fmt: skip
        assert [words for problem in problems if words in problem], (words, problems)
    assert len(problems) == 6
    assert "There is no primary that runs." in primary.report({"db2": member()}, ["db1"], 5)[1]
