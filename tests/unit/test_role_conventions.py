"""Every role keeps the rules of the house."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/tools"))
import role_readme  # noqa: E402

NAMES = sorted(p.name for p in (ROOT / "roles").iterdir() if not p.name.startswith(("_", ".")))
INVENTORY = re.compile(r"\b(groups|hostvars|group_names|inventory_\w+|play_hosts)\b(?!\s*[:=])")


@pytest.fixture(params=NAMES)
def role(request: pytest.FixtureRequest) -> Path:
    return ROOT / "roles" / request.param


def load(path: Path) -> Any:
    assert path.is_file(), f"{path.relative_to(ROOT)} is not there"
    return yaml.safe_load(path.read_text())


def options(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
        found.update(entry.get("options", {}))
    return found


def sources(role: Path) -> list[Path]:
    folders = ("tasks", "handlers", "templates", "defaults", "vars")
    return [p for folder in folders for p in (role / folder).rglob("*") if p.is_file()]


def test_specs_and_defaults_name_the_same_variables(role: Path) -> None:
    specs, defaults = options(role), load(role / "defaults/main.yml") or {}
    assert {name for name in specs if not specs[name].get("required")} == set(defaults)


def test_every_variable_is_typed_described_and_prefixed(role: Path) -> None:
    bare = [n for n, s in options(role).items() if not (s.get("type") and s.get("description"))]
    foreign = [n for n in options(role) if not n.startswith(f"{role.name}_")]
    assert (bare, foreign) == ([], [])


def test_readme_table_is_current(role: Path) -> None:
    assert role_readme.updated(role) == (role / "README.md").read_text()


def test_role_never_reads_the_inventory_or_another_role(role: Path) -> None:
    others = [n for n in NAMES if n != role.name and not role.name.startswith(f"{n}_")]
    foreign = re.compile(rf"\b(?:{'|'.join(others)})_[a-z]\w*") if others else None
    hits = []
    for path in sources(role):
        text = re.sub(r"(?m)(?:^|\s)#.*$", "", path.read_text())
        for code in re.findall(r"\{\{.*?\}\}|\{%.*?%\}|(?m:^\s*(?:when|that|until):.*$)", text, re.S):
            code = re.sub(r"'[^']*'", "", code)
            hits += [(path.name, m.group()) for m in INVENTORY.finditer(code)]
            hits += [(path.name, m.group()) for m in foreign.finditer(code)] if foreign else []
    assert hits == []


def test_role_is_documented_licensed_and_finds_the_shared_plugins(role: Path) -> None:
    meta = load(role / "meta/main.yml")
    assert {"role": "_common"} in meta["dependencies"]
    assert meta["galaxy_info"]["license"] == "Apache-2.0"


def test_role_has_a_scenario_with_tests(role: Path) -> None:
    files = (ROOT / "molecule" / role.name / "tests").glob("test_*.py")
    assert any("\ndef test_" in f"\n{path.read_text()}" for path in files)


def test_errors_are_not_ignored(role: Path) -> None:
    for path in sources(role):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            assert "ignore_errors" not in line, f"{path.name}: {line}"
            if re.search(r"failed_when:\s*false", line):
                assert "#" in line or before.strip().startswith("#"), f"{path.name}: say why"
