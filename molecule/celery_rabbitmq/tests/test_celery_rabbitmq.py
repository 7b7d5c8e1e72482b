"""What the role promises with RabbitMQ for a broker: no task is lost, the report is right, and beat runs, though without a lease.

Every task that the broker has confirmed is written down, and the last test asks for each of them.
"""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import testinfra

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "celery/tests"))
from workers import BEAT, BOTH, DATA, active, all_done, begun, ledger, play, prop, send, times, wait

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def host(host):
    """The same host without Ansible in between, with everything running as the scenario began."""
    host = testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))
    host.run(f"systemctl start {' '.join((*BOTH, BEAT))}")
    for unit in (*BOTH, BEAT):
        active(host, unit)
    return host


def ready(host, queue):
    """How many messages wait in a queue, as RabbitMQ itself says."""
    said = host.run("rabbitmqctl --quiet list_queues --vhost x --no-table-headers name messages_ready").stdout
    return dict(line.split() for line in said.splitlines() if line.strip())[queue]


def report():
    """What the role's report says: its rows by queue, and all that the run printed."""
    done = play(playbook="queues.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    words = re.sub(r"\s+", " ", COLOURS.sub("", done.stdout + done.stderr))
    rows = json.loads(re.search(r"WAITING (\[.*?\]) END", words).group(1))
    return {row["queue"]: row for row in rows}, words


def test_tasks_run_on_the_worker_of_their_queue(host):
    quick, slow = send(host, "work", "q", 3), send(host, "work", "s", 3, queue="slow")
    all_done(host, quick + slow)
    assert {line[3] for line in times(host, "done", quick)} == {"quick"}
    assert {line[3] for line in times(host, "done", slow)} == {"slow"}


def test_beat_sends_the_ticks_and_says_that_it_has_no_lease(host):
    assert prop(host, BEAT, "StatusText") == "sends the ticks, without a lease: only Redis and its like can hold one"
    now = float(host.run("date +%s.%N").stdout)
    time.sleep(11)
    found = sorted(line[4] for line in ledger(host) if line[0] == "tick" and now < line[4] < now + 10)
    assert 3 <= len(found) <= 7, found
    assert min(after - before for before, after in zip(found, found[1:], strict=False)) > 0.8, found


def test_stop_lets_running_tasks_finish_and_leaves_waiting_ones(host):
    keys = send(host, "work", "warm", 6, seconds=4, queue="slow")
    begun(host, keys, 2)
    started = time.monotonic()
    assert host.run(f"systemctl stop {BOTH[1]}").rc == 0
    assert time.monotonic() - started < 10
    assert len(times(host, "began", keys)) == len(times(host, "done", keys)) == 2
    assert ready(host, "slow") == "4"
    host.run(f"systemctl start {BOTH[1]}")
    all_done(host, keys, 60)
    assert len(times(host, "began", keys)) == 6, "none ran twice"


def test_report_counts_what_waits_and_who_consumes(host):
    host.run(f"systemctl stop {BOTH[1]}")
    keys = send(host, "work", "counted", 3, queue="slow")
    rows, words = report()
    assert rows["slow"] == {"queue": "slow", "length": 3, "oldest": None, "consumers": 0}
    assert ready(host, "slow") == "3", "asking took none of them"
    assert rows["fast"]["consumers"] == rows["celery"]["consumers"] == 1
    # A queue that nobody has made yet does not end the questions about the others.
    assert rows["nowhere"] == {"queue": "nowhere", "length": 0, "oldest": None, "consumers": 0}
    assert "nobody consumes the queue slow, in which tasks wait: 3." in words
    host.run(f"systemctl start {BOTH[1]}")
    all_done(host, keys)
    rows, words = report()
    assert (rows["slow"]["length"], rows["slow"]["consumers"]) == (0, 1) and "nobody consumes" not in words


def test_tasks_of_a_killed_worker_come_back_at_once(host):
    keys = send(host, "work", "killed", 4, seconds=3, queue="slow")
    begun(host, keys, 2)
    main = prop(host, BOTH[1], "MainPID")
    host.run(f"systemctl kill --kill-whom=all -s KILL {BOTH[1]}")
    wait(lambda: prop(host, BOTH[1], "MainPID") not in ("0", main), 20, "systemd did not start it again")
    all_done(host, keys, 30)
    assert len(times(host, "began", keys)) == 6, "the two that ran began again"


def test_what_the_broker_has_taken_outlives_its_restart(host):
    host.run(f"systemctl stop {BOTH[1]}")
    keys = send(host, "work", "kept", 3, queue="slow")
    assert host.run("systemctl restart rabbitmq-server").rc == 0
    host.run(f"systemctl start {BOTH[1]}")
    all_done(host, keys + send(host, "work", "after", 3), 90)


def test_certificate_for_another_name_is_refused(host):
    """With the setting that the kit gives to a site whose broker's address is amqps://."""
    code = (
        "import sys; from kombu import Connection; "
        "Connection(sys.argv[1], ssl={'server_hostname': None}, connect_timeout=5).connect()"
    )
    ask = "/srv/x/venv/bin/python -c %s amqps://x:s3cr3t-value@%s:5671/x"
    assert host.run(ask, code, "broker.test").rc == 0
    other = host.run(ask, code, "127.0.0.1")
    assert other.rc != 0 and "certificate verify failed" in other.stderr, other.stderr


def test_no_secret_is_in_a_process_list_or_the_journal(host):
    assert "s3cr3t" not in host.run("ps axww -o args | grep -v grep").stdout
    assert "s3cr3t" not in host.run("journalctl -o cat -u 'celery-*'").stdout


def test_nothing_that_the_broker_took_was_lost(host):
    sent = host.run(f"cat {DATA}/sent").stdout.split()
    assert len(sent) > 15
    all_done(host, sent, 60)
