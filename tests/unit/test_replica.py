"""Reads from replicas: the overlay that the role writes, under a real Django with a file for each database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit import HERE, ROOT, run_playbook
from rendered import Role

REPLICAS = ROOT / "tests/unit/replicas"
PROMISES = re.findall(r"(?m)^    def (test_\w+)", (REPLICAS / "promises.py").read_text())
SQLITE = "django.db.backends.sqlite3"
GIVEN: dict[str, Any] = {
    "django_name": "library",
    "django_source": {"path": "/srv/src/library"},
    "django_settings_module": "library.settings",
    "django_secret_key": "key",
    "django_allowed_hosts": ["testserver"],
    "django_read_replica": "replica",
    "django_read_sticky_seconds": 7,
    "_django_fingerprint": "0123456789ab",
    "_django_release": "v1-abcdef",
    "_django_state": {"releases": {}, "live": "", "live_config": ""},
}


def written(folder: Path, **given: Any) -> dict[str, str]:
    """Have the role write its settings and modules there; the environment of a process that uses them."""
    for file in Role(ROOT / "roles/django", {**GIVEN, **given}).files():
        if file.dest.endswith(".py") and "/config/" in file.dest:
            (folder / Path(file.dest).name).write_text(file.text)
    return {
        **os.environ,
        "PYTHONPATH": f"{folder}:{REPLICAS}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DJANGO_SETTINGS_MODULE": "stepladder_settings",
        "SITE_SECRET_KEY": "key",
        "SITE_DATABASE_PASSWORD_DEFAULT": "of the default",
        "SITE_DATABASE_PASSWORD_REPLICA": "of the replica",
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("replicas")
    cache = {"default": {"backend": "django.core.cache.backends.db.DatabaseCache", "location": "cache_entries"}}
    kept: dict[str, str] = {}
    for name, aliases, given in (
        ("with", ("default", "replica", "scans"), {}),
        ("without", ("default", "scans"), {"django_read_replica": "", "django_read_marks": True}),
    ):
        (folder / name).mkdir()
        databases = {alias: {"engine": SQLITE, "name": f"{folder}/{name}/{alias}.sqlite3"} for alias in aliases}
        environment = written(folder / name, django_databases=databases, django_caches=cache, **given)
        command = [sys.executable, str(REPLICAS / "promises.py")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        kept |= json.loads(done.stdout.splitlines()[-1])
    return kept


@pytest.mark.parametrize("promise", PROMISES)
def test_promise(kept: dict[str, str], promise: str) -> None:
    assert kept[promise] == "", kept[promise]


def settings_of(folder: Path, **given: Any) -> dict[str, Any]:
    show = "import json, stepladder_settings as s; print(json.dumps({n: getattr(s, n) for n in dir(s) if n.isupper()}, default=str))"
    done = subprocess.run(
        [sys.executable, "-c", show], env=written(folder, **given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def postgres(**more: Any) -> dict[str, Any]:
    return {"engine": "django.db.backends.postgresql", "name": "library", "user": "library", **more}


def test_both_databases_are_as_django_wants_them_behind_a_pooler(tmp_path: Path) -> None:
    pooled = {"conn_max_age": 30, "conn_health_checks": False, "disable_server_side_cursors": True}
    databases = {
        "default": postgres(host="192.0.2.1", port=6432, options={"sslmode": "verify-full", "pool": False}, **pooled),
        "replica": postgres(host="/run/pgbouncer-reads/1"),
    }
    passwords = {"default": "of the default", "replica": "of the replica"}
    found = settings_of(tmp_path, django_databases=databases, django_database_passwords=passwords)["DATABASES"]
    assert found == {
        "default": {
            "ENGINE": "django.db.backends.postgresql", "NAME": "library", "USER": "library", "HOST": "192.0.2.1", "PORT": 6432,
            "OPTIONS": {"sslmode": "verify-full", "pool": False}, "CONN_MAX_AGE": 30, "CONN_HEALTH_CHECKS": False,
            "DISABLE_SERVER_SIDE_CURSORS": True, "PASSWORD": "of the default", "TIME_ZONE": "Asia/Tokyo",
        },
        "replica": {
            "ENGINE": "django.db.backends.postgresql", "NAME": "library", "USER": "library", "HOST": "/run/pgbouncer-reads/1",
            "PASSWORD": "of the replica", "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True, "TIME_ZONE": "Asia/Tokyo",
            "ATOMIC_REQUESTS": False, "AUTOCOMMIT": True, "TEST": {"MIRROR": "default"},
        },
    }  # fmt: skip


def test_without_a_replica_nothing_of_it_is_in_the_settings(tmp_path: Path) -> None:
    databases = {"default": {"engine": SQLITE, "name": f"{tmp_path}/default.sqlite3"}}
    found = settings_of(tmp_path, django_databases=databases, django_read_replica="")
    assert found["DATABASE_ROUTERS"] == ["library.site.OwnRouter"]
    assert [name for name in found if name.startswith("STEPLADDER_READ")] == []
    assert "stepladder_replica.middleware" not in found["MIDDLEWARE"]
    assert (tmp_path / "stepladder_replica.py").is_file(), "a project may import it at every stage"


REFUSED = {
    "django_read_replica is copy, django_databases has default, replica. Name one of them": {"django_read_replica": "copy"},
    "django_read_replica is default, django_databases has default, replica. Name one": {"django_read_replica": "default"},
    "django_read_replica is replica, django_databases has replica. Name one": {"django_databases": {"replica": postgres()}},
    "django_migrate_databases names replica, which is only read from.": {"django_migrate_databases": ["default", "replica"]},
    "django_read_sticky_seconds is 0, and nobody would find what he has just written.": {"django_read_sticky_seconds": 0},
    "django_read_sticky_seconds is -1, and nobody": {
        "django_read_sticky_seconds": -1, "django_read_replica": "", "django_read_marks": True,
    },
    "django_read_marks is on, and django_databases has no default whose": {
        "django_databases": {}, "django_read_replica": "", "django_read_marks": True,
    },
}  # fmt: skip


def test_preflight_refuses_a_replica_that_cannot_be_one_and_takes_one_that_can(tmp_path: Path) -> None:
    right = {
        **{k: v for k, v in GIVEN.items() if not k.startswith("_")},
        "django_databases": {"default": postgres(), "replica": postgres()},
    }
    attempts = [
        {
            "block": [{"include_role": {"name": "django", "tasks_from": "preflight"}, "vars": {**right, **case}},
                      {"debug": {"msg": f"accepted case {number}"}}],
            "rescue": [{"debug": {"msg": "{{ ansible_failed_result.msg }}"}}],
        }
        for number, case in enumerate([{}, {"django_read_replica": "", "django_read_marks": True}, *REFUSED.values()])
    ]  # fmt: skip
    play = {"hosts": "all", "gather_facts": False, "vars": HERE, "tasks": attempts}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "hosts").write_text("here\n")
    said = re.sub(r"\s+", " ", run_playbook(tmp_path / "play.yml", tmp_path / "hosts").stdout)
    assert re.findall(r"accepted case \d", said) == ["accepted case 0", "accepted case 1"], said
    for sentence in REFUSED:
        assert f"django: {sentence}" in said, f"{sentence!r} is not in {said}"
    assert said.count("django changed nothing.") >= len(REFUSED)
