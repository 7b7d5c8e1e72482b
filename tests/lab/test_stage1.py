"""Stage 1 in the lab: what a person gets from ./ladder up, and what must hold on the day after."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import time
import uuid
from collections import Counter
from pathlib import Path

import docker
import pytest

from lab import ansible, bench

ROOT = Path(__file__).resolve().parents[2]


def order(lab, key: str):
    lab.ladder("play", "playbooks/manage.yml", "-e", json.dumps({"command": ["seed_shop", "--products", "3"]}))
    page = lab.get("/").text
    sku = re.search(r"/products/([a-z0-9-]+)/", page, re.I).group(1)
    return lab.get(
        "/api/orders",
        data={"customer": "Ada", "items": [{"sku": sku, "quantity": 1}]},
        headers={"Idempotency-Key": key},
    )


def release(lab) -> str:
    return lab.get("/healthz").json()["release"]


def test_site_answers_over_verified_https(lab):
    answer = lab.wait_for("/")
    assert "text/html" in answer.headers["Content-Type"]
    assert lab.get("/readyz").status == 200


def test_access_log_says_how_long_a_request_waited_for_a_worker(lab):
    lab.get("/healthz?waited")
    done = lab.ssh("web1", "sudo grep waited /var/log/nginx/shop-access.log | tail -1")
    line = json.loads(done.stdout)
    assert 0 <= line["queue_seconds"] <= line["seconds"] + 0.01
    assert "X-Queue-Seconds" not in lab.get("/healthz").headers


def test_an_address_without_the_sites_name_is_not_served(lab):
    with pytest.raises(OSError):
        lab.get("/", name="other.example.com")


def test_http_is_sent_to_https(lab):
    done = lab.ssh("web1", "curl -sI -H 'Host: shop.example.com' http://127.0.0.1/ || true")
    assert re.search(r"HTTP/1.1 30[18]", done.stdout) or "curl" in done.stderr


def test_an_order_is_written_once_and_read_back(lab):
    key = str(uuid.uuid4())
    first = order(lab, key)
    assert first.status == 201, first.text
    assert order(lab, key).status == 200
    assert lab.get(f"/api/orders/{key}").status == 200


def test_second_run_makes_no_host_and_changes_nothing(lab):
    client = docker.from_env()
    before = {host: client.containers.get(f"{lab.name}-{host}").id for host in ("web1", "db1")}
    lab.ladder("up", "1", "--debian", lab.debian)
    said = (lab.folder / "logs/stage1.log").read_text()
    counts = ansible.recap(said)
    assert {"web1", "db1"} <= set(counts) and not any(count["changed"] for count in counts.values()), said[-4000:]
    assert {host: client.containers.get(f"{lab.name}-{host}").id for host in before} == before


def test_a_run_without_changes_makes_few_remote_calls(lab, tmp_path, monkeypatch):
    tally = tmp_path / "remote-calls"
    for name, value in bench.counting(tally).items():
        monkeypatch.setenv(name, value)
    assert lab.changes(lab.play("stage1.yml")) == {}
    calls = Counter(tally.read_text().split())
    assert set(calls) == {lab.hosts["web1"], lab.hosts["db1"]}
    assert max(calls.values()) <= 30, calls


def test_check_mode_on_a_provisioned_site_finds_nothing_to_change(lab):
    done = lab.play("stage1.yml", "--check", "--diff")
    assert lab.changes(done) == {}, done.stdout[-4000:]


def test_database_is_closed_to_everyone_but_the_web_host(lab):
    address = lab.hosts["db1"]
    probe = f"timeout 3 bash -c '</dev/tcp/{address}/5432' && echo open || echo closed"
    assert lab.ssh("web1", probe).stdout.strip() == "open"
    # The machine that the lab runs on stands for everybody else.
    done = subprocess.run(["bash", "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "closed"


def test_secrets_are_in_no_process_list_and_no_world_readable_file(lab):
    password = next((ROOT / ".lab" / lab.name).rglob("database_password")).read_text().split()[0]
    for host in lab.hosts:
        processes = lab.ssh(host, "sudo ps axeww").stdout
        listed = [line for line in processes.splitlines() if password in line]
        # `e` shows root the environment of processes, where the site's own have it; arguments must not.
        assert password not in lab.ssh(host, "ps axww -o args").stdout, listed
        found = lab.ssh(
            host, f"sudo grep -rlsF {password} /etc /srv /var/log /usr/local --exclude-dir=releases || true"
        )
        for path in found.stdout.split():
            mode = lab.ssh(host, f"sudo stat -c %a {path}").stdout.strip()
            assert mode[-1] == "0", f"{path} on {host} holds the database's password and has mode {mode}"


def lock_of(lab) -> str:
    return lab.ssh("web1", "cat /var/lib/stepladder/django-shop.lock || true").stdout


def test_broken_release_leaves_the_old_one_serving(lab, tmp_path):
    before = release(lab)
    broken = tmp_path / "shop"
    shutil.copytree(ROOT / "examples/shop", broken)
    with (broken / "shop/wsgi.py").open("a") as wsgi:
        wsgi.write("\nraise RuntimeError('this release cannot serve')\n")
    done = lab.play("deploy.yml", "-e", json.dumps({"site_source": {"path": str(broken)}}), check=False)
    assert done.returncode != 0
    assert "this release cannot serve" in done.stdout + done.stderr
    assert release(lab) == before
    assert lab.ssh("web1", "systemctl --failed --no-legend --plain").stdout.strip() == ""
    # What it left half-way is known by its lock; a run that goes on from there and is refused keeps the lock, as its own.
    assert "the deploy of" in lock_of(lab)
    refused = lab.play("rollback.yml", "-e", "to=nosuchrelease", check=False)
    assert "The deploy lock is kept" in lab.said(refused)
    assert "a rollback" in lock_of(lab)
    lab.play("lock.yml", "-e", "state=off")


def test_a_refused_deploy_or_rollback_keeps_nobody_out(lab, tmp_path):
    unchecked = tmp_path / "shop"
    shutil.copytree(ROOT / "examples/shop", unchecked)
    with (unchecked / "shop/urls.py").open("a") as urls:
        urls.write("\nraise RuntimeError('no check gets past this')\n")
    before = release(lab)
    for playbook, setting, words in (
        ("rollback.yml", {"to": "nosuchrelease"}, "nosuchrelease"),
        ("deploy.yml", {"site_source": {"path": str(unchecked)}}, "no check gets past this"),
    ):
        done = lab.play(playbook, "-e", json.dumps(setting), check=False)
        assert done.returncode != 0
        assert words in lab.said(done)
        assert "web1 serves what it served before. The deploy lock is let go." in lab.said(done)
        assert lock_of(lab) == ""
    assert release(lab) == before


def test_deploy_and_rollback_fail_no_request(lab, visitors, tmp_path):
    before = release(lab)
    newer = tmp_path / "shop"
    shutil.copytree(ROOT / "examples/shop", newer)
    (newer / "NEWS").write_text("a newer version\n")
    with visitors:
        lab.play("deploy.yml", "-e", json.dumps({"site_source": {"path": str(newer)}}))
        assert release(lab) != before
        # A stage run keeps what is live, whatever the source says by now.
        lab.play("stage1.yml")
        assert release(lab) != before
        lab.play("rollback.yml")
        assert release(lab) == before
    visitors.were_all_served(more_than=100)


@pytest.mark.long
def test_maintenance_page_is_switched_on_and_off(lab):
    lab.play("maintenance.yml", "-e", json.dumps({"state": "on", "message": "Back at 10 o'clock – 100%"}))
    try:
        answer = lab.get("/")
        assert answer.status == 503
        assert "100%" in answer.text
    finally:
        lab.play("maintenance.yml", "-e", "state=off")
    assert lab.get("/").status == 200


def test_a_command_that_fails_says_why_in_lines(lab):
    done = lab.play("manage.yml", "-e", json.dumps({"command": ["check", "--tag", "nonsense"]}), check=False)
    assert done.returncode != 0
    said = lab.said(done)
    assert "check --tag nonsense ended with 1:" in said
    assert "CommandError" in said and "stderr_lines" not in said


def test_a_dump_takes_the_place_of_rows_only_when_told_so_and_whole(lab, tmp_path):
    kept, gone, later = (str(uuid.uuid4()) for _ in range(3))
    assert order(lab, kept).status == 201
    dump, impossible = tmp_path / "shop.dump", tmp_path / "impossible.dump"

    def write_dump(path: Path) -> None:
        command = lab.ssh_command("db1", "sudo -u postgres pg_dump -Fc shop")
        with path.open("wb") as file:
            subprocess.run(command, stdout=file, check=True, timeout=120)

    write_dump(dump)
    # One that asks for what the site's role may not do; by then everything there was has been dropped.
    lab.ssh("db1", "sudo -u postgres psql -Xq -d shop -c 'create extension file_fdw'")
    write_dump(impossible)
    lab.ssh("db1", "sudo -u postgres psql -Xq -d shop -c 'drop extension file_fdw'")
    assert order(lab, gone).status == 201

    refused = lab.play("load-dump.yml", "-e", f"dump={dump}", check=False)
    assert refused.returncode != 0 and "-e replace=shop" in lab.said(refused)
    assert lab.changes(refused) == {}

    failed = lab.play("load-dump.yml", "-e", f"dump={impossible}", "-e", "replace=shop", check=False)
    assert failed.returncode != 0 and "the database is as it was" in lab.said(failed)
    assert "permission denied to create extension" in lab.said(failed)
    assert lab.get("/").status == 503
    count = f"select count(*) from orders_order where key in ('{kept}', '{gone}')"
    assert lab.ssh("db1", f'sudo -u postgres psql -XAt -d shop -c "{count}"').stdout.strip() == "2"

    lab.play("load-dump.yml", "-e", f"dump={dump}", "-e", "replace=shop")
    assert lab.get(f"/api/orders/{kept}").status == 200
    assert lab.get(f"/api/orders/{gone}").status == 404
    # The sequences came along.
    assert order(lab, later).status == 201
    listed = lab.ssh("db1", "sudo find /var/lib/postgresql/dumps -type f -printf '%m %u %f\\n'").stdout.splitlines()
    assert listed and all(re.fullmatch(r"600 postgres shop-before-\w+\.dump", line) for line in listed)


def test_rows_that_were_deleted_are_found_beside_the_site_and_brought_back(lab):
    key = str(uuid.uuid4())
    assert order(lab, key).status == 201
    count = f"select count(*) from orders_order where key = '{key}'"
    moment = lab.ssh("db1", "sudo -u postgres psql -XAtc 'select clock_timestamp()'").stdout.strip()
    time.sleep(1)
    lab.ssh("db1", "sudo -u postgres psql -Xq -v ON_ERROR_STOP=1 -d shop -c 'truncate orders_order cascade'")
    assert lab.get(f"/api/orders/{key}").status == 404
    told = lab.said(lab.play("backup-status.yml"))
    assert re.search(r"\dF\s+full\s", told) and "the last WAL file arrived" in told

    done = lab.said(lab.play("restore.yml", "-e", json.dumps({"moment": moment})))
    look = re.search(r"look:\s+(sudo .*? -U postgres)", re.sub(r"\s+", " ", done))[1]
    remove = re.search(r"remove: (sudo /etc/pgbackrest/control discard [^ ']+)", re.sub(r"\s+", " ", done))[1]
    assert lab.ssh("web1", f'{look} -XAt -d shop -c "{count}"').stdout.strip() == "1"
    assert lab.ssh("db1", f'sudo -u postgres psql -XAt -d shop -c "{count}"').stdout.strip() == "0"
    lab.ssh("web1", remove)
    assert lab.ssh("web1", "sudo ls -A /var/lib/restored").stdout == ""
    later = str(uuid.uuid4())
    assert order(lab, later).status == 201
    refused = lab.play("restore-live.yml", "-e", json.dumps({"moment": moment}), check=False)
    assert refused.returncode != 0 and "add -e confirm=shop" in lab.said(refused) and lab.changes(refused) == {}
    failed = lab.play("restore-live.yml", "-e", json.dumps({"transaction": 2000000000, "confirm": "shop"}), check=False)
    assert failed.returncode != 0 and "The database is what it was, and runs" in re.sub(r"\s+", " ", lab.said(failed))
    assert lab.ssh("db1", f'sudo -u postgres psql -XAt -d shop -c "{count}"').stdout.strip() == "0"
    lab.play("restore-live.yml", "-e", json.dumps({"moment": moment, "confirm": "shop"}))
    assert [lab.get(f"/api/orders/{one}").status for one in (key, later)] == [200, 404]
    aside = lab.ssh("db1", "sudo ls -d /var/lib/postgresql/*/main.before-*").stdout.split()
    assert len(aside) == 1
    lab.ssh("db1", f"sudo rm -r {aside[0]} /var/lib/postgresql/*/main.failed-*")
    assert lab.changes(lab.play("stage1.yml")) == {}
    # Neither what was restored beside the site nor the other history is in the way of new backups.
    lab.play("backup.yml", "-e", "type=incr")
    proven = lab.said(lab.play("restore-drill.yml"))
    assert re.search(r"\d+ tables equal to the last bit", proven)
    assert "the last proven restore is of" in lab.said(lab.play("backup-status.yml"))


@pytest.mark.long
def test_uploads_that_were_deleted_come_back_from_the_other_host(lab):
    media = "/srv/shop/shared/media"
    write = f"sudo -u shop sh -c 'mkdir -p {media}/kept && echo one > {media}/kept/one.txt && echo two > {media}/kept/two.txt'"
    lab.ssh("web1", write)
    lab.play("backup.yml")
    told = re.sub(r"\s+", " ", lab.said(lab.play("backup-status.yml")))
    assert re.search(r"[0-9a-f]{8} 20\d\d-\S+ \S+ web1", told) and "on db1" in told and "WRONG" not in told
    assert "The secrets were not packed yet" in told
    lab.ssh("web1", f"sudo -u shop sh -c 'rm {media}/kept/one.txt && echo newer > {media}/kept/two.txt'")
    beside = re.sub(r"\s+", " ", lab.said(lab.play("restore-uploads.yml", "-e", "path=kept/one.txt")))
    remove = re.search(r"remove: (sudo rm -r \S+/uploads-\w+)", beside)[1]
    assert lab.ssh("web1", f"sudo cat {remove.split()[-1]}{media}/kept/one.txt").stdout == "one\n"
    lab.ssh("web1", remove)
    refused = lab.play("restore-uploads.yml", "-e", "confirm=yes", check=False)
    assert refused.returncode != 0 and "say -e confirm=shop" in lab.said(refused) and lab.changes(refused) == {}
    assert "1 files that were missing" in lab.said(lab.play("restore-uploads.yml", "-e", "confirm=shop"))
    assert [lab.get(f"/media/kept/{name}.txt").text for name in ("one", "two")] == ["one\n", "newer\n"]
    assert "ip saddr @" in lab.ssh("db1", "sudo nft list table inet stepladder | grep 8433").stdout
    assert lab.changes(lab.play("stage1.yml")) == {}


@pytest.mark.long
def test_everything_returns_after_a_reboot(lab):
    before = release(lab)
    client = docker.from_env()
    for host in lab.hosts:
        client.containers.get(f"{lab.name}-{host}").restart(timeout=30)
    lab.wait_for("/readyz", seconds=120)
    assert release(lab) == before
    for host in lab.hosts:
        assert lab.ssh(host, "systemctl --failed --no-legend --plain").stdout.strip() == ""
        assert "table inet stepladder" in lab.ssh(host, "sudo nft list tables").stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"site_tiezone": "Europe/Berlin"}, "Did you mean site_timezone?"),
        ({"postgres_max_connection": 10}, "postgres_max_connections"),
        ({"site_hostnames": []}, "site_hostnames is empty"),
        ({"site_tls": "selfsigned"}, "site_tls must be one of"),
        ({"site_memory_shares": {"postgres": 0.8}}, "no share for gunicorn, which runs on web1"),
        ({"site_tls": "letsencrypt"}, "needs site_contact_email"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_change(lab, change, sentence):
    done = lab.play("stage1.yml", "-e", json.dumps(change), check=False)
    output = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert done.returncode != 0
    assert sentence in output
    assert "Traceback" not in output
    assert lab.changes(done) == {}


def test_the_certificate_is_refused_without_the_environments_ca(lab):
    context = ssl.create_default_context()
    import socket

    with (
        socket.create_connection((lab.hosts["web1"], 443), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="shop.example.com")
