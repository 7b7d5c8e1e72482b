"""What the role promises of an upgrade to another major version: refused in time, whole, gone on with, and never undone by accident."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parents[1]
DEBIAN = os.environ.get("STEPLADDER_DEBIAN", "13")
GIVEN = yaml.safe_load((HERE / "vars/main.yml").read_text())
PASSWORDS = {role["name"]: role["password"] for role in GIVEN["postgres_roles"]}
OLD, NEW = "/var/lib/postgresql/15/main", "/var/lib/postgresql/17/main"
WORK = "/var/lib/postgresql/stepladder-upgrade-main"
STEPS = ["upgrade_look", "upgrade_prepare", "upgrade_switch", "upgrade_finish"]
both = pytest.mark.skipif(DEBIAN == "12", reason="Debian 12 has no newer PostgreSQL to upgrade to")
CONTENT = """
select json_build_object(
  'rows', (select json_agg(json_build_array(n, total) order by n) from (
      select 'orders' as n, sum(hashtextextended(o::text, 0)) as total from orders o
      union all select 'notes', sum(hashtextextended(o::text, 0)) from notes o) as sums),
  'next', (select last_value from orders_id_seq),
  'like', (select count(*) from notes where body ilike '%tell-tale%'),
  'indexes', (select json_agg(indexname order by indexname) from pg_indexes where schemaname = 'public'),
  'granted', (select json_agg(json_build_array(relname, (
                select json_agg(x.grantee::regrole || ' ' || x.privilege_type order by x.grantee::regrole::text, x.privilege_type)
                from aclexplode(relacl) x where x.privilege_type <> 'MAINTAIN')) order by relname)
              from pg_class where relnamespace = 'public'::regnamespace),
  'roles', (select json_agg(json_build_array(rolname, rolpassword, rolconnlimit) order by rolname) from pg_authid where rolname !~ '^pg_'),
  'settings', (select json_agg(setconfig::text order by setconfig::text) from pg_db_role_setting),
  'databases', (select json_agg(json_build_array(datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate,
                  (select json_agg(a::text order by a::text) from unnest(datacl) a)) order by datname) from pg_database),
  'checksums', current_setting('data_checksums'), 'ours', current_setting('log_temp_files'), 'theirs', current_setting('deadlock_timeout'),
  'operators', current_setting('log_lock_waits'), 'extensions', (select json_agg(extname order by extname) from pg_extension))
"""


def sql(host: Any, text: str, database: str = "shop") -> str:
    done = host.run(
        "runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -p 5432 -h /run/postgresql -d %s -c %s", database, text
    )
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def play(playbook: str = "again.yml", check: bool = False, **variables: Any) -> dict[str, Any]:
    """Run a playbook of the scenario: {rc, changed, tasks (that changed something), words (all messages), handed, output}."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(HERE / playbook)]
    command += ["-e", json.dumps(variables), *(["--check", "--diff"] if check else [])]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    tasks = [task for play in report["plays"] for task in play["tasks"]]
    results = [(t["task"]["name"].removeprefix("postgres : "), r) for t in tasks for r in t["hosts"].values()]
    words = [str(r.get("msg", "")) for _, r in results if not r.get("skipped")]
    handed = [json.loads(text.removeprefix("handed on: ")) for text in words if text.startswith("handed on: ")]
    [stats] = report["stats"].values()
    print(f"{playbook} {variables} {'check ' if check else ''}{time.monotonic() - began:.0f} s")
    return {
        "rc": done.returncode, "changed": stats["changed"], "tasks": [name for name, r in results if r.get("changed")],
        "words": " ".join(words), "handed": handed[-1] if handed else {}, "output": done.stdout + done.stderr,
    }  # fmt: skip


def upgrade(*steps: str, to: str = "17", **words: Any) -> dict[str, Any]:
    return play("upgrade.yml", to=to, steps=list(steps or STEPS), **words)


@contextmanager
def for_now(host: Any, do: str, undo: str) -> Iterator[None]:
    host.check_output(do)
    try:
        yield
    finally:
        host.check_output(undo)


def statement(text: str, database: str = "shop") -> str:
    return f'runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d {database} -c "{text}"'


@pytest.fixture(scope="module", autouse=True)
def filled(host: Any) -> None:
    """Rows, indexes, and what somebody set beside the role."""
    sql(
        host,
        "set role shop; create table if not exists orders (id serial primary key, total numeric, at timestamptz default now());"
        " create table if not exists notes (id int primary key, body text);"
        " create index if not exists notes_body on notes using gin (body gin_trgm_ops);"
        " insert into orders (total) select n * 1.5 from generate_series(1, 20000) n;"
        " insert into notes select n, 'note ' || md5(n::text) from generate_series(1, 5000) n on conflict do nothing;"
        " insert into notes values (0, 'Tell-Tale ü €') on conflict do nothing",
    )
    sql(host, "alter system set log_lock_waits = off", "postgres")
    host.check_output("echo \"deadlock_timeout = '3s'\" > /etc/postgresql/15/main/conf.d/50-mine.conf")
    sql(host, "select pg_reload_conf()", "postgres")


CASES: dict[str, tuple[str, str, str, str]] = {
    # what is said: (to, do, undo, the way that is named)
    "postgres_upgrade_to is empty": ("", "true", "true", ""),
    "the data is version 15 already, and 15 is not newer": ("15", "true", "true", ""),
    "no package source of this host has postgresql-18": ("18", "true", "true", "set postgres_repository: pgdg"),
    "replication slots db2 over": (
        "17",
        statement("select pg_create_physical_replication_slot('db2')"),
        statement("select pg_drop_replication_slot('db2')"),
        "select pg_drop_replication_slot('db2')",
    ),
    "transactions are prepared": (
        "17",
        statement("begin; create table half (id int); prepare transaction 'half'"),
        statement("rollback prepared 'half'"),
        "rollback prepared 'half'",
    ),
    "nobody may connect to closed": (
        "17",
        statement("create database closed allow_connections false", "postgres"),
        statement("drop database closed", "postgres"),
        "alter database closed allow_connections true",
    ),
    "the extension adminpack (in shop)": (
        "17",
        statement("create extension adminpack"),
        statement("drop extension adminpack"),
        "drop extension adminpack",
    ),
    "start.conf says manual": (
        "17",
        "echo manual > /etc/postgresql/15/main/start.conf",
        "echo auto > /etc/postgresql/15/main/start.conf",
        "",
    ),
    f"there is something in /etc/postgresql/17/main or {NEW} already": (
        "17",
        f"mkdir -p {NEW} && touch {NEW}/somebodys",
        "rm -r /var/lib/postgresql/17",
        "move it away",
    ),
    "PostgreSQL 15 does not run": (
        "17",
        "systemctl stop postgresql@15-main",
        "systemctl start postgresql@15-main",
        "sudo systemctl start postgresql@15-main",
    ),
}


@both
@pytest.mark.parametrize("said", CASES)
def test_what_cannot_be_is_refused_before_anything_changes(host: Any, said: str) -> None:
    to, do, undo, way = CASES[said]
    with for_now(host, do, undo):
        run = upgrade("upgrade_look", to=to)
    assert run["rc"] != 0 and run["changed"] == 0, run["tasks"]
    for words in (said, way, "postgres changed nothing"):
        assert words in run["words"], run["words"]
    assert not host.file(WORK).exists and not host.package("postgresql-17").is_installed


@pytest.mark.skipif(DEBIAN != "12", reason="Debian 13 has 17")
def test_a_version_that_no_source_has_is_refused(host: Any) -> None:
    run = upgrade("upgrade_look")
    assert run["rc"] != 0 and "no package source of this host has postgresql-17" in run["words"], run["words"]


@both
def test_a_run_with_the_new_version_says_how_to_get_there(host: Any) -> None:
    run = play(asked="17")
    assert run["rc"] != 0 and run["changed"] == 0, run["tasks"]
    assert "is version 15, postgres_version asks for 17. postgres changed nothing." in run["words"], run["words"]
    assert "Run playbooks/upgrade-postgres.yml -e to=17, or set" in run["words"], run["words"]


@both
def test_a_look_and_a_check_change_nothing(host: Any) -> None:
    before = sql(host, "select pg_postmaster_start_time()")
    run = upgrade("upgrade_look")
    assert (run["rc"], run["changed"]) == (0, 0), run["words"]
    found = run["handed"]["upgrade"]
    assert (found["from"], found["to"], found["done"]) == ("15", "17", []) and "shop" in found["databases"], found
    run = upgrade(check=True)
    assert run["rc"] == 0 and "Carry everything over by links" in run["tasks"], run["output"][-3000:]
    assert not host.file(WORK).exists and not host.file(NEW).exists and not host.package("postgresql-17").is_installed
    assert sql(host, "select pg_postmaster_start_time()") == before


@both
def test_a_column_that_cannot_be_carried_over_is_said_while_the_old_one_serves(host: Any) -> None:
    before = sql(host, "select pg_postmaster_start_time()")
    with for_now(host, statement("create table odd (what regproc)"), statement("drop table odd")):
        run = upgrade(*STEPS[:2])
    assert run["rc"] != 0 and "public.odd.what" in run["words"], run["words"]
    assert sql(host, "select pg_postmaster_start_time()") == before
    # The new instance is there, empty: a run for the old version goes on as ever, one for the new one is refused.
    run = play()
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"] or run["words"]
    run = play(asked="17")
    assert run["rc"] != 0 and "an upgrade of db1 from 15 to 17 has come to the step" in run["words"], run["words"]
    assert not host.service("postgresql@17-main").is_running


@both
def test_it_is_cut_off_in_the_midst_gone_on_with_and_whole(host: Any) -> None:
    before = json.loads(sql(host, CONTENT))
    old_version = sql(host, "select extversion from pg_extension where extname = 'pg_stat_statements'", "postgres")
    run = upgrade(*STEPS[:2])
    assert run["rc"] == 0, run["words"]
    # As a machine that went down while files were linked.
    host.check_output("echo disabled > /etc/postgresql/15/main/start.conf && systemctl stop postgresql@15-main")
    host.check_output(f"mv {OLD}/global/pg_control {OLD}/global/pg_control.old && touch {NEW}/base/half")
    state = json.loads(host.file(f"{WORK}/state.json").content_string)
    state["done"] += ["held", "linking"]
    host.check_output("printf %s %s > %s", "%s", json.dumps(state), f"{WORK}/state.json")
    for asked in ("15", "17"):
        run = play(asked=asked)
        assert run["rc"] != 0 and run["changed"] == 0, run["tasks"]
        assert 'has come to the step "linking"' in run["words"], run["words"]
    run = upgrade(to="18")
    assert run["rc"] != 0 and "an upgrade from 15 to 17 was begun" in run["words"], run["words"]

    run = upgrade(*STEPS[:3])
    assert run["rc"] == 0, run["words"]
    assert "Make an empty instance as the old one was made" not in run["tasks"]
    # Cut off once more, before the end.
    run = play(asked="17")
    assert run["rc"] != 0 and 'has come to the step "analysed"' in run["words"], run["words"]
    run = upgrade()
    assert run["rc"] == 0, run["words"]
    handed = run["handed"]["upgraded"]
    assert handed["aside"] == f"{OLD}.upgraded-to-17", handed

    assert json.loads(sql(host, CONTENT)) == before
    assert sql(host, "show server_version_num").startswith("17")
    assert sql(host, "show port") == "5432" and sql(host, "show data_checksums") == "on"
    now = sql(host, "select extversion from pg_extension where extname = 'pg_stat_statements'", "postgres")
    assert (old_version, now) == ("1.10", "1.11")
    assert sql(host, "select count(*) > 0 from pg_stats where tablename = 'orders'") == "t"
    assert sql(host, "insert into orders (total) values (1) returning id > 20000") == "t"
    for user in ("shop", "reader"):
        connection = host.run(
            "env PGPASSWORD=%s psql -XqAtw -h /run/postgresql -U %s -d shop -c 'select count(*) from notes'",
            PASSWORDS[user],
            user,
        )
        assert connection.stdout.strip() == "5001", connection.stderr
    assert not host.file(WORK).exists


@both
def test_a_second_run_with_the_new_version_changes_nothing(host: Any) -> None:
    before = sql(host, "select pg_postmaster_start_time()")
    for check in (False, True):
        run = play(asked="17", check=check)
        assert (run["rc"], run["changed"]) == (0, 0), run["tasks"] or run["words"]
    assert sql(host, "select pg_postmaster_start_time()") == before


@both
def test_a_run_with_the_old_version_is_refused_with_the_line_to_change(host: Any) -> None:
    run = play()
    assert run["rc"] != 0 and run["changed"] == 0, run["tasks"]
    assert "is version 17, postgres_version asks for 15. postgres changed nothing." in run["words"], run["words"]
    assert 'Set postgres_version: "17".' in run["words"], run["words"]


@both
def test_an_upgrade_that_was_done_is_not_done_again(host: Any) -> None:
    run = upgrade("upgrade_look")
    assert run["rc"] != 0 and "the data is version 17 already" in run["words"], run["words"]


@both
def test_the_old_server_cannot_be_started(host: Any) -> None:
    aside = f"{OLD}.upgraded-to-17"
    assert host.file(f"{aside}/PG_VERSION").exists and not host.file(OLD).exists
    assert host.file(f"{aside}/global/pg_control.old").exists and not host.file(f"{aside}/global/pg_control").exists
    assert host.run("pg_ctlcluster --skip-systemctl-redirect 15 main start").rc != 0
    options = f"-c config_file=/etc/postgresql/15/main/postgresql.conf -c data_directory={aside} -c port=5999"
    by_hand = f"runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -D {aside} -w -t 10 -o '{options}' start"
    assert host.run(by_hand).rc != 0
    host.run("systemctl start postgresql@15-main")
    time.sleep(3)
    assert host.run("pgrep -f [/]usr/lib/postgresql/15/bin/postgres").rc != 0
    host.run("systemctl stop postgresql@15-main; systemctl reset-failed postgresql@15-main")
    assert sql(host, "select count(*) from notes") == "5001"


@both
def test_the_new_one_starts_with_the_machine_and_lives_without_the_old(host: Any) -> None:
    host.check_output(
        "systemctl stop postgresql@17-main && systemctl daemon-reload && systemctl restart postgresql.service"
    )
    for _ in range(40):
        if host.run("runuser -u postgres -- psql -XqAt -p 5432 -c 'select 1'").rc == 0:
            break
        time.sleep(0.5)
    paths = (
        f"{OLD}.upgraded-to-17 {NEW}.failed-* /etc/postgresql/15/main /etc/systemd/system/postgresql@15-main.service.d"
    )
    host.check_output(f"rm -r {paths} && apt-get remove -qy postgresql-15")
    assert sql(host, "select count(*) from notes") == "5001"
    assert (
        host.run(
            "runuser -u postgres -- /usr/lib/postgresql/17/bin/pg_amcheck -h /run/postgresql -p 5432 --all --install-missing"
        ).rc
        == 0
    )
    run = play(asked="17")
    assert run["rc"] == 0, run["words"]
