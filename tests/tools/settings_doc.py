#!/usr/bin/env python3
"""Write the table of all settings into docs/settings.md, from plugins/settings.yml and the defaults in group_vars/all.

`settings_doc.py [--check]`; with --check nothing is written and a stale table exits with 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/settings.md"
START, END = "<!-- settings -->", "<!-- /settings -->"
INTRODUCTION = f"""# Settings of a site

Set these in `inventories/<env>/group_vars/site.yml`; `inventories/example/group_vars/site.yml` has those that everyone
must think about. A variable of a role (`postgres_max_connections`; the roles' READMEs list them) may be set there too:
what you set wins over what the kit derives. Preflight refuses names that begin like one of the kit's and are none.

{START}
{END}

The table is made from `plugins/settings.yml` by `python tests/tools/settings_doc.py`.
"""


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def default_of(name: str, spec: dict[str, Any], defaults: dict[str, Any]) -> str:
    """What a table says about the value that a setting has when nobody sets it."""
    if spec.get("required"):
        return "required"
    if spec.get("generated"):
        return "generated"
    value = defaults[name]
    return f"`{cell(value)}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def table(settings: dict[str, dict[str, Any]], defaults: dict[str, Any]) -> str:
    """The Markdown table, required settings first, in the order of plugins/settings.yml; KeyError lacks a default."""
    rows = ["| setting | type | default | what it is |", "|---|---|---|---|"]
    for name in sorted(settings, key=lambda name: not settings[name].get("required")):
        spec = settings[name]
        kind = " or ".join(spec["choices"]) if "choices" in spec else spec["type"]
        rows.append(f"| `{name}` | {kind} | {default_of(name, spec, defaults)} | {cell(spec['description'])} |")
    return "\n".join(rows)


def updated(text: str, root: Path = ROOT) -> str:
    """The page with a current table; ValueError when the markers are not there."""
    if START not in text or END not in text:
        raise ValueError(f"{PAGE.name} lacks {START} or {END}")
    defaults = load(root / "group_vars/all/site.yml") | load(root / "group_vars/all/hosts.yml")
    head, rest = text.split(START, 1)
    return f"{head}{START}\n{table(load(root / 'plugins/settings.yml'), defaults)}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the table is stale")
    check = parser.parse_args().check
    before = PAGE.read_text() if PAGE.exists() else INTRODUCTION
    after = updated(before)
    if PAGE.exists() and after == before:
        return 0
    if check:
        print(f"{PAGE.name}: the table is stale; run python tests/tools/settings_doc.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
