"""What the role promises, asked of running poolers before a real PostgreSQL: who gets in, what is shared, what is cut."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parents[1]
TLS = "/etc/stepladder/tls"
NEW = os.environ.get("STEPLADDER_DEBIAN", "13") == "13"
VERSION = "17" if NEW else "15"
PROCESSES = 2 if NEW else 1
GIVEN = yaml.safe_load((HERE / "vars/main.yml").read_text())


def plain(text: str) -> str:
    """The scenario's file writes {{ as an expression, so that Ansible leaves it alone."""
    return text.replace("{{ '{{' }}", "{{")


PASSWORDS = {"shop": plain(GIVEN["shop_password"]), "pgbouncer_auth": plain(GIVEN["auth_password"]), "operator": "operator",
             "Odd name": GIVEN["postgres_roles"][1]["password"]}  # fmt: skip
LOCAL = {
    "fail", "debug", "include_role", "include_tasks", "import_tasks", "validate_argument_spec", "gather_facts", "setup",
    "set_fact",
}  # fmt: skip
# Debian's own psycopg, as an application would use it. `connect` takes what differs from verified TLS to the first pooler.
CLIENT = f"""
import json, os, sys, threading, time, psycopg
given = json.loads(sys.argv[1])
words = dict(host="pool.test", port=6432, dbname="shop", user="shop", password=given.pop("shop"), sslmode="verify-full",
             sslrootcert="{TLS}/ca.pem", connect_timeout=10, autocommit=True, prepare_threshold=None)
words.update(given)
def connect(**more):
    everything = {{**words, **more}}.items()
    return psycopg.connect(**{{name: value for name, value in everything if value is not None or name == "prepare_threshold"}})
"""
# Transactions of many clients for some seconds, or until they are told; each writes one row. A client leaves after `turns` and comes back.
LOAD = """
clients, seconds, turns = 12, given_seconds, given_turns
good, failed, slowest = [0] * clients, [], [0.0] * clients
end = time.monotonic() + seconds
def one(number):
    connection, done = None, 0
    while time.monotonic() < end and not os.path.exists("/tmp/enough"):
        start = time.monotonic()
        try:
            connection = connection or connect()
            with connection.transaction():
                connection.execute("insert into load (client) values (%s)", [number])
                connection.execute("select pg_sleep(0.01)")
            good[number] += 1
        except psycopg.Error as error:
            failed.append(f"{type(error).__name__}: {error}".strip())
            connection, done = None, 0
            time.sleep(0.05)
            continue
        slowest[number] = max(slowest[number], time.monotonic() - start)
        done += 1
        if turns and done % turns == 0:
            connection.close()
            connection = None
    connection and connection.close()
threads = [threading.Thread(target=one, args=[number]) for number in range(clients)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"good": sum(good), "failed": failed, "slowest": max(slowest)}))
"""
# Knocks at all doors by turns, as fast as it can: whoever was let in to the queue must be spoken to. A door that is shut is no failure.
KNOCK = """
import collections, random, socket, struct, sys, threading, time
end, doors, counted = time.monotonic() + float(sys.argv[1]), sys.argv[2:], collections.Counter()
def one():
    while time.monotonic() < end:
        for door in random.sample(doors, len(doors)):
            kind = door.startswith("/")
            caller = socket.socket(socket.AF_UNIX if kind else socket.AF_INET)
            caller.settimeout(5)
            # No port is left waiting behind, or there would soon be none.
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                caller.connect(door + "/.s.PGSQL.6432" if kind else (door, 6432))
            except OSError:
                counted["shut"] += 1
                continue
            try:
                caller.sendall(struct.pack("!ii", 8, 80877103))
                counted["spoken to" if caller.recv(1) in (b"S", b"N") else "cut"] += 1
            except OSError:
                counted["cut"] += 1
            caller.close()
            break
        else:
            counted["nowhere"] += 1
threads = [threading.Thread(target=one) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(*(counted[word] for word in ("spoken to", "shut", "cut", "nowhere")))
"""
SOCKET = {"host": "/run/pgbouncer-shop/1", "sslmode": None, "sslrootcert": None}
SECOND = {"host": "/run/pgbouncer-second/1", "port": 6433, "sslmode": None, "sslrootcert": None}


def client(machine: Any, script: str, **words: Any) -> Any:
    """Run Python as a client."""
    return machine.run("/usr/bin/python3 -c %s %s", CLIENT + script, json.dumps({"shop": PASSWORDS["shop"], **words}))


def said(machine: Any, script: str, **words: Any) -> str:
    done = client(machine, script, **words)
    assert done.rc == 0, done.stderr[-2000:]
    return str(done.stdout.strip())


def load(machine: Any, seconds: float, turns: int = 20, **words: Any) -> dict[str, Any]:
    script = LOAD.replace("given_seconds", str(seconds)).replace("given_turns", str(turns))
    return dict(json.loads(said(machine, script, **words)))


def enough(machine: Any, working: Any) -> dict[str, Any]:
    """End a load that runs beside the test; gives its result."""
    machine.check_output("touch /tmp/enough")
    result = working.result()
    machine.check_output("rm /tmp/enough")
    return dict(result)


def sql(machine: Any, text: str, database: str = "shop") -> str:
    done = machine.run("runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d %s -c %s", database, text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def control(machine: Any, words: str, instance: str = "shop") -> Any:
    return machine.run(f"/etc/pgbouncer-{instance}/control {words}")


def console(machine: Any, command: str, user: str = "prometheus", account: str = "prometheus", process: int = 1) -> Any:
    words = f"-XAt -h /run/pgbouncer-shop/{process} -p 6432 -U {user} -d pgbouncer"
    return machine.run(f"runuser -u {account} -- psql {words} -c %s", command)


def pids(machine: Any, instance: str = "shop") -> list[str]:
    units = [f"pgbouncer-{instance}@{n}" for n in range(1, PROCESSES + 1 if instance == "shop" else 2)]
    return list(machine.check_output(f"systemctl show -p MainPID --value {' '.join(units)}").split())


def served(machine: Any) -> str:
    command = f"echo | openssl s_client -starttls postgres -connect pool.test:6432 -CAfile {TLS}/ca.pem 2>/dev/null"
    return str(machine.check_output(f"{command} | openssl x509 -noout -subject"))


def play(
    *only: str, check: bool = False, playbook: str = "again.yml", words: tuple[str, ...] = (), **values: Any
) -> dict[str, Any]:
    """Run the role again on some instances: {rc, changed, calls (remote ones), tasks (changed), done, words, output}."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    extra = values if playbook != "again.yml" else {"only": only, "values": values}
    command = [
        "ansible-playbook",
        "-i",
        os.environ["MOLECULE_INVENTORY_FILE"],
        str(HERE / playbook),
        "-e",
        json.dumps(extra),
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
        "done": [word for _, r in ran for word in r.get("done") or []],
        "words": " ".join(str(r.get("msg", "")) for _, r in ran),
        "output": done.stdout + done.stderr,
    }


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> None:
    host = request.getfixturevalue("host")
    sql(host, "set role shop; create table if not exists load (client int)")


@pytest.fixture
def restored() -> Iterator[list[str]]:
    """Put the instances back as the scenario made them, whatever the test did."""
    touched: list[str] = []
    yield touched
    run = play(*touched)
    assert run["rc"] == 0, run["output"][-3000:]


@pytest.fixture
def beside() -> Iterator[Any]:
    """Start a call beside the test."""
    with ThreadPoolExecutor() as pool:

        def start(call: Any, *words: Any, **more: Any) -> Future[Any]:
            future = pool.submit(call, *words, **more)
            time.sleep(1.5)  # clients are connected by then
            return future

        yield start


# --- who gets in


@pytest.mark.parametrize(
    "words",
    [
        {},
        SOCKET,
        SECOND,
        {"user": "Odd name", "password": PASSWORDS["Odd name"]},
        {**SOCKET, "user": "Odd name", "password": PASSWORDS["Odd name"]},
    ],
)
def test_clients_get_in_with_odd_passwords(host: Any, words: dict[str, Any]) -> None:
    assert said(host, "print(connect().execute('select session_user').fetchone()[0])", **words) == words.get(
        "user", "shop"
    )


NO_LINE = "no authentication method is found|no such database|login rejected"
NO_CONSOLE = "bouncer config error|login rejected|not allowed|no such user|no password supplied"
if not NEW:
    NO_CONSOLE += "|timeout expired"  # PgBouncer 1.18 lets such a client wait for client_login_timeout


def test_a_database_may_have_another_name_mode_and_query(host: Any) -> None:
    script = (
        "print(connect().execute('select current_database(), current_setting(%s)', ['application_name']).fetchone())"
    )
    assert said(host, script, dbname="odd") == '("it\'s odd", "it\'s odd")'


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"password": "wrong"}, "SASL authentication failed|password authentication failed"),
        ({"password": PASSWORDS["shop"].strip("{")}, "SASL authentication failed|password authentication failed"),
        ({**SOCKET, "password": "wrong"}, "SASL authentication failed|password authentication failed"),
        ({"user": "nobody"}, "SASL authentication failed|password authentication failed|no such user"),
        (
            {"user": "operator", "password": "operator"},
            "SASL authentication failed|password authentication failed|no such user",
        ),
        ({"sslmode": "disable", "sslrootcert": None}, "SSL required|no encryption"),
        ({"sslrootcert": f"{TLS}/other.pem"}, "certificate verify failed"),
        ({"host": "localhost", "hostaddr": "127.0.0.1"}, "does not match host name"),
        ({"ssl_max_protocol_version": "TLSv1.1", "ssl_min_protocol_version": "TLSv1.1"}, "SSL error|no protocols"),
        ({"dbname": "nothing"}, NO_LINE),
        ({"dbname": "_auth_1"}, NO_LINE),
        ({"dbname": "pgbouncer"}, NO_CONSOLE),
        ({**SOCKET, "dbname": "pgbouncer"}, NO_CONSOLE),
        ({**SOCKET, "dbname": "pgbouncer", "user": "pgbouncer", "password": ""}, NO_CONSOLE),
        ({"dbname": "pgbouncer", "user": "prometheus", "password": ""}, NO_CONSOLE),
    ],
)
def test_others_are_refused(host: Any, words: dict[str, Any], reason: str) -> None:
    account = "nobody" if words.get("dbname") == "pgbouncer" else "root"
    arguments = json.dumps({"shop": PASSWORDS["shop"], **words})
    done = host.run(
        f"runuser -u {account} -- /usr/bin/python3 -c %s %s", CLIENT + "connect().execute('select 1')", arguments
    )
    assert done.rc != 0 and re.search(reason, done.stderr), done.stderr[-600:]


def test_a_server_whose_certificate_has_another_name_is_refused(host: Any) -> None:
    since = host.check_output("date +%s.%N")
    done = client(host, "connect().execute('select 1')", **{**SECOND, "dbname": "stranger"})
    assert done.rc != 0
    journal = host.check_output(f"journalctl -u pgbouncer-second@1 --since @{since} -o cat")
    assert re.search(r"_auth_2|stranger", journal) and re.search("name|certificate|TLS", journal), journal
    # The same pooler reaches the server by its right name's socket, so it is not that nothing works.
    assert said(host, "print(connect().execute('select 1').fetchone()[0])", **SECOND) == "1"


def test_statistics_are_for_the_socket_and_their_user_only(host: Any) -> None:
    for process in range(1, PROCESSES + 1):
        assert "\nshop|db.test|5432|" in console(host, "show databases", process=process).stdout
    assert "admin access needed" in console(host, "pause").stderr
    assert "admin access needed" in console(host, "reload").stderr
    assert console(host, "show pools", account="nobody").rc != 0
    assert console(host, "show pools", user="pgbouncer").rc != 0


def test_the_poolers_own_role_may_ask_for_verifiers_and_nothing_else(host: Any) -> None:
    script = "print(connect().execute(%r).fetchall())"
    words = {"host": "db.test", "port": 5432, "user": "pgbouncer_auth", "password": PASSWORDS["pgbouncer_auth"],
             "dbname": "postgres" if NEW else "shop"}  # fmt: skip
    ask = "select username, left(password, 13) from pgbouncer.get_auth('{}')"
    assert said(host, script % ask.format("shop"), **words) == "[('shop', 'SCRAM-SHA-256')]"
    for name in ("operator", "postgres", "pgbouncer_auth", "nobody"):
        assert said(host, script % ask.format(name), **words) == "[]"
    for query in ("select * from pg_authid", "select * from load"):
        assert client(host, script % query, **{**words, "dbname": "shop"}).rc != 0
    other = {"host": "db.test", "port": 5432, "dbname": "shop"}
    assert "permission denied" in client(host, script % ask.format("shop"), **other).stderr or NEW
    assert (
        sql(host, "select has_function_privilege('shop', 'pgbouncer.get_auth(text)', 'execute')", words["dbname"])
        == "f"
    )


def test_the_function_is_mended(host: Any) -> None:
    database = "postgres" if NEW else "shop"
    sql(host, "grant execute on function pgbouncer.get_auth(text) to public", database)
    assert play("database", check=True)["changed"] == 1
    assert sql(host, "select has_function_privilege('shop', 'pgbouncer.get_auth(text)', 'execute')", database) == "t"
    assert play("database")["changed"] == 1
    assert sql(host, "select has_function_privilege('shop', 'pgbouncer.get_auth(text)', 'execute')", database) == "f"


# --- what is shared


def test_many_clients_share_few_server_connections(host: Any) -> None:
    script = """
pids, good, connections = set(), [], [connect() for _ in range(60)]
def one(connection):
    for _ in range(5):
        with connection.transaction():
            pids.add(connection.execute("select pg_backend_pid()").fetchone()[0])
            time.sleep(0.01)
        good.append(1)
threads = [threading.Thread(target=one, args=[connection]) for connection in connections]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(pids), len(good))
"""
    servers, good = map(int, said(host, script).split())
    assert 1 <= servers <= 4 * PROCESSES and good == 60 * 5
    count = "select count(*) from pg_stat_activity where backend_type = 'client backend' and usename in ('shop', 'pgbouncer_auth')"
    assert int(sql(host, count)) <= 20 + 4
    tls = "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'shop' and client_addr is not null"
    assert sql(host, tls) == "t"


PREPARED = """
connections = [connect(prepare_threshold=0) for _ in range(12)]
for turn in range(20):
    for number, connection in enumerate(connections):
        row = connection.execute("select %s::int + " + str(number), [turn]).fetchone()
        assert row[0] == turn + number, row
print("all")
"""


@pytest.mark.skipif(not NEW, reason="PgBouncer 1.18 has no prepared statements; the next test holds that")
def test_prepared_statements_work_across_transactions(host: Any) -> None:
    assert said(host, PREPARED) == "all"
    assert int(console(host, "show config").stdout.split("max_prepared_statements|")[1].split("|")[0]) == 200


@pytest.mark.skipif(NEW, reason="PgBouncer 1.24 has prepared statements; the test before holds that")
def test_without_prepared_statements_they_are_refused_before_anything_changes(host: Any) -> None:
    assert client(host, PREPARED).rc != 0
    assert "has none" in play("shop", max_prepared_statements=100)["words"]


def test_a_query_is_cancelled_whichever_process_has_it(host: Any) -> None:
    script = """
import psycopg.errors
ended, connections = [], [connect() for _ in range(8)]
def one(connection):
    start = time.monotonic()
    try:
        connection.execute("select pg_sleep(20)")
    except psycopg.errors.QueryCanceled:
        ended.append(time.monotonic() - start)
for few in (connections[:4], connections[4:]):
    threads = [threading.Thread(target=one, args=[connection]) for connection in few]
    [thread.start() for thread in threads]
    time.sleep(1)
    [connection.cancel() for connection in few]
    [thread.join() for thread in threads]
print(len(ended), max(ended) < 5)
"""
    assert said(host, script) == "8 True"


# --- holding clients, reloading, restarting


def test_pause_holds_clients_and_resume_lets_them_go_on(host: Any, beside: Any) -> None:
    working = beside(load, host, 8, 0)
    assert control(host, "pause").rc == 0
    assert ("paused" if NEW else "?") in control(host, "status").stdout
    assert sql(host, "select count(*) from pg_stat_activity where usename = 'shop' and state <> 'idle'") == "0"
    before = sql(host, "select count(*) from load")
    assert control(host, "pause").rc == 0, "a second pause does no harm"
    time.sleep(2)
    assert sql(host, "select count(*) from load") == before
    assert control(host, "resume").rc == 0
    assert control(host, "resume").rc == 0, "nor does a second resume"
    result = working.result()
    assert result["failed"] == [] and result["slowest"] > 2, result


def test_a_pause_that_takes_too_long_lets_everybody_go_on(host: Any, beside: Any) -> None:
    long = beside(said, host, "c = connect(); c.execute('select pg_sleep(6)'); print('whole')")
    working = beside(load, host, 5, 0)
    done = control(host, "pause --seconds 1")
    assert done.rc != 0 and "Its clients go on" in done.stderr, done.stderr
    assert "paused" not in control(host, "status").stdout
    done = control(host, "pause --seconds 0.5 --keep")
    assert done.rc != 0 and "is paused, but" in done.stderr, done.stderr
    assert ("paused" if NEW else "?") in control(host, "status").stdout
    assert control(host, "resume").rc == 0
    assert long.result() == "whole" and working.result()["failed"] == []


def test_reconnect_opens_server_connections_anew_without_a_failure(host: Any, beside: Any) -> None:
    working = beside(load, host, 4, 0)
    servers = "select pid from pg_stat_activity where usename = 'shop' and client_addr is not null"
    before = set(sql(host, servers).split())
    assert control(host, "reconnect").rc == 0
    time.sleep(1)
    assert before and not before & set(sql(host, servers).split())
    assert working.result()["failed"] == []


def test_changed_settings_and_a_renewed_certificate_are_a_reload(host: Any, restored: list[str], beside: Any) -> None:
    restored.append("shop")
    running = pids(host)
    working = beside(load, host, 120, 10)
    databases = [
        *GIVEN["instances"][0]["databases"][:1],
        {"name": "more", "host": "db.test", "dbname": "shop", "pool_size": 2},
    ]
    host.check_output(f"cd {TLS} && cp -p renewed.pem pool.pem && cp -p renewed.key pool.key")
    run = play("shop", databases=databases, settings={"query_wait_timeout": 33})
    assert run["rc"] == 0 and run["done"] == [f"reloaded process {n}" for n in range(1, PROCESSES + 1)], run["output"][
        -3000:
    ]
    assert "query_wait_timeout|33|" in console(host, "show config").stdout
    assert said(host, "print(connect(dbname='more').execute('select 1').fetchone()[0])") == "1"
    assert "renewed" in served(host)
    assert pids(host) == running
    result = enough(host, working)
    assert result["failed"] == [] and result["good"] > 100, result
    host.check_output(f"cd {TLS} && cp -p pool.test.pem pool.pem && cp -p pool.test.key pool.key")
    check = play("shop", check=True, databases=databases, settings={"query_wait_timeout": 33})
    assert check["changed"] == 1 and check["done"] == run["done"], check["tasks"]


def test_a_restart_is_process_by_process_and_cuts_no_transaction(host: Any, restored: list[str], beside: Any) -> None:
    restored.append("shop")
    running = pids(host)
    assert "restart of its processes" in " ".join(
        play("shop", restart="never", settings={"listen_backlog": 200})["words"].split()
    )
    assert pids(host) == running
    count = int(sql(host, "select count(*) from load"))
    longs = [beside(said, host, "c = connect(); c.execute('select pg_sleep(6)'); print('whole')") for _ in range(2)]
    working = beside(load, host, 120, 10)
    run = play("shop", settings={"listen_backlog": 200}, drain_seconds=9)
    assert run["rc"] == 0 and run["done"] == [f"restarted process {n}" for n in range(1, PROCESSES + 1)], run["output"][
        -3000:
    ]
    assert not set(pids(host)) & set(running)
    assert "listen_backlog|200|" in console(host, "show config").stdout
    assert [long.result() for long in longs] == ["whole"] * 2
    result = enough(host, working)
    print(f"restart under load: {result}")
    assert int(sql(host, "select count(*) from load")) - count == result["good"] > 100
    if NEW:
        assert result["failed"] == [], result


@pytest.mark.skipif(not NEW, reason="PgBouncer 1.18 has one process and refuses clients until it is back")
@pytest.mark.parametrize(
    "doors", [["/run/pgbouncer-shop/1", "/run/pgbouncer-shop/2"], ["pool.test"]], ids=["sockets", "port"]
)
def test_who_comes_at_the_moment_a_process_ends_is_not_cut_off(host: Any, beside: Any, doors: list[str]) -> None:
    count = beside(host.run, f"/usr/bin/python3 -c %s 15 {' '.join(doors)}", KNOCK)
    for _ in range(4):
        done = control(host, "restart --seconds 2")
        assert done.rc == 0, done.stderr
    result = count.result()
    spoken, shut, cut, nowhere = (int(word) for word in result.stdout.split())
    print(f"{spoken} spoken to, {shut} doors shut, {cut} cut, {nowhere} nowhere")
    assert spoken > 1000 and cut == nowhere == 0, (spoken, shut, cut, nowhere)
    assert not doors[0].startswith("/") or shut, "no door was shut: the test shows nothing"


def test_a_restart_waits_for_a_long_transaction_and_does_not_cut_it(host: Any, beside: Any) -> None:
    running = pids(host)
    longs = [beside(said, host, "c = connect(); c.execute('select pg_sleep(8)'); print('whole')") for _ in range(1)]
    done = [control(host, f"restart --seconds 1 {number}") for number in range(1, PROCESSES + 1)]
    assert [d.rc for d in done].count(0) == PROCESSES - 1, [d.stderr for d in done]
    assert "still has a transaction" in " ".join(d.stderr for d in done)
    assert said(host, "print(connect().execute('select 1').fetchone()[0])") == "1"
    assert longs[0].result() == "whole"
    if not NEW:
        assert pids(host) == running
        return
    end = time.monotonic() + 20
    while set(pids(host)) & {*running, "0"} and time.monotonic() < end:
        time.sleep(0.3)
    assert not set(pids(host)) & set(running), "the process that was left to finish comes back by itself"


def test_persistent_clients_are_sent_away_between_transactions_only(host: Any, beside: Any) -> None:
    count = int(sql(host, "select count(*) from load"))
    working = beside(load, host, 10, 0)
    done = control(host, "restart --seconds 1")
    assert done.rc == 0, done.stderr
    result = working.result()
    print(f"persistent clients: {done.stdout} {result}")
    assert result["failed"], "without a failed client the next assertion says nothing"
    assert int(sql(host, "select count(*) from load")) - count == result["good"]


@pytest.mark.skipif(not NEW, reason="one process is the most that PgBouncer 1.18 should have")
def test_processes_come_and_go(host: Any, restored: list[str], beside: Any) -> None:
    restored.append("shop")
    [first, _] = pids(host)
    working = beside(load, host, 120, 10)
    run = play("shop", processes=1)
    assert run["rc"] == 0 and "ended process 2" in run["done"], run["output"][-3000:]
    assert host.run("systemctl is-active pgbouncer-shop@2").stdout.strip() != "active"
    assert host.run("systemctl is-enabled pgbouncer-shop@2").stdout.strip() == "disabled"
    run = play("shop")
    assert run["rc"] == 0, run["output"][-3000:]
    assert "0" not in pids(host) and host.run("systemctl is-enabled pgbouncer-shop@2").stdout.strip() == "enabled"
    result = enough(host, working)
    assert result["failed"] == [] and result["good"] > 100, result


def test_a_restart_of_the_database_is_survived(host: Any, beside: Any) -> None:
    running = pids(host)
    count = int(sql(host, "select count(*) from load"))
    working = beside(load, host, 8, 0)
    host.check_output(f"systemctl restart postgresql@{VERSION}-main")
    assert said(host, "print(connect().execute('select 1').fetchone()[0])") == "1"
    result = working.result()
    # Those that were in a transaction are told so, by PostgreSQL or, where its connection ended before its word
    # was read, by PgBouncer; then all go on by themselves.
    told = ("administrator command", "server conn crashed")
    assert result["good"] > 100 and result["failed"], result
    assert any(word in result["failed"][0] for word in told), result
    # A commit that was done but not answered is counted besides, so there may be more; never fewer.
    assert int(sql(host, "select count(*) from load")) - count >= result["good"]
    assert load(host, 2, 0)["failed"] == []
    assert pids(host) == running


def test_a_crashed_process_comes_back(host: Any) -> None:
    before = pids(host)
    host.check_output("systemctl kill -s KILL pgbouncer-shop@1")
    end = time.monotonic() + 10
    while (pids(host)[0] in ("0", before[0]) or control(host, "status").rc) and time.monotonic() < end:
        time.sleep(0.2)
    assert pids(host)[0] not in ("0", before[0]) and control(host, "status").rc == 0
    assert said(host, "print(connect().execute('select 1').fetchone()[0])") == "1"


# --- what a run does


def test_a_run_without_changes_restarts_nothing_and_takes_three_calls(host: Any) -> None:
    before = pids(host), pids(host, "second")
    run = play("shop", "second")
    assert (run["rc"], run["changed"], run["done"]) == (0, 0, []), run["tasks"]
    assert len(run["calls"]) == 2 * 3, run["calls"]
    assert (pids(host), pids(host, "second")) == before


def test_what_an_interrupted_run_left_is_found(host: Any) -> None:
    path = "/etc/pgbouncer-shop/1.ini"
    host.check_output(
        f"sed -i 's/query_wait_timeout = 60/query_wait_timeout = 61/' {path} && /etc/pgbouncer-shop/control reload 1"
    )
    assert "query_wait_timeout|61|" in console(host, "show config").stdout
    host.check_output(f"sed -i 's/query_wait_timeout = 61/query_wait_timeout = 60/' {path}")
    run = play("shop")
    assert run["rc"] == 0 and run["done"] == ["reloaded process 1"], run["output"][-2000:]
    assert "query_wait_timeout|60|" in console(host, "show config").stdout


def test_a_configuration_that_pgbouncer_does_not_take_is_put_back(host: Any) -> None:
    before = pids(host), host.check_output("cat /etc/pgbouncer-shop/* | sha256sum")
    run = play("shop", settings={"no_such_setting": 1})
    assert run["rc"] != 0 and "unknown parameter: pgbouncer/no_such_setting" in run["output"], run["output"][-2000:]
    assert (pids(host), host.check_output("cat /etc/pgbouncer-shop/* | sha256sum")) == before
    assert play("shop", key=f"{TLS}/renewed.key")["rc"] != 0
    assert (pids(host), host.check_output("cat /etc/pgbouncer-shop/* | sha256sum")) == before


def test_a_second_instance_is_on_its_own(host: Any) -> None:
    before = pids(host, "second")
    assert control(host, "restart --seconds 2").rc == 0
    assert pids(host, "second") == before
    assert host.run("runuser -u pgbouncer-second -- cat /etc/pgbouncer-shop/users").rc != 0
    assert host.run("ss -Hltn sport = :6433").stdout == ""
    assert host.check_output("systemctl is-enabled pgbouncer.service || true") == "masked"
    assert host.run("systemctl is-active pgbouncer.service").rc != 0


def test_the_units_start_at_boot_and_are_kept_in(host: Any) -> None:
    for unit in [*(f"pgbouncer-shop@{n}" for n in range(1, PROCESSES + 1)), "pgbouncer-second@1"]:
        assert host.check_output(f"systemctl is-enabled {unit}") == "enabled"
        exposure = host.run(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
        assert float(re.search(r"(\d+\.\d+)", exposure)[1]) <= 2.0, exposure  # type: ignore[index]


def test_passwords_are_nowhere_but_the_auth_users_own(host: Any) -> None:
    lines = host.check_output("cat /etc/pgbouncer-shop/users").splitlines()
    assert lines == ['"pgbouncer_auth" "{}"'.format(PASSWORDS["pgbouncer_auth"].replace('"', '""')), '"prometheus" ""']
    assert host.check_output("stat -c '%a %U %G' /etc/pgbouncer-shop/users") == "640 root pgbouncer-shop"
    for word in (PASSWORDS["shop"], PASSWORDS["Odd name"], "SCRAM-SHA-256\\$", "SCRAM-SHA-256$"):
        found = host.run("grep -rlF -- %s /etc /run /var/log /var/lib/ansible", word).stdout.split()
        assert found == [], word
    journal = host.check_output("journalctl -o cat --no-pager")
    assert not [word for word in PASSWORDS.values() if word != "operator" and word in journal]
    run = play("shop", "database", words=("-vvv",), settings={"query_wait_timeout": 62})
    again = play("shop", words=("-vvv",), check=False)
    for text in (run["output"], again["output"]):
        assert not [word for word in PASSWORDS.values() if word != "operator" and json.dumps(word)[1:-1] in text]


# --- what is refused

SHOP = GIVEN["instances"][0]["databases"][0]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "Big_one"}, 'pgbouncer_name is "Big_one"'),
    ({"server_connections": 6}, "the pools do not fit pgbouncer_server_connections, 6"),
    ({"databases": [{**SHOP, "pool_size": 21}]}, "the pools do not fit pgbouncer_server_connections, 20"),
    ({"processes": 40}, "the pools do not fit"),
    ({"processes": 0}, "pgbouncer_processes is 0"),
    ({"port": 70000}, "pgbouncer_port is 70000"),
    ({"port": 5432}, "listens on port 5432"),
    ({"certificate": ""}, "pgbouncer_tls_certificate or pgbouncer_tls_key is empty"),
    ({"certificate": "/nowhere.pem"}, "/nowhere.pem is not there"),
    ({"key": f"{TLS}/ca.key"}, "the group ssl-cert cannot read it"),
    ({"server_ca": ""}, "pgbouncer_server_ca is empty"),
    ({"auth_password": "x\ny"}, "pgbouncer_auth_password has a line break in it"),
    ({"auth_password": ""}, "pgbouncer_auth_password is empty"),
    ({"auth_user": "pgbouncer"}, 'pgbouncer_auth_user is "pgbouncer"'),
    ({"stats_users": ["pro metheus"]}, 'pgbouncer_stats_users has "pro metheus"'),
    ({"databases": []}, "pgbouncer_databases is empty"),
    ({"databases": [{**SHOP, "pool_mode": "fast"}]}, "pool_mode"),
    ({"databases": [SHOP, SHOP]}, "has the name shop twice"),
    ({"databases": [{**SHOP, "name": "a b"}]}, 'has the name "a b"'),
    ({"databases": [{**SHOP, "name": "pgbouncer"}]}, "uses itself"),
    ({"databases": [{**SHOP, "host": "a b"}]}, 'has the host "a b"'),
    ({"databases": [{**SHOP, "connect_query": "select 1;\nselect 2"}]}, "has a line break in its connect_query"),
    ({"settings": {"pool_mode": "session"}}, "Use pool_mode in pgbouncer_databases"),
    ({"settings": {"auth_type": "trust"}}, "pgbouncer_settings has auth_type, which this role decides"),
    ({"settings": {"syslog_ident": "a\nb"}}, "has a line break in syslog_ident"),
    *([] if NEW else [({"auth_database": "postgres"}, "asks for passwords in the client's own database only")]),
]


def test_impossible_input_is_refused_and_nothing_changes(host: Any) -> None:
    before = pids(host), host.check_output("cat /etc/pgbouncer-shop/* | sha256sum")
    run = play(playbook="refusals.yml", cases=[values for values, _ in REFUSED])
    assert run["rc"] == 0, run["output"][-3000:]
    for _, sentence in REFUSED:
        assert sentence in run["words"], f"{sentence!r} is not in {run['words']}"
    assert (pids(host), host.check_output("cat /etc/pgbouncer-shop/* | sha256sum")) == before
