"""What the roles promise together: a live database taken over, led through the loss of what can be lost, and given back."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import testinfra
import yaml

HERE = Path(__file__).resolve().parents[1]
PREFIX, DEBIAN = os.environ.get("STEPLADDER_SCENARIO", "patroni"), os.environ.get("STEPLADDER_DEBIAN", "13")
NAMES = {f"db{n}": f"{PREFIX}{suffix}-debian{DEBIAN}" for n, suffix in ((1, ""), (2, "-second"), (3, "-third"))}
HOSTS = {name: testinfra.get_host(f"docker://{container}") for name, container in NAMES.items()}
DB1, DB2, DB3 = HOSTS.values()
VERSION = {"12": "15", "13": "17"}[DEBIAN]
ETC, DATA, UNIT = (
    f"/etc/postgresql/{VERSION}/main",
    f"/var/lib/postgresql/{VERSION}/main",
    f"postgresql@{VERSION}-main.service",
)
TLS = "/etc/stepladder/tls"
PASSWORD = yaml.safe_load((HERE / "vars/main.yml").read_text())["replication_password"]
CLIENT = (
    f"dbname=shop user=shop password=shop-4711 sslmode=verify-full sslrootcert={TLS}/ca.pem target_session_attrs=read-write"
    " connect_timeout=2 keepalives_idle=1 keepalives_interval=1 keepalives_count=3 tcp_user_timeout=3000 "
)
LOCAL = {
    "fail", "debug", "include_role", "include_tasks", "import_tasks", "validate_argument_spec", "gather_facts", "setup", "set_fact",
}  # fmt: skip


def sql(host: Any, text: str, database: str = "shop") -> str:
    done = host.run("runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d %s -c %s", database, text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def play(
    *steps: str, on: str = "", playbook: str = "again.yml", check: bool = False, **variables: Any
) -> dict[str, Any]:
    """Run roles (`patroni`, `patroni:adopt`) on one host or both: rc, changed, calls (remote ones), tasks, words, said, status, output."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    parts = [(step + ":main").split(":")[:2] for step in steps]
    variables = {
        "postgres_manager": "patroni",
        "steps": [{"role": role, "block": block} for role, block in parts],
        **variables,
    }
    said = json.dumps(variables)
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(HERE / playbook), "-e", said]
    command += ["--limit", NAMES[on]] if on else []
    command += ["--check", "--diff"] if check else []
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [(t["task"]["name"], r) for p in report["plays"] for t in p["tasks"] for r in t["hosts"].values()]
    ran = [(name, r) for name, r in results if not r.get("skipped")]
    words = [str(r.get("msg", "")) for _, r in ran]
    found = [json.loads(text.removeprefix("status: ")) for text in words if text.startswith("status: ")]
    print(f"{' '.join(steps)} {on} {'check ' if check else ''}{time.monotonic() - began:.0f} s")
    return {
        "rc": done.returncode, "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "calls": [name for name, r in ran if r.get("action", "").split(".")[-1] not in LOCAL],
        "tasks": [name for name, r in ran if r.get("changed")], "words": " ".join(words),
        "said": [text.removeprefix("said: ") for text in words if text.startswith("said: ")],
        "status": found[-1] if found else {}, "output": done.stdout + done.stderr,
    }  # fmt: skip


def played(*steps: str, **words: Any) -> dict[str, Any]:
    run = play(*steps, **words)
    assert run["rc"] == 0, run["words"] or run["output"][-3000:]
    return run


def status() -> dict[str, Any]:
    """The cluster as Patroni's own program has it."""
    for host in (DB1, DB2):
        done = host.run("timeout 20 patronictl -c /etc/patroni/config.yml list -f json")
        if done.rc == 0:
            return {item["Member"]: item for item in json.loads(done.stdout)}
    return {}


def leader() -> str:
    return next((name for name, item in status().items() if item["Role"] == "Leader"), "")


def until(what: Any, seconds: float = 40, words: str = "") -> float:
    """Wait for it; returns the seconds that it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() < began + seconds, words or f"not within {seconds} s: {status()}"
        time.sleep(0.3)
    return time.monotonic() - began


def whole() -> bool:
    """One leads, the other streams and is the one for whom commits wait."""
    roles = sorted((item["Role"], item["State"]) for item in status().values())
    return roles in (
        [("Leader", "running"), ("Sync Standby", "streaming")], [("Leader", "running"), ("Sync Standby", "running")],
    )  # fmt: skip


def postmasters() -> list[str]:
    return [sql(host, "select pg_postmaster_start_time()") for host in (DB1, DB2)]


def patronis() -> list[str]:
    return [host.check_output("systemctl show -p MainPID --value patroni.service").strip() for host in (DB1, DB2)]


def leads(host: Any) -> bool:
    return str(host.run("runuser -u postgres -- psql -XqAt -c 'select pg_is_in_recovery()'").stdout).strip() == "f"


class Writer:
    """An application on a host of its choice, writing all the time."""

    def __init__(self, on: str, hosts: str) -> None:
        first = time.time_ns() // 1_000  # microseconds: no two writers number a row alike
        self.folder, self.on = f"/var/tmp/writer{first}", HOSTS[on]
        subprocess.run(
            ["docker", "cp", str(HERE / "files/writer.py"), f"{NAMES[on]}:/var/tmp/writer.py"],
            check=True,
            capture_output=True,
        )
        self.on.check_output(f"mkdir -p {self.folder}")
        command = ["docker", "exec", NAMES[on], "/usr/bin/python3", "/var/tmp/writer.py", f"{CLIENT} host={hosts}"]
        command += [str(first), self.folder]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until(lambda: self.on.file(f"{self.folder}/started").exists, 30)  # its first row is acknowledged
        time.sleep(0.5)

    def stop(self) -> dict[str, Any]:
        self.on.check_output(f"touch {self.folder}/enough")
        out, error = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, error
        return dict(json.loads(out))


@contextmanager
def written(on: str = "db3", hosts: str = "db1.test,db2.test") -> Iterator[dict[str, Any]]:
    """Rows are written meanwhile; afterwards `gap` and `lost`, the acknowledged rows that the leader does not have."""
    writer, result = Writer(on, hosts), {}
    try:
        yield result
        time.sleep(1)
    finally:
        result.update(writer.stop())
    assert result["acknowledged"], result["words"]
    result["lost"] = missing(result["acknowledged"])
    print(
        f"gap {result['gap']} s, {len(result['acknowledged'])} rows, {result['refused']} refused, {len(result['lost'])} lost"
    )


def missing(acknowledged: list[int]) -> list[int]:
    host = next(host for host in (DB1, DB2) if leads(host))
    newer = f"select number from written where number >= {min(acknowledged, default=0)}"
    there = {int(line) for line in sql(host, newer).splitlines()}
    return [number for number in acknowledged if number not in there]


def test_the_live_database_was_taken_over_as_it_was() -> None:
    until(whole)
    assert leader() == "db1"
    assert [sql(host, "select count(*) from before") for host in (DB1, DB2)] == ["1000", "1000"]
    for host in (DB1, DB2):
        assert host.check_output(f"grep -v '^#' {ETC}/start.conf").strip() == "disabled"
        assert host.check_output(f"systemctl show -p ActiveState --value {UNIT}").strip() == "inactive"
        assert host.check_output(f"systemctl show -p Restart --value {UNIT}").strip() == "no"
        assert host.service("patroni").is_running and host.service("patroni").is_enabled
        assert sql(host, "show max_connections") == "40" and sql(host, "show shared_buffers") == "100MB"
        own = host.check_output(f"cat {ETC}/conf.d/10-stepladder.conf")
        assert not [
            line
            for line in own.splitlines()
            if line.startswith(("primary_", "max_connections", "synchronous", "wal_keep_size"))
        ]
        assert "60stepladder-patroni" in host.check_output("ls /etc/apt/apt.conf.d")
        assert "^patroni$" in host.check_output("apt-config dump Unattended-Upgrade::Package-Blacklist")
    # Its settings were found, and are the cluster's now; the replica never had to be copied again.
    assert sql(DB1, "show wal_keep_size") == sql(DB1, "show max_wal_size")
    config = (
        json.loads(DB1.check_output(f"curl -s --cacert {TLS}/ca.pem https://db1.test:8008/config"))
        if DB1.exists("curl")
        else {}
    )
    assert "ignore_slots" not in config
    assert sql(DB1, "select slot_name from pg_replication_slots where active") == "db2"
    assert "pg_basebackup" not in DB2.check_output("journalctl -o cat -u patroni.service")


def test_a_second_run_changes_nothing_and_disturbs_nobody() -> None:
    before = postmasters(), patronis()
    run = played("patroni:adopt", "patroni", "postgres")
    assert run["changed"] == 0, run["tasks"]
    assert len(run["calls"]) <= 24, run["calls"]  # four for each of three on two
    checked = played("patroni", "postgres", check=True)
    assert checked["changed"] == 0, checked["tasks"]
    assert (postmasters(), patronis()) == before


def test_only_members_may_change_something_and_the_password_is_in_one_file() -> None:
    ask = "timeout 15 python3 -c %s %s %s %s"
    script = (
        "import ssl, sys, urllib.request as u, urllib.error\n"
        "where, method, leaf = sys.argv[1:]\n"
        f"c = ssl.create_default_context(cafile='{TLS}/ca.pem')\n"
        f"leaf and c.load_cert_chain(f'{TLS}/{{leaf}}.pem', f'{TLS}/{{leaf}}.key')\n"
        "r = u.Request('https://db1.test:8008/' + where, data=b'{\"loop_wait\": 5}' if method == 'PATCH' else None, method=method)\n"
        "try: print(u.urlopen(r, context=c, timeout=10).status)\n"
        "except urllib.error.HTTPError as e: print(e.code)\n"
    )
    tries = [
        ("db3", "primary", "GET", "", "200"),
        ("db3", "replica", "GET", "", "503"),
        ("db2", "config", "PATCH", "", "403"),
        ("db3", "config", "PATCH", "db3.test", "403"),
        ("db2", "config", "PATCH", "db2.test", "200"),
    ]
    for on, path, method, leaf, answer in tries:
        found = HOSTS[on].check_output(ask, script, path, method, leaf).strip()
        assert found == answer, (on, path, method, leaf, found)
    for host in (DB1, DB2):
        file = host.file("/etc/patroni/config.yml")
        assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)
        seen = set(host.run("grep -rlF %s /etc /var/log /run/log /tmp /var/lib/postgresql", '" $ecret').stdout.split())
        files = {"/etc/patroni/config.yml", f"{ETC}/replication.pgpass"}
        assert files <= seen <= files | {"/var/lib/postgresql/patroni-main.pgpass"}, seen
        assert "ecret" not in host.check_output("ps axww -o args")
    changed = played("patroni", on="db2", check=True, patroni_replication_password="Tell-tale-4711")
    assert changed["changed"] == 2 and "(not shown: secret)" in changed["output"], changed["tasks"]
    assert "Tell-tale" not in changed["output"].replace('"patroni_replication_password"', "")


def test_what_cannot_work_is_refused_before_anything_changes() -> None:
    other = {"12": "13", "13": "15"}[DEBIAN]
    cases = [
        ({"scope": "Main"}, "patroni_scope is"),
        ({"members": ["db1", "db-2"]}, "which no replication slot can be called"),
        ({"member": "db9"}, "does not have this member, db9"),
        ({"members": ["db1", "db2", "db2"]}, "a name twice"),
        ({"etcd": ["db1.test"]}, "List names with ports"),
        ({"password": ""}, "is empty or has a line break"),
        ({"peers": ["0.0.0.0/0"]}, "may do anything to the database"),
        ({"ttl": 15}, "patroni_ttl is 15"),
        ({"parameters": {"work_mem": "4MB"}}, "stays PostgreSQL's own"),
        ({"parameters": {"max_connections": 20}}, "max_connections in patroni_parameters is less than Patroni takes (25)"),
        ({"version": other}, f"has no PostgreSQL {other} called main"),
        ({"tls_key": "/nowhere"}, "/nowhere is not there"),
        ({"tls_key": f"{TLS}/db2.test.key"}, "do not go together"),
        ({"host": "other.test"}, "db1 is db1.test in etcd, and patroni_host is other.test"),
        ({"block": "switchover", "candidate": "db9"}, 'patroni_candidate is "db9"'),
        ({"block": "leave"}, "db1 leads, and db2 is still led by Patroni"),
    ]  # fmt: skip
    DB1.check_output(
        f"ETCDCTL_API=3 etcdctl --endpoints=https://db1.test:2379 --cacert={TLS}/ca.pem --cert={TLS}/db1.test.pem --key={TLS}/db1.test.key"
        " put /service/foreign/initialize 6543210987654321"
    )
    cases.append(({"scope": "foreign"}, "etcd has another database (6543210987654321) under foreign"))
    before = postmasters(), patronis()
    run = play(on="db1", playbook="refusals.yml", cases=[case for case, _ in cases])
    assert run["rc"] == 0, run["output"][-3000:]
    said = run["said"]
    assert len(said) == len(cases), said
    for (_, words), text in zip(cases, said, strict=True):
        assert words in text, (words, text)
    plain = play("postgres", on="db1", postgres_manager="plain")
    assert plain["rc"] != 0 and "Patroni leads the instance on db1" in plain["words"], plain["words"]
    promoted = play("postgres:promote", on="db2")
    assert promoted["rc"] != 0 and "Patroni decides who leads" in promoted["words"]
    owned = play("postgres", on="db1", postgres_settings={"max_connections": 50})
    assert owned["rc"] != 0 and "which Patroni decides" in owned["words"], owned["words"]
    assert (postmasters(), patronis()) == before


def test_settings_go_where_they_take_effect_and_nothing_restarts() -> None:
    before = postmasters(), patronis()
    run = played("postgres", postgres_settings={"work_mem": "3MB"})
    assert run["changed"] == 4, run["tasks"]  # a file and a reload on each
    assert [sql(host, "show work_mem") for host in (DB1, DB2)] == ["3MB", "3MB"]
    run = played("patroni", patroni_parameters={"max_connections": 60})
    assert run["changed"] == 1, run["tasks"]
    until(lambda: "*" in str([item.get("Pending restart") for item in status().values()]))
    run = played("patroni", patroni_parameters={"max_connections": 60})
    assert run["changed"] == 0 and "waits for a restart of PostgreSQL" in run["words"], run["tasks"]
    assert sql(DB1, "show max_connections") == "40"
    played("patroni", "postgres", patroni_parameters={"max_connections": 40})
    assert (postmasters(), patronis()) == before
    until(lambda: "*" not in str([item.get("Pending restart") for item in status().values()]))


def test_one_of_three_votes_may_be_lost() -> None:
    with written() as result:
        DB1.check_output("systemctl stop etcd.service")
        time.sleep(12)
        DB1.check_output("systemctl start etcd.service")
    assert result["lost"] == [] and result["gap"] < 3, result
    assert leader() == "db1"


def test_a_killed_server_comes_back_in_place() -> None:
    with written() as result:
        pid = DB1.check_output(f"head -n 1 {DATA}/postmaster.pid").strip()
        DB1.check_output(f"kill -9 {pid}")
        until(lambda: DB1.run("runuser -u postgres -- psql -XqAt -c 'select 1'").rc == 0 and whole())
    assert result["lost"] == [] and result["gap"] < 12, result
    assert leader() == "db1"


def test_a_leader_that_is_cut_off_is_replaced_and_loses_nothing() -> None:
    """From the others and from its own clients, who go on writing to it for as long as it lets them."""
    until(whole)
    local = Writer("db1", "localhost")
    try:
        with written() as result:
            DB1.check_output(
                "nft 'add table inet cut; add chain inet cut i { type filter hook input priority -10; policy drop; };"
                " add chain inet cut o { type filter hook output priority -10; policy drop; };"
                " add rule inet cut i iif lo accept; add rule inet cut o oif lo accept'"
            )
            took = until(lambda: leads(DB2))
            time.sleep(4)
        alone = local.stop()
    finally:
        DB1.check_output("nft delete table inet cut")
    until(whole, 60)
    assert leader() == "db2"
    print(f"promoted after {took:.1f} s; the local writer had {len(alone['acknowledged'])} rows acknowledged")
    assert result["lost"] == [] and result["gap"] < 30, result
    assert missing(alone["acknowledged"]) == []
    assert [sql(host, "select count(*) from before") for host in (DB1, DB2)] == ["1000", "1000"]
    # The inventory still says that db1 is the primary; a run leaves it to Patroni.
    before = postmasters(), patronis()
    assert played("patroni", "postgres")["changed"] == 0
    assert (postmasters(), patronis()) == before and leader() == "db2"


def test_a_frozen_patroni_costs_time_and_no_row() -> None:
    until(whole)
    with written() as result:
        DB2.check_output("systemctl kill -s STOP patroni.service")
        try:
            until(lambda: leads(DB1), 60)
            time.sleep(4)
        finally:
            DB2.check_output("systemctl kill -s CONT patroni.service")
        until(whole, 60)
    assert result["lost"] == [], result
    assert leader() == "db1"


def test_a_planned_switch_is_short_and_done_once() -> None:
    with written() as result:
        run = played("patroni:switchover", on="db1", patroni_candidate="db2")
        assert run["status"]["leader"] == "db2" and run["status"]["synchronous_mode"], run["status"]
    assert result["lost"] == [] and result["gap"] < 12, result
    assert played("patroni:switchover", on="db1", patroni_candidate="db2")["changed"] == 0
    until(whole)
    played("patroni:switchover", on="db2", patroni_candidate="db1")
    until(whole)


def test_it_is_given_back_and_taken_over_again_while_rows_are_written() -> None:
    until(whole)
    identity = f"stat -c %i {DATA} {DATA}/PG_VERSION"
    before = [host.check_output(identity) for host in (DB1, DB2)]
    with written() as result:
        played("patroni:leave", on="db2")
        played("patroni:leave", on="db1")
    assert result["lost"] == [] and result["gap"] < 15, result
    for host in (DB1, DB2):
        assert (
            host.service(UNIT).is_running
            and not host.service("patroni").is_running
            and not host.service("patroni").is_enabled
        )
        assert not host.file(f"{ETC}/patroni.conf").exists and not host.file(f"{DATA}/patroni.dynamic.json").exists
        assert host.check_output(f"grep -v '^#' {ETC}/start.conf").strip() == "auto"
        assert host.check_output(f"systemctl show -p Restart --value {UNIT}").strip() == "on-failure"
        assert sql(host, "show max_connections") == "40"
    assert sql(DB1, "select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    keys = DB1.check_output(
        f"ETCDCTL_API=3 etcdctl --endpoints=https://db1.test:2379 --cacert={TLS}/ca.pem --cert={TLS}/db1.test.pem --key={TLS}/db1.test.key"
        " get --prefix /service/main/ --keys-only"
    )
    assert keys.strip() == ""
    started = postmasters()
    assert played("patroni:leave")["changed"] == 0
    # Plain again: the role has all of its settings back, and none of them needs a restart.
    played("postgres", postgres_manager="plain")
    assert played("postgres", postgres_manager="plain")["changed"] == 0
    assert postmasters() == started
    refused = play("patroni:adopt", on="db2")
    assert refused["rc"] != 0 and "The running primary comes first" in refused["words"], refused["words"]
    with written() as result:
        played("patroni:adopt")
    assert result["lost"] == [] and result["gap"] < 15, result
    until(whole)
    played("postgres")
    assert played("patroni", "postgres")["changed"] == 0
    assert [host.check_output(identity) for host in (DB1, DB2)] == before


def test_both_run_in_a_sandbox() -> None:
    shown = DB1.run("systemd-analyze security patroni.service --no-pager").stdout
    assert float(shown.split("exposure level for patroni.service:")[1].split()[0]) <= 3.0, shown[-500:]
    assert DB1.check_output(f"ps -o user= -p {patronis()[0]}").strip() == "postgres"
