"""What the role promises, asked of running instances: who may do what, what is kept, what a run disturbs."""

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
TLS = "/etc/stepladder/tls"
NEW = os.environ.get("STEPLADDER_DEBIAN", "13") == "13"
GIVEN = yaml.safe_load((HERE / "vars/main.yml").read_text())
ADMIN = GIVEN["admin_password"].replace("{{ '{{' }}", "{{")
USERS = {(i["name"], u["name"]): u["password"] for i in GIVEN["instances"] for u in i["users"]}
PORTS = {i["name"]: i["port"] for i in GIVEN["instances"]}
SENTINELS = {i["name"]: i["port"] for i in GIVEN["sentinels"]}
FLAVORS = {
    "cache": "redis",
    "broker": "redis",
    "store": "valkey" if NEW else "redis",
    "copy": "valkey" if NEW else "redis",
}
LOCAL = {
    "fail",
    "debug",
    "include_role",
    "include_tasks",
    "import_tasks",
    "validate_argument_spec",
    "gather_facts",
    "setup",
    "set_fact",
}
# Debian's own client library, as an application would use it; it prints what its script prints.
CLIENT = f"""
import json, os, sys, threading, time, redis
from redis.backoff import NoBackoff
from redis.retry import Retry
words = dict(host="redis.test", ssl=True, ssl_ca_certs="{TLS}/ca.pem", ssl_check_hostname=True, decode_responses=True,
             socket_timeout=10, retry=Retry(NoBackoff(), 0))
words.update(json.loads(sys.argv[1]))
r = redis.Redis(**words)
"""


def client(machine: Any, instance: str, user: str, script: str, **words: Any) -> Any:
    """Run Python against an instance; `r` is the connection."""
    password = ADMIN if user == "admin" else USERS.get((instance, user), "")
    options = {"port": PORTS[instance], "username": user, "password": password, **words}
    return machine.run("/usr/bin/python3 -c %s %s", CLIENT + script, json.dumps(options))


def said(machine: Any, instance: str, user: str, script: str, **words: Any) -> str:
    done = client(machine, instance, user, script, **words)
    assert done.rc == 0, done.stderr[-2000:]
    return str(done.stdout.strip())


def admin(host: Any, instance: str, *command: str) -> Any:
    script = f"print(json.dumps(r.execute_command(*{json.dumps(command)})))"
    return json.loads(said(host, instance, "admin", script))


def config(host: Any, instance: str, name: str) -> str:
    return said(host, instance, "admin", f"print(r.config_get('{name}')['{name}'])")


def run_id(host: Any, instance: str) -> str:
    return str(admin(host, instance, "INFO", "server")["run_id"])


def pid(host: Any, instance: str) -> str:
    return str(host.check_output(f"systemctl show -p MainPID --value redis-{instance}.service"))


def wait(condition: Any, seconds: float = 30) -> float:
    """Wait until a condition holds; gives the seconds it took.

    A question that fails counts as "not yet": Sentinel cuts the connections of an instance whose role it changes.
    """
    start = time.monotonic()
    last = ""
    while time.monotonic() - start < seconds:
        try:
            if condition():
                return time.monotonic() - start
        except AssertionError as error:
            last = f": {error}"
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s{last}")


def answers(host: Any, instance: str) -> bool:
    return bool(client(host, instance, "admin", "r.ping()").rc == 0)


def play(
    *only: str, check: bool = False, playbook: str = "again.yml", words: tuple[str, ...] = (), **values: Any
) -> dict[str, Any]:
    """Run the role again on some instances: {rc, changed, calls (remote ones), tasks (changed), words, output}."""
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
        "set": sorted({word for _, r in ran for word in r.get("set") or []}),
        "words": " ".join(str(r.get("msg", "")) for _, r in ran),
        "output": done.stdout + done.stderr,
    }


@pytest.fixture
def restored() -> Any:
    """Put the instances back as the scenario made them, whatever the test did."""
    touched: list[str] = []
    yield touched
    run = play(*touched)
    assert run["rc"] == 0, run["output"][-3000:]


# --- who gets in


@pytest.mark.parametrize("instance", PORTS)
def test_users_get_in_over_verified_tls_with_odd_passwords(host: Any, instance: str) -> None:
    assert said(host, instance, "admin", "print(r.execute_command('ACL', 'WHOAMI'))") == "admin"
    assert admin(host, instance, "INFO", "server").get("server_name", "redis") == FLAVORS[instance]
    script = "r.set('shop:a', 'ü', ex=60); print(r.get('shop:a'))"
    user = "celery" if instance == "broker" else "shop"
    if instance != "copy":
        assert said(host, instance, user, script) == "ü"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"ssl": False}, "Connection (reset|closed)|closed by server|protocol error"),
        ({"password": "wrong"}, "invalid username-password|WRONGPASS"),
        ({"password": USERS["cache", "shop"].strip()}, "invalid username-password|WRONGPASS"),
        ({"username": "default"}, "invalid username-password|WRONGPASS"),
        ({"username": None, "password": None}, "Authentication required|NOAUTH"),
        ({"username": "celery", "password": "celery"}, "invalid username-password|WRONGPASS"),
        ({"ssl_ca_certs": f"{TLS}/other.pem"}, "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ({"host": "localhost"}, "not match|mismatch|not valid for"),
    ],
)
def test_others_are_refused(host: Any, words: dict[str, Any], reason: str) -> None:
    done = client(host, "cache", "shop", "r.ping()", **words)
    assert done.rc != 0 and re.search(reason, done.stderr), done.stderr[-600:]


def test_nothing_listens_without_tls(host: Any) -> None:
    listening = {line.split()[3].rsplit(":", 1)[1] for line in host.check_output("ss -Hltn").splitlines()}
    assert {str(port) for port in PORTS.values()} <= listening
    [unit] = {"redis-server.service"}
    assert host.check_output(f"systemctl is-enabled {unit} || true") == "masked"
    for instance in PORTS:
        assert config(host, instance, "port") == "0"


KEPT_FROM_THE_SHOP = (
    "FLUSHALL", "CONFIG GET maxmemory", "KEYS *", "SHUTDOWN", "ACL LIST", "MONITOR", "SAVE", "CLIENT LIST",
    "REPLICAOF no one", "SUBSCRIBE x", "GET other:a", "SET other:a 1",
)  # fmt: skip
KEPT_FROM_CELERY = ("FLUSHALL", "FLUSHDB", "CONFIG SET appendonly no", "KEYS *", "BGREWRITEAOF", "PUBLISH other 1")


@pytest.mark.parametrize(
    ("instance", "user", "command"),
    [
        *(("cache", "shop", command) for command in KEPT_FROM_THE_SHOP),
        *(("broker", "celery", command) for command in KEPT_FROM_CELERY),
        *(("cache", "monitor", command) for command in ("GET shop:a", "SET shop:a 1", "CONFIG GET *")),
    ],
)  # fmt: skip
def test_a_command_key_or_channel_outside_a_users_set_is_refused(
    host: Any, instance: str, user: str, command: str
) -> None:
    done = client(host, instance, user, f"r.execute_command(*{command.split()!r})")
    assert done.rc != 0 and re.search("NoPermission|no permissions", done.stderr), done.stderr[-600:]


def test_what_an_application_needs_is_allowed(host: Any) -> None:
    cache = """
p = r.pipeline(); p.set('shop:x', 1); p.expire('shop:x', 60); p.incr('shop:x'); p.execute()
with r.lock('shop:lock', timeout=5): pass
r.set('shop:y', 1); print(r.mget('shop:x', 'shop:y'), list(r.scan_iter('shop:*'))[:0], r.ttl('shop:x') > 0)
r.flushdb()
print(r.dbsize())
"""
    assert said(host, "cache", "shop", cache) == "['2', '1'] [] True\n0"
    broker = """
s = r.pubsub(); s.subscribe('celeryev'); s.get_message(timeout=5)
p = r.pipeline(); p.lpush('celery', 'task'); p.zadd('unacked_index', {'a': 1}); p.hset('unacked', 'a', 'x'); p.execute()
print(r.brpop('celery', timeout=1)[1], r.publish('celeryev', 'hello'), s.get_message(timeout=5)['data'])
print(r.delete('unacked', 'unacked_index'))
"""
    assert said(host, "broker", "celery", broker) == "task 1 hello\n2"


# --- what it does at its limit, and over a crash


def test_a_full_cache_throws_old_things_away_and_takes_new_ones(host: Any) -> None:
    script = """
for n in range(3000):
    r.set(f'shop:fill:{n}', 'x' * 20000)
print(r.get('shop:fill:2999') == 'x' * 20000, 100 < r.dbsize() < 1000)
"""
    assert said(host, "cache", "shop", script) == "True True"
    assert config(host, "cache", "maxmemory-policy") == "allkeys-lru"
    info = admin(host, "cache", "INFO", "all")
    assert info["evicted_keys"] > 1000 and info["maxmemory"] == 16 * 1024**2
    assert info["used_memory_rss"] < 2.5 * info["maxmemory"], info["used_memory_rss"]
    said(host, "cache", "shop", "r.flushdb()")


def test_a_full_broker_refuses_writes_and_keeps_what_it_took(host: Any) -> None:
    script = """
taken = 0
try:
    for n in range(3000):
        r.rpush('full', 'x' * 20000); taken += 1
    print('never full')
except redis.exceptions.ResponseError as error:
    print(str(error).split(' ')[0] in ('OOM', 'command'), taken == r.llen('full'), taken > 100)
finally:
    r.delete('full')
for _ in range(50):  # what was deleted is freed by a thread
    try:
        r.rpush('after', 1)
        break
    except redis.exceptions.ResponseError:
        time.sleep(0.2)
print(r.delete('after'))
"""
    assert said(host, "broker", "celery", script) == "True True True\n1"
    assert admin(host, "broker", "INFO", "stats")["evicted_keys"] == 0


def test_every_acknowledged_message_survives_a_kill(host: Any) -> None:
    script = """
acknowledged = 0
threading.Timer(2, os.kill, (VICTIM, 9)).start()
try:
    while True:
        r.rpush('crash', acknowledged); acknowledged += 1
except Exception:
    print(acknowledged)
"""
    before = pid(host, "broker")
    said(host, "broker", "celery", "r.delete('crash')")
    acknowledged = int(said(host, "broker", "celery", script.replace("VICTIM", before)))
    wait(lambda: answers(host, "broker"))
    assert pid(host, "broker") != before
    found = int(said(host, "broker", "celery", "print(r.llen('crash'))"))
    assert acknowledged > 100 and found in (acknowledged, acknowledged + 1), (acknowledged, found)
    said(host, "broker", "celery", "r.delete('crash')")


def test_a_cache_keeps_nothing_over_a_restart(host: Any) -> None:
    said(host, "cache", "shop", "r.set('shop:gone', 1)")
    host.check_output("systemctl restart redis-cache.service")
    wait(lambda: answers(host, "cache"))
    assert said(host, "cache", "shop", "print(r.get('shop:gone'))") == "None"
    assert not host.file("/var/lib/redis-cache/dump.rdb").exists


# --- how it runs


def test_instances_stand_apart(host: Any) -> None:
    assert len({pid(host, instance) for instance in PORTS}) == len(PORTS)
    for other in ("/var/lib/redis-broker/appendonlydir", "/etc/redis-broker/users.acl", "/etc/redis-cache/local"):
        assert host.run(f"runuser -u redis-cache -- ls {other}/ || runuser -u redis-cache -- cat {other}").rc != 0, (
            other
        )
    assert host.run("runuser -u redis-cache -- cat /etc/redis-cache/redis.conf").rc == 0
    for path in ("/etc/redis-store/redis.conf", "/etc/redis-store/users.acl", "/etc/redis-store/local"):
        assert host.file(path).mode & 0o007 == 0 and host.run(f"runuser -u nobody -- cat {path}").rc != 0
    assert host.run("runuser -u redis-cache -- sh -c 'echo > /etc/redis-cache/users.acl'").rc != 0


def test_sandbox_is_tight(host: Any) -> None:
    score = host.check_output("systemd-analyze security redis-broker.service --no-pager | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", score)[1]) <= 1.3, score  # type: ignore[index]
    assert host.check_output("systemctl show -p LimitNOFILE --value redis-broker.service") == "65536"


def test_passwords_are_on_the_host_as_hashes_only(host: Any) -> None:
    stored = host.check_output(
        "cat /etc/redis-cache/* /var/lib/redis-cache/state.conf /etc/systemd/system/redis-cache.service"
    )
    assert stored.count("#") > 3 and "user shop " in stored
    for password in (ADMIN, *(p for (instance, _), p in USERS.items() if instance == "cache")):
        assert password not in stored and password.strip() not in stored
    assert " nopass" not in stored


# --- what a run disturbs


def test_a_run_that_changes_nothing_restarts_nothing_in_three_calls(host: Any) -> None:
    before = {instance: (pid(host, instance), run_id(host, instance)) for instance in PORTS}
    run = play(*PORTS, *SENTINELS)
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
    assert len(run["calls"]) == 3 * len(PORTS | SENTINELS), run["calls"]
    assert {instance: (pid(host, instance), run_id(host, instance)) for instance in PORTS} == before
    checked = play(*PORTS, *SENTINELS, check=True)
    assert (checked["rc"], checked["changed"]) == (0, 0), checked["tasks"]


def test_settings_are_applied_live_and_stay(host: Any, restored: list[str]) -> None:
    restored.append("broker")
    before = run_id(host, "broker")
    values: dict[str, Any] = {
        "memory_mb": 40,
        "settings": {"slowlog-max-len": 99, "timeout": 300, "save": ["3600", "1"]},
    }
    checked = play("broker", check=True, **values)
    assert checked["rc"] == 0 and checked["set"] == ["maxmemory", "save", "slowlog-max-len", "timeout"], checked["set"]
    run = play("broker", **values)
    assert run["rc"] == 0 and run["set"] == checked["set"], run["output"][-3000:]
    assert run_id(host, "broker") == before
    assert config(host, "broker", "maxmemory") == str(20 * 1024**2)
    # What is no longer asked for goes back to what it was; what somebody set by hand too.
    admin(host, "broker", "CONFIG", "SET", "hz", "50")
    assert play("broker")["set"] == ["hz", "maxmemory", "save", "slowlog-max-len", "timeout"]
    assert run_id(host, "broker") == before
    host.check_output("systemctl restart redis-broker.service")
    assert play("broker")["changed"] == 0


def test_another_port_and_address_are_taken_up_live(host: Any, restored: list[str]) -> None:
    restored.append("cache")
    before = run_id(host, "cache")
    assert play("cache", port=6479, bind=["127.0.0.1", "-::1", "{{ own_address }}"])["rc"] == 0
    script = "print(r.info()['run_id'])"
    assert said(host, "cache", "monitor", script, port=6479) == before
    assert not answers(host, "cache")


def test_one_restart_where_it_must_be_and_none_when_forbidden(host: Any, restored: list[str]) -> None:
    restored.append("cache")
    before = run_id(host, "cache")
    run = play("cache", settings={"databases": 4}, restart="never")
    assert run["rc"] == 0 and "databases" in run["words"] and "only after a restart" in run["words"]
    assert run_id(host, "cache") == before
    run = play("cache", settings={"databases": 4})
    after = run_id(host, "cache")
    assert run["rc"] == 0 and after != before
    assert config(host, "cache", "databases") == "4"
    assert play("cache", settings={"databases": 4})["changed"] == 0 and run_id(host, "cache") == after


def test_users_and_passwords_change_live_and_in_no_log_or_process_list(host: Any, restored: list[str]) -> None:
    restored.append("cache")
    before = run_id(host, "cache")
    secret, new_admin = "Tell-tale-4711 'x' $y", "Tell-tale-admin \\ %"
    host.run(
        "nohup sh -c 'for i in $(seq 300); do ps axww -o args; sleep 0.05; done > /root/ps.log' > /dev/null 2>&1 &"
    )
    users = [{"name": "shop", "password": secret, "keys": ["shop:*"], "commands": ["+get", "+ping"]}]
    run = play("cache", words=("-vvv", "--diff"), users=users, admin_password=new_admin)
    host.check_output("cp /root/ps.log /root/ps-of-run.log")
    assert run["rc"] == 0 and run["set"] == ["user admin", "user monitor", "user shop"], run["output"][-3000:]
    assert run_id_of(host, new_admin) == before
    assert said(host, "cache", "shop", "print(r.ping())", password=secret) == "True"
    assert client(host, "cache", "shop", "r.ping()").rc != 0
    assert client(host, "cache", "monitor", "r.ping()").rc != 0
    assert "NoPermission" in client(host, "cache", "shop", "r.set('shop:a', 1)", password=secret).stderr
    logs = host.check_output("cat /root/ps-of-run.log; journalctl --no-pager") + run["output"]
    assert "redis-server" in logs and "Tell-tale" not in logs
    assert play("cache", users=users, admin_password=new_admin)["changed"] == 0


def run_id_of(host: Any, password: str) -> str:
    return said(host, "cache", "admin", "print(r.info('server')['run_id'])", password=password)


def test_rights_given_by_hand_are_taken_back(host: Any) -> None:
    admin(host, "cache", "ACL", "SETUSER", "shop", "+flushall")
    admin(host, "cache", "ACL", "SETUSER", "guest", "on", "nopass", "~*", "+@all")
    run = play("cache")
    assert run["rc"] == 0 and run["set"] == ["user guest", "user shop"], run["set"]
    assert client(host, "cache", "shop", "r.flushall()").rc != 0
    assert client(host, "cache", "guest", "r.ping()").rc != 0


def test_a_renewed_certificate_is_taken_up_without_a_restart(host: Any) -> None:
    ask = f"openssl s_client -connect redis.test:6379 -CAfile {TLS}/ca.pem < /dev/null 2> /dev/null | openssl x509 -noout -subject"
    before = run_id(host, "cache")
    for leaf in ("renewed", "redis.test"):
        host.check_output(f"cd {TLS} && cat {leaf}.pem > cache.pem && cat {leaf}.key > cache.key")
        run = play("cache")
        assert run["rc"] == 0 and run["set"] == ["certificate"], run["output"][-3000:]
        assert leaf in host.check_output(ask) and run_id(host, "cache") == before
    assert play("cache")["changed"] == 0


# --- data over a change of mind


def test_turning_the_log_on_keeps_the_data_over_a_crash(host: Any) -> None:
    """From nothing kept to everything kept, live; the way back is refused while there is data."""
    one = {"name": "turned", "port": 6390}
    made = play("cache", **one)
    assert made["rc"] == 0, made["output"][-3000:]
    where: dict[str, Any] = {"port": 6390}
    try:
        said(
            host, "cache", "shop", "p = r.pipeline()\nfor n in range(500): p.set(f'shop:{n}', n)\np.execute()", **where
        )
        run = play("cache", **one, preset="broker")
        assert run["rc"] == 0, run["output"][-3000:]
        host.check_output(f"kill -9 {pid(host, 'turned')}")
        wait(lambda: client(host, "cache", "admin", "r.ping()", **where).rc == 0)
        assert said(host, "cache", "admin", "print(r.dbsize())", **where) == "500"
        run = play("cache", **one)
        assert run["rc"] != 0 and "keeps 500 keys over a restart (log)" in run["words"], run["words"]
        assert said(host, "cache", "admin", "print(r.config_get('appendonly')['appendonly'])", **where) == "yes"
        host.check_output("systemctl stop redis-turned.service")
        run = play("cache", **one)
        assert run["rc"] != 0 and "is not running and has data" in run["words"], run["words"]
    finally:
        host.run("systemctl disable --now redis-turned.service; rm -rf /etc/redis-turned /var/lib/redis-turned "
                 "/etc/systemd/system/redis-turned.service; userdel redis-turned; systemctl daemon-reload")  # fmt: skip


# --- copies


def test_a_replica_gets_the_data_over_tls_and_refuses_writes(host: Any) -> None:
    said(host, "store", "shop", "r.set('copied', 'ü')")
    wait(lambda: said(host, "copy", "shop", "print(r.get('copied'))") == "ü")
    assert client(host, "copy", "shop", "r.set('copied', 1)").rc != 0
    info = admin(host, "copy", "INFO", "replication")
    assert (info["role"], info["master_link_status"], info["master_port"]) == ("slave", "up", PORTS["store"])
    users = [
        line.split(" user=")[1].split(" ")[0]
        for line in admin_text(host, "store", "CLIENT LIST").splitlines()
        if " flags=S" in line
    ]
    assert users == ["replica"]
    assert "Tell" not in users


def admin_text(host: Any, instance: str, command: str) -> str:
    script = f"r.response_callbacks.clear(); print(r.execute_command(*{command.split()!r}))"
    return said(host, instance, "admin", script)


def test_the_replicas_user_can_only_replicate(host: Any) -> None:
    password = GIVEN["replication_password"]
    for command in (["GET", "copied"], ["SET", "copied", "1"], ["CONFIG", "GET", "*"], ["KEYS", "*"]):
        done = client(host, "store", "replica", f"r.execute_command(*{command!r})", password=password)
        assert done.rc != 0 and "NoPermission" in done.stderr, done.stderr[-500:]


def primary(host: Any, sentinel: int = 26379) -> int:
    """The port of the primary, in a Sentinel's eyes."""
    return int(
        said(
            host,
            "store",
            "shop",
            "print(r.sentinel_get_master_addr_by_name('store')[1])",
            port=sentinel,
            password="shop",
        )
    )


def role(host: Any, instance: str) -> str:
    return str(admin(host, instance, "INFO", "replication")["role"])


def linked(host: Any, instance: str) -> bool:
    return answers(host, instance) and admin(host, instance, "INFO", "replication").get("master_link_status") == "up"


def test_a_sentinel_tells_where_the_primary_is_and_nothing_else(host: Any) -> None:
    for port in SENTINELS.values():
        assert primary(host, port) == PORTS["store"]
        wait(
            lambda port=port: (
                "OK 3"
                in said(host, "store", "shop", "print(r.execute_command('SENTINEL', 'CKQUORUM', 'store'))", port=port)
            )
        )
        for command in (
            "SENTINEL FAILOVER store",
            "SENTINEL SET store quorum 1",
            "SENTINEL REMOVE store",
            "ACL LIST",
            "SHUTDOWN",
        ):
            done = client(host, "store", "shop", f"r.execute_command(*{command.split()!r})", port=port)
            assert done.rc != 0 and "NoPermission" in done.stderr, done.stderr[-500:]
        assert client(host, "store", "shop", "r.ping()", port=port, ssl=False).rc != 0


def test_a_lost_primary_is_replaced_and_no_run_or_restart_undoes_it(host: Any) -> None:
    wait(lambda: linked(host, "copy"))
    written = said(
        host, "store", "shop", "r.delete('drill'); [r.rpush('drill', n) for n in range(300)]; print(r.wait(1, 5000))"
    )
    assert written == "1"
    host.check_output("systemctl kill -s KILL redis-store; systemctl stop redis-store")
    seconds = wait(lambda: primary(host) == PORTS["copy"] and role(host, "copy") == "master", 40)
    print(f"promoted after {seconds:.1f} s")
    assert said(host, "copy", "shop", "print(r.rpush('drill', 300))") == "301"
    host.check_output("systemctl start redis-store")
    wait(lambda: role(host, "store") == "slave" and linked(host, "store"), 60)
    assert said(host, "store", "shop", "print(r.llen('drill'))") == "301"

    ran = {instance: run_id(host, instance) for instance in ("store", "copy")}
    run = play("store", "copy", "watch-a")
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
    assert run["words"].count("It was left so") == 2 and "and it is a primary" in run["words"], run["words"]
    run = play("store", "copy", memory_mb=30)
    assert run["rc"] == 0 and run["set"] == ["maxmemory"], run["set"]
    assert {instance: run_id(host, instance) for instance in ("store", "copy")} == ran
    assert (role(host, "store"), role(host, "copy"), primary(host)) == ("slave", "master", PORTS["copy"])

    # What CONFIG REWRITE copied into the server's own file does not stand in the way of the configuration.
    admin(host, "store", "CONFIG", "REWRITE")
    assert play("store", "copy")["set"] == ["maxmemory"]
    host.check_output("systemctl restart redis-store")
    wait(lambda: linked(host, "store"))
    assert config(host, "store", "maxmemory") == str(12 * 1024**2)
    assert (role(host, "store"), primary(host)) == ("slave", PORTS["copy"])

    script = "print(r.execute_command('SENTINEL', 'FAILOVER', 'store'))"
    wait(lambda: client(host, "store", "admin", script, port=26379).rc == 0, 90)
    wait(lambda: primary(host) == PORTS["store"] and role(host, "store") == "master" and linked(host, "copy"), 60)
    assert "It was left so" not in play("store", "copy")["words"]
    said(host, "store", "shop", "r.delete('drill')")


def test_what_a_sentinel_watches_changes_live(host: Any) -> None:
    before = pid(host, "watch-a")
    users = [{"name": "shop", "password": "shop", "commands": ["+ping"]}]
    run = play("watch-a", down_after_seconds=9, users=users)
    assert run["rc"] == 0 and run["set"] == ["store", "user shop"], run["set"]
    script = "print(r.sentinel_master('store')['down-after-milliseconds'])"
    assert said(host, "store", "admin", script, port=26379) == "9000"
    assert play("watch-a", password="it's odd")["words"].count("characters that Sentinel would break") == 1
    run = play("watch-a")
    assert run["rc"] == 0 and run["set"] == ["store", "user shop"] and pid(host, "watch-a") == before


# --- what is refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "server"}, 'redis_name is "server"'),
    ({"name": "Big_one"}, 'redis_name is "Big_one"'),
    ({"memory_mb": 8}, "redis_memory_mb is 8"),
    ({"port": 0}, "redis_port is 0"),
    ({"port": 6380}, "something else on"),
    ({"preset": "broker", "settings": {"maxmemory-policy": "allkeys-lru"}}, "which would throw messages away"),
    (
        {"settings": {"maxmemory": "1gb", "bind": "0.0.0.0"}},
        "redis_settings has bind, maxmemory, which have variables of their own",
    ),
    ({"settings": {"rename-command": "KEYS x"}}, "redis_settings has rename-command"),
    ({"settings": {"maxmemorry-policy": "x"}}, "does not take the new configuration of cache"),
    ({"users": [{"name": "a", "password": "x\ny"}]}, "has a line break in it (a)"),
    ({"users": [{"name": "a", "password": ""}]}, "a password is empty (a)"),
    ({"users": [{"name": "admin", "password": "x"}]}, "redis_users has admin, which the role makes itself"),
    ({"users": [{"name": "a", "password": "x"}, {"name": "a", "password": "y"}]}, "has a name twice"),
    ({"users": [{"name": "a b", "password": "x"}]}, "Use names without spaces"),
    ({"users": [{"name": "a", "password": "x", "keys": ["a b"]}]}, "with a space or with nothing in them"),
    ({"users": [{"name": "a", "password": "x", "commands": ["get"]}]}, "has the commands get"),
    (
        {"users": [{"name": "a", "password": "x", "commands": ["+nonsense"]}]},
        "does not take the new configuration of cache",
    ),
    ({"bind": ["192.0.2.1"]}, "which is no address of"),
    ({"replica_of": "nowhere"}, 'redis_replica_of is "nowhere"'),
    ({"replica_of": "nowhere:1"}, "redis_replication_password is not"),
    ({"key": "/nowhere.key"}, "/nowhere.key is not there"),
    ({"key": f"{TLS}/ca.key"}, "the group ssl-cert cannot read it"),
    ({"key": f"{TLS}/renewed.key"}, "does not take the new configuration of cache"),
    ({"admin_password": ""}, "a password is empty (redis_admin_password)"),
    *([({"flavor": "valkey"}, "cache on")] if NEW else [({"flavor": "valkey"}, "Debian 12 has no package of it")]),
]


def test_impossible_input_is_refused_and_nothing_changes(host: Any) -> None:
    before = run_id(host, "cache"), host.check_output("cat /etc/redis-cache/* | sha256sum")
    run = play(playbook="refusals.yml", cases=[values for values, _ in REFUSED])
    assert run["rc"] == 0, run["output"][-3000:]
    for _, sentence in REFUSED:
        assert sentence in run["words"], f"{sentence!r} is not in {run['words']}"
    assert run["words"].count("redis changed nothing") >= len(REFUSED)
    assert (run_id(host, "cache"), host.check_output("cat /etc/redis-cache/* | sha256sum")) == before


def test_all_come_back_after_a_reboot(host: Any) -> None:
    said(host, "broker", "celery", "r.rpush('over-the-reboot', 1)")
    name = host.backend.host
    for command in (["kill", "--signal", "SIGRTMIN+3"], ["wait"], ["start"]):
        subprocess.run(["docker", *command, name], check=True, capture_output=True, timeout=90)
    wait(lambda: host.run("grep -q redis.test /etc/hosts || echo $(hostname -I) redis.test >> /etc/hosts").rc == 0)
    wait(lambda: all(answers(host, instance) for instance in PORTS), 60)
    assert said(host, "broker", "celery", "print(r.llen('over-the-reboot')); r.delete('over-the-reboot')") == "1"
    run = play(*PORTS)
    assert (run["rc"], run["changed"]) == (0, 0), run["tasks"]
    wait(lambda: linked(host, "copy"))
    assert primary(host) == PORTS["store"]
