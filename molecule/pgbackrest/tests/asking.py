"""What the tests of both of the role's scenarios ask with."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CONTROL = "/etc/pgbackrest/control"


def sql(machine: Any, text: str, where: str = "") -> str:
    done = machine.run(f"runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 {where} -d shop -c %s", text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def play(
    only: str = "all", part: str = "main", playbook: str = "again.yml", words: tuple[str, ...] = (), **values: Any
) -> dict[str, Any]:
    """Run a part of the role again: {rc, changed, tasks (changed), words, output}."""
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
    }  # fmt: skip
    extra = json.dumps({**values, "only": only, "part": part})
    path = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / playbook
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(path), "-e", extra]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=400, env=environment)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    tasks = [task for play in report["plays"] for task in play["tasks"]]
    results = [(t["task"]["name"].removeprefix("pgbackrest : "), r) for t in tasks for r in t["hosts"].values()]
    return {
        "rc": done.returncode,
        "changed": sum(stats["changed"] for stats in report["stats"].values()),
        "tasks": [name for name, r in results if r.get("changed")],
        "words": [str(r.get("msg", "")) for _, r in results if not r.get("skipped")],
        "output": done.stdout + done.stderr,
    }


def wait(condition: Any, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(1)


def alarm(machine: Any) -> tuple[int, str]:
    """What the unit's exit is, and what it left for metrics."""
    code = machine.run("systemctl start pgbackrest-check.service").rc
    told = json.loads(machine.file("/var/lib/pgbackrest-state/status.json").content_string)
    assert told["ok"] is (code == 0)
    return code, "\n".join(told["errors"])


def heads(machine: Any, folder: str) -> set[str]:
    """How the files below a folder begin."""
    found = machine.check_output(f"find {folder} -type f -exec head -c 8 {{}} ';' -exec echo ';'")
    return {line for line in found.splitlines() if line}
