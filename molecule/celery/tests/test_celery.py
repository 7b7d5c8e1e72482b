"""What the role promises, tried with running tasks, killed processes, stopped ones, and a broker that goes away.

Every task that the broker has taken is written down, and the last test but one asks for each of them.
"""

import base64
import json
import re
import subprocess
import time

import pytest
import testinfra
from workers import BEAT, BOTH, DATA, active, all_done, begun, ledger, play, prop, send, served, times, wait

UNITS = "/etc/systemd/system"


@pytest.fixture
def host(host):
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


def refused(sentence, **variables):
    done = play(**variables)
    assert done.returncode != 0
    output = re.sub(r"\s+", " ", done.stdout)
    assert sentence in output, done.stdout[-3000:]
    return output


def pids(host):
    return [prop(host, unit, "MainPID") for unit in (*BOTH, BEAT)]


def redis(host, words):
    return host.run(f"redis-cli --no-auth-warning -a s3cr3t-value {words}").stdout.strip()


def ping(host, seconds=20):
    """Every worker answers `inspect ping`."""
    ask = (
        "systemd-run -q --wait --pipe -p User=x-run -p WorkingDirectory=/srv/x/releases/r1 -p EnvironmentFile=/srv/x/env"
        f" /srv/x/venv/bin/python /usr/local/lib/celery-x/ask.py shop ping {seconds} x.quick@$(hostname) x.slow@$(hostname)"
    )
    answer = json.loads(host.run(ask).stdout.strip().splitlines()[-1])
    assert len(answer["answered"]) == 2, answer


def health(host):
    return host.run("journalctl -o cat -u celery-health-x").stdout


@pytest.fixture
def r1(host):
    """Release r1 as the scenario began; brought back only where a test has left something else."""
    if "CELERY_RELEASE=r1" not in host.run(f"tr '\\0' '\\n' < /proc/{prop(host, BOTH[0], 'MainPID')}/environ").stdout:
        served()
    # A test that failed may have left one stopped.
    host.run(f"systemctl start {' '.join((*BOTH, BEAT))}")
    for unit in (*BOTH, BEAT):
        active(host, unit)


def test_tasks_run_on_the_worker_of_their_queue_with_its_environment(host, r1):
    quick, slow = send(host, "work", "q", 3), send(host, "work", "s", 3, queue="slow")
    greeted = send(host, "greet", "g")
    all_done(host, quick + slow + greeted)
    assert {line[3] for line in times(host, "done", quick)} == {"quick"}
    assert {line[3] for line in times(host, "done", slow)} == {"slow"}
    assert host.file(f"{DATA}/greeting").content_string == 'it\'s 100% "odd" \\ $HOME ünïcode'


def test_second_run_changes_and_restarts_nothing_in_three_remote_calls(host, r1):
    before = pids(host)
    done = served("-v", "--diff")
    assert "changed=0" in done.stdout
    assert pids(host) == before
    tasks = re.findall(r"^TASK \[(.*?)\]", done.stdout, re.M)
    local = ("Validating arguments", "Refuse workers", "Note what runs")
    assert len([name for name in tasks if not name.removeprefix("celery : ").startswith(local)]) == 3, tasks


def test_check_mode_tells_what_would_change_and_changes_nothing(host, r1):
    before = pids(host)
    assert "changed=0" in served("--check", "--diff").stdout
    done = served("--check", "--diff", celery_release="r2")
    assert "changed=0" not in done.stdout and "+WorkingDirectory=/srv/x/releases/r2" in done.stdout
    host.run("echo WHATEVER=1 >> /srv/x/env")
    assert "changed=1 " in served("--check").stdout, "a changed environment file restarts the workers"
    host.run("sed -i /WHATEVER/d /srv/x/env")
    assert pids(host) == before


def test_stop_lets_running_tasks_finish_and_leaves_waiting_ones(host, r1):
    keys = send(host, "work", "warm", 6, seconds=4, queue="slow")
    begun(host, keys, 2)
    started = time.monotonic()
    assert host.run(f"systemctl stop {BOTH[1]}").rc == 0
    assert time.monotonic() - started < 10
    assert len(times(host, "began", keys)) == len(times(host, "done", keys)) == 2
    assert redis(host, "llen slow") == "4"
    assert prop(host, BOTH[1], "Result") == "success"
    host.run(f"systemctl start {BOTH[1]}")
    all_done(host, keys)
    assert len(times(host, "began", keys)) == 6, "none ran twice"


def test_tasks_over_the_limit_go_back_and_run_after_the_start(host, r1):
    keys = send(host, "work", "soft", 3, seconds=17, queue="slow")
    begun(host, keys, 2)
    started = time.monotonic()
    host.run(f"systemctl stop {BOTH[1]}")
    took = time.monotonic() - started
    assert 9 <= took < 30, f"8 s warm and 2 s soft took {took:.1f} s"
    assert times(host, "done", keys) == []
    assert redis(host, "llen slow") == "3"
    assert prop(host, BOTH[1], "ActiveState") == "inactive", "it stopped as it was told to, and has not failed"
    host.run(f"systemctl start {BOTH[1]}")
    all_done(host, keys, 60)
    assert sorted(line[1] for line in times(host, "done", keys)) == sorted(keys)


def options(host, unit):
    """The words about time limits with which a worker runs."""
    words = host.run(f"tr '\\0' ' ' < /proc/{prop(host, unit, 'MainPID')}/cmdline").stdout
    return re.findall(r"--\S*time-limit \S+", words)


def test_time_limit_of_the_application_holds_and_the_roles_where_it_sets_none(host, r1):
    roles = ["--time-limit 20", "--soft-time-limit 18"]
    assert options(host, BOTH[0]) == options(host, BOTH[1]) == roles, "r1 sets none"
    served(celery_release="brisk")
    assert options(host, BOTH[0]) == options(host, BOTH[1]) == []
    killed = send(host, "work", "limited", seconds=8)
    told = f"journalctl -o cat -u {BOTH[0]} | grep -E 'Hard time limit .4(.0)?s. exceeded for shop.work'"
    wait(lambda: host.run(told).rc == 0, 20, "the task was not killed after the application's 4 s")
    assert times(host, "began", killed) and times(host, "done", killed) == []
    # It is done with: the last test but one does not wait for it.
    host.run(f"sed -i /^{killed[0]}$/d {DATA}/sent")
    own = {"name": "slow", "queues": ["slow"], "memory_mb": 200, "time_limit": 15}
    served(celery_workers=[{"name": "quick", "queues": ["celery", "fast"], "memory_mb": 544}, own])
    assert options(host, BOTH[0]) == roles
    assert options(host, BOTH[1]) == ["--time-limit 15", "--soft-time-limit 13"]
    served()
    assert options(host, BOTH[0]) == options(host, BOTH[1]) == roles


def test_killed_child_and_killed_worker_lose_nothing(host, r1):
    keys = send(host, "work", "child", 2, seconds=3, queue="slow")
    begun(host, keys, 2)
    main = prop(host, BOTH[1], "MainPID")
    host.run(f"kill -9 $(pgrep -P {main} | head -1)")
    all_done(host, keys)
    assert prop(host, BOTH[1], "MainPID") == main
    # The next to the last test waits for these: they come back when the visibility timeout has passed.
    keys = send(host, "work", "killed", 4, seconds=3, queue="slow")
    begun(host, keys, 2)
    host.run(f"systemctl kill --kill-whom=all -s KILL {BOTH[1]}")
    wait(lambda: prop(host, BOTH[1], "MainPID") not in ("0", main), 20, "systemd did not start it again")
    active(host, BOTH[1])


def test_release_changes_while_tasks_are_sent(host, r1):
    host.run("rm -f /run/send.stop")
    send(host, "work", "stream", 3000, seconds=0.05, rate=10, background=True)
    running = send(host, "work", "running", 2, seconds=5, queue="slow")
    begun(host, running, 2)
    served(celery_release="r2")
    host.run("touch /run/send.stop; while pgrep -f '[s]end.py'; do sleep 0.2; done")
    assert {line[2] for line in times(host, "done", running)} == {"r1"}, "what ran finished on the old release"
    assert len(times(host, "began", running)) == 2
    keys = [key for key in host.run(f"cat {DATA}/sent").stdout.split() if key.startswith("stream-")]
    all_done(host, keys, 60)
    lines = sorted(times(host, "done", keys), key=lambda line: line[4])
    assert {line[2] for line in lines} == {"r1", "r2"}
    assert len(lines) == len(keys) > 50, "none ran twice"
    longest = max(after[4] - before[4] for before, after in zip(lines, lines[1:], strict=False))
    print(f"{len(keys)} tasks, longest gap {longest:.1f} s")
    assert longest < 45, "10 s to stop, and the time that the release takes to load"
    status = play(playbook="status.yml").stdout
    assert "release=r2 workers=quick,slow" in status and "quick=active beat=sends the ticks" in status


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"celery_release": "crash"}, "this release cannot be imported"),
        ({"celery_release": "astray"}, "sends tasks to nowhere, and celery_queues has only celery, fast, slow"),
        ({"celery_release": "hasty"}, "after 12 s (visibility_timeout of the application's"),
        (
            {"celery_release": "endless"},
            "a task may run for 30 s, and after 25 s (visibility_timeout of the application's",
        ),
        (
            {"celery_venv": "/srv/x/plain", "celery_flower": True, "celery_flower_password": "long-enough"},
            "Flower is not in /srv/x/plain",
        ),
        ({"celery_release": "r9"}, "/srv/x/releases/r9 is not there"),
    ],
)
def test_release_that_cannot_run_changes_nothing(host, r1, variables, sentence):
    before = pids(host)
    output = refused(sentence, **variables)
    assert "s3cr3t-value" not in output
    assert pids(host) == before
    assert "releases/r1" in host.file(f"{UNITS}/celery-x@.service").content_string
    if variables.get("celery_release") == "r9":
        served()
        assert pids(host) == before, "what runs was right all the time, so nothing had to be restarted"


def ticks(host, since, until):
    """When a tick was sent, by any beat."""
    logged = host.run(f"journalctl -o short-unix -u {BEAT} -u second-beat | grep 'Sending due task tick'").stdout
    return [when for line in logged.splitlines() if since < (when := float(line.split()[0])) < until]


def steady(host, seconds, longest=3.5):
    """Ticks of some seconds from now on: one every two seconds, however many beats there are."""
    now = float(host.run("date +%s.%N").stdout)
    time.sleep(seconds + 1)
    found = ticks(host, now, now + seconds)
    assert abs(len(found) - seconds / 2) <= 1.5, found
    gaps = [after - before for before, after in zip(found, found[1:], strict=False)]
    assert min(gaps) > 0.8 and max(gaps) < longest, gaps


def second_beat(host):
    command = prop(host, BEAT, "ExecStart")
    argv = re.search(r"argv\[\]=(.*?) ;", command).group(1)
    argv = re.sub(r"--holder \S+", "--holder elsewhere/2", argv).replace("/var/lib/celery-x/", f"{DATA}/")
    host.run(
        "systemd-run -q --unit second-beat -p Type=notify -p User=x-run -p WorkingDirectory=/srv/x/releases/r1"
        f" -p EnvironmentFile=/srv/x/env {argv}"
    )
    wait(lambda: "holds the lease" in prop(host, "second-beat", "StatusText"), 20, "the second beat does not wait")


def test_beat_sends_each_tick_once_also_while_it_moves(host, r1):
    # Which file Python's dbm makes of it differs between Debian 12 and 13.
    assert host.run("ls /var/lib/celery-x/beat-schedule*").rc == 0
    workers = [prop(host, unit, "MainPID") for unit in BOTH]
    second_beat(host)
    try:
        steady(host, 10)
        since = float(host.run("date +%s").stdout)
        served(celery_beat=False)
        wait(lambda: prop(host, "second-beat", "StatusText") == "sends the ticks", 10, "nobody took over")
        assert not host.file(f"{UNITS}/{BEAT}.service").exists
        assert prop(host, BEAT, "ActiveState") == "inactive"
        assert [prop(host, unit, "MainPID") for unit in BOTH] == workers
        assert prop(host, BOTH[0], "MemoryMax") == str(800 << 20), "what beat had goes to the worker, without a restart"
        steady(host, 6)
        done = served()
        assert "beat of x does nothing on this host, it waits: elsewhere/2 holds the lease" in re.sub(
            r"\s+", " ", done.stdout + done.stderr
        )
        host.run("systemctl stop second-beat")
        wait(lambda: prop(host, BEAT, "StatusText") == "sends the ticks", 10, "it did not take over again")
        steady(host, 6)
        found = ticks(host, since, time.time() + 10)
        assert min(after - before for before, after in zip(found, found[1:], strict=False)) > 0.8, found
    finally:
        host.run("systemctl stop second-beat")


def test_beat_that_hangs_loses_the_lease_and_sends_nothing_when_it_wakes(host, r1):
    second_beat(host)
    try:
        host.run(f"systemctl kill --kill-whom=main -s STOP {BEAT}")
        wait(lambda: prop(host, "second-beat", "StatusText") == "sends the ticks", 15, "nobody took over")
        now = float(host.run("date +%s.%N").stdout)
        host.run(f"systemctl kill --kill-whom=main -s CONT {BEAT}")
        wait(lambda: "elsewhere/2 holds" in prop(host, BEAT, "StatusText"), 15, "the first does not wait")
        found = ticks(host, now, time.time())
        assert min([9, *(after - before for before, after in zip(found, found[1:], strict=False))]) > 0.8, found
    finally:
        host.run("systemctl stop second-beat")
    wait(lambda: prop(host, BEAT, "StatusText") == "sends the ticks", 10, "it did not take over again")


def test_worker_that_hangs_is_restarted_and_no_other(host, r1):
    quick, slow = (prop(host, unit, "MainPID") for unit in BOTH)
    host.run(f"systemctl kill --kill-whom=main -s STOP {BOTH[1]}")
    started = time.monotonic()
    wait(lambda: prop(host, BOTH[1], "MainPID") not in ("0", slow), 70, "the hanging worker was not restarted")
    print(f"restarted after {time.monotonic() - started:.0f} s")
    assert "slow has not answered for" in health(host)
    assert prop(host, BOTH[0], "MainPID") == quick
    all_done(host, send(host, "work", "again", 2, queue="slow"))


def test_workers_outlive_a_broker_that_hangs_and_is_killed(host, r1):
    before = [prop(host, unit, "NRestarts") for unit in BOTH]
    kills = health(host).count("restarting it")
    said = health(host).count("the broker does not answer")
    host.run("systemctl kill --kill-whom=main -s STOP redis-server")
    wait(lambda: health(host).count("the broker does not answer") > said, 90, "the check said nothing")
    host.run("systemctl kill -s KILL redis-server; systemctl stop redis-server")
    wait(lambda: health(host).count("the broker does not answer") > said + 3, 60, "the check no longer says so")
    assert health(host).count("restarting it") == kills
    host.run("systemctl start redis-server")
    wait(lambda: redis(host, "ping") == "PONG", 20, "the broker did not come back")
    keys = send(host, "work", "back", 4) + send(host, "work", "back-slow", 4, queue="slow")
    all_done(host, keys, 60)
    print("restarts by themselves", before, [prop(host, unit, "NRestarts") for unit in BOTH])


def test_memory_limits_add_up_to_the_share(host, r1):
    # What is left of 1000 MB: 256 for beat, 200 for the other.
    limits = [int(prop(host, unit, "MemoryMax")) >> 20 for unit in (*BOTH, BEAT)]
    assert limits == [544, 200, 256]


def test_worker_writes_where_it_may_and_nowhere_else(host, r1):
    all_done(host, send(host, "places", "p"))
    lines = host.file(f"{DATA}/places").content_string.split("\n")
    assert lines[0] == "/srv/x/data/ok written"
    assert [line for line in lines[1:] if line.endswith(" written")] == []


@pytest.mark.parametrize(("unit", "most"), [(BOTH[0], 1.5), (BEAT, 1.5), ("celery-health-x", 3.0)])
def test_sandbox_is_tight(host, r1, unit, most):
    score = host.run(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
    print(score)
    assert float(re.search(r": ([0-9.]+)", score).group(1)) <= most, score


def test_no_secret_is_in_a_process_list_or_the_journal(host, r1):
    assert "s3cr3t" not in host.run("ps axww -o args | grep -v -e redis-cli -e grep").stdout
    assert "s3cr3t" not in host.run("journalctl -o cat -u 'celery-*'").stdout


def get(host, login=None):
    """The status of a page of Flower, or `closed`."""
    header = "Basic " + base64.b64encode((login or "").encode()).decode()
    return host.run(f"""python3 -c "
import urllib.request, urllib.error
request = urllib.request.Request('http://127.0.0.1:5555/workers?json=1')
if {login is not None}: request.add_header('Authorization', '{header}')
try: print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error: print(error.code)
except OSError: print('closed')
" """).stdout.strip()


def test_flower_and_a_worker_come_and_go_without_touching_the_others(host, r1):
    assert get(host) == "closed"
    before = pids(host)
    password = "it's 'odd': %H \\\\"
    more = {
        "celery_workers": [
            {"name": "quick", "queues": ["celery", "fast"], "concurrency": 2, "memory_mb": 544,
             "env": {"WHO": "quick", "GREETING": 'it\'s 100% "odd" \\ $HOME ünïcode'}},
            {"name": "slow", "queues": ["slow"], "concurrency": 2, "memory_mb": 200, "max_tasks_per_child": 50,
             "env": {"WHO": "slow"}},
            {"name": "alone", "queues": ["celery"], "concurrency": 1, "pool": "solo", "memory_mb": 150},
        ],
        "celery_memory_mb": 1500, "celery_flower": True, "celery_flower_password": password,
    }  # fmt: skip
    done = served("--diff", **more)
    assert "odd': %H" not in done.stdout
    assert pids(host) == before
    assert prop(host, "celery-x@alone", "ActiveState") == "active"
    wait(lambda: get(host) == "401", 20, "Flower lets in without a password, or is not there")
    assert get(host, "admin:wrong") == "401"
    assert get(host, f"admin:{password}") == "200"
    listening = host.run("ss -Hltn 'sport = 5555'").stdout.split()
    assert listening[3] == "127.0.0.1:5555", listening
    assert host.file("/etc/celery-x/flower.py").mode == 0o640
    assert "odd" not in host.run("ps axww -o args | grep flower").stdout
    assert "changed=0" in served(**more).stdout
    served()
    assert pids(host) == before
    assert get(host) == "closed"
    left = host.run(
        f"ls -d {UNITS}/*alone* {UNITS}/*.wants/*alone* {UNITS}/*flower* /etc/celery-x/*alone* /etc/celery-x/flower.py"
    )
    assert left.stdout == ""
    assert prop(host, "celery-x@alone", "ActiveState") == "inactive"


def test_interrupted_run_is_finished_by_the_next(host, r1):
    # The units were replaced, and the run ended before the restart.
    host.run(
        f"sed -i s/CELERY_GENERATION=.*/CELERY_GENERATION=000000000000/ {UNITS}/celery-x@slow.service.d/worker.conf"
    )
    host.run(f"systemctl daemon-reload; systemctl restart {BOTH[1]}; systemctl disable celery-x@quick")
    before = pids(host)
    served()
    after = pids(host)
    assert after[1] != before[1] and (after[0], after[2]) == (before[0], before[2])
    assert host.run("systemctl is-enabled celery-x@quick").stdout.strip() == "enabled"


WORKER = {"name": "quick", "queues": ["fast"]}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"celery_workers": [{**WORKER, "memory_mb": 900}]}, "add up to 1156 MB, and celery_memory_mb is 1000 MB"),
        ({"celery_memory_mb": 300}, "the worker quick would get 44 MB, in which none starts"),
        ({"celery_workers": [WORKER, WORKER]}, "has two workers called quick"),
        ({"celery_task_time_limit": 25}, "a task may run for 25 s (the longest time limit), and after 25 s"),
        ({"celery_workers": [{**WORKER, "time_limit": 60}]}, "a task may run for 60 s"),
        ({"celery_task_soft_time_limit": 20}, "has a soft time limit of 20 s and a time limit of 20 s"),
        ({"celery_workers": [{**WORKER, "pool": "forks"}]}, '"forks", which Celery does not have'),
        ({"celery_workers": [{**WORKER, "queues": ["fsat"]}]}, "a worker consumes fsat, and celery_queues knows only"),
        ({"celery_workers": [{**WORKER, "name": "a b"}]}, 'a worker is called "a b"'),
        ({"celery_user": "root"}, "the workers would run as root"),
        ({"celery_flower": True}, "celery_flower_password has fewer than 8 characters"),
        (
            {"celery_flower": True, "celery_flower_password": "long enough,\nbut two lines"},
            "celery_flower_password has a line break in it",
        ),
        (
            {"celery_flower": True, "celery_flower_password": "long enough", "celery_flower_user": "a:b"},
            "celery_flower_user has a colon in it",
        ),
        ({"celery_venv": "/home/x/venv"}, "outside of /home"),
        ({"celery_workers": [{**WORKER, "concurency": 3}]}, "concurency"),
    ],
)
def test_wrong_input_is_refused_in_preflight(variables, sentence, asked):
    assert sentence in asked[json.dumps(variables)]


@pytest.fixture(scope="session")
def asked():
    """What preflight says about each wrong input, asked in one run."""
    mark = next(m for m in test_wrong_input_is_refused_in_preflight.pytestmark if m.name == "parametrize")
    cases = [variables for variables, _ in mark.args[1]]
    output = play(playbook="refusals.yml", cases=cases).stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)  # molecule asks for colours
    found = re.findall(r"CASE (.*?) END", re.sub(r"\s+", " ", plain))
    assert len(found) == len(cases), output[-3000:]
    return {json.dumps(variables): said for variables, said in zip(cases, found, strict=True)}


def test_nothing_that_the_broker_took_was_lost(host, r1):
    sent = host.run(f"cat {DATA}/sent").stdout.split()
    all_done(host, sent, 150)
    done = [line[1] for line in ledger(host) if line[0] == "done"]
    doubled = sorted({key for key in done if done.count(key) > 1})
    print(f"sent {len(sent)}, lost {len(set(sent) - set(done))}, done twice {len(doubled)}: {doubled}")
    assert redis(host, "llen slow") == redis(host, "llen fast") == "0"


def test_everything_comes_back_after_a_reboot(host, r1):
    container = host.backend.get_pytest_id().split("://")[-1]
    keys = send(host, "work", "boot", 3, seconds=4, queue="slow")
    begun(host, keys, 2)
    subprocess.run(["docker", "restart", "-t", "30", container], check=True, capture_output=True, timeout=120)
    for unit in (*BOTH, BEAT, "celery-health-x.timer"):
        active(host, unit, 60)
    all_done(host, keys, 60)
    ping(host)
    assert len(times(host, "began", keys)) == 3, "the two that ran finished before the host went down"
    assert "changed=0" in served().stdout
