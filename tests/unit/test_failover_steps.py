"""The operations of automatic failover as a person runs them, with roles that only say what they were asked for: who, in which order."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_primary import MOVED, WELL, member

from kit import HERE, ROOT, SITE, run_playbook

GROUPS = {
    "web": ["web1"],
    "worker": ["worker1"],
    "database": ["db1", "db2"],
    "cache": ["cache1"],
    "etcd": ["web1", "cache1", "worker1"],
}
HOSTS = {host: {**HERE, "host_address": f"198.18.9.{n}", "ansible_become": False}
         for n, host in enumerate(("web1", "worker1", "db1", "db2", "cache1"), start=1)}  # fmt: skip
ROLES = {
    "postgres": ["main", "status", "step_down", "take_over", "rewind", "follow", "fence"],
    "patroni": ["main", "status", "join", "move", "adopt", "loosen", "hand_back", "leave", "switchover"],
    "etcd": ["status", "rest"], "firewall": ["main"],
    "pgbouncer": ["pause", "resume"], "haproxy": ["drain", "readmit"], "django": ["unlock"],
}  # fmt: skip
FACTS = {
    "postgres/status": {"postgres_status": "{{ answers[inventory_hostname] }}"},
    "patroni/status": {"patroni_status": "{{ cluster }}"},
    "etcd/status": {"etcd_status": {"members": [{"name": "web1", "healthy": True}]}},
}
CLUSTER = {
    "reached": True, "words": "", "paused": False, "leader": "db1", "synchronous_mode": True, "synchronous": ["db2"],
    "members": [{"name": "db1", "state": "running"}, {"name": "db2", "state": "streaming"}],
}  # fmt: skip
HOLD = ["pgbouncer/pause web1 shop", "pgbouncer/pause worker1 shop"]
GO_ON = ["pgbouncer/resume web1 shop", "pgbouncer/resume worker1 shop"]


@pytest.fixture
def run(make_inventory: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[list[str], str]]:
    """run("patroni-adopt", answers) -> the steps ("patroni/join db1"), and all that was said."""
    folder = tmp_path / "kit/playbooks"
    shutil.copytree(ROOT / "playbooks", folder, symlinks=False)
    for role, entries in ROLES.items():
        for entry in entries:
            name, detail = (
                f"{role}/{entry}",
                {"pgbouncer": "pgbouncer_pause_database", "haproxy": "haproxy_server"}.get(role),
            )
            words = f"STEP {name} {{{{ inventory_hostname }}}}" + (f" {{{{ {detail} }}}}" if detail else "")
            words += " {{ postgres_manager }}" if name == "postgres/main" else ""
            tasks: list[dict[str, Any]] = [{"name": "Say it", "ansible.builtin.debug": {"msg": words}}]
            tasks += [{"name": "Keep it", "ansible.builtin.set_fact": FACTS[name]}] if name in FACTS else []
            path = folder / f"roles/{role}/tasks/{entry}.yml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(tasks))
    (folder / "layers/roles").symlink_to(folder / "roles")
    alone = [{"name": layer, "import_playbook": f"layers/{layer}.yml"} for layer in ("primary", "database")]
    (folder / "database_alone.yml").write_text(yaml.safe_dump(alone))
    nothing = [{"name": "Nothing", "hosts": "localhost", "gather_facts": False, "tasks": []}]
    for layer in ("preflight", "lock", "unlock"):
        (folder / f"layers/{layer}.yml").write_text(yaml.safe_dump(nothing))
    # What asks the network or a server.
    (folder / "tasks/checkpoint.yml").write_text("[]")
    for path in folder.glob("*.yml"):
        plays = yaml.safe_load(path.read_text())
        for play in plays:
            play["tasks"] = [
                t for t in play.get("tasks", []) if not {"ansible.builtin.wait_for", "ansible.builtin.command"} & set(t)
            ]
            if not play["tasks"]:
                del play["tasks"]
        path.write_text(yaml.safe_dump(plays, sort_keys=False))
    settings = {**SITE, "site_database_failover": "automatic", "postgres_version": "17"}
    inventory = make_inventory(GROUPS, settings, hosts=HOSTS)

    def go(name: str, answers: dict[str, Any], *options: str, **more: Any) -> tuple[list[str], str]:
        given = {"answers": answers, "cluster": CLUSTER, **more}
        done = run_playbook(folder / f"{name}.yml", inventory, "-e", json.dumps(given), *options)
        said = " ".join(done.stdout.split())
        steps = [
            re.sub(r"\s+", " ", found).strip()
            for found in re.findall(r"STEP ([^\"'}]*?) ?(?=[\"'}]|ok:|TASK|PLAY)", said)
        ]
        steps = [step for step in steps if "/status" not in step]
        # Hosts that do the same thing at the same time answer in any order.
        together = [sorted(same) for _, same in itertools.groupby(steps, key=lambda step: step.split()[0])]
        return [step for same in together for step in same], said + done.stderr

    return go


def led(found: dict[str, Any], *hosts: str) -> dict[str, Any]:
    return {host: {**one, "manager": "patroni" if host in hosts else "plain"} for host, one in found.items()}


def without_reads(host: str, step: str) -> list[str]:
    """A step for which each of the two hosts that run the site's code sends its reads elsewhere."""
    away = [
        f"pgbouncer/pause {host} shop_replica",
        f"haproxy/drain {host} replicas/{host}",
        f"pgbouncer/resume {host} shop_replica",
    ]
    back = [f"haproxy/readmit {host} replicas/{host}", f"pgbouncer/resume {host} shop_replica"]
    return [*away, *away, step, *back, *back]


def test_clients_are_held_only_while_patroni_starts_the_primary_anew(run: Callable[..., tuple[list[str], str]]) -> None:
    steps, said = run("patroni-adopt", led(WELL))
    assert steps[:4] == ["firewall/main db1", "firewall/main db2", "patroni/main db1", "patroni/main db2"]
    assert steps[-2:] == ["postgres/main db1 patroni", "postgres/main db2 patroni"]
    assert steps[4:-2] == [
        "patroni/join db1",
        *HOLD,
        "patroni/move db1",
        *GO_ON,
        *without_reads("db2", "patroni/adopt db2"),
    ]
    assert "Patroni leads; the primary is db1." in said


def test_an_adoption_that_was_cut_off_takes_what_is_left_and_a_finished_one_nothing(
    run: Callable[..., tuple[list[str], str]],
) -> None:
    steps, _ = run("patroni-adopt", led(WELL, "db1"))
    assert steps[4:-2] == without_reads("db2", "patroni/adopt db2")
    steps, said = run("patroni-adopt", led(WELL, "db1", "db2"))
    assert len(steps) == 6 and "Patroni leads all of them already" in said


def test_the_database_is_given_back_with_the_primary_that_it_has(run: Callable[..., tuple[list[str], str]]) -> None:
    steps, said = run("patroni-leave", led(MOVED, "db1", "db2"))
    votes = ["etcd/rest cache1", "etcd/rest web1", "etcd/rest worker1"]
    assert (steps[-5:-3], sorted(steps[-3:])) == (["postgres/main db1 plain", "postgres/main db2 plain"], votes)
    assert steps[:-5] == [
        *without_reads("db1", "patroni/leave db1"),
        "patroni/loosen db2",
        *HOLD,
        "patroni/hand_back db2",
        *GO_ON,
    ]
    assert "site_database_failover: manual and site_database_primary: db2" in said


def test_a_switchover_is_patronis_where_it_leads(run: Callable[..., tuple[list[str], str]]) -> None:
    steps, said = run("switchover", led(WELL, "db1", "db2"), "-e", "to=db2")
    assert steps == [*HOLD, "patroni/switchover db1", *GO_ON] and "there is nothing to change in the inventory" in said
    steps, said = run("switchover", led(WELL), "-e", "to=db2")
    assert steps == [*HOLD, "postgres/step_down db1", "postgres/take_over db2", *GO_ON, "postgres/rewind db1"]
    assert "Set site_database_primary: db2" in said


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        # The machine answers, and PostgreSQL does not run there.
        ({"db1": member("primary", running=False, lsn="0/5000200"), "db2": member()},
         "the primary was at 0/5000200 or later: at least 512 bytes of what it wrote would be lost."),
        ({"db1": member(running=False), "db2": member(primary_lsn="0/5000010")},
         "the primary was at 0/5000010 or later: at least 16 bytes of what it wrote would be lost."),
        ({"db1": member("primary", running=False), "db2": member(primary_lsn="0/4000000")},
         "the primary was at 0/5000000 when it was last heard of: of that nothing would be lost, of what came later everything."),
        ({"db1": member(running=False), "db2": member()},
         "how much the primary wrote after that, nobody who answers knows."),
    ],
)  # fmt: skip
def test_a_failover_says_how_many_bytes_could_be_lost_before_it_fences_anybody(
    run: Callable[..., tuple[list[str], str]], answers: dict[str, Any], words: str
) -> None:
    steps, said = run("failover", answers)
    assert "db2 becomes the primary. It has received everything up to 0/5000000" in said and words in said, said
    assert "Commits are counted when it is back, by playbooks/rejoin.yml." in said
    assert said.index(words) < said.index("PLAY [Fence]")
    assert "postgres/take_over db2" in steps
    assert ("postgres/fence db1" in steps) is (answers["db1"]["role"] == "primary")


def test_a_stage_run_follows_whoever_leads_and_takes_nothing_over(run: Callable[..., tuple[list[str], str]]) -> None:
    steps, said = run("database_alone", led(MOVED, "db1", "db2"))
    assert steps[2:] == ["patroni/main db1", "patroni/main db2"]
    assert said.index("STEP postgres/main db2 patroni") < said.index("STEP postgres/main db1 patroni")
    steps, said = run("database_alone", led(WELL))
    assert steps == ["postgres/main db1 plain", "postgres/main db2 plain"]
    assert "Run playbooks/patroni-adopt.yml once." in said
    steps, said = run("database_alone", led(WELL, "db1", "db2"), "-e", "site_database_failover=manual")
    assert steps == [] and "site_database_failover is manual. Set site_database_failover: automatic" in said
