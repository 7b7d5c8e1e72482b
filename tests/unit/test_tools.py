"""The generators of tables write what the sources say, and notice when a page no longer does."""

import subprocess
import sys
from pathlib import Path

import pytest

from kit import ROOT

sys.path.insert(0, str(ROOT / "tests/tools"))
import role_readme
import settings_doc

SETTINGS = {
    "site_keep": {"type": "int", "description": "How many\n stay | go."},
    "site_key": {"type": "str", "generated": True, "description": "A key."},
    "site_tls": {"type": "str", "choices": ["a", "b"], "description": "Which."},
    "site_name": {"type": "str", "required": True, "description": "Its name."},
}


def test_settings_page_is_current() -> None:
    page = ROOT / "docs/settings.md"
    assert page.read_text() == settings_doc.updated(page.read_text()), "run python tests/tools/settings_doc.py"


def test_settings_table_says_defaults_choices_and_what_is_required() -> None:
    rows = settings_doc.table(SETTINGS, {"site_keep": 5, "site_key": "{{ lookup }}", "site_tls": "a"}).splitlines()[2:]
    assert rows == [
        "| `site_name` | str | required | Its name. |",
        "| `site_keep` | int | `5` | How many stay \\| go. |",
        "| `site_key` | str | generated | A key. |",
        "| `site_tls` | a or b | `a` | Which. |",
    ]


def test_a_setting_without_a_default_is_an_error() -> None:
    with pytest.raises(KeyError, match="site_keep"):
        settings_doc.table({"site_keep": SETTINGS["site_keep"]}, {})


def test_what_people_write_around_the_table_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings_doc, "PAGE", tmp_path / "docs/settings.md")
    monkeypatch.setattr(sys, "argv", ["settings_doc.py"])
    assert settings_doc.main() == 0
    text = settings_doc.PAGE.read_text()
    settings_doc.PAGE.write_text(text.replace("| `site_name`", "| `site_nom`").replace("# Settings", "# All settings"))
    monkeypatch.setattr(sys, "argv", ["settings_doc.py", "--check"])
    assert settings_doc.main() == 1
    monkeypatch.setattr(sys, "argv", ["settings_doc.py"])
    assert settings_doc.main() == 0
    assert settings_doc.PAGE.read_text() == text.replace("# Settings", "# All settings")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks"):
        settings_doc.updated("# Settings\n")
    (tmp_path / "README.md").write_text("# role\n")
    with pytest.raises(ValueError, match="lacks"):
        role_readme.updated(tmp_path)


def test_role_table_is_made_from_specs_and_defaults(tmp_path: Path) -> None:
    for folder in ("meta", "defaults"):
        (tmp_path / folder).mkdir()
    (tmp_path / "meta/argument_specs.yml").write_text(
        "argument_specs: {main: {options: {x_b: {type: int, description: B.}, "
        "x_name: {type: str, required: true, description: [Its, name.]}, "
        "x_c: {type: list, elements: dict, description: C., options: {d: {type: str, required: true, description: D.}, "
        "e: {type: str, choices: [f, g], default: f, description: E.}, h: {type: int, description: H.}}}, "
        "x_i: {type: dict, description: I., options: {j: {type: list, default: [], description: J.}}}}}}"
    )
    (tmp_path / "defaults/main.yml").write_text("x_b: 2\nx_c: []\nx_i: {}")
    (tmp_path / "README.md").write_text("# x\n<!-- variables -->old<!-- /variables -->\ntail\n")
    assert role_readme.updated(tmp_path).splitlines()[4:] == [
        "| `x_name` | str | required | Its name. |",
        "| `x_b` | int | `2` | B. |",
        "| `x_c` | list | `[]` | C. |",
        "| `x_c[].d` | str | required | D. |",
        "| `x_c[].e` | f or g | `f` | E. |",
        "| `x_c[].h` | int |  | H. |",
        "| `x_i` | dict | `{}` | I. |",
        "| `x_i.j` | list | `[]` | J. |",
        "<!-- /variables -->",
        "tail",
    ]


def test_tools_run_as_programs() -> None:
    for tool in ("role_readme.py", "settings_doc.py"):
        done = subprocess.run([sys.executable, ROOT / "tests/tools" / tool, "--help"], capture_output=True, check=False)
        assert done.returncode == 0 and b"--check" in done.stdout
