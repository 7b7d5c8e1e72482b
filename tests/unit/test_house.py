"""What must not be in the tree is not in it, and the version is said in one way."""

from __future__ import annotations

import re
import stat
import subprocess
from functools import cache
from pathlib import Path

import pytest

from kit import ROOT

HERE = Path(__file__).relative_to(ROOT).as_posix()  # this file spells out what it looks for
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
CHECKOUT = re.compile(rf"(?<![\w.]){re.escape(str(ROOT.parent))}/(?:{ROOT.name}|shared|brief)\b")
HOME = re.compile(r"(?<![\w.~])/root/")  # a host's root has a home; a folder of a checkout is never there
MADE_HOW = re.compile(r"\b(AI|LLM|language model|Co-authored-by|(?:issue|session|helper) ?#?\d+|design\.md)\b", re.I)
KEY_LINE = re.compile(r"ssh-(?:ed25519|rsa) \S+")
PRIVATE = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/]")
SECRETS = ("/secrets/", "/artifacts/", ".pem", ".key", ".sqlite3", ".retry", ".pyc")


@cache
def texts() -> dict[str, str]:
    """Every file that is in version control, as text."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            found[name] = path.read_text(errors="replace")
    return found


def hits(pattern: re.Pattern[str], skip: tuple[str, ...] = ()) -> list[str]:
    return [f"{name}: {match.group()}" for name, text in texts().items() if name != HERE and not name.startswith(skip)
            for match in pattern.finditer(KEY_LINE.sub("", text))]  # fmt: skip


def test_nothing_unfinished_is_committed() -> None:
    assert hits(UNFINISHED, skip=("LICENSE",)) == []


def test_no_path_of_a_checkout_is_committed() -> None:
    assert hits(CHECKOUT) == []
    assert hits(HOME, skip=("roles/", "molecule/", "lab/", "tests/lab/")) == []


def test_tree_speaks_of_the_kit_and_not_of_how_it_was_made() -> None:
    assert hits(MADE_HOW, skip=("LICENSE",)) == []


def test_no_secret_and_nothing_generated_is_committed() -> None:
    assert [name for name in texts() if any(mark in f"/{name}" for mark in SECRETS)] == []
    assert hits(PRIVATE) == []


def test_code_that_does_nothing_is_not_committed() -> None:
    """Commented-out YAML tasks; Python's are the linter's."""
    pattern = re.compile(r"(?m)^\s*# ?- name: .*\n\s*# ?  [a-z_.]+:.*$")
    assert hits(pattern, skip=("docs/",)) == []


def test_files_end_with_one_newline_and_have_no_blanks_at_the_end_of_lines() -> None:
    wrong = [name for name, text in texts().items()
             if text and (not text.endswith("\n") or text.endswith("\n\n") or re.search(r"[ \t]+$", text, re.M))
             and name != "LICENSE" and not name.endswith((".svg", ".j2"))]  # fmt: skip
    assert wrong == []


def test_programs_can_be_run() -> None:
    programs = [name for name, text in texts().items() if text.startswith("#!") and not name.endswith(".j2")]
    ladder = [name for name in programs if name in ("ladder", ".ci/run")]
    assert [name for name in ladder if not (ROOT / name).stat().st_mode & stat.S_IXUSR] == []


def test_changelog_names_the_version_first() -> None:
    headings = re.findall(r"(?m)^## (.+)$", (ROOT / "CHANGELOG.md").read_text())
    assert headings
    version = re.match(r"\[?(\d+\.\d+\.\d+)\b", headings[0])
    assert version, f"the newest heading is {headings[0]!r}, not a version"
    package = re.search(r'(?m)^__version__ = "(.+)"$', texts()["lab/__init__.py"])
    assert package is None or package[1] == version[1]


def test_what_the_controller_needs_is_pinned_alike() -> None:
    def pins(name: str) -> dict[str, str]:
        return {p.lower(): v for p, v in re.findall(r"(?m)^([\w.-]+)==(\S+)$", texts()[name])}

    wanted, all_of_them = pins("requirements.txt"), pins("constraints.txt")
    assert wanted
    assert {name: all_of_them.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (UNFINISHED, "# TODO: later", True),
        (UNFINISHED, "todo list", False),
        (MADE_HOW, "as issue #3 says", True),
        (MADE_HOW, "the session cookie of an issuer", False),
        (CHECKOUT, f"cd {ROOT}/lab", True),
        (CHECKOUT, f"/mnt{ROOT}/lab", False),
        (HOME, "cat /root/.ssh/id", True),
        (PRIVATE, "-----BEGIN PRIVATE KEY-----\nMII", True),
    ],
)
def test_marks_are_recognised(pattern: re.Pattern[str], text: str, found: bool) -> None:
    assert bool(pattern.search(text)) is found
