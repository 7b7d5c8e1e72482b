"""What the role promises of a repository in an S3-compatible store, asked of a database's host and of the store."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "pgbackrest/tests"))
from asking import CONTROL, alarm, heads, play, sql, wait

GIVEN = yaml.safe_load((Path(__file__).resolve().parents[1] / "vars/main.yml").read_text())
SECRET, PASSPHRASE = GIVEN["key_secret"], GIVEN["pgbackrest_passphrase"]
BUCKET = f"/srv/store/{GIVEN['pgbackrest_s3']['bucket']}"
REPOSITORY = f"{BUCKET}/var/lib/pgbackrest"


@pytest.fixture
def database(host: Any) -> Any:
    if "-store-" in host.backend.get_hostname():
        pytest.skip("asked from the database's host")
    return host


@pytest.fixture
def store(database: Any) -> Any:
    return testinfra.get_host("docker://" + database.backend.get_hostname().replace("-debian", "-store-debian"))


def status(database: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(database.check_output(f"{CONTROL} status"))["stanzas"]["main"]
    return told


def objects(store: Any) -> set[str]:
    """What lies in the bucket."""
    return set(store.check_output(f"find {BUCKET} -type f").splitlines())


def fulls(store: Any) -> set[str]:
    return {name.split("/")[-2] for name in objects(store) if name.endswith("F/backup.manifest")}


@contextmanager
def away(store: Any) -> Iterator[None]:
    """The store does not answer; in the end it does, with its own certificate."""
    store.check_output("systemctl stop store.service")
    try:
        yield
    finally:
        serve(store, "own")


def serve(store: Any, certificate: str) -> None:
    store.check_output(
        f"cd /etc/store && ln -sf {certificate}.pem served.pem && ln -sf {certificate}.key served.key"
        " && systemctl restart store.service"
    )
    wait(lambda: store.run("ss -Hltn 'sport = 9000'").stdout, 20)


def test_backup_and_wal_lie_in_the_store_and_nothing_of_them_on_the_databases_disk(database: Any, store: Any) -> None:
    wait(lambda: status(database)["backups"], 120)  # the first one was started by the run, in the background
    assert alarm(database) == (0, "")
    told, found = status(database), objects(store)
    assert told["backups"][0]["type"] == "full"
    assert f"{REPOSITORY}/backup/main/{told['last_backup']}/backup.manifest" in found
    assert any(f"/archive/main/{told['version']}-1/" in name and told["last_wal"] in name for name in found)
    assert told["last_wal_age_seconds"] < 120
    folders = "/etc /home /opt /root /srv /tmp /var"
    named = "-name '*.zst' -o -name 'backup.info*' -o -name 'archive.info*' -o -name 'backup.manifest*'"
    assert database.check_output(f"find {folders} -xdev -type f '(' {named} ')'") == ""
    assert database.run(f"grep -rlas -D skip '^Salted__' {folders}").stdout == ""


def test_everything_in_the_store_is_encrypted(database: Any, store: Any) -> None:
    assert len(objects(store)) > 5
    assert heads(store, BUCKET) == {"Salted__"}


def test_every_row_comes_back_from_the_store_even_of_what_was_sent_in_parts(database: Any, store: Any) -> None:
    # Hexadecimal digits, which are packed to half: a file of more than 5 MiB is sent in parts.
    body = "(select string_agg(md5(random()::text || n || i), '') from generate_series(1, 32) i)"
    sql(database, f"drop table if exists t; create table t as select n, {body} body from generate_series(1, 20000) n")
    database.check_output(f"{CONTROL} start full")
    label = status(database)["last_backup"]
    assert store.check_output(f"find {REPOSITORY}/backup/main/{label} -type f -size +5M")
    sql(database, "insert into t values (0, 'after the backup')")
    asked = "select count(*), sum(hashtextextended(t::text, 0)) from t"
    rows = sql(database, asked)
    database.check_output(f"{CONTROL} check")  # has WAL of this moment arrive
    folder = f"/var/tmp/restored-{time.time_ns()}"
    database.check_output(f"{CONTROL} restore main {folder} --start")
    try:
        assert sql(database, asked, f"-h {folder} -p 5499") == rows
        assert rows.startswith("20001|")
    finally:
        database.check_output(f"{CONTROL} discard {folder}")


def test_what_is_older_than_the_backups_that_are_kept_leaves_the_store(database: Any, store: Any) -> None:
    while len(before := fulls(store)) < 2:
        database.check_output(f"{CONTROL} start full")
    database.check_output(f"{CONTROL} start full")
    after = fulls(store)
    assert len(after) == 2
    assert after - before == {status(database)["last_backup"]} and min(before) not in after


def test_postgres_writes_while_the_store_is_away_and_the_alarm_says_why(database: Any, store: Any) -> None:
    sql(database, "create table if not exists away (n int)")
    with away(store):
        sql(database, "insert into away values (1)")
        waiting = sql(database, "select pg_walfile_name(pg_current_wal_insert_lsn())")
        sql(database, "select pg_switch_wal()")
        code, errors = alarm(database)
        assert code != 0 and "connect" in errors and "s3.test:9000" in errors, errors
        sql(database, "insert into away values (2)")
        assert not any(waiting in name for name in objects(store))
    wait(lambda: alarm(database) == (0, ""), 200)
    assert any(waiting in name for name in objects(store))


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ("stranger", "unable to verify certificate presented by 's3.test:9000"),
        ("elsewhere", "unable to find hostname 's3.test' in certificate"),
    ],
)
def test_store_whose_certificate_is_not_its_own_is_given_nothing(
    database: Any, store: Any, certificate: str, words: str
) -> None:
    with away(store):
        before = objects(store)
        serve(store, certificate)
        sql(database, "create table if not exists away (n int); insert into away values (3); select pg_switch_wal()")
        code, errors = alarm(database)
        assert code != 0 and words in errors, errors
        assert objects(store) == before
    wait(lambda: alarm(database) == (0, ""), 200)


def test_store_asks_for_the_key(database: Any, store: Any) -> None:
    assert database.run("runuser -u postgres -- pgbackrest repo-ls").rc == 0
    done = database.run("runuser -u postgres -- env PGBACKREST_REPO1_S3_KEY_SECRET=another pgbackrest repo-ls")
    assert done.rc != 0 and "403" in done.stdout + done.stderr, done


def test_access_keys_secret_is_in_one_file_that_only_pgbackrest_reads(database: Any) -> None:
    everywhere = "/etc /home /opt /root /run /srv /tmp /usr/local /var"
    found = database.run(f"grep -rlsF -D skip -e %s {everywhere}", SECRET).stdout.split()
    assert found == ["/etc/pgbackrest/conf.d/secrets.conf"]
    file = database.file(found[0])
    assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)


def test_no_list_of_processes_has_a_secret_while_a_backup_runs(database: Any) -> None:
    looking = "while kill -0 $! 2> /dev/null; do ps axww -o args; sleep 0.02; done"
    seen = database.check_output(f"{CONTROL} start incr & {looking}")
    assert "pgbackrest" in seen and "--stanza=main backup" in seen and "backup:local" in seen
    assert SECRET not in seen and PASSPHRASE not in seen


def test_access_keys_secret_is_in_no_output_and_no_diff(database: Any) -> None:
    other = "another-secret-4711-of-the-scenario"
    run = play(playbook="converge.yml", words=("--check", "--diff", "-vvv"), key_secret=other)
    assert run["rc"] == 0 and "Write pgBackRest's configuration" in run["tasks"], run["output"][-3000:]
    assert "secrets.conf" in run["output"]
    assert other not in run["output"] and SECRET not in run["output"] and PASSPHRASE not in run["output"]
