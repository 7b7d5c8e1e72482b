"""Preflight refuses a database that could not serve, or whose backups would be lost with it, before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import SITE
from preflighted import inventory_problems, preflight

REPLICA = {
    "web": ["web1", "web2"],
    "worker": ["worker1"],
    "cache": ["web1"],
    "edge": ["web1"],
    "database": ["db1", "db2"],
}


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
