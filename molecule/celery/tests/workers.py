"""What the tests of the scenarios with workers share: running the scenario's play, sending tasks, and what became of them."""

import json
import os
import subprocess
import time
from pathlib import Path

SCENARIO = Path(__file__).resolve().parents[2] / Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]).name
DATA = "/srv/x/data"
BOTH = ("celery-x@quick", "celery-x@slow")
BEAT = "celery-beat-x"


def play(*words, playbook="converge.yml", **variables):
    """Run the scenario's play with other variables; returns the finished process."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    command = ["ansible-playbook", "-i", inventory, SCENARIO / playbook, "-e", json.dumps(variables), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SCENARIO.parents[1])


def served(*words, **variables):
    done = play(*words, **variables)
    assert done.returncode == 0, done.stdout[-4000:]
    return done


def send(host, task, key, count=1, seconds=0.0, queue="fast", rate=None, background=False):
    """Send tasks; returns their keys."""
    words = f"/srv/x/venv/bin/python /opt/send.py {task} {key} {count} {seconds} {queue} {rate or ''}"
    done = host.run(f"(setsid {words} >/run/send-{key} 2>&1 &)" if background else words)
    assert done.rc == 0, done.stderr
    return [f"{key}-{number}" for number in range(count)]


def ledger(host):
    """What the tasks wrote: (what, key, release, worker, seconds since the epoch)."""
    text = host.run(f"cat {DATA}/ledger").stdout
    return [(*line.split()[:4], float(line.split()[4])) for line in text.splitlines()]


def times(host, what, keys):
    wanted = set(keys)
    return [line for line in ledger(host) if line[0] == what and line[1] in wanted]


def wait(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"after {seconds} s: {what()}" if callable(what) else what
        time.sleep(0.3)
    return found


def all_done(host, keys, seconds=30):
    def missing():
        return set(keys) - {line[1] for line in times(host, "done", keys)}

    wait(lambda: not missing(), seconds, lambda: f"not done: {sorted(missing())[:5]}")


def begun(host, keys, count=1):
    wait(lambda: len(times(host, "began", keys)) >= count, 20, f"{count} of {keys[:3]} did not begin")


def prop(host, unit, name):
    return host.run(f"systemctl show -P {name} {unit}").stdout.strip()


def active(host, unit, seconds=20):
    wait(lambda: prop(host, unit, "ActiveState") == "active", seconds, f"{unit} is not active")
