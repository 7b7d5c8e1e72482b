"""What the lab reads from other programs' output: recaps, failures, a scenario's actions and tests."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import ansible, checks, scenarios
from lab.report import Results, duration

RECAP = """
PLAY RECAP *********************************************************************
web1                       : ok=12   changed=0    unreachable=0    failed=0    skipped=3    rescued=0    ignored=0
db1                        : ok=9    changed=2    unreachable=0    failed=1    skipped=0    rescued=0    ignored=0
"""

FAILED = """PLAY [Web] *********************
TASK [nginx : Install nginx] ***
ok: [web1]

TASK [nginx : Check the configuration] ***
[ERROR]: Task failed: the validation said no
fatal: [web1]: FAILED! => {"msg": "no"}
"""


def action(name: str, *lines: str) -> str:
    start = f"\x1b[36mINFO    \x1b[0m \x1b[32mdemo\x1b[0m ➜ \x1b[33m{name}\x1b[0m: \x1b[36mExecuting\x1b[0m\n"
    return start + "".join(f"  \x1b[2m│\x1b[0m {line}\n" for line in lines)


def recap(changed: int) -> tuple[str, str]:
    return (
        "PLAY RECAP",
        f"\x1b[33mdemo-debian13\x1b[0m              : ok=1    changed={changed}    unreachable=0    failed=0",
    )


def log(checked: int = 0, tests: str = "==== 3 passed in 0.86s", leave_out: str = "") -> str:
    parts = {
        "check": action("check", *recap(7)),
        "converge": action("converge", *recap(7)),
        "idempotence": action("idempotence", *recap(0)),
        "check again": action("check", *recap(checked)),
        "verify": action("verify", "INFO Executing Testinfra tests found in tests/...", tests),
        "destroy": action("destroy"),
    }
    return "".join(text for name, text in parts.items() if name != leave_out)


def test_recap_counts_by_host() -> None:
    counts = ansible.recap("PLAY RECAP ***\nold : ok=1 changed=1 unreachable=0 failed=0\n" + RECAP)
    assert counts["db1"] == {"ok": 9, "changed": 2, "unreachable": 0, "failed": 1}
    assert set(counts) == {"web1", "db1"}
    assert ansible.recap("no play ran") == {}


def test_failure_shows_the_failing_task_and_not_those_before() -> None:
    shown = ansible.failure(FAILED)
    assert shown.startswith("TASK [nginx : Check the configuration]")
    assert "the validation said no" in shown
    assert "Install nginx" not in shown


def test_failure_without_a_task_shows_the_end() -> None:
    assert ansible.failure("one\ntwo\nthree", lines=2) == "two\nthree"


def test_a_sound_scenario_has_no_complaints() -> None:
    assert scenarios.complaints(log()) == []
    assert [phase.name for phase in scenarios.phases(log())] == [
        "check", "converge", "idempotence", "check", "verify", "destroy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (log(tests="Skipping, no tests found."), "verify ran no test"),
        (log(tests="==== no tests ran in 0.01s"), "verify ran no test"),
        (log(leave_out="verify"), "verify ran no test"),
        (log(leave_out="idempotence"), "no idempotence run"),
        (log(leave_out="check again"), "no check run after idempotence"),
        (log(checked=2), "would change (demo-debian13: 2)"),
    ],
)
def test_a_scenario_that_proves_too_little_is_not_passed(text: str, sentence: str) -> None:
    assert any(sentence in complaint for complaint in scenarios.complaints(text))


def test_changes_of_the_first_check_run_are_no_complaint() -> None:
    assert scenarios.complaints(log(checked=0)) == []


def test_tests_are_counted_from_pytests_closing_line() -> None:
    assert scenarios.tests_run("==== 1 failed, 3 passed, 2 warnings in 0.86s") == 4
    assert scenarios.tests_run("2 passed in 3.1s") == 2
    assert scenarios.tests_run("2 passed, 3 skipped in 3.1s") == 2
    assert scenarios.tests_run("nothing here") == 0


def test_failing_phase_is_the_last_that_did_something() -> None:
    text = action("create") + action("converge", *FAILED.splitlines()) + action("destroy", "Skipping")
    assert scenarios.failing_phase(text).startswith("converge:\nTASK [nginx : Check")


def test_closing_line_counts_steps() -> None:
    results = Results()
    results.add("one", 1.0, True)
    results.add("two", 1.0, False)
    assert (results.closing_line(), results.failed) == ("1 passed, 1 failed", 1)


def test_closing_line_names_what_the_time_was_too_short_for() -> None:
    results, ran = Results(), []
    checks.in_time(time.time() + 60, "base", lambda: ran.append("base"), results)
    checks.in_time(time.time() - 1, "redis", lambda: ran.append("redis"), results)
    assert ran == ["base"]
    assert results.closing_line() == "0 passed, 0 failed, not run for lack of time: role redis"


@pytest.mark.parametrize(("minutes", "roles", "tests"), [(60, 36 * 60, 60 * 60), (math.inf, math.inf, math.inf)])
def test_the_last_part_of_the_time_is_the_labs_alone(
    minutes: float, roles: float, tests: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, float] = {}

    def scenarios_until(*words: Any) -> list[Callable[[], None]]:
        given["roles"] = words[-1] - began
        return []

    def lab_until(*words: Any) -> None:
        given["lab"] = words[-1] - began
        words[3].add("lab tests", 1.0, True)

    monkeypatch.setattr(checks, "roles", scenarios_until)
    monkeypatch.setattr(checks, "whole_stage", lab_until)
    for part in ("roles", "lab"):
        began = time.time()
        checks.run(SimpleNamespace(logs=tmp_path), part, None, "13", minutes=minutes)
    assert given == {"roles": pytest.approx(roles, abs=2), "lab": pytest.approx(tests, abs=2)}


def repository(folder: Path, *changes: str) -> None:
    """A repository with one commit an hour, each of which changes the files named (by blanks) in it."""
    folder.mkdir(exist_ok=True)
    for hour, change in enumerate(("", *changes)):
        for name in change.split():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(str(hour))
        date = f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z"
        environment = {**os.environ, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        for words in (("init",), ("add", "."), ("commit", "--allow-empty", "-m", change or "first")):
            subprocess.run(["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e@example.com", *words],
                           check=True, capture_output=True, env=environment)  # fmt: skip


MADE = " ".join(f"molecule/{name}/molecule.yml" for name in ("base", "nginx", "redis", "restic", "media"))


def test_scenarios_that_the_last_days_commits_changed_are_tested_first_the_newest_of_them_foremost(tmp_path) -> None:
    changes = [
        MADE,
        "roles/media/a",
        *["README.md"] * 25,
        "roles/base/a roles/nosuch/a",
        "molecule/redis/a",
        "roles/base/b",
    ]
    repository(tmp_path, *changes)
    assert scenarios.newest(tmp_path) == ["base", "redis"], "media was changed the day before"
    repository(tmp_path / "all", MADE)
    assert len(scenarios.newest(tmp_path / "all")) == scenarios.NEWEST
    assert scenarios.newest(tmp_path.parent / "nosuch") == []


def test_each_of_the_other_scenarios_has_its_turn_behind_those_that_changed() -> None:
    chosen, changed = scenarios.scenarios(), ["redis", "base"]
    orders = [scenarios.in_turn(chosen, changed, number) for number in range(1000, 1000 + len(chosen))]
    assert all(order[:2] == changed and sorted(order) == chosen for order in orders)
    assert {order[2] for order in orders} == set(chosen) - set(changed)
    assert scenarios.in_turn(["redis"], ["base", "redis"], 7) == ["redis"], "only what was asked for"


def test_scenarios_take_turns_in_a_shallow_clone_too(tmp_path: Path) -> None:
    repository(tmp_path / "whole", MADE, "roles/base/a", "roles/nginx/a")
    seeds = set()
    for commit in ("HEAD", "HEAD~1"):
        clone = tmp_path / commit
        subprocess.run(["git", "-C", tmp_path / "whole", "branch", "-f", "some", commit], check=True)
        one = ["git", "clone", "--quiet", "--depth", "1", "--branch", "some", f"file://{tmp_path}/whole", clone]
        subprocess.run(one, check=True)
        assert scenarios.newest(clone) == [], "its only commit says of every file that it changed it"
        seeds.add(scenarios.seed(clone))
    assert len(seeds) == 2 and scenarios.seed(tmp_path) == 0


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (59.9, "59.9 s"), (185, "3 min 05 s")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
