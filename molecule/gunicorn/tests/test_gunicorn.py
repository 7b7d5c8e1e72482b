"""What the role promises, tried with traffic, broken releases and interrupted runs."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import testinfra

SCENARIO = Path(__file__).resolve().parents[1]
UNITS = "/etc/systemd/system"


@pytest.fixture
def host(host):
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


def play(*words, playbook="converge.yml", **variables):
    """Run the scenario's play with other variables; returns the finished process."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    command = [
        "ansible-playbook",
        "-i",
        inventory,
        SCENARIO / playbook,
        "-e",
        json.dumps({"gunicorn_install": False, **variables}),
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=SCENARIO.parents[1])


def served(**variables):
    done = play(**variables)
    assert done.returncode == 0, done.stdout[-4000:]
    return done


def unchanged(done):
    assert done.returncode == 0, done.stdout[-4000:]
    return "changed=0" in done.stdout


def live(host, name="x"):
    return host.file(f"/var/lib/gunicorn-{name}/live").content_string.strip()


def page(host, path="/"):
    return host.run(
        f"""python3 -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1{path}').read().decode())" """
    ).stdout


def units(host, name="x"):
    listed = host.run(f"ls {UNITS} | grep '^gunicorn-{name}@' || true").stdout.split()
    running = host.run(f"systemctl list-units --all --plain --no-legend 'gunicorn-{name}@*'").stdout
    return sorted(set(listed) | {line.split()[0] for line in running.splitlines()})


def tidy(host, name="x"):
    """Exactly one instance: recorded, linked, enabled, running; nothing of any other."""
    instance = live(host, name)
    unit = f"gunicorn-{name}@{instance}.service"
    assert units(host, name) == [unit]
    assert host.run(f"ls {UNITS}/multi-user.target.wants | grep '^gunicorn-{name}@'").stdout.split() == [unit]
    assert host.run(f"systemctl is-active {unit}").stdout.strip() == "active"
    assert host.run(f"readlink /run/gunicorn-{name}/live.sock").stdout.strip() == f"{instance}/web.sock"
    assert host.run(f"ls /etc/gunicorn-{name}").stdout.split() == [f"{instance}.py"]
    assert sorted(host.run(f"ls /run/gunicorn-{name}").stdout.split()) == sorted(["live.sock", instance])
    return instance


class Load:
    """Requests through nginx at a constant rate while something happens."""

    def __init__(self, host, seconds=40, rate=50):
        self.host = host
        host.run(
            f"rm -f /run/load.json /run/load.stop; (setsid /opt/load/load.py {seconds} {rate} >/run/load.json 2>&1 &)"
        )
        time.sleep(1.5)

    def result(self):
        self.host.run("touch /run/load.stop")
        self.host.run("for i in $(seq 400); do test -s /run/load.json && break; sleep 0.1; done")
        found = json.loads(self.host.file("/run/load.json").content_string)
        print(found)
        assert found["twins"] == ["still"], found
        # What the site made a request wait beyond what this busy machine makes any request wait.
        return {**found, "waited": found["longest"] - found["machine"]}


FIRST = {}


@pytest.fixture
def r1(host):
    """The instance of release r1 that the scenario began with, live; served again only where a test left another."""
    if not FIRST or live(host) != FIRST["instance"]:
        served()
        FIRST.setdefault("instance", live(host))
    assert tidy(host) == FIRST["instance"]
    return FIRST["instance"]


def test_release_is_served_with_its_environment(host, r1):
    assert page(host).startswith('release r1 scheme https it\'s 100% "odd" \\ $HOME ünïcode')


def test_release_changes_without_a_failed_or_waiting_request(host, r1):
    load = Load(host)
    served(gunicorn_release="r2")
    served(gunicorn_release="r1")
    found = load.result()
    assert set(found["kinds"]) == {"release r1", "release r2"}, found
    assert found["waited"] < 0.5, found
    assert tidy(host) == r1, "going back to the same release with the same settings is the same instance"


@pytest.mark.parametrize(
    ("release", "sentence"),
    [
        ("crash", "this release cannot be imported"),
        ("sick", "/healthz answered 500 instead of 200"),
        ("hang", "was not healthy after 6 s"),
    ],
)
def test_release_that_does_not_get_healthy_changes_nothing(host, r1, release, sentence):
    load = Load(host)
    done = play(gunicorn_release=release, gunicorn_health_seconds=6, gunicorn_timeout=60, gunicorn_graceful_timeout=1)
    found = load.result()
    assert done.returncode != 0
    output = re.sub(r"\s+", " ", done.stdout)
    assert sentence in output and "last log lines" in output and f"{r1} keeps serving" in output
    assert "s3cr3t-value" not in output
    assert set(found["kinds"]) == {"release r1"} and found["waited"] < 0.5, found
    assert tidy(host) == r1


def test_changed_settings_are_a_new_instance_and_the_same_are_none(host, r1):
    pid = host.run(f"systemctl show -P MainPID gunicorn-x@{r1}").stdout
    assert unchanged(play())
    assert host.run(f"systemctl show -P MainPID gunicorn-x@{r1}").stdout == pid
    served(gunicorn_threads=3)
    second = tidy(host)
    assert second != r1 and second.startswith("r1-")
    host.run("echo SECRET_KEY=another-value > /srv/x/env")
    served(gunicorn_threads=3)
    assert tidy(host) != second
    host.run("echo SECRET_KEY=s3cr3t-value > /srv/x/env")


def test_running_request_finishes_on_the_old_release(host, r1):
    host.run(
        """(setsid python3 -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1/slow').read().decode())" >/run/slow 2>&1 &)"""
    )
    time.sleep(0.3)
    served(gunicorn_release="r2")
    time.sleep(3)
    assert host.file("/run/slow").content_string.startswith("release r1 ")
    assert page(host).startswith("release r2")


def test_others_cannot_connect(host, r1):
    script = f"import socket; socket.socket(socket.AF_UNIX).connect('/run/gunicorn-x/{r1}/web.sock')"
    for user, allowed in (("stranger", False), ("y", False), ("www-data", True)):
        done = host.run(f'setpriv --reuid {user} --regid {user} --init-groups python3 -c "{script}"')
        assert (done.rc == 0) == allowed, (user, done.stderr)


def test_service_writes_where_it_may_and_nowhere_else(host, r1):
    lines = page(host, "/write").split("\n")
    assert lines[0] == "/srv/x/media/ok written"
    assert [line for line in lines[1:] if line.endswith(" written")] == []


def test_sandbox_is_tight(host, r1):
    score = host.run(f"systemd-analyze security --no-pager gunicorn-x@{r1} | tail -1").stdout
    assert float(re.search(r": ([0-9.]+)", score).group(1)) <= 1.5, score


def test_errors_are_logged_with_the_requests_id(host, r1):
    page(host, "/error")
    logged = host.run(f"journalctl -o cat -u gunicorn-x@{r1} -n 60").stdout
    assert re.search(r"\[request [0-9a-f]{32}\] Error handling request /error", logged)


def test_killed_master_comes_back(host, r1):
    host.run(f"systemctl kill --kill-whom=main -s KILL gunicorn-x@{r1}")
    for _ in range(40):
        time.sleep(0.25)
        if page(host).startswith("release r1"):
            break
    assert page(host).startswith("release r1")
    tidy(host)


def test_interrupted_runs_are_finished_by_the_next(host, r1):
    # Between the health gate and the record: the new one runs, the old one is live.
    stray = f"{UNITS}/gunicorn-x@r2-00000000.service"
    host.run(f"sed 's/{r1}/r2-00000000/g' {UNITS}/gunicorn-x@{r1}.service > {stray}")
    host.run(f"sed 's/{r1}/r2-00000000/g' /etc/gunicorn-x/{r1}.py > /etc/gunicorn-x/r2-00000000.py")
    host.run("systemctl daemon-reload; systemctl enable gunicorn-x@r2-00000000; systemctl start gunicorn-x@r2-00000000")
    assert host.run("systemctl is-active gunicorn-x@r2-00000000").stdout.strip() == "active"
    assert page(host).startswith("release r1")
    served()
    assert tidy(host) == r1
    # Between the record and the link: the link still goes to the old one.
    served(gunicorn_release="r2")
    second = tidy(host)
    host.run(f"echo {r1} > /var/lib/gunicorn-x/live")
    served()
    assert tidy(host) == r1 != second
    # No link, not enabled, not running.
    host.run(f"rm /run/gunicorn-x/live.sock; systemctl disable --now gunicorn-x@{r1}")
    served()
    assert tidy(host) == r1
    assert unchanged(play())


def test_second_site_lives_beside_the_first(host, r1):
    both = {"gunicorn_name": "x-y", "gunicorn_user": "y", "gunicorn_writable_paths": []}
    served(**both)
    tidy(host, "x-y")
    assert tidy(host) == r1
    assert host.run(f"systemctl show -P Slice gunicorn-x@{r1}").stdout.strip() == "gunicorn-x.slice"
    assert host.run(f"systemctl show -P Slice gunicorn-x-y@{live(host, 'x-y')}").stdout.strip() == "gunicorn-x_y.slice"


def test_uvicorn_serves_asgi(host, r1):
    served(gunicorn_release="asgi", gunicorn_worker_class="uvicorn")
    assert page(host).startswith("release asgi scheme https")
    served()
    tidy(host)


def test_check_mode_tells_what_would_change_and_changes_nothing(host, r1):
    assert unchanged(play("--check", "--diff"))
    done = play("--check", "--diff", gunicorn_release="r2")
    assert done.returncode == 0 and "changed=1" in done.stdout and "+Description=Gunicorn for x, r2-" in done.stdout
    assert tidy(host) == r1


def test_status_names_the_live_release(host, r1):
    assert "live=r1" in play(playbook="status.yml").stdout


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"gunicorn_memory_mb": 100}, "need 336 MB"),
        ({"gunicorn_workers": 9}, "that is 2384 MB"),
        ({"gunicorn_release": "a b"}, "cannot be part of a unit's"),
        ({"gunicorn_venv": "/home/x/venv"}, "outside of /home"),
        ({"gunicorn_user": "nobody-here"}, "the user nobody-here does not exist"),
        ({"gunicorn_user": "root"}, "would run as root"),
        ({"gunicorn_release": "r9"}, "/srv/x/releases/r9 is not there"),
        ({"gunicorn_extra_settings": {"bind": "0.0.0.0:80"}}, "has bind, which the role sets"),
    ],
)
def test_wrong_input_is_refused_before_any_change(host, variables, sentence):
    before = live(host)
    done = play(**variables)
    assert done.returncode != 0
    assert sentence in re.sub(r"\s+", " ", done.stdout), done.stdout[-2000:]
    assert live(host) == before


def test_reboot_brings_the_live_release_back(host, r1):
    container = host.backend.get_pytest_id().split("://")[-1]
    subprocess.run(["docker", "restart", "-t", "20", container], check=True, capture_output=True, timeout=120)
    for _ in range(60):
        time.sleep(0.5)
        if page(host).startswith("release r1"):
            break
    assert page(host).startswith("release r1")
    assert tidy(host) == r1
