"""What the role promises, asked of a running instance: who gets in, what it runs with, when it restarts."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parents[1]
VERSION = {"12": "15", "13": "17"}[os.environ.get("STEPLADDER_DEBIAN", "13")]
UNIT = f"postgresql@{VERSION}-main.service"
DATA = f"/var/lib/postgresql/{VERSION}/main"
LOG = f"/var/log/postgresql/postgresql-{VERSION}-main.log"
TLS = "/etc/stepladder/tls"
GIVEN = yaml.safe_load((HERE / "vars/main.yml").read_text())
# The scenario's file writes {{ as an expression, so that Ansible leaves it alone.
PASSWORDS = {r["name"]: r["password"].replace("{{ '{{' }}", "{{") for r in GIVEN["postgres_roles"] if "password" in r}
LOCAL = {
    "fail",
    "debug",
    "include_role",
    "include_tasks",
    "import_tasks",
    "validate_argument_spec",
    "gather_facts",
    "setup",
}


def sql(host: Any, text: str, database: str = "postgres", port: int = 5432) -> str:
    command = "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -p %s -d %s -c %s"
    done = host.run(command, str(port), database, text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def address(machine: Any) -> str:
    return str(machine.check_output("hostname -I")).split()[0]


def connect(machine: Any, user: str, password: str = "", **words: str) -> Any:
    """One connection with verify-full unless told otherwise; the result of `select current_user`."""
    options = {
        "host": "db.test", "hostaddr": address(machine), "port": "5432", "dbname": "shop", "user": f"'{user}'", "sslmode": "verify-full",
        "sslrootcert": f"{TLS}/ca.pem", **words,
    }  # fmt: skip
    target = " ".join(f"{name}={value}" for name, value in options.items() if value)
    return machine.run("env PGPASSWORD=%s psql -XAtw -d %s -c 'select current_user'", password, target)


def play(*words: str, playbook: str = "again.yml", check: bool = False, **variables: Any) -> dict[str, Any]:
    """Run the role again with other values: {rc, changed, calls (remote ones), words (all messages), output}."""
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
    done = subprocess.run(
        [*command, *words, *(["--check", "--diff"] if check else [])],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [(t["task"]["name"], r) for p in report["plays"] for t in p["tasks"] for r in t["hosts"].values()]
    ran = [(name, r) for name, r in results if not r.get("skipped")]
    [stats] = report["stats"].values()
    return {
        "rc": done.returncode,
        "changed": stats["changed"],
        "calls": [name for name, r in ran if r.get("action", "").split(".")[-1] not in LOCAL],
        "tasks": [name for name, r in ran if r.get("changed")],
        "words": " ".join(str(r.get("msg", "")) for _, r in ran),
        "output": done.stdout + done.stderr,
    }


def started(host: Any) -> str:
    return sql(host, "select pg_postmaster_start_time()")


@pytest.fixture
def restored() -> Any:
    """Put the instance back as the scenario made it, whatever the test did."""
    yield
    assert play()["rc"] == 0


def test_clients_get_in_over_verified_tls_with_odd_passwords(host: Any) -> None:
    for user in ("shop", "Odd name"):
        done = connect(host, user, PASSWORDS[user])
        assert (done.stdout.strip(), done.rc) == (user, 0), done.stderr
    done = connect(
        host,
        "monitor",
        PASSWORDS["monitor"],
        hostaddr="127.0.0.1",
        dbname="postgres",
        sslmode="disable",
        sslrootcert="",
    )
    assert done.stdout.strip() == "monitor", done.stderr
    assert sql(host, "select count(*) from pg_authid where rolpassword not like 'SCRAM-SHA-256$%'") == "0"


def test_a_client_certificate_is_enough_for_a_role_that_asks_for_one(host: Any) -> None:
    files = {"sslcert": f"{TLS}/reader.pem", "sslkey": f"{TLS}/reader.key"}
    assert connect(host, "reader", **files).stdout.strip() == "reader"
    assert connect(host, "reader").rc != 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"sslmode": "disable"}, "no encryption"),
        ({"password": "wrong"}, "password authentication failed"),
        ({"dbname": "postgres"}, "no pg_hba.conf entry"),
        ({"user": "monitor"}, "no pg_hba.conf entry"),
        ({"hostaddr": "127.0.0.1"}, "no pg_hba.conf entry"),
        ({"host": "localhost"}, "does not match host name"),
        (
            {"ssl_max_protocol_version": "TLSv1.1", "ssl_min_protocol_version": "TLSv1.1"},
            "SSL error|protocol version|no protocols",
        ),
    ],
)
def test_others_are_refused(host: Any, words: dict[str, str], reason: str) -> None:
    words = {"user": "shop", "password": PASSWORDS["shop"], **words}
    done = connect(host, **words)
    assert done.rc != 0 and re.search(reason, done.stderr), done.stderr


def test_nobody_enters_a_database_without_the_right(host: Any) -> None:
    assert sql(host, "select has_database_privilege('monitor', 'shop', 'CONNECT')") == "f"
    assert sql(host, "select has_database_privilege('reader', 'shop', 'CONNECT')") == "t"
    assert sql(host, "select has_schema_privilege('reader', 'public', 'CREATE')", "shop") == "f"


def test_future_tables_are_readable_by_the_reader(host: Any) -> None:
    made = "set role shop; create table if not exists made_later (id int); reset role;"
    assert sql(host, made + " select has_table_privilege('reader', 'made_later', 'SELECT')", "shop") == "t"


def test_settings_in_effect_are_what_the_share_says(host: Any) -> None:
    shown = {
        "shared_buffers": "200MB", "effective_cache_size": "600MB", "work_mem": "6553kB", "maintenance_work_mem": "50MB",
        "max_connections": "50", "max_wal_size": "1GB", "wal_level": "replica", "wal_log_hints": "on", "max_wal_senders": "10",
        "data_checksums": "on", "password_encryption": "scram-sha-256", "ssl": "on", "ssl_min_protocol_version": "TLSv1.2",
        "archive_mode": "on", "random_page_cost": "1.1", "huge_pages": "try", "server_encoding": "UTF8",
    }  # fmt: skip
    assert {name: sql(host, f"show {name}") for name in shown} == shown
    assert sql(host, "select count(*) from pg_settings where pending_restart") == "0"
    assert sql(host, "select datcollate from pg_database where datname = 'shop'").lower() == "c.utf-8"


def test_roles_and_databases_have_their_own_settings(host: Any) -> None:
    shown = "select current_setting('statement_timeout') || ' ' || current_setting('TimeZone')"
    target = f"host=db.test hostaddr={address(host)} dbname=shop user=shop sslmode=verify-full sslrootcert={TLS}/ca.pem"
    done = host.run("env PGPASSWORD=%s psql -XAtw -d %s -c %s", PASSWORDS["shop"], target, shown)
    assert done.stdout.strip() == "30s UTC"
    assert sql(host, "select rolconnlimit from pg_roles where rolname = 'shop'") == "40"


def test_extensions_and_statistics_work(host: Any) -> None:
    assert sql(host, "select count(*) from pg_extension where extname in ('pg_trgm', 'btree_gist')", "shop") == "2"
    sql(host, "select 4711 - count(*) as statistics_probe from made_later", "shop")
    assert int(sql(host, "select count(*) from pg_stat_statements where query like '%made_later'")) >= 1
    sql(host, "select pg_sleep(1.1)")
    log = host.check_output(f"tail -n 30 {LOG}")
    assert "Query Text: select pg_sleep(1.1)" in log and re.search(r"\[\d+\] postgres@postgres/psql LOG:", log)


def test_second_instance_stands_apart(host: Any) -> None:
    assert sql(host, "show shared_buffers", port=5433) == "50MB"
    assert sql(host, "select count(*) from pg_database where datname = 'shop'", port=5433) == "0"
    done = connect(
        host,
        "shop",
        PASSWORDS["shop"],
        host="/run/postgresql",
        hostaddr="",
        port="5433",
        dbname="other",
        sslmode="disable",
        sslrootcert="",
    )
    assert done.stdout.strip() == "shop", done.stderr


def test_files_and_process_belong_to_whom_they_should(host: Any) -> None:
    folder = f"/etc/postgresql/{VERSION}/main"
    for name in (f"{folder}/pg_hba.conf", f"{folder}/conf.d/10-stepladder.conf"):
        file = host.file(name)
        assert (file.user, file.group, file.mode) == ("root", "postgres", 0o640)
    score = host.check_output(f"systemd-analyze security {UNIT} --no-pager | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", score)[1]) <= 3.0, score  # type: ignore[index]
    assert host.check_output(f"systemctl show -p LimitNOFILE --value {UNIT}") == "65536"


def test_a_run_that_changes_nothing_restarts_nothing_in_few_calls(host: Any) -> None:
    before, loaded = started(host), sql(host, "select pg_conf_load_time()")
    run = play()
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
    assert len(run["calls"]) <= 4, run["calls"]
    assert (started(host), sql(host, "select pg_conf_load_time()")) == (before, loaded)
    checked = play(check=True)
    assert (checked["rc"], checked["changed"]) == (0, 0), checked["tasks"]


def test_a_reload_where_it_is_enough_and_one_restart_where_it_is_not(host: Any, restored: None) -> None:
    before = started(host)
    values: dict[str, Any] = {"postgres_settings": {"log_temp_files": "20MB"}, "postgres_max_connections": 60}
    run = play(**values, postgres_restart="never")
    assert run["rc"] == 0 and "max_connections" in run["words"] and "only after a restart" in run["words"]
    assert "log_temp_files" not in run["words"] and sql(host, "show log_temp_files") == "20MB"
    assert (started(host), sql(host, "show max_connections")) == (before, "50")
    run = play(**values)
    after = started(host)
    assert run["rc"] == 0 and after != before and sql(host, "show max_connections") == "60"
    assert play(**values)["changed"] == 0 and started(host) == after


def test_a_wrong_setting_or_rule_is_refused_and_put_back(host: Any) -> None:
    rule = {"type": "hostssl", "database": "shop", "user": "shop", "address": "no/network"}
    for values in ({"postgres_settings": {"work_mam": "5MB"}}, {"postgres_access": [rule]}):
        run = play(**values)
        assert run["rc"] != 0 and "put back" in run["output"], run["output"][-2000:]
    assert connect(host, "shop", PASSWORDS["shop"]).rc == 0
    assert "work_mam" not in host.file(f"/etc/postgresql/{VERSION}/main/conf.d/10-stepladder.conf").content_string


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"postgres_access": [{"database": "a", "user": "a", "address": "10.0.0.0/8", "method": m}]}, f"the method {m}")
        for m in ("trust", "md5", "password")
    ),
    ({"postgres_access": [{"type": "host", "database": "a", "user": "a", "address": "10.0.0.0/8"}]}, "not TLS"),
    ({"postgres_access": [{"database": "a", "user": "a"}]}, "has no address"),
    ({"postgres_tls_key": "/nowhere.key"}, "/nowhere.key is not there"),
    ({"postgres_tls_certificate": ""}, "postgres_tls_certificate or postgres_tls_key is empty"),
    ({"postgres_tls_ca": ""}, "postgres_tls_ca is empty"),
    ({"postgres_max_connections": 5000}, "max_connections 5000 x work_mem 1 MB"),
    ({"postgres_settings": {"work_mem": "1GB"}}, "more than postgres_memory_mb"),
    ({"postgres_roles": [{"name": "shop", "password": "a\nb"}]}, "line break"),
    ({"postgres_databases": [{"name": "shop", "owner": "shop", "encoding": "LATIN1"}]}, "has the encoding UTF8"),
    ({"postgres_version": "9.6"}, "15 and later"),
    ({"postgres_version": "16"}, f"is version {VERSION}, postgres_version asks for 16. postgres changed nothing."),
]


def test_impossible_input_is_refused_and_the_data_stays(host: Any) -> None:
    before = started(host)
    run = play(playbook="refusals.yml", cases=[values for values, _ in REFUSED], proper_version=VERSION)
    assert run["rc"] == 0, run["output"][-2000:]
    for _, sentence in REFUSED:
        assert sentence in run["words"], f"{sentence!r} is not in {run['words']}"
    assert started(host) == before and not host.file("/etc/postgresql/16").exists
    assert sql(host, "select count(*) from pg_database where datname = 'shop'") == "1"


def test_drift_is_found_and_mended(host: Any) -> None:
    sql(host, "alter role shop password 'other'; alter role monitor nologin; revoke pg_monitor from monitor;")
    sql(
        host,
        "drop extension btree_gist; revoke usage on schema public from reader; grant connect on database shop to public;",
        "shop",
    )
    sql(host, "alter database shop set timezone to 'Europe/Berlin'")
    run = play()
    done = [task for task in run["tasks"] if "read its configuration" not in task]
    assert run["rc"] == 0 and len(done) == 6, done
    assert connect(host, "shop", PASSWORDS["shop"]).rc == 0
    assert play()["changed"] == 0


def test_a_new_password_is_in_no_log_and_no_process_list(host: Any, restored: None) -> None:
    secret = "Tell-tale-4711 'x' $y"
    loud = {"log_statement": "all", "log_min_duration_statement": 0, "pg_stat_statements.track_utility": True}
    assert play(postgres_settings=loud)["rc"] == 0
    host.run(
        "nohup sh -c 'for i in $(seq 400); do ps axww -o args; sleep 0.05; done > /root/ps.log' > /dev/null 2>&1 &"
    )
    run = play("-vvv", postgres_settings=loud, postgres_roles=[{"name": "shop", "password": secret}])
    host.check_output("cp /root/ps.log /root/ps-of-run.log")
    assert run["rc"] == 0 and connect(host, "shop", secret).rc == 0
    stored = sql(host, "select rolpassword from pg_authid where rolname = 'shop'")
    logs = host.check_output(f"cat {LOG} /root/ps-of-run.log; journalctl --no-pager") + run["output"]
    logs += sql(host, "select string_agg(query, ' ') from pg_stat_statements")
    assert "postgres -D" in logs
    for text in ("Tell-tale", stored.split("$")[1], stored.split(":")[-1]):
        assert text not in logs, text


def serial(machine: Any) -> str:
    """The serial number of the certificate that the server shows to a new client."""
    shown = f"openssl s_client -connect {address(machine)}:5432 -starttls postgres < /dev/null 2> /dev/null"
    return str(machine.check_output(f"{shown} | openssl x509 -noout -serial"))


def test_a_renewed_certificate_is_a_reload(host: Any) -> None:
    before, old = started(host), serial(host)
    sign = "openssl x509 -req -in db.test.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out db.test.pem"
    host.check_output(f"cd {TLS} && printf 'subjectAltName=DNS:db.test\n' > ext && {sign}")
    for check in (True, False):
        run = play(check=check)
        assert (run["rc"], run["changed"]) == (0, 1) and "read its configuration" in run["tasks"][0], run["tasks"]
        assert (serial(host) == old) is check
    assert started(host) == before and connect(host, "shop", PASSWORDS["shop"]).rc == 0
    assert play()["changed"] == 0


def test_a_replica_and_an_archive_come_on_top_without_a_restart(host: Any, restored: None) -> None:
    before, later = started(host), f"/etc/postgresql/{VERSION}/main/conf.d/50-archive.conf"
    host.check_output(f"echo \"archive_command = 'cp %p /var/lib/postgresql/probe-%f'\" > {later}")
    rule = {"type": "hostssl", "database": "replication", "user": "replica", "address": "samehost"}
    role = {"name": "replica", "password": "it's 100% $ecret", "attributes": ["REPLICATION"]}
    try:
        assert play(postgres_access=[rule], postgres_roles=[role])["rc"] == 0
        options = f"host=db.test hostaddr={address(host)} user=replica sslmode=verify-full sslrootcert={TLS}/ca.pem"
        copy = "env PGPASSWORD=%s pg_basebackup -w -d %s -D /tmp/replica -X stream -c fast -C -S replica"
        done = host.run(copy, role["password"], options)
        assert done.rc == 0, done.stderr
        assert sql(host, "select slot_type || ' ' || temporary from pg_replication_slots") == "physical false"
        sql(host, "select pg_switch_wal()")
        assert (
            host.run("for i in $(seq 50); do ls /var/lib/postgresql/probe-* && exit; sleep 0.2; done; exit 1").rc == 0
        )
        assert started(host) == before and host.file(later).exists
    finally:
        host.run(f"rm -rf /tmp/replica /var/lib/postgresql/probe-* {later}")
        sql(host, "select pg_drop_replication_slot(slot_name) from pg_replication_slots; drop role if exists replica")


MIRROR = """set -eu
apt-get install -qy --no-install-recommends gpg gpg-agent > /dev/null
export GNUPGHOME=$(mktemp -d) arch=$(dpkg --print-architecture) release=$(. /etc/os-release && echo $VERSION_CODENAME)-pgdg
mkdir -p /srv/pgdg/pool /srv/pgdg/dists/$release/main/binary-$arch && cd /srv/pgdg
gpg --batch --quiet --passphrase '' --quick-gen-key mirror@example.com
gpg --armor --export > key.asc
mkdir -p $GNUPGHOME/probe/DEBIAN
printf 'Package: postgresql-probe\\nVersion: 1\\nArchitecture: all\\nMaintainer: mirror@example.com\\nDescription: probe\\n' \\
  | tee $GNUPGHOME/probe/DEBIAN/control > $GNUPGHOME/entry
dpkg-deb -b $GNUPGHOME/probe pool/probe.deb > /dev/null
cd dists/$release
{ cat $GNUPGHOME/entry; echo Filename: pool/probe.deb; stat -c 'Size: %s' /srv/pgdg/pool/probe.deb
  echo SHA256: $(sha256sum < /srv/pgdg/pool/probe.deb | cut -d' ' -f1); } > main/binary-$arch/Packages
{ echo Origin: apt.postgresql.org; echo Codename: $release; echo Components: main; echo Architectures: $arch all
  echo Date: $(date -Ru); echo SHA256:
  echo ' '$(sha256sum < main/binary-$arch/Packages | cut -d' ' -f1) $(stat -c %s main/binary-$arch/Packages) main/binary-$arch/Packages
} | gpg --batch --yes --clearsign --output InRelease
"""


def test_packages_come_from_another_source_by_variable(host: Any, restored: None) -> None:
    """A signed repository on the host itself, laid out as PostgreSQL's own is, plays a mirror of it."""
    host.check_output(MIRROR)
    values: dict[str, Any] = {
        "postgres_repository": "pgdg", "postgres_repository_url": "file:/srv/pgdg",
        "postgres_repository_key": "/srv/pgdg/key.asc", "postgres_extra_packages": ["postgresql-probe"],
    }  # fmt: skip
    try:
        assert play(check=True, **values)["rc"] == 0 and not host.package("postgresql-probe").is_installed
        run = play(**values)
        assert run["rc"] == 0, run["output"][-2000:]
        assert host.package("postgresql-probe").is_installed
        assert "Signed-By: /srv/pgdg/key.asc" in host.file("/etc/apt/sources.list.d/pgdg.sources").content_string
        assert play(**values)["changed"] == 0
    finally:
        host.run("apt-get purge -qy postgresql-probe; rm -f /etc/apt/sources.list.d/pgdg.sources; apt-get update -q")


def test_data_without_checksums_is_refused(host: Any) -> None:
    unit, data = f"postgresql@{VERSION}-second", f"/var/lib/postgresql/{VERSION}/second"
    checksums = f"runuser -u postgres -- /usr/lib/postgresql/{VERSION}/bin/pg_checksums -D {data}"
    switch = f"systemctl stop {unit} && {checksums} --%s && systemctl start {unit}"
    host.check_output(switch % "disable")
    try:
        before = sql(host, "select pg_postmaster_start_time()", port=5433)
        run = play(postgres_cluster="second", postgres_port=5433)
        assert run["rc"] != 0 and f"the data in {data} has no page checksums. postgres changed nothing." in run["words"]
        assert "pg_checksums --enable" in run["words"]
        assert sql(host, "select pg_postmaster_start_time()", port=5433) == before
    finally:
        host.check_output(switch % "enable")
    assert sql(host, "show data_checksums", port=5433) == "on"


def test_a_standby_is_not_taken_for_a_primary(host: Any) -> None:
    host.check_output(f"runuser -u postgres -- touch {DATA}/standby.signal && systemctl restart {UNIT}")
    try:
        before = started(host)
        run = play(postgres_max_connections=60, postgres_roles=[{"name": "not_on_a_standby"}])
        assert run["rc"] != 0 and run["changed"] == 0, run["tasks"]
        assert "is a replica (of another server), and its postgres_primary_host is empty" in run["words"], run["words"]
        assert sql(host, "select pg_is_in_recovery()") == "t" and started(host) == before
    finally:
        host.check_output(f"rm {DATA}/standby.signal && systemctl restart {UNIT}")
        assert play()["rc"] == 0
    assert sql(host, "select pg_is_in_recovery()") == "f"


def test_it_comes_back_after_a_crash_and_a_reboot(host: Any) -> None:
    pid = host.check_output(f"head -n 1 {DATA}/postmaster.pid")
    host.check_output(f"kill -9 {pid}")
    for _ in range(40):
        time.sleep(0.5)
        if connect(host, "shop", PASSWORDS["shop"]).rc == 0:
            break
    assert connect(host, "shop", PASSWORDS["shop"]).rc == 0
    name = host.backend.host
    for command in (["kill", "--signal", "SIGRTMIN+3"], ["wait"], ["start"]):
        subprocess.run(["docker", *command, name], check=True, capture_output=True, timeout=90)
    for _ in range(60):
        time.sleep(0.5)
        if (
            host.run("systemctl is-active postgresql@*-second").rc == 0
            and host.run("test -S /run/postgresql/.s.PGSQL.5432").rc == 0
        ):
            break
    assert sql(host, "select 1") == "1" and sql(host, "select 1", port=5433) == "1"
