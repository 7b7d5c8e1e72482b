"""What the role promises, asked of a database and its repository on another host."""

import json
import os
import subprocess
import time
from typing import Any

import pytest
import testinfra
from asking import CONTROL, alarm, heads, play, sql, wait

TLS = "/etc/stepladder/tls"
PASSPHRASE = "passphrase-of-the-scenario"
VERSION = "17" if os.environ.get("STEPLADDER_DEBIAN", "13") == "13" else "15"


@pytest.fixture
def database(host: Any) -> Any:
    if "repository" in host.backend.get_hostname():
        pytest.skip("asked from the database's host")
    return host


@pytest.fixture
def repository(host: Any) -> Any:
    if "repository" not in host.backend.get_hostname():
        pytest.skip("asked from the repository's host")
    return host


@pytest.fixture
def keeper(database: Any) -> Any:
    """The repository's host, for a test that is asked from the database's."""
    return testinfra.get_host("docker://" + database.backend.get_hostname().replace("-debian", "-repository-debian"))


def pid(machine: Any) -> str:
    return str(machine.check_output("systemctl show -p MainPID --value pgbackrest.service"))


def test_second_run_changes_and_restarts_nothing(database: Any, keeper: Any) -> None:
    before = pid(database), pid(keeper)
    run = play()
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
    assert (pid(database), pid(keeper)) == before


def test_there_is_an_encrypted_backup(repository: Any) -> None:
    told = json.loads(repository.check_output(f"{CONTROL} status"))["stanzas"]["main"]
    assert told["error"] == ""
    assert told["backups"][0]["type"] == "full"
    assert heads(repository, "/var/lib/pgbackrest") == {"Salted__"}


def test_passphrase_is_nobody_elses(host: Any) -> None:
    words = "grep -rlF %s /etc/pgbackrest /etc/systemd /var/log /var/lib/pgbackrest-state 2>/dev/null"
    found = host.run(words, PASSPHRASE).stdout.split()
    wanted = ["/etc/pgbackrest/conf.d/secrets.conf"] if "repository" in host.backend.get_hostname() else []
    assert found == wanted
    assert all(host.file(path).mode == 0o640 for path in found)
    assert PASSPHRASE not in host.check_output("ps axww -o args")


@pytest.mark.parametrize(
    "words",
    [
        "--repo1-host-cert-file=/etc/stepladder/tls/db.test.other.pem",
        "--repo1-host-cert-file=/etc/stepladder/tls/stranger.test.pem --repo1-host-key-file=/etc/stepladder/tls/stranger.test.key",
        "--repo1-host-ca-file=/etc/stepladder/tls/other.pem",
    ],
)
def test_each_side_refuses_a_stranger(database: Any, words: str) -> None:
    asked = "runuser -u postgres -- pgbackrest --stanza=main check --io-timeout=5"
    assert database.run(asked).rc == 0
    assert database.run(f"{asked} {words}").rc != 0


def test_a_moment_between_two_commits_is_restored(database: Any) -> None:
    sql(database, "drop table if exists t; create table t (n int); insert into t values (1)")
    time.sleep(1.5)
    moment = sql(database, "select now()")
    time.sleep(1.5)
    sql(database, "insert into t values (2); select pg_switch_wal()")
    assert database.run(f"{CONTROL} check").rc == 0
    scratch = f"/var/tmp/restored-{time.time_ns()}"
    told = json.loads(database.check_output(f"{CONTROL} restore main {scratch} --type=time --target=%s", moment))
    try:
        database.check_output(told["start"])
        for _ in range(60):  # it answers while it is still on its way to the moment
            if sql(database, "select pg_is_in_recovery()", f"-h {scratch} -p 5499") == "f":
                break
            time.sleep(0.5)
        assert sql(database, "select string_agg(n::text, ',') from t", f"-h {scratch} -p 5499") == "1"
        assert sql(database, "show archive_mode", f"-h {scratch} -p 5499") == "off"
    finally:
        database.run(told["stop"])
    again = database.run(f"{CONTROL} restore main {scratch}")
    assert (again.rc, "is not empty" in again.stderr) == (1, True)
    database.check_output(f"rm -r {scratch}")


def test_a_transaction_is_restored_and_the_one_after_it_is_not(database: Any) -> None:
    sql(database, "drop table if exists x; create table x (n int)")
    first, second = (sql(database, f"insert into x values ({n}) returning pg_current_xact_id()") for n in (1, 2))
    assert int(first) < int(second)
    database.check_output(f"{CONTROL} check")  # has the WAL of both arrive
    scratch = f"/var/tmp/restored-{time.time_ns()}"
    told = json.loads(database.check_output(f"{CONTROL} restore main {scratch} --start --type=xid --target={first}"))
    try:
        assert told["last_transaction"] != ""
        assert sql(database, "select string_agg(n::text, ',') from x", f"-h {scratch} -p 5499") == "1"
        assert sql(database, "select pg_is_in_recovery()", f"-h {scratch} -p 5499") == "f"
    finally:
        database.check_output(f"{CONTROL} discard {scratch}")
    assert sql(database, "select string_agg(n::text, ',' order by n) from x") == "1,2"


def test_repositorys_host_restores_beside_its_backups_and_removes_it_again(database: Any, keeper: Any) -> None:
    sql(database, "drop table if exists u; create table u as select generate_series(1, 1000) n")
    database.check_output(f"{CONTROL} check")  # has WAL of this moment arrive
    folder = f"/var/lib/restored/{time.time_ns()}"
    here = {
        "pgbackrest_restore_stanza": "main",
        "pgbackrest_restore_directory": folder,
        "pgbackrest_restore_start": True,
    }
    run = play("repository", "restore", **here)
    assert run["rc"] == 0, run["output"][-3000:]
    connect = f"runuser -u pgbackrest -- psql -XqAt -U postgres -h {folder} -p 5499 -d shop"
    assert keeper.check_output(f"{connect} -c 'select count(*), pg_is_in_recovery() from u'") == "1000|f"
    assert keeper.check_output("ss -Hltn 'sport = 5499'") == ""
    assert not keeper.file(f"/etc/postgresql/{VERSION}/main").exists
    other = keeper.run(f"{CONTROL} discard /var/lib/pgbackrest")
    assert (other.rc, "nothing that was restored" in other.stderr) == (1, True)
    keeper.check_output(f"{CONTROL} discard {folder}")
    assert not keeper.file(folder).exists
    assert keeper.run("pgrep -u pgbackrest postgres").rc == 1


def test_drill_proves_a_random_moment_and_finds_content_that_is_not_what_was_noted(database: Any, keeper: Any) -> None:
    sql(database, "drop table if exists v, w; create table v as select 1 n; create table w as select 1 n")
    database.check_output(f"{CONTROL} ledger")
    sql(database, "insert into w select generate_series(1, 10)")
    notes = json.loads(database.check_output(f"{CONTROL} ledger"))[-2:]
    assert database.file("/var/lib/pgbackrest-state/ledger.jsonl").mode == 0o640
    assert database.run(f"{CONTROL} check").rc == 0
    good = play("repository", "drill", pgbackrest_restore_stanza="main", pgbackrest_drill_ledger=notes)
    assert good["rc"] == 0, good["output"][-3000:]
    proof = json.loads(keeper.check_output(f"{CONTROL} status"))["stanzas"]["main"]["last_proof"]
    assert notes[0]["time"] <= proof["moment"] and proof["rto_seconds"] > 0
    assert proof["tables_equal"] >= 1 and proof["tables_within_bounds"] >= 1 and proof["problems"] == []
    assert keeper.check_output("ls -A /var/lib/restored") == ""

    for note in notes:
        note["databases"]["shop"]["v"]["hash"] = "4711"
    wrong = play("repository", "drill", pgbackrest_restore_stanza="main", pgbackrest_drill_ledger=notes)
    assert wrong["rc"] != 0 and "the table v in shop has 1 rows, and other content" in wrong["output"]
    last = keeper.check_output("tail -1 /var/lib/pgbackrest-state/backups.log")
    assert json.loads(last)["ok"] is False
    assert json.loads(keeper.check_output(f"{CONTROL} status"))["stanzas"]["main"]["last_proof"] == proof
    assert keeper.check_output("ls -A /var/lib/restored") == ""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("2001-01-01 00:00:00+00", "before the oldest backup"),
        ("2101-01-01 00:00:00+00", "is in the future"),
        ("2026-01-01 00:00:00", "has no zone"),
    ],
)
def test_moments_that_cannot_be_restored_are_refused(database: Any, target: str, words: str) -> None:
    done = database.run(f"{CONTROL} restore main /var/tmp/nothing --type=time --target=%s", target)
    assert (done.rc, words in done.stderr) == (1, True)
    assert not database.file("/var/tmp/nothing").exists


def test_a_moment_out_of_range_is_refused_before_postgres_is_installed_for_it(keeper: Any) -> None:
    """By the role, on the repository's host, where PostgreSQL is only what looks into backups."""
    before = keeper.check_output("stat -c %Y /var/lib/dpkg/status")
    asked = {"restore_stanza": "main", "restore_directory": "/var/lib/restored/nothing", "restore_type": "time"}
    values = {f"pgbackrest_{name}": value for name, value in asked.items()}
    run = play("repository", "restore", **values, pgbackrest_restore_target="2001-01-01 00:00:00+00")
    assert run["rc"] != 0 and run["changed"] == 0 and "before the oldest backup" in " ".join(run["words"])
    assert keeper.check_output("stat -c %Y /var/lib/dpkg/status") == before
    assert not keeper.file("/var/lib/restored/nothing").exists


def test_database_refuses_to_restore_over_its_own_data(database: Any) -> None:
    done = database.run(f"{CONTROL} restore main /var/lib/postgresql/{VERSION}/main")
    assert (done.rc, "own data" in done.stderr) == (1, True)


def test_status_and_backup_are_parts_of_the_role(database: Any, keeper: Any) -> None:
    def last() -> str:
        run = play("database", "status")
        assert (run["rc"], run["changed"]) == (0, 0), run["output"][-3000:]
        return str(run["words"][-1])

    before = last()
    for kind, ending in (("diff", "D"), ("incr", "I")):
        assert play("repository", "backup", pgbackrest_backup_type=kind)["rc"] == 0
        assert last() != before and last().endswith(ending)
    run = play("database", "backup")
    assert run["rc"] != 0 and "made on the repository's host" in run["output"]


def test_passphrases_are_in_no_diff(database: Any) -> None:
    other = "another-passphrase-4711-of-the-scenario"
    run = play("repository", words=("--check", "--diff", "-vvv"), pgbackrest_passphrase=other)
    assert run["rc"] == 0 and "Write pgBackRest's configuration" in run["tasks"]
    assert "secrets.conf" in run["output"]
    assert other not in run["output"] and PASSPHRASE not in run["output"]


S3 = {"bucket": "b", "endpoint": "s3.test", "region": "r", "key": "k", "key_secret": "s"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"retention_full": 0}, "pgbackrest_retention_full is 0"),
    ({"retention_differential": 0}, "pgbackrest_retention_differential 0"),
    ({"host_role": "both"}, "would lie on the machine that it is to protect"),
    ({"host_role": "both", "same_machine": True}, ""),
    ({"host_role": "repository", "passphrase": ""}, "pgbackrest_passphrase is not set, shorter"),
    ({"host_role": "repository", "passphrase": "nineteen-characters"}, "shorter than 20 characters"),
    ({"host_role": "repository", "passphrase": "a passphrase of many words"}, "has something else than letters"),
    ({"passphrase": ""}, ""),
    ({"repository_host": ""}, "pgbackrest_repository_host is empty"),
    ({"stanzas": [{"name": "Main", "hosts": [{"path": "/var/lib/x"}]}]}, 'the names in pgbackrest_stanzas are "Main"'),
    ({"stanzas": [{"name": "main", "hosts": [{"path": "here"}]}]}, "is not absolute (here)"),
    (
        {"stanzas": [{"name": "main", "hosts": [{"path": "/var/lib/nothing"}]}]},
        "there is no database in /var/lib/nothing",
    ),
    ({"tls_key": ""}, "pgbackrest_tls_key or pgbackrest_tls_ca is empty"),
    ({"tls_key": "/nowhere.key"}, "/nowhere.key is not there"),
    ({"queue_max": "4GB"}, 'pgbackrest_queue_max is "4GB"'),
    ({"s3": {"bucket": "b"}}, "pgbackrest_s3 lacks endpoint, region, key, key_secret"),
    ({"host_role": "both", "s3": {**S3, "bucket": "", "key_secret": None}}, "pgbackrest_s3 lacks bucket, key_secret"),
    ({"host_role": "both", "s3": {**S3, "ca": "/nowhere.pem"}}, "/nowhere.pem is not there"),
    ({"host_role": "both", "s3": S3}, ""),
    (
        {"postgres_settings": {"archive_mode": "off"}},
        "postgres_settings has archive_mode beside postgres_archive_command",
    ),
    ({"postgres_settings": {"archive_command": "x"}}, "postgres_settings has archive_command beside"),
    ({"postgres_archive_timeout": 0}, "postgres_archive_timeout is 0"),
]


def test_impossible_input_is_refused_and_nothing_changes(database: Any) -> None:
    digest = "cat /etc/pgbackrest/pgbackrest.conf /etc/pgbackrest/control | sha256sum"
    before = database.check_output(digest)
    run = play(playbook="refusals.yml", cases=[values for values, _ in REFUSED])
    assert run["rc"] == 0, run["output"][-3000:]
    for number, (values, sentence) in enumerate(REFUSED):
        said = [words for words in run["words"] if words.startswith(f"{number} ")]
        if sentence:
            role = "postgres" if next(iter(values)).startswith("postgres_") else "pgbackrest"
            assert len(said) == 1 and sentence in said[0] and f"{role} changed nothing" in said[0], (values, said)
        else:
            assert said == [], values
    assert database.check_output(digest) == before


def test_a_host_that_is_neither_is_refused(database: Any) -> None:
    run = play("database", pgbackrest_host_role="both of them")
    assert run["rc"] != 0 and "repository, database, both" in run["output"].replace("['", "").replace("', '", ", ")


def test_a_changed_configuration_is_a_reload_and_another_address_a_restart(database: Any, keeper: Any) -> None:
    before = pid(keeper)
    run = play("repository", pgbackrest_retention_full=3)
    assert run["rc"] == 0 and pid(keeper) == before, run["output"][-3000:]
    assert "repo1-retention-full=3" in keeper.file("/etc/pgbackrest/pgbackrest.conf").content_string
    assert play("repository", pgbackrest_retention_full=3, pgbackrest_bind="0.0.0.0")["rc"] == 0
    assert pid(keeper) != before and "0.0.0.0:8432" in keeper.check_output("ss -Hltn 'sport = 8432'")
    assert play("repository")["rc"] == 0


def test_a_reload_changes_who_may_ask(database: Any, keeper: Any) -> None:
    asked = "runuser -u postgres -- pgbackrest --stanza=main check --io-timeout=5"
    for name, other, code in (("db.test", "other.test", 1), ("other.test", "db.test", 0)):
        keeper.check_output(
            f"sed -i s/tls-server-auth={name}=/tls-server-auth={other}=/ /etc/pgbackrest/pgbackrest.conf"
        )
        keeper.check_output("systemctl reload pgbackrest.service")
        wait(lambda code=code: bool(database.run(asked).rc) == bool(code), 30)


def test_postgres_writes_while_the_repository_is_away_and_the_alarm_says_why(database: Any, keeper: Any) -> None:
    sql(database, "create table if not exists away (n int)")
    keeper.check_output("systemctl stop pgbackrest.service")
    try:
        sql(database, "insert into away values (1); select pg_switch_wal()")
        code, errors = alarm(database)
        assert code != 0 and "connect" in errors and "repo.test:8432" in errors, errors
        sql(database, "insert into away values (2)")
    finally:
        keeper.check_output("systemctl start pgbackrest.service")
    wait(lambda: alarm(database) == (0, ""))


def test_a_full_queue_is_dropped_and_the_alarm_stays_until_the_next_backup(database: Any, keeper: Any) -> None:
    sql(database, "create table if not exists away (n int)")
    write = "insert into away values (3); select pg_switch_wal()"
    taken = "select coalesce(last_archived_wal, '') from pg_stat_archiver"
    keeper.check_output("systemctl stop pgbackrest.service")
    try:
        before = sql(database, taken)
        for _ in range(8):
            sql(database, write)

        def passed() -> bool:
            time.sleep(8)
            sql(database, write)  # wakes the archiver, which rests for a minute after three failures
            return sql(database, taken) > before

        wait(passed, 180)
    finally:
        keeper.check_output("systemctl start pgbackrest.service")
    wait(lambda: database.run("runuser -u postgres -- pgbackrest --stanza=main check").rc == 0)
    code, errors = alarm(database)
    assert code != 0 and "WAL files were dropped, as the queue was full" in errors, errors
    keeper.check_output(f"{CONTROL} start diff")
    assert alarm(database) == (0, "")


def test_everything_is_back_after_a_reboot(host: Any) -> None:
    name = host.backend.get_hostname()
    names = host.check_output("grep -E '(db|repo).test' /etc/hosts")
    for command in (["kill", "--signal", "SIGRTMIN+3"], ["wait"], ["start"]):
        subprocess.run(["docker", *command, name], check=True, capture_output=True, timeout=90)
    # The container's engine writes this file anew.
    wait(lambda: host.run("grep -q repo.test /etc/hosts || echo %s >> /etc/hosts", names).rc == 0)
    wait(lambda: host.run("systemctl is-active pgbackrest.service pgbackrest-check.timer").rc == 0)
    wait(lambda: host.run(f"{CONTROL} check").rc == 0)
    run = play("repository" if "repository" in name else "database")
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
