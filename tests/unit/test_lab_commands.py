"""What ./ladder says: how to use a command, a unit that is not there, a step that found nothing to do."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import ansible, checks, commands
from lab.cli import parser
from lab.machine import MachineError
from lab.report import Results, console, step


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ssh", ["./ladder ssh HOST [COMMAND ...]", "Example: ./ladder ssh web1 systemctl status nginx"]),
        ("logs", ["./ladder logs HOST [UNIT]", "Example: ./ladder logs web1 nginx"]),
        ("play", ["./ladder play PLAYBOOK [OPTION ...]", "Example: ./ladder play playbooks/stage1.yml --check --diff"]),
    ],
)
def test_help_of_a_command_shows_how_it_is_used(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []


class FakeHost:
    """Answers what journalctl and systemctl would, by the word that a command has."""

    def __init__(self, **answers: tuple[int, str]) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.asked.append(command)
        code, out = next(answer for word, answer in self.answers.items() if word in command)
        return SimpleNamespace(returncode=code, stdout=out)


LAB: Any = SimpleNamespace(ssh_command=lambda host: ["ssh", host])


def test_logs_show_a_units_journal_and_ask_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = FakeHost(journalctl=(0, "line\n"))
    monkeypatch.setattr(subprocess, "run", host)
    assert commands.logs(LAB, "web1", "nginx") == 0
    assert capsys.readouterr().out == "line\n" and len(host.asked) == 1
    assert host.asked[0][-2:] == ["-u", "nginx"]


def test_logs_of_an_unknown_unit_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakeHost(journalctl=(0, ""), systemctl=(1, "")))
    with pytest.raises(
        MachineError, match=r"^The host web1 has no unit nginks\. .*./ladder ssh web1 systemctl list-units"
    ):
        commands.logs(LAB, "web1", "nginks")


def test_logs_of_a_silent_unit_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakeHost(journalctl=(0, ""), systemctl=(0, "")))
    with console.capture() as said:
        assert commands.logs(LAB, "web1", "nginx") == 0
    assert "The journal of web1 has nothing of nginx yet." in said.get()


@pytest.mark.parametrize(
    ("code", "name", "word"),
    [(0, None, "ok"), (5, "zzzz", "nothing matched"), (1, None, "failed"), (5, None, "failed")],
)
def test_step_ends_with_what_became_of_it(
    code: int, name: str | None, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ansible, "run_logged", lambda *_: (code, ""))
    lab: Any = SimpleNamespace(logs=tmp_path)
    with console.capture() as said:
        checks.pytest(lab, "unit", name, Results(), {})
    assert f"{word}  unit tests" in said.get()
    with console.capture() as said:
        checks.timed("lint", ["ruff"], tmp_path / "log", Results())
    assert f"{'failed' if code else 'ok'}  lint" in said.get()


@pytest.mark.parametrize(
    ("folder", "name", "closing", "left_out"),
    [
        (
            "lab",
            None,
            "70 passed, 6 skipped, 4 deselected in 3300.10s (0:55:00)",
            ["6 of the lab tests", "4 of the lab tests (with --long)"],
        ),
        ("lab", "stage2", "9 passed, 71 deselected in 3000.10s", []),
        ("lab", None, "80 passed in 3000.10s", []),
        ("unit", None, "70 passed, 6 skipped in 30.10s", []),
    ],
)
def test_lab_tests_that_were_left_out_are_counted(
    folder: str, name: str | None, closing: str, left_out: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ansible, "run_logged", lambda *_: (0, closing))
    lab: Any = SimpleNamespace(logs=tmp_path)
    results = Results()
    checks.pytest(lab, folder, name, results, {})
    assert results.left_out == left_out


def test_step_that_breaks_off_has_failed() -> None:
    with console.capture() as said, pytest.raises(MachineError), step("image"):
        raise MachineError("no engine")
    assert "failed  image" in said.get()


def test_linters_leave_a_persons_own_inventories_alone(tmp_path: Path) -> None:
    for name in ("example", "lab", "prod", "staging"):
        (tmp_path / "inventories" / name).mkdir(parents=True)
    assert checks.own_inventories(tmp_path) == ["--exclude", "inventories/prod", "--exclude", "inventories/staging"]


def test_what_needs_the_machine_to_itself_can_see_when_the_last_other_job_has_ended(tmp_path: Path) -> None:
    busy, seen = tmp_path / "busy", []

    def fails() -> None:
        raise MachineError("no engine")

    jobs = checks.marked([lambda: seen.append(busy.exists()), fails, lambda: seen.append(busy.exists())], busy)
    assert busy.exists()
    jobs[0]()
    with pytest.raises(MachineError):
        jobs[1]()
    assert busy.exists()
    jobs[2]()
    assert seen == [True, True] and not busy.exists()
    busy.touch()  # of a run that was cut off
    assert checks.marked([], busy) == [] and not busy.exists()
