"""./ladder test: linters, unit tests, the roles' scenarios, the tests of a whole stage in a lab of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

from lab import ansible, artifacts, commands, hosts, scenarios
from lab.machine import MachineError, tail
from lab.model import Lab
from lab.report import Progress, Results, console, results_table, step

PARTS = ("lint", "unit", "roles", "lab")
SIDE_BY_SIDE = 2  # as many as the cores of a small machine; a third makes all of them slower
LINTERS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "yamllint": ["yamllint", "--strict", "."],
    "ansible-lint": ["ansible-lint", "--offline", "--strict", "--nocolor"],
}
KIT_INVENTORIES = ("example", "lab")
# The part of the time given in which scenarios may begin: the lab's tests are longer, and the drills at their end have
# promises of seconds, which no machine keeps that is busy with something else.
ROLES_SHARE = 0.6
NO_TESTS = 5  # pytest's exit code when its selection was empty


def run(
    lab: Lab, part: str | None, name: str | None, debian: str, long: bool = False, minutes: float = math.inf
) -> int:
    """Run the parts asked for (all without one), only what has `name` in its name; gives the exit code.

    After `minutes` no further test of the lab is begun, after ROLES_SHARE of them no further scenario; those left out are named.
    """
    results = Results()
    started = time.time()
    until, roles_until = started + minutes * 60, started + minutes * 60 * ROLES_SHARE
    asked = [part] if part else list(PARTS)
    jobs: list[Callable[[], None]] = []
    if "lint" in asked:
        jobs.append(lambda: lint(lab, name, results))
    if "unit" in asked:
        jobs.append(lambda: pytest(lab, "unit", name, results, {}))
    if "roles" in asked:
        guarded("roles", lambda: jobs.extend(roles(lab, name, debian, results, long, roles_until)), results)
    busy = lab.logs / "beside-the-lab"
    jobs = marked(jobs, busy)
    # The lab's tests are the longest job: they start first and have a lane to themselves.
    if "lab" in asked:
        stage = partial(whole_stage, lab, name, debian, results, long, busy, until)
        jobs.insert(0, lambda: guarded("lab tests", stage, results))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        list(pool.map(lambda job: job(), jobs))
    if not results.items:
        results.add("selection", 0.0, False, f"nothing has {name} in its name")
    console.print(results_table(results))
    console.print(results.closing_line(), markup=False)
    return 1 if results.failed else 0


def marked(jobs: list[Callable[[], None]], busy: Path) -> list[Callable[[], None]]:
    """The jobs, with a file that is there until the last of them has ended."""
    left, lock = len(jobs), Lock()

    def run(job: Callable[[], None]) -> None:
        nonlocal left
        try:
            job()
        finally:
            with lock:
                left -= 1
                if not left:
                    busy.unlink(missing_ok=True)

    busy.unlink(missing_ok=True)
    if jobs:
        busy.parent.mkdir(parents=True, exist_ok=True)
        busy.touch()
    return [partial(run, job) for job in jobs]


def guarded(title: str, job: Callable[[], None], results: Results) -> None:
    """Run a job; a machine that cannot run it is a failed step with its sentence, not a traceback."""
    started = time.monotonic()
    try:
        job()
    except MachineError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        results.add(title, time.monotonic() - started, False, "could not run")


def lint(lab: Lab, name: str | None, results: Results) -> None:
    for title, command in LINTERS.items():
        if name is None or name in title:
            log = lab.logs / f"{title.replace(' ', '-')}.log"
            more = own_inventories(lab.root) if title == "ansible-lint" else []
            code = timed(title, [str(ansible.BIN / command[0]), *command[1:], *more], log, results)
            if code != 0 and title == "ruff format":
                console.print("ruff format . (in .venv/bin) writes them as they should be.", markup=False)


def own_inventories(root: Path) -> list[str]:
    """The options that keep ansible-lint from a person's own inventories; its settings know no "all but these"."""
    own = [path.name for path in sorted((root / "inventories").iterdir()) if path.name not in KIT_INVENTORIES]
    return [word for name in own for word in ("--exclude", f"inventories/{name}")]


def timed(title: str, command: list[str], log: Path, results: Results) -> int:
    """Run one step into a log; a failure shows the end of its output. Gives the exit code."""
    started = time.monotonic()
    with step(title) as update:
        code, output = ansible.run_logged(command, log, update)
        if code != 0:
            update.outcome = Progress.FAILED
    if code != 0:
        console.print(f"{' '.join(command)} ended with {code} (log: {log}):\n{tail(output, 60)}", markup=False)
    results.add(title, time.monotonic() - started, code == 0)
    return code


def counted(output: str) -> str:
    """How many tests a step ran, for its remark; empty for a step that is no test runner."""
    count = scenarios.tests_run(ansible.COLOUR.sub("", output))
    return f"{count} tests" if count else ""


def pytest(lab: Lab, folder: str, name: str | None, results: Results, more: dict[str, str]) -> None:
    """Run the tests of a folder; an empty selection is a failure only when nothing narrowed it."""
    command = [str(ansible.BIN / "python"), "-m", "pytest", "-q", "--durations=25", f"tests/{folder}"]
    # Tests without containers need no turn of their own; those of the lab share one.
    command += ["-n", "2", "--dist", "worksteal"] if folder == "unit" else []
    command += ["-k", name] if name else []
    log = lab.logs / f"{folder}.log"
    started = time.monotonic()
    with step(f"{folder} tests") as update:
        code, output = ansible.run_logged(command, log, update, more)
        if code != 0:
            update.outcome = Progress.NOTHING if code == NO_TESTS and name else Progress.FAILED
    if code == NO_TESTS and name:
        return
    if code != 0:
        console.print(f"{' '.join(command)} ended with {code} (log: {log}):\n{tail(output, 100)}", markup=False)
    results.add(f"{folder} tests", time.monotonic() - started, code == 0, counted(output))
    outcomes = scenarios.outcomes(ansible.COLOUR.sub("", output))
    if folder == "lab" and "skipped" in outcomes:
        results.left_out.append(f"{outcomes['skipped']} of the {folder} tests")
    # What a name leaves out is deselected too, and asked for.
    if folder == "lab" and not name and "deselected" in outcomes:
        results.left_out.append(f"{outcomes['deselected']} of the {folder} tests (with --long)")


def roles(
    lab: Lab, name: str | None, debian: str, results: Results, long: bool, until: float
) -> list[Callable[[], None]]:
    """Make what the scenarios stand on and give one job for each; raises MachineError when there is no engine.

    What was changed lately comes first. The others begin at another place for each commit: where the time is too short
    for all, each comes to be tested by and by, also one that nobody touches.
    """
    chosen = [scenario for scenario in scenarios.scenarios(lab.root) if name is None or name in scenario]
    for scenario in [one for one in chosen if scenarios.is_long(lab.root, one) and not long]:
        chosen.remove(scenario)
        results.left_out.append(f"role {scenario} (with --long)")
    chosen = scenarios.in_turn(chosen, scenarios.newest(lab.root), scenarios.seed(lab.root))
    if not chosen:
        return []
    client = commands.connect()
    started = time.monotonic()
    with step("Image, network and caches for the roles' scenarios"):
        commands.prepare_roles(client, debian)
    results.add(f"image (Debian {debian})", time.monotonic() - started, True)
    for needed in sorted({name for scenario in chosen for name in scenarios.artifacts(lab.root, scenario)}):
        started = time.monotonic()
        with step(artifacts.GO_ARTIFACTS[needed].title):
            artifacts.build(needed, client)
        results.add(needed, time.monotonic() - started, True)
    runner = scenarios.Runner(client, lab, debian, artifacts.ARTIFACTS)
    return [partial(in_time, until, scenario, partial(runner.run, scenario, results), results) for scenario in chosen]


def in_time(until: float, scenario: str, job: Callable[[], None], results: Results) -> None:
    """Begin a scenario unless the time (seconds since 1970) is past; then it is named as left out."""
    if time.time() < until:
        job()
    else:
        results.left_out.append(f"role {scenario}")


def whole_stage(
    lab: Lab, name: str | None, debian: str, results: Results, long: bool, busy: Path, until: float
) -> None:
    """Run tests/lab in a lab that is made for them and removed afterwards; those marked as long only when asked to.

    `busy` is there as long as something else runs beside. A failure shows the failed units first.
    """
    own = Lab(f"{lab.name}-test", lab.root)
    client = commands.connect()
    hosts.remove_lab(client, own.name)
    own.forget()
    failed = results.failed
    more = {
        "STEPLADDER_LAB": own.name,
        "STEPLADDER_DEBIAN": debian,
        "STEPLADDER_LONG": "yes" if long else "",
        "STEPLADDER_UNTIL": str(until),
        "STEPLADDER_BUSY": str(busy),
    }
    try:
        pytest(lab, "lab", name, results, more)
        if results.failed > failed:
            for container in hosts.find_hosts(client, own.name).values():
                console.print(hosts.diagnosis(container), markup=False, soft_wrap=True)
    finally:
        hosts.remove_lab(client, own.name)
        own.forget()
