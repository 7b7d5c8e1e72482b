"""Stage 4 on top of the running stage 3: many machines, and changes of them that no visitor notices."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
import ssl
import time
import uuid
from collections import Counter
from pathlib import Path

import docker
import pytest

from conftest import ask
from lab import ansible, commands, inventory, model, rehearsal

ROOT = Path(__file__).resolve().parents[2]
WEB = ("web1", "web2")


@pytest.fixture(scope="module")
def grown(lab):
    """The lab at stage 4, and what its visitors saw while it grew."""
    return lab, lab.rehearse(3, 4)


def words(lab, done) -> str:
    """What a run printed, in one line."""
    return re.sub(r"\s+", " ", lab.said(done))


def served_by(lab, requests: int = 12) -> Counter[str]:
    """How many of some requests each web host's own log has."""
    mark = uuid.uuid4().hex
    for _ in range(requests):
        assert lab.get(f"/?{mark}").status == 200
    counts = {host: lab.ssh(host, f"sudo grep -c {mark} /var/log/nginx/shop-access.log || true") for host in WEB}
    return Counter({host: int(done.stdout) for host, done in counts.items()})


def serving(lab) -> dict[str, str]:
    """The release that each web host's live socket belongs to."""
    return {host: lab.ssh(host, "readlink /run/gunicorn-shop/live.sock").stdout.strip() for host in WEB}


def release(served: str) -> str:
    """The release of a live socket, which is in a folder named after it and the fingerprint of its settings."""
    return served.split("/")[0].rpartition("-")[0]


def main_process(lab, host: str) -> str:
    """The id of the Gunicorn that serves on a web host."""
    unit = f"gunicorn-shop@{serving(lab)[host].split('/')[0]}.service"
    process = lab.ssh(host, f"systemctl show --property MainPID --value {unit}").stdout.strip()
    assert int(process) > 0, f"{unit} does not run on {host}"
    return process


def noted_as_live(lab, host: str) -> str:
    """The release that a host, be it of web or of worker, has noted as the live one."""
    return lab.ssh(host, "readlink /srv/shop/current").stdout.strip().split("/")[-1]


def shop(tmp_path: Path, wsgi: str = "", news: str = "news") -> str:
    """The arguments that deploy a changed copy of the shop."""
    copy = tmp_path / f"shop-{uuid.uuid4().hex[:6]}"
    shutil.copytree(ROOT / "examples/shop", copy)
    (copy / "NEWS").write_text(news)
    with (copy / "shop/wsgi.py").open("a") as stream:
        stream.write(wsgi)
    return json.dumps({"site_source": {"path": str(copy)}})


# For all instances of the unit, so that it meets the one that the next deploy starts; those that run are left alone.
OVERRIDES = "/run/systemd/system/gunicorn-shop@.service.d"
NOTHING_NEW_STARTS = (
    f"sudo mkdir -p {OVERRIDES} && printf '[Service]\\nExecStartPre=/bin/false\\n' | sudo tee {OVERRIDES}/broken.conf"
)
EVERYTHING_STARTS = f"sudo rm -r {OVERRIDES} && sudo systemctl daemon-reload"

BROKEN_FRONT_PAGE = """
_served = application


def application(environ, start_response):
    if environ["PATH_INFO"] == "/":
        raise RuntimeError("the front page is broken")
    return _served(environ, start_response)
"""


def test_growth_loses_nothing_and_fails_no_visit(grown):
    _, report = grown
    assert report["orders"] > 50
    broken = {what: report[what] for what in ("failed", "lost", "doubled", "unconfirmed", "confirmed_twice")}
    assert set(broken.values()) == {0}, report


@pytest.mark.long
def test_check_mode_on_a_provisioned_fleet_finds_nothing_to_change(grown):
    lab, _ = grown
    done = lab.play("stage4.yml", "--check", "--diff")
    assert "edge1" in done.stdout and lab.changes(done) == {}, done.stdout[-4000:]


def test_visitors_are_shared_among_the_web_hosts_and_tied_to_none(grown):
    lab, report = grown
    counts = served_by(lab)
    assert sum(counts.values()) == 12 and min(counts.values()) >= 3, counts
    # The traffic's visitors with a session upload pictures and find them, whichever host is asked.
    lab.ladder("traffic", "--seconds", "30")
    settled = json.loads((lab.folder / "reports/traffic.json").read_text())
    assert not [kind for summed in (report, settled) for kind in summed["failures"] if kind.startswith("upload")]
    uploads = {host: lab.ssh(host, "sudo grep -c 'POST.*photo' /var/log/nginx/shop-access.log || true") for host in WEB}
    assert all(int(done.stdout) > 0 for done in uploads.values())


def test_upload_is_one_file_that_every_host_shows(grown):
    lab, _ = grown
    name = f"{uuid.uuid4().hex}.txt"
    code = (
        "from django.core.files.base import ContentFile; from django.core.files.storage import default_storage as s; "
        f"print(s.save('{name}', ContentFile(b'the same')))"
    )
    lab.ssh("web2", f"sudo shop-manage shell --no-imports -c {json.dumps(code)} 2>/dev/null")
    assert lab.ssh("web1", f"sudo cat /srv/shop/shared/media/{name}").stdout == "the same"
    assert {lab.get(f"/media/{name}").text for _ in range(6)} == {"the same"}


def test_clients_address_reaches_the_application_and_cannot_be_forged(grown):
    lab, _ = grown
    mark = uuid.uuid4().hex
    assert lab.get(f"/?{mark}", headers={"X-Forwarded-For": "192.0.2.9", "X-Request-ID": "mine"}).status == 200
    logs = "".join(lab.ssh(host, f"sudo grep {mark} /var/log/nginx/shop-access.log || true").stdout for host in WEB)
    line = json.loads(logs)
    gateway = lab.hosts["edge1"].rsplit(".", 1)[0] + ".1"
    assert line["client"] == gateway and line["request_id"] != "mine"
    # The edge says no more of what went well.
    assert lab.get(f"/?{mark}", headers={"Host": "other.example.com"}).status == 421
    # The journal takes its time to have a line.
    read = f"for i in $(seq 20); do sudo journalctl -u haproxy-edge -o cat --since -1min | grep {mark} && break; sleep 0.5; done"
    told = json.loads(lab.ssh("edge1", read).stdout)
    assert (told["status"], told["client"]) == (421, gateway)


@pytest.mark.long
def test_web_hosts_are_closed_but_to_the_edge_once_the_names_lead_there(grown, visitors):
    lab, _ = grown
    assert lab.at("web1", "/healthz").status == 200, "the names may still lead to it"
    with pytest.raises(OSError):
        lab.at("web2", "/healthz")
    with visitors:
        lab.play("stage4.yml", "-e", '{"site_web_direct": false}')
    visitors.were_all_served(more_than=50)
    for host in WEB:
        with pytest.raises(OSError):
            lab.at(host, "/healthz")
        probe = f"timeout 3 bash -c '</dev/tcp/{lab.hosts[host]}/8444' && echo open || echo closed"
        assert [lab.ssh(other, probe).stdout.strip() for other in ("edge1", "db1")] == ["open", "closed"]


@pytest.mark.long
def test_canary_with_errors_goes_back_and_the_others_never_had_it(grown, tmp_path, visitors):
    lab, _ = grown
    before = serving(lab)
    # The front page is the visitors'; what fails is one of two hosts for the seconds in which it is watched.
    with visitors:
        done = lab.play("deploy.yml", "-e", shop(tmp_path, BROKEN_FRONT_PAGE), check=False)
    assert done.returncode != 0
    assert "requests failed in the application" in words(lab, done)
    assert "Now web1 serves" in words(lab, done) and "web2 serves" in words(lab, done)
    assert serving(lab) == before
    assert set(visitors.statuses) <= {200, 500} and Counter(visitors.statuses)[500] > 0


def test_deploy_goes_on_after_one_that_failed_behind_the_canary_with_the_hosts_that_are_left(grown, tmp_path, visitors):
    lab, _ = grown
    workers = [host for host in lab.hosts if host.startswith("worker")]
    before, arguments = serving(lab), ("-e", shop(tmp_path))
    with visitors:
        lab.ssh("web2", NOTHING_NEW_STARTS)
        try:
            failed = lab.play("deploy.yml", *arguments, check=False)
        finally:
            lab.ssh("web2", EVERYTHING_STARTS)
        halfway, process = serving(lab), main_process(lab, "web1")
        assert failed.returncode != 0
        assert halfway["web1"] != before["web1"] and halfway["web2"] == before["web2"]
        new, old = release(halfway["web1"]), release(before["web2"])
        assert f"web2 did not move to {new}" in words(lab, failed)
        assert f"Now web1 serves {new}, web2 serves {old}. Mend the cause and run the same" in words(lab, failed)
        assert {noted_as_live(lab, host) for host in workers} == {old}, "workers come behind the last web host"
        done = lab.play("deploy.yml", *arguments)
        assert "ended without letting go of the lock" in words(lab, done), "that of the deploy that failed before"
        after = serving(lab)
        assert after["web1"] == halfway["web1"] and main_process(lab, "web1") == process, "web1 was not moved twice"
        assert release(after["web2"]) == new
        assert {noted_as_live(lab, host) for host in (*WEB, *workers)} == {new}
        lab.play("rollback.yml")
    visitors.were_all_served(more_than=100)
    assert serving(lab) == before


def test_a_lock_stops_deploys_until_it_is_let_go(grown):
    lab, _ = grown
    lab.play("lock.yml", "-e", '{"state": "on", "why": "the sale"}')
    try:
        for playbook in ("deploy.yml", "rollback.yml", "stage4.yml"):
            done = lab.play(playbook, check=False)
            assert (
                done.returncode != 0
                and "the sale" in words(lab, done)
                and "playbooks/lock.yml -e state=off" in words(lab, done)
            )
    finally:
        lab.play("lock.yml", "-e", "state=off")


def test_second_run_changes_nothing_and_a_drained_host_stays_out_until_it_is_readmitted(grown, visitors):
    lab, _ = grown
    with visitors:
        lab.play("drain.yml", "-e", "host=web1", "-e", "state=on")
        assert served_by(lab) == Counter({"web2": 12})
        refused = lab.play("drain.yml", "-e", "host=web2", "-e", "state=on", check=False)
        assert refused.returncode != 0 and "web2" in words(lab, refused)
        lab.ssh("web1", "sudo systemctl restart nginx")
        done = lab.play("stage4.yml")
        assert "edge1" in done.stdout and lab.changes(done) == {}, done.stdout[-4000:]
        assert served_by(lab) == Counter({"web2": 12}), "a run of the kit readmits nobody"
        lab.play("drain.yml", "-e", "host=web1", "-e", "state=off")
    visitors.were_all_served(more_than=100)
    assert min(served_by(lab).values()) >= 3


@pytest.mark.long
def test_restart_that_a_stage_run_needs_is_done_behind_a_drain(grown, visitors):
    lab, _ = grown
    for host in WEB:
        lab.ssh(host, "sudo sed -i s/^Restart=.*/Restart=no/ /etc/systemd/system/nginx.service.d/stepladder.conf")
    masters = {host: lab.ssh(host, "sudo cat /run/nginx.pid").stdout for host in WEB}
    with visitors:
        done = lab.play("stage4.yml")
    visitors.were_all_served(more_than=50)
    assert all(lab.ssh(host, "sudo cat /run/nginx.pid").stdout != masters[host] for host in WEB)
    for host in WEB:
        assert f"Drain {host}" in lab.said(done) and f"Readmit {host}" in lab.said(done)


@pytest.mark.parametrize(
    "name",
    [
        "kill-worker",
        "kill-web",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("kill-broker", "kill-cache", "deploy", "bad-deploy", "remove-web", "reboot-all")
        ),
    ],
)
def test_drill_keeps_its_promise(grown, name):
    lab, _ = grown
    done = lab.ladder("drill", name, seconds=1200)
    assert f"kept {name}" in words(lab, done)
    assert min(served_by(lab).values()) >= 3


@pytest.mark.long
def test_keeper_of_the_uploads_that_would_leave_one_host_behind_is_refused(grown, tmp_path):
    lab, _ = grown
    own = model.Lab(lab.name)
    command = ansible.playbook_command(own, inventory.without(own.root, 4, "web1", tmp_path), ["playbooks/stage4.yml"])
    code, output = ansible.run_logged(command, own.logs / "without-keeper.log", lambda _: None)
    assert code and "web2 would keep the uploads of shop, and web2 knows that web1 does" in " ".join(output.split())
    assert not any(count["changed"] for count in ansible.recap(output).values())
    assert min(served_by(lab).values()) >= 3


TASKS, TASK_SECONDS = 32, 5  # some 40 s of work for two hosts, so that one of them leaves in the middle


def send_tasks(lab) -> str:
    """Sends long tasks; gives the word by which they are found again."""
    words = ("long_tasks", "--count", str(TASKS), "--seconds", str(TASK_SECONDS))
    return rehearsal.manage(model.Lab(lab.name), *words).split()[-1]


def all_end_once(lab, word: str) -> None:
    rehearsal.wait_for_tasks(
        model.Lab(lab.name), word, "ended", TASKS, rehearsal.CONFIRM_SECONDS + TASKS * TASK_SECONDS
    )
    found = rehearsal.long_tasks(model.Lab(lab.name), word)
    assert found == {"tasks": TASKS, "begun": TASKS, "ended": TASKS, "begun again": 0}, "what ran finished where it ran"


def now(lab, host: str) -> str:
    return lab.ssh(host, "date +%s").stdout.strip()


def done_by(lab, host: str, since: str) -> int:
    """How many of the long tasks a host has done since then, in seconds since 1970."""
    journal = f"sudo journalctl -u 'celery-shop@*' -o cat --since @{since}"
    return int(lab.ssh(host, f"{journal} | grep -c 'orders.tasks.take_time.*succeeded' || true").stdout)


def ticks(lab, since: str) -> dict[str, list[float]]:
    """When each host's beat has sent the periodic task since then; the lab's hosts share one clock."""
    journal = f"sudo journalctl -u celery-beat-shop -o short-unix --since @{since} | grep 'Sending due task send-again' || true"
    return {
        host: [float(line.split()[0]) for line in lab.ssh(host, journal).stdout.splitlines()]
        for host in ("worker1", "worker2")
    }


@pytest.mark.long
def test_a_worker_host_leaves_and_comes_back_and_loses_no_task(grown, visitors):
    lab, _ = grown
    began = now(lab, "worker2")
    try:
        with visitors:
            word = send_tasks(lab)
            rehearsal.wait_for_tasks(model.Lab(lab.name), word, "ended", 2, 60)
            lab.play("stop-workers.yml", "-e", "host=worker2")
            ended = rehearsal.long_tasks(model.Lab(lab.name), word)["ended"]
            assert ended < TASKS, "it left in the middle"
            state = lab.ssh("worker2", "systemctl is-active celery-shop@default celery-health-shop.timer", check=False)
            assert state.stdout.split() == ["inactive", "inactive"]
            left = done_by(lab, "worker2", began)
            assert left > 0, "it had a part in the work"
            all_end_once(lab, word)
            assert done_by(lab, "worker2", began) == left
    finally:
        lab.play("stage4.yml")
    visitors.were_all_served(more_than=100)
    back = now(lab, "worker2")
    all_end_once(lab, send_tasks(lab))
    assert done_by(lab, "worker2", back) > 0


@pytest.mark.long
def test_beat_moves_and_each_tick_is_sent_once(grown):
    lab, _ = grown
    began = now(lab, "worker1")
    try:
        time.sleep(25)
        lab.play("stage4.yml", "-e", '{"site_beat_host": "worker2"}')
        moved = now(lab, "worker1")
        time.sleep(35)
        by_host = ticks(lab, began)
        assert by_host["worker1"] and max(by_host["worker1"]) < float(moved), by_host
        assert len([when for when in by_host["worker2"] if when > float(moved)]) in (3, 4), by_host
        assert lab.ssh("worker1", "systemctl is-active celery-beat-shop", check=False).stdout.strip() == "inactive"
    finally:
        lab.play("stage4.yml")
    time.sleep(15)
    by_host = ticks(lab, began)
    found = sorted(by_host["worker1"] + by_host["worker2"])
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    # Every ten seconds; one that fell into a move is sent late, and the next in its turn.
    assert min(gaps) > 8 and max(gaps) < 60, gaps
    assert max(by_host["worker1"]) > max(by_host["worker2"]), "it is where it was"


def test_maintenance_page_is_the_sites_own_and_the_hosts_stay_in(grown):
    lab, _ = grown
    lab.play("maintenance.yml", "-e", '{"state": "on", "message": "Back at noon"}')
    try:
        answers = [lab.get("/") for _ in range(4)]
        assert {answer.status for answer in answers} == {503}
        assert all("Back at noon" in answer.text for answer in answers)
        assert lab.get("/readyz").status == 200
    finally:
        lab.play("maintenance.yml", "-e", "state=off")
    assert lab.get("/").status == 200


def has_address(lab, host: str, address: str) -> bool:
    return f" {address}/" in lab.ssh(host, "ip -brief -4 address show").stdout


@pytest.mark.long
def test_two_edges_share_an_address_that_moves_when_one_dies(grown, tmp_path):
    lab, _ = grown
    kit, client = model.Lab(lab.name), docker.from_env()
    state = kit.load()
    before = list(state.addresses)
    network = ipaddress.ip_network(state.subnet)
    shared = str(network[250])
    setting = json.dumps({"site_virtual_address": f"{shared}/{network.prefixlen}"})
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"site": {"children": {"edge": {"hosts": {"edge2": {}}}}}}))
    commands.make_hosts(client, kit, state, [*before, "edge2"])
    try:
        lab.play("stage4.yml", "-i", str(more), "-e", setting)
        assert lab.changes(lab.play("stage4.yml", "-i", str(more), "-e", setting)) == {}
        assert (has_address(lab, "edge1", shared), has_address(lab, "edge2", shared)) == (True, False)
        assert ask(shared, lab.ca, "/").status == 200
        client.containers.get(f"{lab.name}-edge1").kill()
        died, served = time.monotonic(), None
        while time.monotonic() < died + 30 and served != 200:
            try:
                served = ask(shared, lab.ca, "/", seconds=2).status
            except (OSError, ssl.SSLError):
                time.sleep(0.2)
        took = time.monotonic() - died
        assert served == 200 and took < 10, f"{served} after {took:.1f} s"
        assert has_address(lab, "edge2", shared)
        # What comes back takes nothing from one that serves.
        commands.make_hosts(client, kit, state, [*before, "edge2"])
        lab.wait_for("/readyz")
        assert (has_address(lab, "edge1", shared), has_address(lab, "edge2", shared)) == (False, True)
    finally:
        commands.make_hosts(client, kit, state, before)
        client.containers.get(f"{lab.name}-edge2").remove(force=True, v=True)
        lab.ssh("edge1", "sudo systemctl disable --now keepalived-edge.service", check=False)
        lab.play("stage4.yml")
    assert not has_address(lab, "edge1", shared)


@pytest.mark.long
def test_everything_returns_after_a_reboot(grown):
    lab, _ = grown
    client = docker.from_env()
    for host in lab.hosts:
        client.containers.get(f"{lab.name}-{host}").restart(timeout=30)
    lab.wait_for("/readyz", seconds=120)
    for host in lab.hosts:
        assert lab.ssh(host, "systemctl --failed --no-legend --plain").stdout.strip() == ""
    assert min(served_by(lab).values()) >= 3


@pytest.mark.parametrize(
    ("playbook", "change", "sentence"),
    [
        ("stage3.yml", {}, "Run playbooks/stage4.yml"),
        ("drain.yml", {"host": "db1", "state": "on"}, "Say -e host=<one of web1, web2>"),
        ("lock.yml", {"state": "on"}, "No reason was given"),
        ("stop-workers.yml", {"host": "worker1"}, "worker1 runs beat"),
        ("stop-workers.yml", {"host": "web1"}, "Say -e host=<one of worker1, worker2>"),
    ],
)
def test_what_cannot_go_well_is_refused_before_any_change(grown, playbook, change, sentence):
    lab, _ = grown
    done = lab.play(playbook, "-e", json.dumps(change), check=False)
    assert done.returncode != 0
    assert sentence in words(lab, done), lab.said(done)[-3000:]
    assert lab.changes(done) == {}
