"""What the role promises of a cluster of three: who gets in, what the loss of one costs, and what never happens by itself."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import testinfra

HERE = Path(__file__).resolve().parents[1]
PREFIX, DEBIAN = os.environ.get("STEPLADDER_SCENARIO", "etcd"), os.environ.get("STEPLADDER_DEBIAN", "13")
NAMES = {f"db{n}": f"{PREFIX}{suffix}-debian{DEBIAN}" for n, suffix in ((1, ""), (2, "-second"), (3, "-third"))}
HOSTS = {name: testinfra.get_host(f"docker://{container}") for name, container in NAMES.items()}
DB1, DB2, DB3 = HOSTS.values()
DATA, TLS = "/var/lib/etcd/main", "/etc/stepladder/tls"
ALL = ",".join(f"https://{name}.test:2379" for name in NAMES)
LOCAL = {
    "fail", "debug", "include_role", "include_tasks", "import_tasks", "validate_argument_spec", "gather_facts", "setup", "set_fact",
}  # fmt: skip


def play(
    *words: str, on: str = "", playbook: str = "again.yml", check: bool = False, **variables: Any
) -> dict[str, Any]:
    """Run the role on one host (or all) with other values: rc, changed, calls (remote ones), tasks, words, status, output."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(HERE.parents[1] / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(HERE.parents[1] / "roles"),
    }  # fmt: skip
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    command = ["ansible-playbook", "-i", inventory, str(HERE / playbook), "-e", json.dumps(variables)]
    command += ["--limit", NAMES[on]] if on else []
    done = subprocess.run(
        [*command, *words, *(["--check", "--diff"] if check else [])],
        capture_output=True, text=True, timeout=400, env=environment,
    )  # fmt: skip
    report = json.loads(done.stdout[done.stdout.index("{") :])
    results = [(t["task"]["name"], h, r) for p in report["plays"] for t in p["tasks"] for h, r in t["hosts"].items()]
    ran = [(name, host, r) for name, host, r in results if not r.get("skipped")]
    words_said = [str(r.get("msg", "")) for _, _, r in ran]
    found = [json.loads(text.removeprefix("status: ")) for text in words_said if text.startswith("status: ")]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "calls": [(name, host) for name, host, r in ran if r.get("action", "").split(".")[-1] not in LOCAL],
        "tasks": [(name, host) for name, host, r in ran if r.get("changed")],
        "words": " ".join(words_said),
        "said": [text.removeprefix("said: ") for text in words_said if text.startswith("said: ")],
        "status": found[-1] if found else {},
        "output": done.stdout + done.stderr,
    }


def played(**words: Any) -> dict[str, Any]:
    run = play(**words)
    assert run["rc"] == 0, run["words"]
    return run


def ctl(host: Any, *words: str, leaf: str = "client", at: str = ALL) -> Any:
    arguments = " ".join("%s" for _ in words)
    return host.run(
        "ETCDCTL_API=3 timeout 20 etcdctl --dial-timeout=3s --command-timeout=5s --endpoints=%s --cacert=%s --cert=%s --key=%s "
        + arguments,
        at, f"{TLS}/ca.pem", f"{TLS}/{leaf}.pem", f"{TLS}/{leaf}.key", *words,
    )  # fmt: skip


def put(value: str, host: Any = DB1) -> None:
    done = ctl(host, "put", "mark", value)
    assert done.rc == 0, done.stderr


def got(host: Any = DB1, at: str = ALL) -> str:
    done = ctl(host, "get", "mark", "--print-value-only", at=at)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def pids() -> dict[str, str]:
    return {
        name: host.check_output("systemctl show -p MainPID --value etcd.service").strip()
        for name, host in HOSTS.items()
    }


def test_only_the_cas_clients_get_in_and_only_members_are_peers() -> None:
    put("first")
    assert [got(at=f"https://{name}.test:2379") for name in NAMES] == ["first"] * 3
    assert ctl(DB1, "get", "mark", leaf="stranger").rc != 0
    without = DB1.run(
        "ETCDCTL_API=3 timeout 20 etcdctl --command-timeout=3s --endpoints=%s --cacert=%s get mark",
        ALL,
        f"{TLS}/ca.pem",
    )
    assert without.rc != 0 and "first" not in without.stdout
    assert (
        DB1.run(
            "timeout 5 python3 -c %s", "import urllib.request; urllib.request.urlopen('http://db1.test:2379/health')"
        ).rc
        != 0
    )
    peer = DB1.run("timeout 5 openssl s_client -connect db2.test:2380 -CAfile %s </dev/null", f"{TLS}/ca.pem")
    assert "Acceptable client certificate CA names" in peer.stdout
    listening = DB1.check_output("ss -Hltn")
    assert {line.split()[3] for line in listening.splitlines() if ":2379" in line or ":2380" in line} == {
        "198.18.1.21:2379", "198.18.1.21:2380",
    }  # fmt: skip


def test_a_run_that_changes_nothing_makes_three_calls_and_restarts_nobody() -> None:
    before = pids()
    run = played()
    assert run["changed"] == 0, run["tasks"]
    assert max(sum(host == container for _, host in run["calls"]) for container in NAMES.values()) <= 3, run["calls"]
    checked = played(check=True)
    assert checked["changed"] == 0, checked["tasks"]
    assert pids() == before


def test_status_names_the_leader_and_who_is_away() -> None:
    DB2.check_output("systemctl stop etcd.service")
    try:
        put("two are enough")
        status = played(on="db1", check=True, block="status")["status"]
        assert status["quorum"] and status["leader"] in ("db1", "db3")
        assert [member["name"] for member in status["members"] if member["healthy"]] == ["db1", "db3"]
        put("one is away")
    finally:
        DB2.check_output("systemctl start etcd.service")
    assert got(DB2, "https://db2.test:2379") == "one is away"


def test_a_renewed_certificate_is_taken_up_without_a_restart() -> None:
    def served(port: int) -> str:
        shown = f"openssl s_client -connect db1.test:{port} -cert {TLS}/client.pem -key {TLS}/client.key </dev/null 2>/dev/null"
        return str(DB1.check_output(f"{shown} | openssl x509 -noout -serial")).strip()

    before, old = pids(), [served(port) for port in (2379, 2380)]
    DB1.check_output(
        f"cd {TLS} && cp db1.new.key k && chgrp ssl-cert k && chmod 0640 k && cp db1.new.pem c && mv k db1.test.key && mv c db1.test.pem"
    )
    new = DB1.check_output(f"openssl x509 -noout -serial -in {TLS}/db1.test.pem").strip()
    assert [served(port) for port in (2379, 2380)] == [new, new] != old
    # The others reach it, and it the others, by new connections.
    DB2.check_output("systemctl restart etcd.service")
    put("renewed")
    assert got(DB2, "https://db2.test:2379") == "renewed"
    assert pids()["db1"] == before["db1"]
    assert played()["changed"] == 0


def test_what_cannot_work_is_refused_before_anything_changes() -> None:
    two, four = (
        [{"name": f"db{n}", "host": f"db{n}.test"} for n in (1, 2)],
        [{"name": f"db{n}", "host": f"db{n}.test"} for n in (1, 2, 3, 4)],
    )
    cases = [
        ({"members": two}, "with fewer than three nothing can be written once one is lost"),
        ({"members": four}, "an even number outlives the loss of no more"),
        ({"members": [*four[:2], {"name": "db2", "host": "x.test"}]}, "a name or a host twice"),
        ({"members": [*four[:2], {"name": "db4", "host": "db4.test"}]}, "db1, db2, db3, and etcd_members says db1, db2, db4"),
        ({"member": "db9"}, "does not have this member, db9"),
        ({"bind": ["db1.test"]}, "listens on addresses only"),
        ({"peer_port": 2379}, "are both 2379"),
        ({"election_ms": 300}, "less than five times"),
        ({"tls_key": f"{TLS}/db2.test.key"}, "do not go together"),
        ({"tls_key": "/nowhere"}, "/nowhere is not there"),
        ({"cluster": "other"}, "another etcd runs on db1, with its data in /var/lib/etcd/main"),
    ]  # fmt: skip
    before = pids()
    run = play(on="db1", playbook="refusals.yml", cases=[case for case, _ in cases])
    assert run["rc"] == 0, run["output"][-3000:]
    said = run["said"]
    assert len(said) == len(cases), said
    for (_, words), text in zip(cases, said, strict=True):
        assert words in text and "changed nothing" in text.replace("\n", " "), (words, text)
    assert pids() == before


def test_a_restart_for_a_changed_setting_is_one_after_the_other() -> None:
    before = pids()
    put_once = (
        f"ETCDCTL_API=3 etcdctl --command-timeout=8s --endpoints={ALL} --cacert={TLS}/ca.pem --cert={TLS}/client.pem"
        f" --key={TLS}/client.key put mark $n >/dev/null 2>&1 || echo failed"
    )
    loop = f"for n in $(seq 400); do {put_once}; [ -e /tmp/enough ] && break; sleep 0.1; done; echo wrote $n"
    writer = subprocess.Popen(["docker", "exec", NAMES["db1"], "sh", "-c", loop], stdout=subprocess.PIPE, text=True)
    run = played(etcd_quota_mb=600)
    DB1.check_output("touch /tmp/enough")
    wrote = writer.communicate(timeout=60)[0]
    assert "failed" not in wrote and "wrote" in wrote, wrote
    now = pids()
    assert all(now[name] != before[name] for name in NAMES), run["tasks"]
    assert "629145600" in DB3.check_output("grep QUOTA /etc/etcd/main/etcd.env")
    away = DB2.run("systemctl stop etcd.service")
    assert away.rc == 0
    refused = play(on="db1", etcd_quota_mb=700)
    DB2.check_output("systemctl start etcd.service")
    assert refused["rc"] != 0 and "db2 does not serve" in refused["words"], refused["words"]
    assert pids()["db1"] == now["db1"]
    again = played(etcd_quota_mb=600)  # db1's file is put back, and the restart that was due is made
    assert {host for _, host in again["tasks"]} == {NAMES["db1"]}, again["tasks"]
    assert pids()["db1"] != now["db1"]


def test_a_member_that_lost_its_data_never_comes_back_by_itself() -> None:
    put("before the loss")
    DB3.check_output(f"systemctl stop etcd.service && mv {DATA}/member /var/lib/etcd/lost")
    DB3.run("systemctl start etcd.service")
    time.sleep(1)
    assert "a member that lost it must be replaced" in DB3.check_output("journalctl -o cat -n 20 -u etcd.service")
    DB3.check_output("systemctl stop etcd.service")
    refused = play(on="db3")
    assert refused["rc"] != 0 and "has no data any more" in refused["words"], refused["words"]
    not_lost = play(on="db3", block="replace", etcd_replaces="db2")
    assert not_lost["rc"] != 0 and "db2 is a member that serves" in not_lost["words"], not_lost["words"]
    put("while it was away")
    played(on="db3", block="replace")
    assert got(DB3, "https://db3.test:2379") == "while it was away"
    assert not DB3.file("/run/stepladder-etcd.env").exists
    assert played(on="db3")["changed"] == 0
    # What it lost belongs to a member that is no more; the role tells by the cluster's own numbers.
    DB3.check_output("systemctl restart etcd.service")
    assert got(DB3, "https://db3.test:2379") == "while it was away"


def test_data_of_another_cluster_is_refused() -> None:
    DB3.check_output(f"systemctl stop etcd.service && mv {DATA}/member /var/lib/etcd/kept")
    DB3.check_output(
        f"runuser -u etcd -- timeout 8 etcd --name x --data-dir {DATA} --listen-client-urls http://127.0.0.1:9379 --advertise-client-urls"
        " http://127.0.0.1:9379 --listen-peer-urls http://127.0.0.1:9380 --initial-advertise-peer-urls http://127.0.0.1:9380"
        " --initial-cluster x=http://127.0.0.1:9380 >/dev/null 2>&1 || true"
    )
    try:
        refused = play(on="db3")
        assert refused["rc"] != 0 and "is of cluster" in refused["words"], refused["words"]
    finally:
        DB3.check_output(f"rm -rf {DATA}/member && mv /var/lib/etcd/kept {DATA}/member && systemctl start etcd.service")
    put("whole again", DB3)


def test_it_runs_in_a_sandbox_as_its_own_user() -> None:
    shown = DB1.run("systemd-analyze security etcd.service --no-pager").stdout
    assert float(shown.split("exposure level for etcd.service:")[1].split()[0]) <= 2.0, shown[-500:]
    assert DB1.check_output("stat -c %U:%a /var/lib/etcd/main") == "etcd:700"
    assert DB1.process.get(comm="etcd").user == "etcd"
