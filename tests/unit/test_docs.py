"""What the documentation names is there: links, files in commands, commands of ./ladder, settings."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from kit import ROOT
from lab.cli import parser as ladder_parser

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#([^)\s]+))?\)|\]\(#([^)\s]+)\)")
FOLDERS = ("playbooks", "inventories", "roles", "tests", "docs", "examples", "lab", "group_vars", "molecule", "plugins")
# A placeholder that a person replaces, or a pattern.
PLACEHOLDER = re.compile(r"<[^>]*>|\*|\.\.\.|…|\{|\$")
OWN_PATH = re.compile(rf"(?<![\w./-])(?:\./)?((?:{'|'.join(FOLDERS)})/[\w./<>*{{}}$…-]+)")


@cache
def pages() -> tuple[Path, ...]:
    listed = subprocess.check_output(["git", "ls-files", "-z", "*.md"], cwd=ROOT, text=True)
    return tuple(ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists())


def sources() -> list[Path]:
    """What says to people what to run: playbooks, roles, plugins, the wiring, the entry script."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "playbooks", "roles", "plugins", "group_vars", "inventories", "lab", "ladder"],
        cwd=ROOT, text=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading.strip().lower())).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"(?m)^#+ (.+)$", page.read_text())}


def broken_links(page: Path) -> Iterator[str]:
    for target, anchor, own in LINK.findall(page.read_text()):
        other = page.parent / target if target else page
        if not other.exists():
            yield f"{target} is not there"
        elif (anchor or own) and other.suffix == ".md" and (anchor or own) not in anchors(other):
            yield f"{other.name} has no heading #{anchor or own}"


def commands(text: str) -> Iterator[str]:
    """The command lines of a page's shell blocks, joined where they go on, without prompts and comments."""
    for language, block in re.findall(r"(?ms)^ *```(\w*)[^\n]*\n(.*?)^ *```", text):
        if language in ("sh", "bash", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if language != "console" or line.startswith(("$ ", "# ")):
                    yield re.sub(r"^[$#] ", "", line) if language == "console" else line


def missing_in(lines: list[str]) -> Iterator[str]:
    """What the commands of one page name and the kit does not have; what an earlier line makes is there."""
    made: set[str] = set()
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            yield f"{line}: {error}"
            continue
        if words[:1] in (["cp"], ["mkdir"], ["git"]) and words:
            made.add(words[-1].rstrip("/"))
        for word in words:
            named = word.removeprefix("./")
            if "/" not in named or named.split("/")[0] not in FOLDERS or PLACEHOLDER.search(named):
                continue
            ours = any(named == path or named.startswith(f"{path}/") for path in made)
            if not ours and not (ROOT / named).exists():
                yield f"{line}: {named} is not there"
        if words[:1] in (["./ladder"], ["ladder"]) and len(words) > 1 and not PLACEHOLDER.search(line):
            yield from wrong_ladder_command(words[1:])


def wrong_ladder_command(words: list[str]) -> Iterator[str]:
    if words in (["-h"], ["--help"]):
        return
    try:
        ladder_parser().parse_args(words)
    except SystemExit as ended:
        if ended.code:
            yield f"./ladder {' '.join(words)} is no command"


def test_links_lead_to_pages_and_headings() -> None:
    broken = [f"{page.relative_to(ROOT)}: {what}" for page in pages() for what in broken_links(page)]
    assert pages()
    assert broken == []


def test_commands_name_what_is_there() -> None:
    found = [f"{page.relative_to(ROOT)}: {what}" for page in pages()
             for what in missing_in(list(commands(page.read_text())))]  # fmt: skip
    assert found == []


def test_files_named_in_code_marks_are_there() -> None:
    missing = []
    for page in pages():
        made = set(re.findall(r"(?m)^\s*(?:\$ )?cp .* (inventories/\w+)", page.read_text()))
        for code in re.findall(r"`([^`\n]+)`", page.read_text()):
            for named in OWN_PATH.findall(code):
                named = named.rstrip(".,:;")
                known = (
                    (ROOT / named).exists() or (page.parent / named).exists() or named.startswith(tuple(made or "-"))
                )
                if not known and not PLACEHOLDER.search(named) and "secrets" not in named:
                    missing.append(f"{page.relative_to(ROOT)}: {named}")
    assert missing == []


def test_playbooks_and_pages_that_messages_and_comments_name_are_there() -> None:
    """A failure that says what to run must name something that can be run."""
    missing = [
        f"{path.relative_to(ROOT)}: {named}"
        for path in sources()
        for named in re.findall(r"\b((?:playbooks|docs)/[\w/.-]+\.(?:yml|md))", path.read_text(errors="replace"))
        if not (ROOT / named).exists()
    ]
    assert missing == []


def test_settings_that_pages_name_exist() -> None:
    known = set(yaml.safe_load((ROOT / "plugins/settings.yml").read_text()))
    wiring = [yaml.safe_load(path.read_text()) for path in (ROOT / "group_vars/all").glob("*.yml")]
    known |= {name for data in wiring for name in data}
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages()
        for name in re.findall(r"(?<![\w./-])site_[a-z_]*[a-z]\b(?!\.yml|\()", page.read_text())
        if name not in known
    ]
    assert missing == []


def facts_set_by_roles() -> set[str]:
    """The names that the roles' tasks, by set_fact or as their results, give to the plays that use them."""
    tasks = [task for path in ROOT.glob("roles/*/tasks/*.yml") for task in yaml.safe_load(path.read_text()) or []]
    results = {task["register"] for task in tasks if "register" in task}
    return results | {name for task in tasks for name in task.get("ansible.builtin.set_fact") or {}}


def test_variables_that_pages_name_exist() -> None:
    specs = {path.parents[1].name: yaml.safe_load(path.read_text())["argument_specs"]
             for path in ROOT.glob("roles/*/meta/argument_specs.yml")}  # fmt: skip
    known = {name for entries in specs.values() for entry in entries.values() for name in entry.get("options") or {}}
    known |= {name for path in (ROOT / "group_vars/all").glob("*.yml") for name in yaml.safe_load(path.read_text())}
    known |= facts_set_by_roles()
    prefix = re.compile(rf"(?:{'|'.join(sorted(specs)) or '-'})_[a-z_]*[a-z]")
    missing = [
        f"{page.relative_to(ROOT)}: {code}"
        for page in pages()
        for code in re.findall(r"`([a-z_]+)(?:: [^`]*)?`", page.read_text())
        if prefix.fullmatch(code) and code not in known and not (ROOT / "roles" / code).exists()
        and not list(ROOT.glob(f"roles/*/*/{code}.py"))
    ]  # fmt: skip
    assert missing == []


# The readers themselves: what they must find.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](nowhere.md)", ["nowhere.md is not there"]),
        ("# One\n[a](#two)", ["page.md has no heading #two"]),
        ("# `One` two, three!\n[a](#one-two-three) [b](page.md#one-two-three) [c](https://x.y/z)", []),
    ],
)
def test_links_are_read(tmp_path: Path, text: str, found: list[str]) -> None:
    (tmp_path / "page.md").write_text(text)
    assert list(broken_links(tmp_path / "page.md")) == found


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("```sh\nansible-playbook -i inventories/example playbooks/stage99.yml\n```", ["playbooks/stage99.yml"]),
        ("```sh\nansible-playbook -i inventories/nope \\\n  playbooks/stage1.yml\n```", ["inventories/nope"]),
        ("```console\n$ ./ladder climb\nroles/out/put of a command\n```", ["ladder climb"]),
        ("```sh\n./ladder up 1 --sideways\n```", ["ladder up 1 --sideways"]),
        ("```sh\ncp -r inventories/example inventories/mine\nls inventories/mine/hosts.yml # roles/x\n```", []),
        ("```sh\nansible-playbook -i inventories/<env> playbooks/stage1.yml\n./ladder up 1\n```", []),
        ("```yaml\nplaybooks/stage99.yml\n```", []),
    ],
)
def test_commands_are_read(text: str, missing: list[str]) -> None:
    found = list(missing_in(list(commands(text))))
    assert len(found) == len(missing)
    assert all(name in line for name, line in zip(missing, found, strict=True))


def test_picture_shows_the_stages_that_are_there() -> None:
    picture = (ROOT / "docs/stages.svg").read_text()
    filled = re.findall(r'width="530" height="46" rx="6" fill="#0b6e4f"', picture)
    assert len(filled) == len(list((ROOT / "playbooks").glob("stage*.yml")))
