"""playbooks/load-dump.yml replaces no rows unasked: its refusals, with a psql that says what the database has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kit import HERE, ROOT, SITE, run_playbook

FRESH = ["public.django_migrations 22", "public.django_content_type 12", "public.auth_permission 48",
         "public.auth_user 0", "public.auth_user_id_seq at its start", "public.django_migrations_id_seq at 22"]  # fmt: skip
USED = [*FRESH, "public.orders_order 4000", "public.orders_order_id_seq at 4000"]


@pytest.fixture
def refusal(make_inventory: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the play says that looks, up to where it would change something; empty when it refuses nothing."""
    plays = yaml.safe_load((ROOT / "playbooks/load-dump.yml").read_text())
    play = next(play for play in plays if play["name"] == "Look")
    names = [task["name"] for task in play["tasks"]]
    play["tasks"] = play["tasks"][: names.index("Refuse to replace rows unasked") + 1]
    play["become"] = False
    for task in play["tasks"]:
        for key in ("become", "become_user"):
            task.pop(key, None)
    (tmp_path / "files").symlink_to(ROOT / "playbooks/files")
    # The hosts of a play know other hosts' variables once there was a play; in the playbook that is preflight.
    first = {"name": "First", "hosts": "localhost", "gather_facts": False, "tasks": []}
    (tmp_path / "look.yml").write_text(yaml.safe_dump([first, play]))
    (tmp_path / "shop.dump").write_text("a dump")
    inventory = make_inventory(
        {"web": ["one"], "database": ["one"]}, {**SITE, "database_primary": "one"}, {"one": HERE}
    )

    def look(rows: list[str] | None, **given: str) -> str:
        psql = tmp_path / "bin/psql"
        psql.parent.mkdir(exist_ok=True)
        says = "\n".join(["cat <<'EOF'", *rows, "EOF"]) if rows else "echo gone >&2; exit 2"
        psql.write_text(f"#!/bin/sh\ncat > /dev/null\n{says}\n")
        psql.chmod(0o755)
        monkeypatch.setenv("PATH", f"{psql.parent}:/usr/bin:/bin")
        options = {"dump": str(tmp_path / "shop.dump"), "site_database_name": "shop", **given}
        done = run_playbook(tmp_path / "look.yml", inventory, "-e", json.dumps(options))
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 0 or "nothing was changed" in said, said
        return said if done.returncode else ""

    return look


def test_rows_are_replaced_only_by_who_names_the_database(refusal: Callable[..., str]) -> None:
    said = refusal(USED)
    assert "has rows" in said and "public.orders_order 4000" in said and "-e replace=shop" in said
    assert "django_migrations" not in said and "_seq" not in said
    assert "has rows" in refusal(USED, replace="yes")
    assert refusal(USED, replace="shop") == ""


def test_what_migrations_made_may_go(refusal: Callable[..., str]) -> None:
    assert refusal(FRESH) == ""


def test_a_dump_that_is_not_there_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "is no file on this computer" in refusal(FRESH, dump=str(tmp_path / "nowhere.dump"))
    assert "No dump was given" in refusal(FRESH, dump="")


def test_a_database_that_does_not_answer_is_refused(refusal: Callable[..., str]) -> None:
    assert "Run your stage first. gone" in refusal(None)
