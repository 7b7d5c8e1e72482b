"""One run at a time holds a site's deploy lock, and a dead one does not hold it for ever."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from kit import load_plugin

module = load_plugin("roles/django/library/django_lock.py")
action = load_plugin("roles/django/action_plugins/django_lock.py")
ADA = {"id": "laptop:1:10", "who": "ada", "why": "", "what": "the deploy of v2", "controller": "laptop"}
BOB = {**ADA, "id": "laptop:2:20", "who": "bob"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "django-shop.lock")


def test_lock_is_given_to_one_of_two(path: str) -> None:
    assert module.take(path, ADA, "", check=False) == (True, {})
    taken, found = module.take(path, BOB, "", check=False)
    assert not taken and found["who"] == "ada" and found["since"]
    assert json.loads(Path(path).read_text())["id"] == ADA["id"]


def test_own_lock_is_taken_again_and_another_only_when_it_is_named(path: str) -> None:
    module.take(path, ADA, "", check=False)
    assert module.take(path, ADA, "", check=False)[0]
    assert module.take(path, BOB, ADA["id"], check=False)[0]
    assert json.loads(Path(path).read_text())["who"] == "bob"


def test_only_the_holder_lets_go(path: str) -> None:
    module.take(path, ADA, "", check=False)
    assert not module.let_go(path, BOB, "", check=False)[0]
    assert Path(path).exists()
    assert module.let_go(path, ADA, "", check=False)[0]
    assert not Path(path).exists()
    assert module.let_go(path, ADA, "", check=False)[0]


def test_check_mode_takes_nothing_and_lets_nothing_go(path: str) -> None:
    assert module.take(path, ADA, "", check=True)[0]
    assert not Path(path).exists()
    module.take(path, ADA, "", check=False)
    module.let_go(path, ADA, "", check=True)
    assert Path(path).exists()


def test_lock_of_a_run_that_is_no_more_counts_as_abandoned() -> None:
    own = action.identity(os.getpid())
    assert not action.abandoned(own)
    child = subprocess.Popen(["sleep", "60"])
    lock = action.identity(child.pid)
    assert not action.abandoned(lock)
    child.kill()
    child.wait()
    assert action.abandoned(lock)


@pytest.mark.parametrize("lock", ["elsewhere:1:1", action.BY_HAND, "", "odd"])
def test_nothing_is_said_about_locks_of_other_controllers_and_of_people(lock: str) -> None:
    assert not action.abandoned(lock)


@pytest.mark.parametrize(
    ("state", "found", "changes"),
    [
        ("absent", {}, False),
        ("absent", {"id": action.BY_HAND}, True),
        ("absent", ADA, True),
        ("present", {}, True),
        ("present", {"id": action.BY_HAND}, False),
    ],
)
def test_a_lock_by_hand_that_comes_or_goes_is_a_change(state: str, found: dict[str, str], changes: bool) -> None:
    assert action.by_hand_changes(state, found) is changes


def test_number_that_another_process_has_now_does_not_keep_a_lock_alive() -> None:
    node, pid, _tick = action.identity(os.getpid()).rsplit(":", 2)
    assert action.abandoned(f"{node}:{pid}:1")


def test_refusal_says_who_why_since_when_and_what_to_do() -> None:
    found = {**ADA, "since": "2026-01-01T10:00:00Z", "why": "the cart"}
    said = action.refusal(found)
    for part in (
        "ada",
        "laptop",
        "2026-01-01T10:00:00Z",
        "the deploy of v2",
        "the cart",
        "playbooks/lock.yml -e state=off",
    ):
        assert part in said
    assert "When the reason is gone" in action.refusal({**found, "id": action.BY_HAND})


def test_another_reason_for_a_lock_by_hand_is_refused_in_a_sentence() -> None:
    found = {"id": action.BY_HAND, "who": "ada", "since": "2031-05-01", "what": "locked by hand", "why": "the sale"}
    said = action.already(found)
    assert "ada holds the deploy lock since 2031-05-01: locked by hand (the sale). django changed nothing." in said
    assert "playbooks/lock.yml -e state=off" in said
