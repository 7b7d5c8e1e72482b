"""Stage 5 on top of the running stage 4: a pooler, a replica, and a primary that may be another one tomorrow."""

from __future__ import annotations

import base64
import json
import re
import time
import uuid

import pytest

APP = ("web1", "web2", "worker1", "worker2")


@pytest.fixture(scope="module")
def grown(lab):
    """The lab at stage 5, and what its visitors saw while it grew."""
    return lab, lab.rehearse(4, 5)


def printed(lab, done) -> str:
    """What a run printed, in one line."""
    return re.sub(r"\s+", " ", lab.said(done))


def psql(lab, host: str, sql: str, database: str = "postgres") -> str:
    return lab.ssh(host, f'cd / && sudo -u postgres psql -XqAtw -d {database} -c "{sql}"').stdout.strip()


def drilled(lab, name: str) -> dict:
    """What visitors saw of a drill that kept its promise."""
    done = lab.ladder("drill", name, seconds=1800)
    return {"said": printed(lab, done), **json.loads((lab.folder / f"reports/drill-{name}.json").read_text())}


def shell(lab, code: str, check: bool = True):
    """Python in the site's own settings, as a management command."""
    return lab.ssh("web1", f"sudo shop-manage shell --no-imports -c {json.dumps(code)}", check=check)


def test_growth_loses_nothing_and_fails_no_visit(grown):
    _, report = grown
    assert report["orders"] > 50
    broken = {what: report[what] for what in ("failed", "lost", "doubled", "unconfirmed", "confirmed_twice")}
    assert set(broken.values()) == {0}, report


@pytest.mark.parametrize("words", [(), pytest.param(("--check", "--diff"), marks=pytest.mark.long)])
def test_second_run_changes_nothing(grown, words):
    lab, _ = grown
    done = lab.play("stage5.yml", *words)
    assert "db2" in done.stdout and lab.changes(done) == {}, done.stdout[-4000:]


@pytest.mark.long
def test_who_kept_backups_before_rests_and_keeps_them(grown):
    lab, _ = grown
    for host, unit, kept in (
        ("web1", "pgbackrest-full.timer", "/var/lib/pgbackrest/backup/shop/backup.info"),
        ("db1", "restic-shop-prune.timer", "/var/lib/restic-shop/repository/config"),
    ):
        told = lab.ssh(host, f"systemctl is-enabled {unit}; systemctl is-active {unit}; sudo ls {kept}", check=False)
        assert told.stdout.split() == ["disabled", "inactive", kept], host


def test_every_host_knows_the_primary_and_the_replica(grown):
    lab, _ = grown
    for host in APP:
        said = lab.ssh(host, "sudo /etc/pgbouncer-shop/control status").stdout
        assert "Primary: db1. Reads: db2" in said, said
    assert psql(lab, "db2", "select pg_is_in_recovery()") == "t"


@pytest.mark.long
def test_what_serves_is_pooled_and_commands_go_around_the_pooler(grown):
    lab, _ = grown
    said = shell(
        lab,
        "from django.conf import settings as s; print(s.DATABASES['default']['PORT'], s.DATABASES['replica']['PORT'])",
    )
    assert said.stdout.split() == ["6440", "6432"]
    live = lab.ssh("web1", "readlink /run/gunicorn-shop/live.sock").stdout.split("/")[0]
    main = lab.ssh("web1", f"systemctl show -P MainPID 'gunicorn-shop@{live}.service'").stdout.strip()
    assert main.isdigit() and main != "0", f"no Gunicorn in gunicorn-shop@{live}"
    environment = lab.ssh("web1", f"sudo cat /proc/{main}/environ | tr '\\0' '\\n'").stdout
    assert "DJANGO_SETTINGS_MODULE=" in environment and "SITE_DATABASE_DIRECT" not in environment


@pytest.mark.long
def test_each_of_the_sites_connections_to_the_primary_is_a_poolers(grown):
    lab, _ = grown
    order = {"customer": "Ada", "items": [{"sku": "item-000001", "quantity": 1}]}
    for _ in range(8):
        assert lab.get("/api/orders", data=order, headers={"Idempotency-Key": uuid.uuid4().hex}).status == 201
    # The database's own view first: a pooler may open more meanwhile, and nobody else may.
    seen = "select host(client_addr), count(*) from pg_stat_activity where usename = 'shop' group by 1"
    counted = dict(line.split("|") for line in psql(lab, "db1", seen).splitlines())
    addresses = {lab.hosts[host]: host for host in APP}
    assert counted and set(counted) <= set(addresses), counted
    ways = "sudo ss -Htnp state established '( dport = :6440 or dport = :6441 )'"
    for address, number in counted.items():
        held = [line for line in lab.ssh(addresses[address], ways).stdout.splitlines() if ":644" in line]
        assert {re.search(r'users:\(\("([^"]+)"', line)[1] for line in held} == {"pgbouncer"}, held
        assert int(number) <= len(held), (addresses[address], number, held)


@pytest.mark.long
def test_pages_are_read_from_the_replica_and_by_who_has_written_from_the_primary(grown):
    lab, _ = grown
    seen = "select sum(calls) from pg_stat_statements where query like '%catalogue_product%'"

    def reads() -> dict[str, int]:
        return {host: int(psql(lab, host, seen) or 0) for host in ("db1", "db2")}

    before = reads()
    for _ in range(12):
        assert lab.get("/products/item-000001/").status == 200
    anonymous = reads()
    assert anonymous["db2"] > before["db2"] and anonymous["db1"] == before["db1"], (before, anonymous)
    order = {"customer": "Ada", "items": [{"sku": "item-000001", "quantity": 1}]}
    placed = lab.get("/api/orders", data=order, headers={"Idempotency-Key": uuid.uuid4().hex})
    cookie = placed.headers["Set-Cookie"].split(";")[0]
    assert cookie.startswith("stepladder_wrote=")
    before = reads()
    for _ in range(12):
        assert lab.get("/products/item-000001/", headers={"Cookie": cookie}).status == 200
    writer = reads()
    assert writer["db1"] > before["db1"] and writer["db2"] == before["db2"], (before, writer)


@pytest.mark.long
def test_nothing_is_written_by_way_of_the_replica_even_while_the_primary_answers_there(grown):
    lab, _ = grown
    attempt = "from django.db import connections as c; c['replica'].cursor().execute('create table stray (a int)')"
    refused = shell(lab, attempt, check=False)
    assert refused.returncode != 0 and "read-only transaction" in refused.stderr
    lab.ssh("db2", "sudo systemctl stop postgresql@17-main")
    try:
        look = "sudo /etc/pgbouncer-shop/control status | grep -q 'Reads: the primary'"
        wait = f"for i in $(seq 50); do {look} && exit; sleep 0.2; done; exit 1"
        lab.ssh("web1", wait)
        assert "read-only transaction" in shell(lab, attempt, check=False).stderr
        assert lab.get("/products/item-000001/").status == 200
    finally:
        lab.ssh("db2", "sudo systemctl start postgresql@17-main")
    assert psql(lab, "db1", "select count(*) from pg_tables where tablename = 'stray'", "shop") == "0"


@pytest.mark.long
def test_report_fails_while_a_replica_does_not_follow(grown):
    lab, _ = grown
    assert "db2" in lab.said(lab.play("replica-status.yml"))
    lab.ssh("db2", "sudo systemctl stop postgresql@17-main")
    try:
        done = lab.play("replica-status.yml", check=False)
    finally:
        lab.ssh("db2", "sudo systemctl start postgresql@17-main")
    assert done.returncode != 0 and "PostgreSQL on db2 does not run." in printed(lab, done)


def test_switchover_fails_no_visit_and_an_old_inventory_is_refused(grown):
    lab, _ = grown
    report = drilled(lab, "switchover")
    assert report["failed"] == 0 and report["lost"] == 0 and report["longest_gap"] < 10, report
    # Replicas go on serving reads, so that a gap says little of writes.
    slowest = re.search(r"The slowest write took ([\d.]+) s", report["said"])
    assert slowest and float(slowest[1]) <= 10, report["said"]
    assert "Primary: db1." in lab.ssh("web1", "sudo /etc/pgbouncer-shop/control status").stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("", "Say which replica becomes the primary: -e to=<one of db1, db2>."),
        ("db9", "to is db9, and the group database has db1, db2."),
        ("db1", "db1 is the primary already."),
    ],
)
def test_switchover_to_nobody_is_refused(grown, to, sentence):
    lab, _ = grown
    done = lab.play("switchover.yml", *(["-e", f"to={to}"] if to else []), check=False)
    assert done.returncode != 0 and sentence in printed(lab, done) and lab.changes(done) == {}


@pytest.mark.long
def test_failover_of_a_primary_that_runs_is_refused(grown):
    lab, _ = grown
    done = lab.play("failover.yml", check=False)
    assert done.returncode != 0 and "db1 runs and is the primary, so nothing failed." in printed(lab, done)
    assert lab.changes(done) == {}


@pytest.mark.long
def test_long_transaction_calls_a_switchover_off(grown):
    lab, _ = grown
    hold = (
        "import psycopg, time\nfrom django.conf import settings\nd = settings.DATABASES['replica']\n"
        "k = psycopg.connect(host=d['HOST'], port=d['PORT'], dbname='shop', user=d['USER'], password=d['PASSWORD'])\n"
        "k.execute('select 1'); time.sleep(60)\n"
    )
    packed = base64.b64encode(hold.encode()).decode()
    start = (
        f"echo {packed} | base64 -d > /tmp/hold.py; nohup shop-manage shell < /tmp/hold.py > /dev/null 2>&1 & sleep 4"
    )
    ended = time.monotonic() + 70
    lab.ssh("web1", f'sudo sh -c "{start}"')
    done = lab.play("switchover.yml", "-e", "to=db2", check=False)
    assert done.returncode != 0 and "Everybody goes on, and db1 is the primary as before." in printed(lab, done)
    assert psql(lab, "db1", "select pg_is_in_recovery()") == "f"
    assert lab.get("/products/item-000001/").status == 200
    # The next test must not find it still there.
    time.sleep(max(0, ended - time.monotonic()))


@pytest.mark.usefixtures("alone")
def test_primary_that_dies_costs_what_was_said_and_comes_back_as_a_replica(grown):
    lab, _ = grown
    report = drilled(lab, "kill-primary")
    assert report["doubled"] == report["unconfirmed"] == report["confirmed_twice"] == 0
    assert "Primary: db1. Reads: db2" in lab.ssh("web1", "sudo /etc/pgbouncer-shop/control status").stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "rejoin",
        "kill-primary-synchronous",
        "split-brain",
        "replica-full-disk",
        "remove-replica",
        "restore",
        "lost-backup-host",
        "archive-stalled",
    ],
)
def test_drill_keeps_its_promise(grown, name):
    lab, _ = grown
    report = drilled(lab, name)
    assert f"kept {name}" in report["said"], report["said"][-2000:]
    assert report["doubled"] == report["unconfirmed"] == report["confirmed_twice"] == 0, report
    # What the cut-off primary alone had is lost, and was counted: the drill has judged that.
    assert report["lost"] == 0 or name == "split-brain", report
    assert report["failed"] == 0 or name in ("rejoin", "kill-primary-synchronous", "split-brain"), report
    assert "Primary: db1. Reads: db2" in lab.ssh("web1", "sudo /etc/pgbouncer-shop/control status").stdout


@pytest.mark.long
def test_a_backup_is_read_from_the_standby(grown):
    lab, _ = grown
    log = "/var/log/pgbackrest/shop-backup.log"
    before = int(lab.ssh("backup1", f"sudo stat -c %s {log}").stdout)
    lab.play("backup.yml", "-e", "type=incr")
    said = lab.ssh("backup1", f"sudo tail -c +{before + 1} {log}").stdout
    assert "backup command end: completed successfully" in said, said
    assert "replay on the standby reached" in said and "using primary instead" not in said, said
    [begun] = re.findall(r"backup command begin.*", said)
    assert f"-host={lab.hosts['db2']}" in begun, begun


@pytest.mark.long
def test_a_restore_to_a_moment_in_the_future_is_refused_before_anything_changes(grown):
    lab, _ = grown
    done = lab.play("restore.yml", "-e", "moment='2101-01-01 00:00:00+00'", check=False)
    assert done.returncode != 0 and lab.changes(done) == {}
    assert (
        "2101-01-01 00:00:00+00 is in the future. Nothing was restored. Choose a moment that has passed, or the type latest"
        in printed(lab, done)
    )


@pytest.mark.long
def test_replica_that_does_not_keep_up_gets_no_reads(grown):
    lab, _ = grown
    assert drilled(lab, "replica-lag")["failed"] == 0


@pytest.mark.long
def test_patroni_takes_over_replaces_what_is_lost_and_gives_back(grown):
    lab, _ = grown
    assert drilled(lab, "patroni-adopt")["failed"] == 0
    for name in ("switchover", "kill-primary", "cut-primary", "freeze", "etcd-minority"):
        report = drilled(lab, f"patroni-{name}")
        assert report["lost"] == report["doubled"] == 0, (name, report)
    assert drilled(lab, "patroni-leave")["failed"] == 0
    assert "Primary: db1. Reads: db2" in lab.ssh("web1", "sudo /etc/pgbouncer-shop/control status").stdout
