"""Kills workers that no longer answer while the broker does; systemd starts them again.

When the broker does not answer nothing is done and every worker's time starts anew: restarting all of them would only
add to its load when it comes back. A worker that does not answer after its restart either gets twice the time, then
four times, up to 32 times.
"""

import argparse
import json
import os
import socket
import subprocess
import time

PROPERTIES = "ActiveState,SubState,ActiveEnterTimestampMonotonic"
ASKED_SECONDS = 10
# Loading a large application on a busy host takes its time.
LONGEST_SECONDS = 30


def ask(options, nodes):
    """What ask.py said; a `broker` that is not empty when it said nothing."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = [options.python, f"{here}/ask.py", options.app, "ping", str(ASKED_SECONDS), *nodes]
    try:
        done = subprocess.run(
            command, user=options.user, group=options.group, extra_groups=[], umask=0o022,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=LONGEST_SECONDS,
        )  # fmt: skip
        return json.loads(done.stdout.decode().strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"broker": f"no word within {LONGEST_SECONDS} s", "answered": []}
    except (ValueError, IndexError):
        words = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no answer"])[-1]
        return {"broker": f"it could not be asked: {words}", "answered": []}


def judge(state, answer, running, now, seconds):
    """What to do; `state` is changed, `running` maps each running worker to when it started, seconds as `now`.

    Returns the workers to kill, with how long they have been silent.
    """
    silent = {}
    for worker, started in running.items():
        known = state.setdefault(worker, {"heard": started, "kills": 0})
        known["heard"] = max(known["heard"], started)
        if answer["broker"]:
            known["heard"] = now
        elif worker in answer["answered"]:
            known.update(heard=now, kills=0)
        elif now - known["heard"] >= seconds * 2 ** min(known["kills"], 5):
            silent[worker] = round(now - known["heard"])
            known.update(heard=now, kills=known["kills"] + 1)
    return silent


def running_since(unit):
    """When a running unit started (monotonic seconds), None for one that does not run or is just stopping."""
    shown = subprocess.run(["systemctl", "show", "-p", PROPERTIES, "--", unit], stdout=subprocess.PIPE, check=True)
    now = dict(line.split("=", 1) for line in shown.stdout.decode().splitlines() if "=" in line)
    if (now["ActiveState"], now["SubState"]) != ("active", "running"):
        return None
    return int(now["ActiveEnterTimestampMonotonic"]) / 1e6


def main():
    parser = argparse.ArgumentParser()
    for word in ("name", "user", "group", "python", "app"):
        parser.add_argument(f"--{word}", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("workers", nargs="*")
    options = parser.parse_args()
    path = f"/run/celery-health-{options.name}.json"
    try:
        with open(path) as handle:
            state = json.load(handle)
    except (OSError, ValueError):
        state = {}
    units = {worker: f"celery-{options.name}@{worker}.service" for worker in options.workers}
    running = {worker: since for worker, unit in units.items() if (since := running_since(unit)) is not None}
    if not running:
        return
    nodes = {f"{options.name}.{worker}@{socket.gethostname()}": worker for worker in running}
    answer = ask(options, nodes)
    answer["answered"] = [nodes[node] for node in answer["answered"] if node in nodes]
    if answer["broker"]:
        print(f"the broker does not answer, so no worker is restarted: {answer['broker']}", flush=True)
    for worker, seconds in judge(state, answer, running, time.monotonic(), options.seconds).items():
        if running_since(units[worker]) != running[worker]:
            continue  # it was told to stop, or started anew, while it was being asked
        print(f"{worker} has not answered for {seconds} s and the broker does: restarting it", flush=True)
        subprocess.run(["systemctl", "kill", "--signal=SIGKILL", "--", units[worker]], check=False)
    with open(f"{path}.new", "w") as handle:
        json.dump({worker: known for worker, known in state.items() if worker in units}, handle)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main()
