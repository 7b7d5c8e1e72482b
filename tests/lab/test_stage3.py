"""Stage 3 on top of the running stage 2: work in the background that is done once, whoever dies on the way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import docker
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def grown(lab):
    """The lab at stage 3, and what its visitors saw while it grew."""
    return lab, lab.rehearse(2, 3)


def shell(lab, code: str) -> str:
    """What a line of Python says in the site's own environment."""
    return lab.ssh("web1", f"sudo shop-manage shell --no-imports -c {json.dumps(code)} 2>/dev/null").stdout.strip()


def order(lab) -> str:
    """Places an order; gives its key."""
    key = f"stage3-{uuid.uuid4().hex}"
    wanted = {"customer": "Ada", "items": [{"sku": "item-000001", "quantity": 1}]}
    answer = lab.get("/api/orders", data=wanted, headers={"Idempotency-Key": key})
    assert answer.status == 201, answer.text
    return key


def confirmed(lab, key: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not lab.get(f"/api/orders/{key}").json()["confirmed"]:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def times(lab, key: str) -> str:
    return shell(lab, f"from orders.models import Confirmation as C; print(C.objects.get(order__key='{key}').times)")


def worker(lab, verb: str) -> None:
    lab.ssh("worker1", f"sudo systemctl {verb} celery-shop@default")


def queues(lab, **settings) -> str:
    return lab.said(lab.play("queues.yml", "-e", json.dumps(settings)))


def row(said: str) -> list[str]:
    """The line of the queue celery: [waiting, oldest, consumers]."""
    return re.search(r"(?m)^ *celery +(\S+) +(\S+) +(\S+)$", said).groups()


def test_growth_fails_no_visit_and_loses_no_order_and_no_task(grown):
    _, report = grown
    assert report["orders"] > 50
    broken = {what: report[what] for what in ("failed", "lost", "doubled", "unconfirmed", "confirmed_twice")}
    assert set(broken.values()) == {0}, report


@pytest.mark.long
@pytest.mark.parametrize("words", [(), ("--check", "--diff")])
def test_second_run_changes_nothing(grown, words):
    lab, _ = grown
    done = lab.play("stage3.yml", *words)
    assert "worker1" in done.stdout and lab.changes(done) == {}, done.stdout[-4000:]


def test_an_order_is_confirmed_by_a_task_exactly_once(grown):
    lab, _ = grown
    key = order(lab)
    assert confirmed(lab, key, 20)
    assert times(lab, key) == "1"
    assert "orders.tasks.confirm" in lab.ssh("worker1", "sudo journalctl -u celery-shop@default -n 50 -o cat").stdout


def test_a_report_is_made_by_a_task(grown):
    lab, _ = grown
    end = time.monotonic() + 30
    while (answer := lab.get("/reports/sales?days=11")).json()["state"] != "ready":
        assert time.monotonic() < end, answer.text
        time.sleep(0.5)
    assert len(answer.json()["days"]) == 11


def test_periodic_task_runs(grown):
    lab, _ = grown
    lines = lab.ssh("worker1", "sudo journalctl -u celery-shop@default --since -1min -o cat").stdout
    assert re.search(r"Task orders.tasks.send_again\[\S+\] succeeded", lines)


def test_what_the_broker_could_not_take_is_confirmed_later(grown):
    lab, _ = grown
    lab.ssh("cache1", "sudo systemctl stop redis-broker")
    try:
        key = order(lab)
        assert lab.get("/").status == 200
    finally:
        lab.ssh("cache1", "sudo systemctl start redis-broker")
    assert not confirmed(lab, key, 3)
    # Its minute of patience is over.
    shell(
        lab,
        "import datetime as d; from orders.models import Confirmation as C; "
        f"c = C.objects.get(order__key='{key}'); c.sent -= d.timedelta(minutes=2); c.save()",
    )
    assert confirmed(lab, key, 60)
    assert times(lab, key) == "1"


def test_queues_are_reported_and_one_that_waits_too_long_is_warned_of(grown):
    lab, _ = grown
    worker(lab, "stop")
    try:
        keys = [order(lab) for _ in range(3)]
        time.sleep(4)
        said = queues(lab, site_queues={"celery": {"max_wait": 2}})
        waiting, oldest, consumers = row(said)
        assert int(waiting) >= 3 and 4 <= float(oldest) < 60 and consumers == "0", said
        assert "more than its max_wait of 2 s" in re.sub(r"\s+", " ", said)
        assert "nobody consumes the queue celery" in re.sub(r"\s+", " ", said)
    finally:
        worker(lab, "start")
    assert all(confirmed(lab, key, 60) for key in keys)
    said = queues(lab)
    assert row(said)[2] == "1" and "max_wait" not in said, said


def test_broker_is_closed_to_everyone_but_the_hosts_that_run_the_code(grown):
    lab, _ = grown
    probe = f"timeout 3 bash -c '</dev/tcp/{lab.hosts['cache1']}/6380' && echo open || echo closed"
    answers = {host: lab.ssh(host, probe).stdout.strip() for host in ("web1", "worker1", "db1")}
    assert answers == {"web1": "open", "worker1": "open", "db1": "closed"}
    assert subprocess.run(["bash", "-c", probe], capture_output=True, text=True).stdout.strip() == "closed"


def test_brokers_password_is_in_no_argument_and_no_world_readable_file(grown):
    lab, _ = grown
    password = next((ROOT / ".lab" / lab.name).rglob("broker_password")).read_text().split()[0]
    for host in lab.hosts:
        assert password not in lab.ssh(host, "ps axww -o args").stdout
        found = lab.ssh(
            host, f"sudo grep -rlsF {password} /etc /srv /var/log /usr/local --exclude-dir=releases || true"
        )
        for path in found.stdout.split():
            assert lab.ssh(host, f"sudo stat -c %a {path}").stdout.strip()[-1] == "0", path


def releases(lab) -> set[str]:
    """What is live on the web host and on the worker, and what the worker's process runs."""
    live = {lab.ssh(host, "readlink /srv/shop/current").stdout.strip().split("/")[-1] for host in ("web1", "worker1")}
    command = (
        "sudo cat /proc/$(systemctl show -P MainPID celery-shop@default)/environ | tr '\\0' '\\n' | grep CELERY_RELEASE"
    )
    return live | {lab.ssh("worker1", command).stdout.strip().split("=")[-1]}


@pytest.mark.long
def test_deploy_and_rollback_bring_the_workers_along(grown, tmp_path):
    lab, _ = grown
    before = releases(lab)
    assert len(before) == 1
    newer = tmp_path / "shop"
    shutil.copytree(ROOT / "examples/shop", newer)
    (newer / "NEWS").write_text("a newer version\n")
    lab.play("deploy.yml", "-e", json.dumps({"site_source": {"path": str(newer)}}))
    after = releases(lab)
    assert len(after) == 1 and after != before
    lab.play("rollback.yml")
    assert releases(lab) == before
    assert confirmed(lab, order(lab), 30)


@pytest.mark.long
def test_everything_returns_after_a_reboot(grown):
    lab, _ = grown
    client = docker.from_env()
    for host in lab.hosts:
        client.containers.get(f"{lab.name}-{host}").restart(timeout=30)
    lab.wait_for("/readyz", seconds=120)
    assert confirmed(lab, order(lab), 90)
    for unit in ("celery-shop@default", "celery-beat-shop", "celery-health-shop.timer"):
        assert lab.ssh("worker1", f"systemctl is-active {unit}").stdout.strip() == "active"
    for host in lab.hosts:
        assert lab.ssh(host, "systemctl --failed --no-legend --plain").stdout.strip() == ""


@pytest.mark.parametrize(
    ("playbook", "change", "sentence"),
    [
        ("stage2.yml", {}, "Run playbooks/stage3.yml"),
        ("stage3.yml", {"site_beat_host": "web1"}, "site_beat_host is 'web1', which is no host of worker (worker1)"),
        ("stage3.yml", {"site_queues": {"celery": {}, "mail": {}}}, "Nobody consumes the queue mail"),
        ("stage3.yml", {"site_visibility_timeout": 20}, "may run for 20 s, and after 20 s"),
        ("stage3.yml", {"site_broker_settings": {"maxmemory-policy": "allkeys-lru"}}, "would throw tasks away"),
        ("stage3.yml", {"site_broker_password": "two\nlines"}, "site_broker_password has a line break in it"),
    ],
)
def test_what_cannot_go_well_is_refused_before_any_change(grown, playbook, change, sentence):
    lab, _ = grown
    done = lab.play(playbook, "-e", json.dumps(change), check=False)
    said = lab.said(done)
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", said), said[-3000:]
    assert lab.changes(done) == {}
