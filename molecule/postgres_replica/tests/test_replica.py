"""What the role promises of a primary and its replica: what arrives, what it costs, and what a run never changes."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import testinfra
import yaml

HERE = Path(__file__).resolve().parents[1]
PREFIX, DEBIAN = os.environ.get("STEPLADDER_SCENARIO", "postgres_replica"), os.environ.get("STEPLADDER_DEBIAN", "13")
FIRST, SECOND = f"{PREFIX}-debian{DEBIAN}", f"{PREFIX}-second-debian{DEBIAN}"
DB1, DB2 = (testinfra.get_host(f"docker://{name}") for name in (FIRST, SECOND))
NAMES = {"db1": FIRST, "db2": SECOND}
VERSION = {"12": "15", "13": "17"}[DEBIAN]
UNIT = f"postgresql@{VERSION}-main.service"
FOLDER = f"/var/lib/postgresql/{VERSION}"
DATA, LOG = f"{FOLDER}/main", f"/var/log/postgresql/postgresql-{VERSION}-main.log"
TLS = "/etc/stepladder/tls"
PASSWORD = yaml.safe_load((HERE / "vars/main.yml").read_text())["postgres_replication_password"]
LOCAL = {
    "fail", "debug", "include_role", "include_tasks", "import_tasks", "validate_argument_spec", "gather_facts", "setup", "set_fact",
}  # fmt: skip


def sql(host: Any, text: str, database: str = "shop") -> str:
    done = host.run("runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d %s -c %s", database, text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def play(
    *words: str, on: str = "", playbook: str = "again.yml", check: bool = False, **variables: Any
) -> dict[str, Any]:
    """Run the role on one host (or both) with other values: rc, changed, calls (remote ones), tasks, words, status, output."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    command = [
        "ansible-playbook",
        "-i",
        os.environ["MOLECULE_INVENTORY_FILE"],
        str(HERE / playbook),
        "-e",
        json.dumps(variables),
    ]
    command += ["--limit", NAMES[on]] if on else []
    done = subprocess.run(
        [*command, *words, *(["--check", "--diff"] if check else [])],
        capture_output=True, text=True, timeout=400, env=environment,
    )  # fmt: skip
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [(t["task"]["name"], r) for p in report["plays"] for t in p["tasks"] for r in t["hosts"].values()]
    ran = [(name, r) for name, r in results if not r.get("skipped")]
    words_said = [str(r.get("msg", "")) for _, r in ran]
    found = [json.loads(text.removeprefix("status: ")) for text in words_said if text.startswith("status: ")]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "calls": [name for name, r in ran if r.get("action", "").split(".")[-1] not in LOCAL],
        "tasks": [name for name, r in ran if r.get("changed")],
        "words": " ".join(words_said),
        "status": found[-1] if found else {},
        "output": done.stdout + done.stderr,
    }


def played(**words: Any) -> dict[str, Any]:
    run = play(**words)
    assert run["rc"] == 0, run["words"]
    return run


def until(what: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


def streams(primary: Any = DB1, name: str = "db2") -> bool:
    return (
        sql(
            primary,
            f"select count(*) from pg_stat_replication where application_name = '{name}' and state = 'streaming'",
        )
        == "1"
    )


def write(text: str, primary: Any = DB1) -> str:
    sql(primary, f"create table if not exists mark (word text); insert into mark values ('{text} {os.getpid()}')")
    return sql(primary, "select pg_current_wal_lsn()")


def arrives(text: str, replica: Any = DB2) -> None:
    until(
        lambda: (
            replica.run("runuser -u postgres -- psql -XqAt -d shop -c %s", "table mark")
            .stdout.splitlines()
            .count(f"{text} {os.getpid()}")
            == 1
        )
    )


def started(host: Any) -> str:
    return sql(host, "select pg_postmaster_start_time()")


@contextmanager
def stopped(host: Any) -> Iterator[None]:
    host.check_output(f"systemctl stop {UNIT}")
    try:
        yield
    finally:
        host.check_output(f"systemctl start {UNIT}")


def test_rows_arrive_and_the_replica_refuses_writes() -> None:
    write("first")
    arrives("first")
    done = DB2.run("runuser -u postgres -- psql -XqAt -d shop -c %s", "insert into mark values ('no')")
    assert done.rc != 0 and "read-only transaction" in done.stderr
    roles = "select string_agg(rolname, ' ' order by rolname) from pg_roles where rolname in ('shop', 'replication')"
    assert sql(DB2, roles) == sql(DB1, roles) == "replication shop"
    assert sql(DB2, "select count(*) from pg_extension where extname = 'pg_trgm'") == "1"


def test_a_run_that_changes_nothing_makes_four_calls_on_each() -> None:
    before = started(DB1), started(DB2), sql(DB2, "select pg_conf_load_time()")
    for on in NAMES:
        run = played(on=on)
        assert run["changed"] == 0, run["tasks"]
        assert len(run["calls"]) <= 4, run["calls"]
    checked = played(check=True)
    assert checked["changed"] == 0, checked["tasks"]
    assert (started(DB1), started(DB2), sql(DB2, "select pg_conf_load_time()")) == before


def test_members_are_ready_to_change_places() -> None:
    same = [
        "wal_keep_size", "max_slot_wal_keep_size", "primary_conninfo", "hot_standby_feedback", "wal_log_hints", "max_connections",
        "data_checksums", "default_text_search_config", "TimeZone", "lc_messages", "DateStyle", "log_timezone", "lc_time",
    ]  # fmt: skip
    shown = [{name: sql(host, f"show {name}") for name in same} for host in (DB1, DB2)]
    differs = {name: [one[name] for one in shown] for name in same if shown[0][name] != shown[1][name]}
    assert list(differs) == ["primary_conninfo"]  # for the names differ
    assert differs["primary_conninfo"][0].replace("=db1 ", "=db2 ") == differs["primary_conninfo"][1]
    assert shown[0]["wal_keep_size"] == sql(DB1, "show max_wal_size") and shown[0]["wal_log_hints"] == "on"
    bound = int(sql(DB1, "select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'"))
    disk = int(DB1.check_output(f"df --output=size -m {DATA} | tail -n 1"))
    assert 1024 <= bound <= max(disk // 5, 1024) and bound <= 65536
    assert sql(DB1, "select slot_name from pg_replication_slots where active") == "db2"
    assert sql(DB2, "select slot_name || ' ' || (restart_lsn is null) from pg_replication_slots") == "db1 true"


def test_only_members_replicate_over_tls_with_the_password() -> None:
    assert sql(DB1, "select ssl from pg_stat_ssl join pg_stat_replication using (pid)") == "t"
    peer, words = (
        f"198.18.1.{DEBIAN}1",
        f"host=db1.test dbname=postgres user=replication sslrootcert={TLS}/ca.pem sslmode=",
    )
    tries = [
        (DB1, f"{words}verify-full hostaddr=127.0.0.1", PASSWORD, "no pg_hba.conf entry"),
        (DB2, f"{words}disable", PASSWORD, "no encryption"),
        (DB2, f"{words}verify-full", "wrong", "password authentication failed"),
        (DB2, f"{words}verify-full replication=true hostaddr={peer}", "", "no password supplied"),
    ]
    for host, target, password, reason in tries:
        done = host.run("env PGPASSWORD=%s psql -XAtw -d %s -c 'select 1'", password, target)
        assert done.rc != 0 and reason in done.stderr, (target, done.stderr)
    done = DB2.run("env PGPASSWORD=%s psql -XAtw -d %s -c 'select 1'", PASSWORD, f"{words}verify-full")
    assert done.stdout.strip() == "1", done.stderr


def test_the_password_is_in_one_file_that_only_postgres_reads() -> None:
    for host in (DB1, DB2):
        file = host.file(f"/etc/postgresql/{VERSION}/main/replication.pgpass")
        assert (file.user, file.group, file.mode) == ("postgres", "postgres", 0o600)
        found = host.run("grep -rlF %s /etc /var/log /run/log /tmp /var/lib/postgresql", '%" $ecret')
        assert found.stdout.split() == [f"/etc/postgresql/{VERSION}/main/replication.pgpass"], found.stdout
    changed = played(on="db2", check=True, postgres_replication_password="Tell-tale-4711")
    assert changed["changed"] == 1 and "(not shown: secret)" in changed["output"]
    assert (
        "Tell-tale" not in changed["output"].replace('"postgres_replication_password"', "")
        and "$ecret" not in changed["output"]
    )


def test_lag_is_measured() -> None:
    sql(DB2, "select pg_wal_replay_pause()")
    try:
        write("late")
        sql(DB1, "insert into mark select repeat('x', 100) from generate_series(1, 2000)")
        time.sleep(2)
        there = played(on="db2", block="status", check=True)
        here = played(on="db1", block="status")
        assert len(there["calls"]) == 1 and there["changed"] == 0
        assert there["status"]["role"] == "replica" and there["status"]["replay_paused"] is True
        assert there["status"]["lag_bytes"] > 100_000 and there["status"]["lag_seconds"] >= 1
        assert here["status"]["role"] == "primary" and here["status"]["replicas"][0]["lag_bytes"] > 100_000
        assert here["status"]["system_identifier"] == there["status"]["system_identifier"] != ""
        assert there["status"]["upstream"]["host"] == "db1.test"
    finally:
        sql(DB2, "select pg_wal_replay_resume()")
    arrives("late")
    until(lambda: sql(DB2, "select pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()") == "t")
    after = played(on="db2", block="status")["status"]
    assert (after["lag_bytes"], after["lag_seconds"]) == (0, 0)


OTHER = {
    "on": "db2",
    "cluster": "other",
    "port": 5434,
    "replica_name": "db3",
    "replication_slots": ["db1", "db2", "db3"],
}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"on": "db2", "primary_host": ""}, "db2 is a replica (of db1.test), and its postgres_primary_host is empty"),
    ({"on": "db1", "primary_host": "db2.test"}, "db1 is a primary (timeline 1), and postgres_primary_host asks for a replica of db2.test"),
    ({"on": "db2", "primary_host": "db9.test"}, "db2 follows db1.test, and postgres_primary_host says db9.test"),
    ({"on": "db2", "primary_host": "db2.test"}, "postgres_primary_host, db2.test, is db2 itself"),
    ({"on": "db1", "max_connections": 60}, "max_connections here would be more than on the replica db2 (40)"),
    ({**OTHER, "replica_name": "db2"}, f"the slot db2 on db1.test is in use by 198.18.1.{DEBIAN}2"),
    ({**OTHER, "cluster": "foreign"}, f"{FOLDER}/foreign on db2 is not empty and holds no PostgreSQL data"),
    ({**OTHER, "cluster": "strange"}, f"{FOLDER}/strange on db2 is a replica of another system"),
    ({**OTHER, "cluster": "alone"}, "db2 holds the data of a primary (timeline 1), and postgres_primary_host asks for a replica"),
    ({**OTHER, "primary_port": 5999}, "its primary could not be asked: db1.test:5999: [Errno 111] Connection refused"),
    ({**OTHER, "tls_ca": f"{TLS}/other.pem"}, "its primary could not be asked: db1.test:5432: [SSL: CERTIFICATE_VERIFY_FAILED]"),
    ({**OTHER, "primary_host": f"198.18.1.{DEBIAN}1"}, "IP address mismatch, certificate is not valid"),
    ({**OTHER, "replication_password": "wrong"}, "password authentication failed"),
    ({**OTHER, "version": "16"}, f'db1.test is version {VERSION}, postgres_version asks for 16'),
    ({"on": "db2", "replication_password": ""}, "postgres_replication_password is empty"),
    ({"on": "db2", "replication_password": "a\nb"}, "postgres_replication_password has a line break"),
    ({"on": "db2", "replication_slots": ["db1", "DB-2", "db2"]}, "postgres_replication_slots has DB-2"),
    ({"on": "db2", "replication_slots": ["db1"]}, "(db1) does not have this member, db2"),
    ({"on": "db2", "replication_slots": ["db1", "db2", "db1"]}, "has a name twice"),
    ({"on": "db2", "peer_networks": []}, "postgres_peer_networks is empty"),
    ({"on": "db2", "peer_networks": ["0.0.0.0/0"]}, "who may replicate may copy all data"),
    ({"on": "db2", "tls_ca": ""}, "members talk over TLS only"),
    ({"on": "db2", "synchronous_replicas": 2}, "postgres_synchronous_replicas is 2, and there are 1 other"),
    ({"on": "db2", "settings": {"primary_slot_name": "x"}}, "postgres_settings has primary_slot_name"),
    ({"on": "db2", "roles": [{"name": "replication"}]}, "postgres_roles lists replication"),
    ({"on": "db2", "replication_user": "Odd name"}, "postgres_replication_user is Odd name"),
]  # fmt: skip


def test_what_cannot_work_is_refused_in_one_sentence_and_nothing_changes() -> None:
    make = f"install -d -o postgres -m 0700 {FOLDER}/foreign && touch {FOLDER}/foreign/somebodys && cd / && for name in strange alone; do"
    make += f" runuser -u postgres -- /usr/lib/postgresql/{VERSION}/bin/initdb -k -N -D {FOLDER}/$name > /dev/null &&"
    make += f" mkdir /etc/postgresql/{VERSION}/$name &&"
    make += (
        f" echo \"data_directory = '{FOLDER}/$name'\" > /etc/postgresql/{VERSION}/$name/postgresql.conf || exit 1; done"
    )
    DB2.check_output(f"{make}; touch {FOLDER}/strange/standby.signal")
    state = f"find {FOLDER} /etc/postgresql -newer /tmp/before -not -path '*/main/pg_*' -not -path '*/main/global*' -not -name main"
    try:
        before = started(DB1), started(DB2)
        DB2.check_output("sleep 1; touch /tmp/before")
        run = played(playbook="refusals.yml", cases=[case for case, _ in REFUSED], proper_version=VERSION)
        for _, sentence in REFUSED:
            assert sentence in run["words"], f"{sentence!r} is not in {run['words']}"
        assert run["words"].count("postgres changed nothing.") >= len(REFUSED)
        assert (started(DB1), started(DB2)) == before and streams()
        changed = [line for line in DB2.check_output(state).split() if f"{FOLDER}/main/" not in line]
        assert changed == []
    finally:
        DB2.check_output(
            f"cd {FOLDER} && rm -rf foreign strange alone && cd /etc/postgresql/{VERSION} && rm -rf strange alone"
        )


def test_a_replica_catches_up_with_a_primary_that_was_away() -> None:
    with stopped(DB1):
        assert sql(DB2, "select count(*) from mark where word like 'first%'") == "1"
        run = played(on="db2")
        assert run["changed"] == 0 and "is a replica and receives nothing now" in run["words"]
        found = played(on="db1", block="status")["status"]
        assert (found["running"], found["role"], found["data_state"]) == (False, "primary", "shut down")
    write("after the pause")
    arrives("after the pause")


def test_a_ca_that_did_not_sign_the_primary_stops_the_stream() -> None:
    run = played(on="db2", postgres_tls_ca=f"{TLS}/other.pem")
    until(lambda: "certificate verify failed" in DB2.check_output(f"tail -n 30 {LOG}"))
    assert not streams() and played(on="db2", block="status")["status"]["upstream"]["state"] == "none"
    assert played(on="db2")["rc"] == 0 and "Restart" not in " ".join(run["tasks"])
    until(streams)


def test_settings_are_raised_on_replicas_first_and_lowered_on_the_primary_first() -> None:
    def run(on: str, number: int) -> tuple[str, str]:
        played(on=on, postgres_max_connections=number)
        until(streams)
        return sql(DB1, "show max_connections"), sql(DB2, "show max_connections")

    assert run("db2", 60) == ("40", "60")
    assert run("db1", 60) == ("60", "60")
    assert run("db2", 40) == ("60", "60")
    assert run("db1", 40) == ("40", "60")
    write("lowered")
    arrives("lowered")
    assert run("db2", 40) == ("40", "40")
    assert played(on="db2")["changed"] == 0


def test_a_commit_waits_for_its_replica_when_it_is_told_to() -> None:
    played(on="db1", postgres_synchronous_replicas=1)
    try:
        until(lambda: sql(DB1, "select sync_state from pg_stat_replication") == "quorum")
        write("both have it")
        with stopped(DB2):
            insert = f"insert into mark values (''waits {os.getpid()}'')".replace("''", "'\\''")
            DB1.check_output(f"nohup runuser -u postgres -- psql -d shop -c '{insert}' > /tmp/waits 2>&1 & sleep 2")
            found = played(on="db1", block="status")["status"]
            assert found["synchronous"] == {"on": True, "names": 'ANY 1 ("db2")', "there": [], "waiting_commits": 1}
            assert DB1.file("/tmp/waits").content_string == ""
        until(lambda: "INSERT 0 1" in DB1.file("/tmp/waits").content_string)
        arrives("waits")
    finally:
        played(on="db1")
    with stopped(DB2):
        write("waits for nobody")


def test_a_dead_replica_cannot_fill_the_primarys_disk_and_is_copied_anew() -> None:
    size = f"du -sm {DATA}/pg_wal | cut -f 1"
    small = {"max_slot_wal_keep_size": "32MB", "wal_keep_size": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    for name, value in small.items():
        sql(DB1, f"alter system set {name} to '{value}'")
    sql(DB1, "select pg_reload_conf()")
    DB2.check_output(f"systemctl stop {UNIT}")
    sql(DB1, "checkpoint")
    for _ in range(3):
        for _ in range(5):
            sql(DB1, "insert into mark values ('much'); select pg_switch_wal()")
        sql(DB1, "checkpoint")
    found = played(on="db1", block="status")["status"]
    [slot] = found["slots"]
    assert (slot["name"], slot["wal_status"], slot["active"]) == ("db2", "lost", False)
    assert int(DB1.check_output(size)) <= 160
    for name in small:
        sql(DB1, f"alter system reset {name}")
    sql(DB1, "select pg_reload_conf()")
    DB2.check_output(f"systemctl start {UNIT}")
    run = played(on="db2")  # it says so, and copies nothing over what is there
    assert run["changed"] == 0 and "receives nothing now" in run["words"]
    DB2.check_output(f"systemctl stop {UNIT} && mv {DATA} {FOLDER}/old")
    DB2.run(
        "nohup sh -c 'while ! test -e /tmp/enough; do ps axww -o args; sleep 0.02; done > /root/ps.log' > /dev/null 2>&1 &"
    )
    run = play("-vvv", "--diff", on="db2")
    DB2.check_output("touch /tmp/enough; sleep 0.3; rm /tmp/enough")
    assert run["rc"] == 0 and "Copy the data of db1.test" in " ".join(run["tasks"]), run["words"]
    seen = DB2.check_output("cat /root/ps.log")
    assert "pg_basebackup" in seen and "passfile=" in seen
    everything = seen + DB2.check_output(f"journalctl --no-pager; cat {LOG}") + run["output"]
    for secret in ('%" $ecret', '%\\" $ecret', "100%"):
        assert secret not in everything.replace(json.dumps(PASSWORD), "")
    write("copied anew")
    arrives("copied anew")
    assert (
        DB2.check_output(f"ls -A {FOLDER}").split() == ["main", "old"]
        and not DB2.file(f"{FOLDER}/main.stepladder-clone").exists
    )
    assert sql(DB1, "select wal_status from pg_replication_slots where slot_name = 'db2'") == "reserved"
    assert played(on="db2")["changed"] == 0
    DB2.check_output(f"rm -rf {FOLDER}/old")


def test_a_replica_is_turned_by_a_reload() -> None:
    before = started(DB2)
    for hosts in ([], ["db1.test", "db2.test"]):
        run = played(on="db2", block="follow", postgres_primary_hosts=hosts)
        assert run["status"]["upstream"]["hosts"] == (hosts or ["db1.test"])
        assert run["status"]["upstream"]["state"] == "streaming" and streams()
    assert started(DB2) == before
    assert played(on="db2", block="follow")["changed"] == 0
    refused = play(on="db1", block="follow", postgres_primary_host="db2.test")
    assert refused["rc"] != 0 and "db1 is a primary" in refused["words"]


def test_both_come_back_after_a_reboot() -> None:
    for name in NAMES.values():
        subprocess.run(["docker", "kill", "--signal", "SIGRTMIN+3", name], check=True, capture_output=True, timeout=60)
    for command in ("wait", "start"):
        subprocess.run(["docker", command, *NAMES.values()], check=True, capture_output=True, timeout=90)
    for number, name in ((1, "db1.test"), (2, "db2.test")):
        for host in (DB1, DB2):  # a container's /etc/hosts is made anew
            host.check_output(f"grep -q {name} /etc/hosts || echo 198.18.1.{DEBIAN}{number} {name} >> /etc/hosts")
    for host in (DB1, DB2):
        until(lambda host=host: host.run("runuser -u postgres -- psql -c 'select 1'").rc == 0, 60)
    until(streams)
    write("after the reboot")
    arrives("after the reboot")


def test_a_run_never_undoes_a_failover_and_the_old_primary_becomes_a_replica() -> None:
    """Last, for afterwards db2 is the primary."""
    swapped = {"db1": {"postgres_primary_host": "db2.test"}, "db2": {"postgres_primary_host": ""}}
    DB1.check_output(f"systemctl stop {UNIT}")
    assert played(on="db2", block="promote")["status"]["role"] == "primary"
    write("on the new one", DB2)
    before = started(DB2)
    refused = play(on="db2")
    assert refused["rc"] != 0 and refused["changed"] == 0
    assert (
        "db2 is a primary (timeline " in refused["words"]
        and 'set postgres_primary_host: "" for db2' in refused["words"]
    )
    assert started(DB2) == before and sql(DB2, "select pg_is_in_recovery()") == "f"
    assert DB1.run(f"systemctl start {UNIT}").rc != 0
    assert "db2.test is the primary now" in DB1.check_output(f"journalctl -o cat -u {UNIT} -n 20")
    DB1.check_output(f"runuser -u postgres -- touch {DATA}.start-alone")
    DB1.check_output(f"systemctl start {UNIT}")  # back as a primary, and something is written there
    for _ in range(3):
        write("on the old one alone")
    sql(DB1, "checkpoint")
    counted = played(on="db1", block="alone", **swapped["db1"])
    words = re.search(r"has (\d+) commits \((\d+) bytes of WAL, from ([0-9A-F/]+) to ([0-9A-F/]+)\)", counted["words"])
    assert words, counted["words"]
    commits, lost, start, end = words.groups()
    assert counted["changed"] == 0 and 3 <= int(commits) < 20  # PostgreSQL's own housekeeping may have committed too
    written, reached = (
        int(sql(DB1, f"select pg_wal_lsn_diff({there}, '{start}')::bigint"))
        for there in ("pg_current_wal_lsn()", f"'{end}'")
    )
    assert 3 * 34 < reached == int(lost) <= written  # three commits are 34 bytes each, and came with rows
    for on in swapped:
        run = play(on=on, **swapped[on])
        assert (run["rc"] == 0) is (on == "db2") and run["changed"] == 0, run["words"]
    assert "tasks_from: rewind makes this one its replica" in play(on="db1", **swapped["db1"])["words"]
    refused = play(on="db1", block="rewind", postgres_primary_host="db2.test", postgres_replication_password="wrong")
    assert refused["rc"] != 0 and "password authentication failed" in refused["words"]
    assert sql(DB1, "select pg_is_in_recovery()") == "f"  # not even stopped
    run = played(on="db1", block="rewind", **swapped["db1"])
    assert (run["status"]["role"], run["status"]["upstream"]["host"]) == ("replica", "db2.test")
    arrives("on the new one", DB1)
    assert sql(DB1, "select count(*) from mark where word like 'on the old one alone%'") == "0"
    [note] = DB1.check_output(f"ls {FOLDER} | grep rewound").split()
    assert "Latest checkpoint's TimeLineID: 1" in DB1.file(f"{FOLDER}/{note}").content_string
    assert (
        sql(DB1, "select string_agg(slot_name || ' ' || (restart_lsn is null), '') from pg_replication_slots")
        == "db2 true"
    )
    for on in swapped:
        assert played(on=on, **swapped[on])["changed"] == 0
