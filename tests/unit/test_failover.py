"""Automatic failover by choice: what the wiring makes of it, what is refused, and who is believed to be the primary."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import trust_as_template
from test_primary import BOTH, LOST, MOVED, WELL, member, primary

from kit import ROOT, SITE, Environment
from lab import inventory, rehearsal
from lab.model import Lab
from preflighted import inventory_problems, preflight

AUTOMATIC = {**SITE, "site_database_failover": "automatic"}
GROUPS = {
    "web": ["web1"], "database": ["db1", "db2"], "cache": ["cache1"], "backup": ["backup1"], "etcd": ["web1", "cache1", "backup1"],
}  # fmt: skip
HOSTS = {
    name: {"ansible_host": f"198.18.9.{n}"}
    for n, name in enumerate(("web1", "db1", "db2", "cache1", "backup1"), start=1)
}
DATABASES, VOTES = ["198.18.9.2", "198.18.9.3"], ["198.18.9.1", "198.18.9.4", "198.18.9.5"]


def site(make_inventory: Callable[..., Path], **settings: Any) -> Environment:
    return Environment(make_inventory(GROUPS, {**AUTOMATIC, **settings}, hosts=HOSTS))


def patronis(found: dict[str, Any], *hosts: str) -> dict[str, Any]:
    """The same answers, of hosts that Patroni leads: all of them unless some are named."""
    return {host: {**one, "manager": "patroni" if host in (hosts or found) else "plain"} for host, one in found.items()}


# The wiring.


def test_doors_of_the_votes_and_of_patroni_open_for_those_that_need_them(make_inventory: Callable[..., Path]) -> None:
    made = site(make_inventory)

    def doors(host: str, *ports: int) -> dict[int, list[str]]:
        return {
            rule["port"]: sorted(rule["from"]) for rule in made.value(host, "firewall_allow") if rule["port"] in ports
        }

    for host in GROUPS["etcd"]:
        own = HOSTS[host]["ansible_host"]
        others = [address for address in VOTES if address != own]
        assert doors(host, 2379, 2380, 8008) == {2379: sorted(DATABASES + others), 2380: sorted(others)}
    assert doors("db1", 2379, 2380, 8008) == {8008: ["198.18.9.3"]}


def test_a_voter_may_be_nothing_else(make_inventory: Callable[..., Path]) -> None:
    inventory = make_inventory({**GROUPS, "etcd": ["web1", "cache1", "vote1"]}, AUTOMATIC, hosts=HOSTS)
    assert inventory_problems(inventory) == []
    made = Environment(inventory)
    assert made.value("vote1", "memory_mb") == {} and [
        one["name"] for one in made.value("vote1", "certificates_leaves")
    ] == ["etcd"]


def test_members_of_etcd_know_each_other_by_a_name_that_no_other_leaf_has(make_inventory: Callable[..., Path]) -> None:
    made = site(make_inventory)
    for host in made.hosts:
        leaves = {leaf["name"]: leaf["names"] for leaf in made.value(host, "certificates_leaves")}
        known = [name for name, names in leaves.items() if made.value(host, "etcd_peer_name") in names]
        assert known == (["etcd"] if host in GROUPS["etcd"] else [])
        if known:
            assert {host, HOSTS[host]["ansible_host"]} <= set(leaves["etcd"])
    listed = made.value("web1", "etcd_members")
    assert {one["name"]: one["host"] for one in listed} == {
        host: HOSTS[host]["ansible_host"] for host in GROUPS["etcd"]
    }
    assert listed == made.value("backup1", "etcd_members")


def test_patroni_is_told_what_postgres_is_told(make_inventory: Callable[..., Path]) -> None:
    made = site(make_inventory, postgres_max_connections=300)
    for host in GROUPS["database"]:
        assert sorted(made.value(host, "patroni_etcd_hosts")) == [f"{address}:2379" for address in VOTES]
        assert made.value(host, "patroni_members") == made.value(host, "postgres_replication_slots") == ["db1", "db2"]
        assert made.value(host, "patroni_member") == made.value(host, "postgres_replica_name") == host
        assert made.value(host, "patroni_peer_networks") == [f"{address}/32" for address in DATABASES]
        assert len(made.value(host, "patroni_replication_password")) == 40
        assert made.value(host, "patroni_parameters") == {"max_connections": 300}
        leaf = next(leaf for leaf in made.value(host, "certificates_leaves") if leaf["name"] == "postgres")
        assert made.value(host, "patroni_host") in leaf["names"]


def test_nothing_of_it_is_there_unasked(make_inventory: Callable[..., Path]) -> None:
    made = Environment(make_inventory(GROUPS, SITE, hosts=HOSTS))
    for host in made.hosts:
        assert not {2379, 2380, 8008} & {str(rule["port"]) for rule in made.value(host, "firewall_allow")}
        assert "etcd" not in {leaf["name"] for leaf in made.value(host, "certificates_leaves")}
    assert made.value("db1", "postgres_manager") == "plain" and made.value("db1", "database_primary") == "db1"
    assert made.value("db1", "leader_asked") is False


def test_where_patroni_decides_the_primary_is_whoever_leads(make_inventory: Callable[..., Path]) -> None:
    made = site(make_inventory, site_database_primary="db1")
    assert made.value("db1", "leader_found") == "" and made.value("web1", "database_primary") == "db1"
    for host, status in patronis(MOVED).items():
        made._variables.set_nonpersistent_facts(host, {"postgres_status": status, "leader_found": "db2"})
    made.__dict__.pop("_known", None)
    assert [made.value(host, "database_primary") for host in ("db1", "db2")] == ["db2", "db2"]
    assert made.value("db1", "postgres_primary_host") == HOSTS["db2"]["ansible_host"]
    assert [made.value(host, "postgres_manager") for host in ("db1", "db2")] == ["patroni", "patroni"]
    plays = yaml.safe_load((ROOT / "playbooks/layers/database.yml").read_text())
    known = {"groups": made.all_groups, "hostvars": made.hostvars}
    met = [made.value("web1", "met", met=trust_as_template(play["hosts"]), **known) for play in plays]
    assert met == [["db2"], ["db1"], ["db1", "db2"]]


def test_the_stage_readies_the_votes_before_the_database(make_inventory: Callable[..., Path]) -> None:
    layers = [play["import_playbook"] for play in yaml.safe_load((ROOT / "playbooks/stage5.yml").read_text())]
    assert layers.index("layers/base.yml") < layers.index("layers/etcd.yml") < layers.index("layers/database.yml")


# What is refused before any change.


@pytest.mark.parametrize(
    ("groups", "more", "words"),
    [
        ({"etcd": []}, {}, "but the group etcd has no host, and Patroni votes on three hosts"),
        ({"etcd": ["web1", "cache1"]}, {}, "but the group etcd has cache1, web1, and"),
        (
            {"database": ["db1"]},
            {"site_pooler": True},
            "but the group database has db1, and nobody could take its place.",
        ),
        ({}, {"site_pooler": False}, "but site_pooler is false, and the site would not find the new primary."),
        (
            {},
            {"postgres_settings": {"max_connections": 9}},
            "but postgres_settings has max_connections, which Patroni decides.",
        ),
        ({}, {"postgres_synchronous_replicas": 1}, "but postgres_synchronous_replicas is 1, and Patroni decides"),
    ],
)
def test_automatic_failover_that_could_not_be_is_refused_in_one_sentence(
    make_inventory: Callable[..., Path], groups: dict[str, list[str]], more: dict[str, Any], words: str
) -> None:
    inventory = make_inventory({**GROUPS, **groups}, {**AUTOMATIC, **more}, hosts=HOSTS)
    [problem] = inventory_problems(inventory)
    assert problem.startswith("site_database_failover is automatic, but ") and words in problem
    assert problem.endswith("Or set it to manual.")


def test_automatic_failover_is_accepted_with_three_votes_or_five(make_inventory: Callable[..., Path]) -> None:
    assert inventory_problems(make_inventory(GROUPS, AUTOMATIC, hosts=HOSTS)) == []
    votes = {"etcd": list("abcde"), "database": ["a", "b"], "site": list("abcde")}
    assert preflight.failover_problems(votes, True, {}, [], 0) == []
    [problem] = preflight.failover_problems(votes, True, {"a": "2001:db8::1"}, [], 0)
    assert "a has an IPv6 address" in problem


def test_a_group_etcd_of_ones_own_is_left_alone(make_inventory: Callable[..., Path]) -> None:
    groups = {"web": ["web1"], "database": ["db1"], "etcd": ["other"]}
    inventory = make_inventory(groups, SITE, hosts=HOSTS, outside=("etcd",))
    assert inventory_problems(inventory) == []
    [problem, *_] = preflight.failover_problems({**GROUPS, "site": ["web1", "cache1", "db1", "db2"]}, True, {}, [], 0)
    assert "backup1 in group etcd does not belong to the group site. List etcd under site's children" in problem


def test_preflight_and_the_role_agree_on_what_is_patronis() -> None:
    listed = re.search(
        r"(?s)_postgres_not_ours: >-(.*?) if _postgres_managed", (ROOT / "roles/postgres/vars/main.yml").read_text()
    )
    assert listed and set(re.findall(r"'(\w+)'", listed[1])) == preflight.PATRONIS


# Who is believed.


def test_a_run_accepts_whoever_leads_by_patroni() -> None:
    for found in (WELL, MOVED, {**WELL, "db2": member(running=False)}):
        assert primary.disagreements(patronis(found), "db1", True) == []
    assert primary.disagreements(WELL, "db1", True) == [], "not adopted yet: nothing is taken over by a run"


@pytest.mark.parametrize(
    ("found", "automatic", "words"),
    [
        (
            patronis(WELL),
            False,
            "Patroni leads db1 and db2, and site_database_failover is manual. Set site_database_failover: automatic",
        ),
        (patronis(WELL, "db2"), False, "playbooks/patroni-leave.yml"),
        (patronis(BOTH), True, "db1 and db2 each say that they are the primary, and Patroni leads"),
        (
            patronis(LOST),
            True,
            "There is no primary that runs, and Patroni, which leads db2 and db3, makes one by itself",
        ),
        (patronis(WELL, "db2"), True, "db1 is the primary, and Patroni leads db2 but not that one."),
        (patronis({**WELL, "db3": member("none")}, "db1", "db2"), True, "db3 has no data, and who is led by Patroni"),
        (MOVED, True, "db2 is the primary, and the inventory says db1."),
    ],
)
def test_a_run_stops_where_patroni_and_the_setting_or_the_members_do_not_agree(
    found: dict[str, Any], automatic: bool, words: str
) -> None:
    [problem] = primary.disagreements(found, "db1", automatic)
    assert words in problem


def test_failover_and_rejoin_are_patronis_and_say_what_to_do_instead() -> None:
    [problem] = primary.failover_problems(patronis(LOST), "")
    assert "by itself, within half a minute" in problem and "docs/operations/automatic-failover.md" in problem
    [problem] = primary.rejoin_problems(patronis(MOVED), "db1")
    assert "becomes a replica by itself" in problem and "reinit" in problem


STATUS = {
    "reached": True, "words": "", "paused": False, "leader": "db1", "synchronous_mode": True, "synchronous": ["db2"],
    "members": [{"name": "db1", "state": "running"}, {"name": "db2", "state": "streaming"}],
}  # fmt: skip


def test_a_switchover_by_patroni_needs_no_slots_and_takes_the_synchronous_replica() -> None:
    assert primary.switchover_problems(patronis({**WELL, "db2": member(slots=[])}), "db2", ["db1"]) == []
    assert primary.candidate_problems(STATUS, "db2") == []
    for change, words in (
        ({"synchronous": ["db3"]}, "db2 is not the synchronous replica (db3)"),
        ({"paused": True}, "Patroni is paused."),
        ({"reached": False, "words": "timed out"}, "etcd could not be asked: timed out."),
    ):
        [problem] = primary.candidate_problems({**STATUS, **change}, "db2")
        assert words in problem


@pytest.mark.parametrize(
    ("found", "automatic", "words"),
    [
        (WELL, False, "site_database_failover is manual. Set site_database_failover: automatic"),
        (BOTH, True, "each say that they are the primary"),
        ({"db1": member("primary", running=False), "db2": member()}, True, "There is no primary that runs"),
        (
            {**WELL, "db2": member("none")},
            True,
            "db2 is without data, and Patroni takes over replicas that follow db1.",
        ),
        (
            {**WELL, "db2": member(upstream={"state": "none"})},
            True,
            "db2 is a replica, and Patroni takes over replicas that follow db1.",
        ),
    ],
)
def test_an_adoption_that_cannot_be_is_refused(found: dict[str, Any], automatic: bool, words: str) -> None:
    assert primary.adopt_problems(WELL, True) == primary.adopt_problems(patronis(WELL, "db1"), True) == []
    [problem] = primary.adopt_problems(found, automatic)
    assert words in problem


def test_a_database_is_given_back_whoever_leads_and_whatever_the_setting_says() -> None:
    assert primary.leave_problems(patronis(MOVED)) == primary.leave_problems(patronis(WELL, "db1")) == []
    assert "nothing to give back" in primary.leave_problems(WELL)[0]
    assert "There is no primary that runs" in primary.leave_problems(patronis(LOST))[0]


def test_the_report_says_what_keeps_patroni_from_acting() -> None:
    assert primary.patroni_report({}) == ([], [])
    assert primary.patroni_report({"db1": STATUS}) == (["Patroni: db1 leads, db2 could take its place."], [])
    ill = {
        **STATUS,
        "paused": True,
        "leader": "",
        "synchronous": [],
        "members": [{"name": "db2", "state": "start failed"}],
    }
    _, problems = primary.patroni_report({"db1": ill, "db2": {**STATUS, "reached": False, "words": "refused"}})
    assert len(problems) == 5
    for words in (
        "db2 cannot ask etcd: refused.",
        "paused",
        "Nobody leads",
        "No replica is synchronous",
        "db2 neither leads",
    ):
        assert [problem for problem in problems if words in problem], words


# The lab.


def test_a_lab_whose_database_patroni_leads_says_so_in_its_own_inventory(tmp_path: Path) -> None:
    lab = Lab("demo", tmp_path)
    state = lab.load()
    state.voters = ["web1", "cache1", "backup1"]
    lab.save(state)
    lab.write_inventory(
        {"web1": "198.18.7.10", "db1": "198.18.7.11", "cache1": "198.18.7.12", "backup1": "198.18.7.13"}
    )
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(ROOT / "inventories/lab/stage5.yml")]
    done = subprocess.run(
        [*command, "-i", str(lab.hosts_file), "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = json.loads(done.stdout)
    assert sorted(listed["etcd"]["hosts"]) == sorted(state.voters) and "etcd" in listed["site"]["children"]
    assert listed["_meta"]["hostvars"]["db1"]["site_database_failover"] == "automatic"
    assert "site_database_failover" not in inventory.settings(lab.folder, lab.folder)


def test_drills_of_automatic_failover_are_run_only_when_asked_for() -> None:
    ours = {name for name in rehearsal.DRILLS if name.startswith("patroni-")}
    assert len(ours) == 7
    assert {name for name, drill in rehearsal.DRILLS.items() if drill.asked} == ours | {"kill-primary-synchronous"}
