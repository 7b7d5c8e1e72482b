"""What the role promises, asked of a database and its repository on another host."""

import json
import os
import time
from typing import Any

import pytest

CONTROL = "/etc/pgbackrest/control"
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


def sql(machine: Any, text: str, where: str = "") -> str:
    done = machine.run(f"runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 {where} -d shop -c %s", text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def test_there_is_an_encrypted_backup(repository: Any) -> None:
    told = json.loads(repository.check_output(f"{CONTROL} status"))["stanzas"]["main"]
    assert told["error"] == ""
    assert told["last_backup_type"] == "full"
    heads = repository.check_output("find /var/lib/pgbackrest -type f -exec head -c 8 {} ';' -exec echo ';'")
    assert {line for line in heads.splitlines() if line} == {"Salted__"}


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


def test_database_refuses_to_restore_over_its_own_data(database: Any) -> None:
    done = database.run(f"{CONTROL} restore main /var/lib/postgresql/{VERSION}/main")
    assert (done.rc, "own data" in done.stderr) == (1, True)
