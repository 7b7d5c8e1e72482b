#!/usr/bin/env python3
"""Write each role's variable table into its README, from its argument_specs and defaults.

`role_readme.py [--check] [ROLE ...]`; with --check nothing is written and stale tables exit with 1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
START, END = "<!-- variables -->", "<!-- /variables -->"


def load(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def shown(value: Any) -> str:
    """A default as the table has it: text as it is, everything else as JSON."""
    return f"`{cell(value if isinstance(value, str) and value else json.dumps(value, default=str))}`"


def fields(place: str, options: dict[str, Any]) -> list[str]:
    """The rows of a mapping's fields, or of those of each entry of a list, in the order of the specs."""
    rows = []
    for name, spec in options.items():
        default = "required" if spec.get("required") else shown(spec["default"]) if "default" in spec else ""
        kind = " or ".join(spec["choices"]) if "choices" in spec else spec.get("type", "")
        rows.append(f"| `{place}.{name}` | {kind} | {default} | {cell(spec.get('description', ''))} |")
    return rows


def table(role: Path) -> str:
    """The Markdown table of the role's variables, required ones first."""
    specs = load(role / "meta/argument_specs.yml").get("argument_specs", {})
    options: dict[str, Any] = {}
    for entry in specs.values():
        options.update(entry.get("options", {}))
    defaults = load(role / "defaults/main.yml")
    rows = ["| variable | type | default | what it is |", "|---|---|---|---|"]
    for name in sorted(options, key=lambda name: (not options[name].get("required"), name)):
        spec = options[name]
        default = "required" if spec.get("required") else shown(defaults.get(name))
        description = spec.get("description", "")
        words = " ".join(description) if isinstance(description, list) else description
        rows.append(f"| `{name}` | {spec.get('type', '')} | {default} | {cell(words)} |")
        rows += fields(name + ("[]" if spec.get("type") == "list" else ""), spec.get("options") or {})
    return "\n".join(rows)


def updated(role: Path) -> str:
    """The README with a current table; ValueError when the markers are not there."""
    text = (role / "README.md").read_text()
    if START not in text or END not in text:
        raise ValueError(f"{role.name}: README.md lacks {START} or {END}")
    head, rest = text.split(START, 1)
    return f"{head}{START}\n{table(role)}\n{END}{rest.split(END, 1)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("roles", nargs="*")
    chosen = parser.parse_args()
    names = chosen.roles or sorted(p.name for p in ROLES.iterdir() if not p.name.startswith("_"))
    stale = 0
    for name in names:
        role = ROLES / name
        try:
            text = updated(role)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            stale += 1
            continue
        if text != (role / "README.md").read_text():
            if chosen.check:
                print(f"{name}: the table is stale; run {Path(__file__).name}", file=sys.stderr)
                stale += 1
            else:
                (role / "README.md").write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
