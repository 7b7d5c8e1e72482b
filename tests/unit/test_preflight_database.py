"""Preflight refuses a database that could not serve, or whose backups would be lost with it, before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import SITE
from preflighted import inventory_problems, preflight, verdict_problems

REPLICA = {
    "web": ["web1", "web2"],
    "worker": ["worker1"],
    "cache": ["web1"],
    "edge": ["web1"],
    "database": ["db1", "db2"],
}
ONE = {"web": ["web1"], "database": ["db1"]}


def addressed(groups: dict[str, list[str]], **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each host of the groups with an address of its own, and what is said of one of them alone."""
    names = dict.fromkeys(host for hosts in groups.values() for host in hosts)
    return {host: {"ansible_host": f"198.18.9.{n}", **more.get(host, {})} for n, host in enumerate(names, start=1)}


def said_of(
    make_inventory: Callable[..., Path], groups: dict[str, list[str]], stage: int = 5, **more: Any
) -> list[str]:
    """The problems of an inventory; settings by name, and what hosts have of their own as `hosts`."""
    own = more.pop("hosts", {})
    inventory = make_inventory(groups, {**SITE, **more}, hosts=addressed(groups, **own))
    return inventory_problems(inventory, args={"stage": stage})


# Connections.


def test_poolers_as_the_wiring_divides_the_connections_are_accepted(make_inventory: Callable[..., Path]) -> None:
    assert said_of(make_inventory, REPLICA) == []


@pytest.mark.parametrize("most", [48, 20])
def test_more_poolers_than_the_database_has_connections_for_are_refused(
    make_inventory: Callable[..., Path], most: int
) -> None:
    [said] = said_of(make_inventory, REPLICA, postgres_max_connections=most)
    assert said.startswith(f"3 hosts with a pooler would share the {most} connections of PostgreSQL less 25 ")
    assert "a pooler needs 8. Set postgres_max_connections: 49 or more" in said


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"pgbouncer_server_connections": 200},
            "The poolers may open 600 connections together (pgbouncer_server_connections: web1 200, web2 200, worker1 200), and "
            "PostgreSQL on db1 takes 100, of which 25 stay for everything else. Set pgbouncer_server_connections: 25 or less, or "
            "postgres_max_connections: 625 or more in group_vars/site.yml.",
        ),
        ({"pgbouncer_server_connections": 26}, "The poolers may open 78 connections together"),
        (
            {"hosts": {"web2": {"pgbouncer_server_connections": 40}}},
            "The poolers may open 90 connections together (pgbouncer_server_connections: web1 25, web2 40, worker1 25)",
        ),
        # Set for the database alone, and so not known to those who divide.
        (
            {"hosts": {"db2": {"postgres_max_connections": 50}}},
            "The poolers may open 75 connections together (pgbouncer_server_connections: web1 25, web2 25, worker1 25), and "
            "PostgreSQL on db2 takes 50, of which 25 stay for everything else. Set pgbouncer_server_connections: 8 or less, or",
        ),
    ],
)
def test_pools_over_max_connections_are_refused_with_the_number_that_a_person_wrote(
    make_inventory: Callable[..., Path], more: dict[str, Any], sentence: str
) -> None:
    [said] = said_of(make_inventory, REPLICA, **more)
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    "more",
    [
        {"pgbouncer_server_connections": 25},
        {"pgbouncer_server_connections": 200, "postgres_max_connections": 625},
        {"pgbouncer_server_connections": 200, "site_pooler": False},
    ],
)
def test_a_number_of_ones_own_that_fits_is_accepted(make_inventory: Callable[..., Path], more: dict[str, Any]) -> None:
    assert said_of(make_inventory, REPLICA, **more) == []


def test_a_pools_number_that_cannot_be_read_is_named(make_inventory: Callable[..., Path]) -> None:
    [said] = said_of(make_inventory, REPLICA, pgbouncer_server_connections="{{ nowhere }}")
    assert said.startswith("pgbouncer_server_connections cannot be read on web1, web2, worker1: 'nowhere' is undefined")


def test_the_numbers_of_many_poolers_are_cut_for_reading() -> None:
    opened = {f"web{n}": 30 for n in range(9)}
    [said] = preflight.pooler_problems(opened, opened, {"db1": 200}, 25, 8)
    assert "web4 30, ...)" in said and "web5" not in said and "pgbouncer_server_connections: 19 or less" in said


STORE = {"bucket": "x", "endpoint": "s3.example.com", "region": "eu", "key": "k", "key_secret": "s"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"pgbouncer_server_connections": 8}, ""),
        (
            {"pgbouncer_server_connections": 2},
            "pgbouncer_server_connections is 2 on web1, web2, worker1, and a pooler needs 8. Set it to 8 or more",
        ),
        ({"postgres_synchronous_replicas": 1}, ""),
        (
            {"postgres_synchronous_replicas": 2},
            "postgres_synchronous_replicas is 2, and the group database has db1, db2, 1 besides the primary: no commit would ever end.",
        ),
        ({"site_backup_s3": STORE}, ""),
        (
            {"site_backup_s3": {**STORE, "region": "", "key": ""}},
            "site_backup_s3 has no key, region. Give it bucket, endpoint, key, key_secret, region.",
        ),
    ],
)
def test_what_a_role_would_refuse_in_the_middle_is_refused_before_under_its_own_name(
    make_inventory: Callable[..., Path], more: dict[str, Any], sentence: str
) -> None:
    said = said_of(make_inventory, REPLICA, **more)
    assert len(said) == bool(sentence) and (not said or said[0].startswith(sentence)), said


# Who is primary, and what the others copy.


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"site_database_primary": "db9"}, "site_database_primary is db9, and the group database has db1, db2. Name one of them."),
        ({"site_database_primary": "web1"}, "site_database_primary is web1, and the group database has db1, db2."),
        (
            {"site_database_primary": "db1", "hosts": {"db2": {"site_database_primary": "db2"}}},
            "site_database_primary is db1 on db1, web1, web2, worker1 and db2 on db2, and all hosts have to mean the same one. Set it once",
        ),
        ({"hosts": {"web1": {"site_database_primary": "db2"}}}, "site_database_primary is db2 on web1 and empty on db1, db2, web2"),
        ({"stage": 1}, "The group database has db1, db2, and stage 1 knows one primary without replicas. Run playbooks/stage5.yml"),
        ({"stage": 4}, "The group database has db1, db2, and stage 4 knows one primary without replicas."),
        (
            {"site_read_own_writes_seconds": 6},
            "site_read_own_writes_seconds is 6, and a replica may be 5 s behind (site_replica_lag_seconds) and stays in use for 4 s more: "
            "people would miss what they have just written. Set it to 9 or more.",
        ),
        ({"site_replica_lag_seconds": 9}, "site_read_own_writes_seconds is 10, and a replica may be 9 s behind"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_replicas_that_could_not_serve_are_refused(
    make_inventory: Callable[..., Path], more: dict[str, Any], sentence: str
) -> None:
    said = said_of(make_inventory, REPLICA, **more)
    assert sum(problem.startswith(sentence) for problem in said) == 1, said
    assert len(said) == 1 or more.get("stage") == 1  # of which the other groups are of a higher stage too


@pytest.mark.parametrize("more", [{"site_read_own_writes_seconds": 9}, {"site_database_primary": "db2"}])
def test_replicas_that_can_serve_are_accepted(make_inventory: Callable[..., Path], more: dict[str, Any]) -> None:
    assert said_of(make_inventory, REPLICA, **more) == []


@pytest.mark.parametrize(
    ("groups", "hosts", "debian", "more", "sentence"),
    [
        (REPLICA, {"db1": {"postgres_version": "18"}}, {}, {}, "PostgreSQL would be 18 on db1 and 17 on db2, and a replica has its pri"),
        (REPLICA, {"db1": {"postgres_version": 17}}, {}, {}, ""),
        (REPLICA, {}, {"db2": "12"}, {"postgres_version": 17}, ""),
        (REPLICA, {}, {"db2": "12"}, {"site_pooler": False}, "PostgreSQL would be 17 on db1 and 15 on db2, and a replica has its"),
        (REPLICA, {}, {"db1": "12", "db2": "12"}, {}, "PostgreSQL on db1, db2 is version 15, and the pooler's way to it (TLS from"),
        (ONE, {}, {}, {"postgres_version": "16", "site_pooler": True}, "PostgreSQL on db1 is version 16, and the pooler's way"),
        (ONE, {}, {"db1": "12"}, {}, ""),
    ],
)  # fmt: skip
def test_versions_that_do_not_go_together_or_that_no_pooler_reaches_are_refused(
    make_inventory: Callable[..., Path], groups: Any, hosts: Any, debian: Any, more: dict[str, Any], sentence: str
) -> None:
    inventory = make_inventory(groups, {**SITE, **more}, hosts=addressed(groups, **hosts))
    said = verdict_problems(inventory, debian)
    assert [problem.startswith(sentence) for problem in said] == ([True] if sentence else []), said


# Backups.


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("pgbackrest_retention_full", 0, 1),
        ("pgbackrest_retention_differential", 0, 1),
        ("restic_keep_daily", 0, 1),
        ("restic_keep_weekly", -1, 0),
        ("restic_keep_monthly", -1, 0),
    ],
)
def test_backups_that_would_not_be_kept_are_refused(
    make_inventory: Callable[..., Path], name: str, value: Any, least: int
) -> None:
    [said] = said_of(make_inventory, ONE, stage=1, **{name: value})
    assert said == f"{name} must be {least} or more; found {value} on db1, web1."


@pytest.mark.parametrize("name", sorted(preflight.LEAST))
def test_the_fewest_backups_that_can_be_kept_are_accepted(make_inventory: Callable[..., Path], name: str) -> None:
    assert said_of(make_inventory, ONE, stage=1, **{name: preflight.LEAST[name]}) == []


S3 = {"bucket": "b", "endpoint": "s3.example.com", "region": "eu", "key": "k", "key_secret": "hush"}


@pytest.mark.parametrize(
    ("groups", "more", "keeper"),
    [
        ({**ONE, "backup": ["db1"]}, {}, "db1"),
        ({**ONE, "backup": ["db1"]}, {"pgbackrest_same_machine": False}, "db1"),
        ({**REPLICA, "backup": ["db2"]}, {}, "db2"),
    ],
)
def test_a_repository_on_the_databases_host_is_refused_unless_it_is_said(
    make_inventory: Callable[..., Path], groups: dict[str, list[str]], more: dict[str, Any], keeper: str
) -> None:
    [said] = said_of(make_inventory, groups, **more)
    assert said.startswith(
        f"The backups of the database would lie on {keeper}, which is a host of the database, and be lost with it."
    )
    assert "group backup" in said and "pgbackrest_same_machine: true" in said


@pytest.mark.parametrize(
    ("groups", "more"),
    [
        (ONE, {}),
        ({**ONE, "backup": ["backup1"]}, {}),
        ({**ONE, "backup": ["db1"]}, {"pgbackrest_same_machine": True}),
        ({**ONE, "backup": ["db1"]}, {"site_backup_s3": S3}),
        ({"web": ["one"], "database": ["one"]}, {}),
        # Nobody named it: a warning, as on one machine.
        ({"web": ["one"], "database": ["one"], "edge": ["edge1"]}, {}),
        ({"web": ["one"], "database": ["one"], "backup": ["one"], "cache": ["one"]}, {}),
    ],
)
def test_a_repository_elsewhere_as_said_or_on_the_only_machine_is_accepted(
    make_inventory: Callable[..., Path], groups: dict[str, list[str]], more: dict[str, Any]
) -> None:
    assert said_of(make_inventory, groups, **more) == []


@pytest.mark.parametrize(("stage", "problems"), [(5, 2), (0, 0)])
def test_an_operation_is_not_refused_for_what_a_stage_sets_up(
    make_inventory: Callable[..., Path], stage: int, problems: int
) -> None:
    groups = {**REPLICA, "backup": ["db2"]}
    assert len(said_of(make_inventory, groups, stage, pgbouncer_server_connections=200)) == problems


@pytest.mark.parametrize("batches", [None, 1, "50%", [1, 5, "100%"], ["2"]])
def test_batches_that_ansible_takes_are_accepted(batches: Any) -> None:
    assert preflight.batches_problems(batches) == []


@pytest.mark.parametrize(
    ("batches", "found"),
    [(["x"], "x"), ([1, "0"], "0"), ([], "nothing in it"), ("half", "half"), ([-1], "-1"), ([{"a": 1}], "{'a': 1}")],
)
def test_batches_that_are_none_are_refused(batches: Any, found: str) -> None:
    [said] = preflight.batches_problems(batches)
    assert said.startswith(f"deploy_batches has {found}. Give numbers of hosts or percentages")
