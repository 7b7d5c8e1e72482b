"""pgbouncer: which settings are refused and in which words, how pools are sized, and what its modules decide."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_templates import samples

from kit import ROOT
from rendered import Role

ROLE = ROOT / "roles/pgbouncer"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"pgbouncer_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


filters = load(ROLE / "filter_plugins/pgbouncer.py")
instance = load(ROLE / "library/pgbouncer_instance.py")
SHOP = {"name": "shop", "host": "db.example.com"}


def settings(**changes: Any) -> dict[str, Any]:
    good = {
        "name": "shop", "databases": [SHOP], "server_connections": 20, "processes": 2, "auth_user": "pgbouncer_auth",
        "auth_password": "it's \"odd\" % \\ $ü", "auth_database": "postgres", "connect_query": "select 1", "port": 6432,
        "bind": ["127.0.0.1", "::1"], "certificate": "/a.pem", "key": "/a.key", "server_ca": "/ca.pem", "max_clients": 1000,
        "max_prepared_statements": 200, "drain_seconds": 60, "stats_users": ["prometheus"], "settings": {}, "is_old": False, "watch": {},
    }  # fmt: skip
    return {**good, **changes}


def test_settings_that_work_are_not_refused() -> None:
    assert filters.pgbouncer_problems(settings()) == []
    assert filters.pgbouncer_problems(settings(bind=[], certificate="", key="")) == []
    socket = [{"name": "shop", "host": "/var/run/postgresql", "pool_mode": "session", "connect_query": ""}]
    assert filters.pgbouncer_problems(settings(databases=socket, server_ca="")) == []
    assert filters.pgbouncer_problems(settings(is_old=True, max_prepared_statements=0, auth_database="")) == []
    assert filters.pgbouncer_problems(settings(settings={"server_idle_timeout": 60, "log_connections": True})) == []
    assert filters.pgbouncer_problems(settings(databases=[{**SHOP, "pool_size": 9}])) == []


WATCH = {"url": "http://127.0.0.1:8405/;csv", "databases": ["shop"]}


def test_a_watch_of_what_there_is_is_not_refused() -> None:
    assert filters.pgbouncer_problems(settings(watch=WATCH)) == []
    assert (
        filters.pgbouncer_problems(settings(watch={**WATCH, "replica_databases": ["shop"], "pause_seconds": 30})) == []
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"watch": {**WATCH, "databases": ["blog"]}}, "pgbouncer_watch has blog in databases, and pgbouncer_databases has shop."),
        ({"watch": {**WATCH, "replica_databases": ["blog"]}}, "has blog in replica_databases"),
        ({"watch": {**WATCH, "url": "http://192.0.2.1:8405/;csv"}}, "pgbouncer_watch has the url http://192.0.2.1:8405/;csv."),
        ({"watch": {**WATCH, "databases": []}}, "pgbouncer_watch names no databases. List those of shop"),
        ({"watch": {**WATCH, "pause_seconds": 1}}, "pgbouncer_watch has pause_seconds 1."),
        ({"databases": [{**SHOP, "pool_size": 10}]}, "2 processes x (shop 10 + _auth_1 1) = 22"),
        ({"server_connections": 3}, "the pools do not fit pgbouncer_server_connections, 3"),
        ({"is_old": True, "max_prepared_statements": 0, "auth_database": "", "server_connections": 3}, "do not fit"),
        ({"name": "Shop"}, 'pgbouncer_name is "Shop"'),
        ({"drain_seconds": 0}, "pgbouncer_drain_seconds is 0. It is a whole number from 1 to 3600."),
        ({"max_clients": True}, "pgbouncer_max_clients is True"),
        ({"bind": ["a b"]}, 'pgbouncer_bind has "a b"'),
        ({"key": ""}, "pgbouncer_tls_key is empty"),
        ({"key": "/a b"}, 'The path "/a b"'),
        ({"server_ca": ""}, "pgbouncer_server_ca is empty"),
        ({"auth_user": "a b"}, 'pgbouncer_auth_user is "a b"'),
        ({"auth_password": "a\rb"}, "has a line break in it"),
        ({"auth_password": "x" * 901}, "longer than 900 bytes"),
        ({"stats_users": ["pgbouncer"]}, 'pgbouncer_stats_users has "pgbouncer"'),
        ({"databases": [{**SHOP, "name": "_auth_1"}]}, "uses itself"),
        ({"databases": [{**SHOP, "port": 0.5}]}, "has the port 0.5"),
        ({"databases": [{**SHOP, "pool_size": 0}]}, "has the pool_size 0"),
        ({"databases": [{**SHOP, "pool_mode": "fast"}]}, "has the pool_mode fast"),
        ({"databases": [{**SHOP, "dbname": "a\nb"}]}, "has a line break in its dbname"),
        ({"connect_query": "a\nb"}, "pgbouncer_connect_query has a line break"),
        ({"settings": {"listen_port": 1}}, "Use pgbouncer_port"),
        ({"settings": {"admin_users": "shop"}}, "which this role decides"),
        ({"settings": {"Bad name": 1}}, "Names of settings"),
        ({"settings": {"tcp_keepidle": "1\nlisten_addr = *"}}, "has a line break in tcp_keepidle"),
        ({"is_old": True, "auth_database": ""}, "has none"),
        ({"is_old": True, "max_prepared_statements": 0}, "in the client's own database only"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    found = filters.pgbouncer_problems(settings(**changes))
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("auth_database", ["postgres", ""])
def test_pools_without_a_size_share_what_is_left_and_never_more(processes: int, auth_database: str) -> None:
    databases = [SHOP, {**SHOP, "name": "fixed", "pool_size": 3}, {"name": "reads", "host": "reads.example.com"}]
    pools = filters.pgbouncer_pools(databases, 50, processes, auth_database, "select 1")
    total = sum(pool["connections"] for pool in pools) * processes
    assert 50 - 3 * processes <= total <= 50
    sizes = {pool["name"]: pool["pool_size"] for pool in pools}
    assert sizes["fixed"] == 3
    assert sizes["shop"] == sizes["reads"] >= 1
    assert [pool["name"] for pool in pools if pool["name"].startswith("_auth")] == (
        ["_auth_1", "_auth_2"] if auth_database else []
    )


def test_each_server_is_asked_for_its_own_passwords() -> None:
    databases = [
        SHOP,
        {**SHOP, "name": "too"},
        {"name": "reads", "host": "a.example.com"},
        {**SHOP, "name": "p", "port": 5433},
    ]
    pools = {pool["name"]: pool for pool in filters.pgbouncer_pools(databases, 50, 1, "postgres", "")}
    where = {name: (pool["host"], pool["port"]) for name, pool in pools.items()}
    assert all(where[pool["auth_dbname"]] == where[name] for name, pool in pools.items() if "auth_dbname" in pool)
    assert pools["shop"]["auth_dbname"] == pools["too"]["auth_dbname"]
    assert len({pools[name]["auth_dbname"] for name in ("shop", "reads", "p")}) == 3


def test_an_odd_password_is_one_entry_of_the_file_of_users() -> None:
    files = {file.dest.rsplit("/", 1)[1]: file.text for file in Role(ROLE, samples("pgbouncer")[0]).files()}
    [line] = files["users"].splitlines()
    found = re.fullmatch(r'"([^"]*)" "((?:[^"]|"")*)"', line)
    assert found
    assert found[2].replace('""', '"') == samples("pgbouncer")[0]["pgbouncer_auth_password"]


def test_a_file_of_a_process_has_one_section_of_settings_and_it_comes_last() -> None:
    """A second one would reset what the first has set."""
    for sample in samples("pgbouncer"):
        for file in Role(ROLE, sample).files():
            if file.dest.endswith(".ini"):
                assert re.findall(r"(?m)^\[(\w+)\]$", file.text)[-1] == "pgbouncer"
                assert file.text.count("[pgbouncer]") == 1


def test_a_port_is_taken_by_another_account_only() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 0100007F:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000   997        0 1\n"
        "   1: 0100007F:1921 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1\n"
    )
    assert instance.listeners(table, 6432) == {997}
    assert instance.listeners(table, 6433) == set()


@pytest.mark.parametrize(("text", "migrates"), [("1\n", True), ("0\n", False)])
def test_the_kernel_is_asked_what_it_does_with_those_who_wait(tmp_path: Path, text: str, migrates: bool) -> None:
    setting = tmp_path / "tcp_migrate_req"
    setting.write_text(text)
    assert instance.kernel(str(setting)) == {"migrates": migrates, "own_kernel": True}
    assert instance.kernel(str(tmp_path / "older")) == {"migrates": False, "own_kernel": False}


@pytest.mark.parametrize(
    ("one", "may", "expected"),
    [
        ({"restart": True, "reload": True}, True, (["restarted process 1"], [])),
        ({"restart": True, "reload": True}, False, (["reloaded process 1"], [1])),
        ({"restart": True, "reload": False}, False, ([], [1])),
        ({"restart": False, "reload": True}, True, (["reloaded process 1"], [])),
        ({"restart": False, "reload": False}, True, ([], [])),
    ],
)
def test_check_mode_says_what_would_be_done(
    one: dict[str, bool], may: bool, expected: tuple[list[str], list[int]]
) -> None:
    assert instance.pending({"processes": {"1": one}, "surplus": []}, may) == expected


def test_what_outlives_its_file_would_be_ended() -> None:
    assert instance.pending({"processes": {}, "surplus": [3]}, False) == (["ended process 3"], [])


@pytest.fixture
def control(tmp_path: Path) -> ModuleType:
    """The control program of a pooler with a watch; what it says to PgBouncer is kept in `said`."""
    text = next(file.text for file in Role(ROLE, samples("pgbouncer")[2]).files() if file.template == "control.py.j2")
    (tmp_path / "control.py").write_text(text)
    module = load(tmp_path / "control.py")
    module.said = []
    module.say_to_all = lambda command, databases: module.said.append((command, databases))
    module.held_by_somebody = lambda: False
    return module


def test_a_socket_loses_its_name_before_a_process_takes_no_more_and_gets_it_back_where_it_goes_on(
    control: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = tmp_path / "2" / f".s.PGSQL.{control.PORT}"
    door.parent.mkdir()
    door.touch()
    monkeypatch.setattr(control, "RUN", str(tmp_path))
    monkeypatch.setattr(control.time, "sleep", lambda _: None)
    seen = []

    class Console:
        @staticmethod
        def ask(command: str) -> None:
            seen.append((command, door.exists()))
            if len(seen) == 1:
                raise control.Refused("unknown command")

    with pytest.raises(control.Refused):
        control.close_door(2, Console)
    assert door.exists()
    control.close_door(2, Console)
    assert seen == [("SHUTDOWN WAIT_FOR_CLIENTS", False)] * 2 and not door.exists()


def test_clients_are_held_while_there_is_not_exactly_one_primary(control: ModuleType) -> None:
    watch, held, freed = control.Watch(), ("PAUSE", ["shop", "_auth_1"]), ("RESUME", ["shop", "_auth_1"])
    watch.primary({"db1"}, 0.0)
    assert control.said == [freed]  # whatever was before: there is one
    watch.primary({"db1"}, 0.2)
    assert control.said == [freed]
    watch.primary(set(), 0.4)
    assert control.said == [freed, held]
    watch.primary(set(), 0.6)
    watch.primary(set(), 2.0)  # a process that was started meanwhile is held too
    assert control.said == [freed, held, held]
    watch.primary({"db2"}, 2.2)
    watch.primary({"db1", "db2"}, 2.4)
    assert control.said == [freed, held, held, freed, held]
    control.said.clear()
    watch.primary({"db2"}, 2.6)
    watch.primary({"db1"}, 2.8)  # between two looks; a pause of that time would stay
    watch.primary({"db1"}, 3.0)
    assert control.said == [freed, freed]


def test_a_pause_that_was_forgotten_ends_beside_a_primary_and_nowhere_else(control: ModuleType) -> None:
    watch = control.Watch()
    watch.primary({"db1"}, 0.0)
    control.said.clear()
    control.held_by_somebody = lambda: True
    for second in range(2, 60, 2):
        watch.forgotten(float(second))
    assert control.said == []
    watch.forgotten(63.0)
    assert control.said == [("RESUME", ["shop", "_auth_1"])]
    control.said.clear()
    watch.primary(set(), 64.0)
    control.said.clear()
    for second in range(66, 200, 2):
        watch.forgotten(float(second))
    assert control.said == []


def test_reads_move_with_the_replicas_and_stay_while_nothing_else_is_sure(control: ModuleType) -> None:
    watch, clock = control.Watch(), iter(range(0, 1000))

    def moves(primary: dict[str, bool], *replicas: str, seconds: int = 1) -> bool:
        control.said.clear()
        for _ in range(seconds):
            watch.reads(set(replicas), primary, float(next(clock)))
        return ("RECONNECT", ["reads"]) in control.said

    db1, db2 = {"db1": True}, {"db2": True}
    assert moves(db1, "db2")  # where it led before is not known
    assert not moves(db1, "db2", seconds=9)
    assert not moves(db1, seconds=2)
    assert moves(db1)  # it is behind
    assert moves(db1, "db2")
    assert not moves(db1, seconds=2)  # the primary stops, and with it the replica's stream
    assert not moves({"db1": False}, seconds=9)
    assert not moves({}, seconds=9)
    assert not moves({**db1, **db2}, seconds=9)
    assert not moves(db2, seconds=9)  # who is read from has been promoted
    assert moves(db2, "db1")
    assert not moves({}, seconds=9)
    assert moves(db2, seconds=4)
    assert moves(db2, "db1")
    assert not moves(db2)  # it was away for a moment, and what was opened meanwhile leads to the primary
    assert moves(db2, "db1")


def test_what_haproxy_says_is_read(control: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "# pxname,svname,status", "primary,FRONTEND,OPEN", "primary,db1,UP", "primary,db2,DOWN", "primary,BACKEND,UP",
        "replicas,db1,DRAIN", "replicas,db2,UP 1/3", "replicas,db3,NOLB", "replicas,primary,no check",
    ]  # fmt: skip
    monkeypatch.setattr(control.urllib.request, "urlopen", lambda *_, **__: io.BytesIO("\n".join(lines).encode()))
    assert control.servers_up() == {"primary": {"db1": True}, "replicas": {"db2": False}}

    def gone(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(control.urllib.request, "urlopen", gone)
    assert control.servers_up() == {}


def test_clients_go_on_when_haproxy_knows_the_primary_and_no_other_and_else_stay_held(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [{}, {"primary": {"db1": True, "db2": True}}, {"primary": {"db2": True}}, {"primary": {"db1": True}}]
    let_go: list[tuple[str, int]] = []
    monkeypatch.setattr(control, "servers_up", lambda: seen.pop(0) if len(seen) > 1 else seen[0])
    monkeypatch.setattr(control, "resume", lambda database: let_go.append((database, len(seen))))
    monkeypatch.setattr(control.time, "sleep", lambda _: None)
    monkeypatch.setattr(control.sys, "argv", ["control", "resume", "--primary", "db1", "shop"])
    control.main()
    assert let_go == [("shop", 1)]  # not before all the others had been seen
    seen[:] = [{"primary": {"db2": True}}]
    monkeypatch.setattr(control.sys, "argv", ["control", "resume", "--primary", "db1", "--seconds", "0.05", "shop"])
    with pytest.raises(SystemExit, match="HAProxy calls db2 the primary, not db1"):
        control.main()
    assert len(let_go) == 1
