"""pgbackrest: what the program on the host makes of pgBackRest's answers, of its log, and of what it is asked to restore."""

from __future__ import annotations

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from test_templates import samples

from kit import HERE, ROOT, load_module, run_playbook
from rendered import Role

ROLE = ROOT / "roles/pgbackrest"
REPOSITORY, DATABASE = 0, 1


@functools.cache
def text(sample: int) -> str:
    files = Role(ROLE, samples("pgbackrest")[sample]).files()
    return next(file.text for file in files if file.template == "control.py.j2")


def program(folder: Path, sample: int) -> ModuleType:
    path = folder / f"control{sample}.py"
    path.write_text(text(sample))
    return load_module(path)


@pytest.fixture
def control(tmp_path: Path) -> ModuleType:
    return program(tmp_path, REPOSITORY)


def test_who_makes_a_stanza_waits_longer_than_a_send_holds_the_lock(control: ModuleType) -> None:
    """A send tries twice to connect (pgBackRest 2.55, measured), each time for io-timeout seconds."""
    found = [
        re.findall(r"(?m)^archive-async=y\n(?:.*\n)*?io-timeout=(\d+)$", file.text)
        for sample in samples("pgbackrest")
        for file in Role(ROLE, sample).files()
        if file.dest.endswith("pgbackrest.conf")
    ]
    limits = [int(limit) for limits in found for limit in limits]
    assert limits
    assert 2 * 2 * max(limits) < control.PATIENCE


def info(**changes: Any) -> dict[str, Any]:
    """What `pgbackrest info --output=json` says of a stanza that has one full and one differential backup."""
    backups = [
        {
            "label": label, "type": kind, "error": False, "timestamp": {"start": start, "stop": start + 10},
            "info": {"size": 300, "repository": {"delta": 20}},
        }
        for label, kind, start in (("20310101-023000F", "full", 1000), ("20310101-023000F_20310102-023000D", "diff", 2000))
    ]  # fmt: skip
    good = {
        "name": "shop",
        "db": [{"id": 1, "version": "17"}],
        "status": {"code": 0, "message": "ok"},
        "backup": backups,
        "archive": [],
    }
    return {**good, **changes}


def answers(control: ModuleType, monkeypatch: pytest.MonkeyPatch, **given: Any) -> list[tuple[str, ...]]:
    """Let pgBackRest answer each command with (code, output, errors); gives the commands that were asked."""
    asked = []

    def pgbackrest(stanza: str, *words: str) -> tuple[int, str, str]:
        asked.append(words)
        return dict(given, **{"repo_ls": given.get("repo_ls", (1, "", ""))})[words[0].replace("-", "_")]

    monkeypatch.setattr(control, "pgbackrest", pgbackrest)
    return asked


# --- reading


@pytest.mark.parametrize(
    ("text", "opening", "found"),
    [
        ('[{"a": 1}]', "[", [{"a": 1}]),
        ('WARN: configuration file contains [odd] things\n[{"a": 1}]\n', "[", [{"a": 1}]),
        ('[no JSON] at all\n[{"a": 1}]\ntrailing', "[", [{"a": 1}]),
        ('P00 WARN: {x}\n{"a": {"b": 2}}', "{", {"a": {"b": 2}}),
    ],
)
def test_json_is_found_after_warnings(control: ModuleType, text: str, opening: str, found: Any) -> None:
    assert control.listed(text, opening) == found


def test_output_without_json_is_shown(control: ModuleType) -> None:
    with pytest.raises(control.Failed, match="printed no JSON: nothing of the kind"):
        control.listed("nothing of the kind", "[")


@pytest.mark.parametrize(
    ("status", "repo", "error"),
    [
        ({"code": 0, "message": "ok"}, [], ""),
        ({"code": 2, "message": "no valid backups"}, [], ""),
        ({"code": 1, "message": "missing stanza path"}, [{"status": {"code": 1, "message": "missing stanza path"}}], "missing stanza path"),
        (
            {"code": 99, "message": "other"},
            [{"status": {"code": 99, "message": "[HostConnectError] unable to connect to\n  'repo.test:8432'"}}],
            "[HostConnectError] unable to connect to 'repo.test:8432'",
        ),
        ({"code": 99, "message": "other"}, [{"status": {"code": 0, "message": "ok"}}], "other"),
        ({"code": 99, "message": "other"}, None, "other"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_reason(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], repo: Any, error: str
) -> None:
    answers(control, monkeypatch, info=(0, json.dumps([info(status=status, repo=repo)]), ""))
    assert control.describe("shop")["error"] == error


def test_failed_question_is_an_error(control: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(control, monkeypatch, info=(49, "", "ERROR: [049]: no route"))
    told = control.describe("shop")
    assert (told["error"], told["exists"], told["backups"]) == ("ERROR: [049]: no route", False, [])


def test_times_and_sizes_are_those_of_the_backups(control: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = [{"id": "17-1", "max": "00000001000000000000000A"}]
    listing = json.dumps(
        {"00000001000000000000000A-0af.zst": {"time": 2500}, "000000010000000000000009-0af.zst": {"time": 2400}}
    )
    asked = answers(control, monkeypatch, info=(0, json.dumps([info(archive=archive)]), ""), repo_ls=(0, listing, ""))
    told = control.describe("shop")
    assert (told["last_backup_type"], told["database_bytes"], told["repository_bytes"]) == ("diff", 300, 40)
    assert told["oldest_restorable_time"] == "1970-01-01 00:16:50+00"
    assert (told["last_wal"], told["last_wal_time"]) == ("00000001000000000000000A", "1970-01-01 00:41:40+00")
    assert asked[-1] == ("repo-ls", "archive/shop/17-1/0000000100000000", "--output=json")


def test_backups_of_before_a_major_upgrade_are_listed_and_do_not_count_as_reach(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = info()["backup"]
    two = [{"id": 1, "version": "15"}, {"id": 2, "version": "17"}]
    told = info(db=two, backup=[{**old, "database": {"id": 1}}, {**new, "database": {"id": 2}}])
    answers(control, monkeypatch, info=(0, json.dumps([told]), ""))
    found = control.describe("shop")
    assert (len(found["backups"]), found["version"]) == (2, "17")
    assert found["oldest_restorable_time"] == found["last_backup_time"] == "1970-01-01 00:33:30+00"
    told = info(db=two, backup=[{**old, "database": {"id": 1}}])
    answers(control, monkeypatch, info=(0, json.dumps([told]), ""), check=(0, "", ""))
    found = control.describe("shop")
    assert "there is no backup yet" in " ".join(control.wrong("shop", found))
    with pytest.raises(control.Failed, match="there is no backup to restore: none was made yet"):
        control.refuse_target("latest", "", found)


def test_database_does_not_look_into_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = program(tmp_path, DATABASE)
    archive = [{"id": "17-1", "max": "00000001000000000000000A"}]
    asked = answers(control, monkeypatch, info=(0, json.dumps([info(archive=archive)]), ""))
    told = control.describe("shop")
    assert (told["last_wal"], told["last_wal_time"]) == ("00000001000000000000000A", None)
    assert [words[0] for words in asked] == ["info"]


# --- WAL that did not fit into the queue

LOG = """-------------------PROCESS START-------------------
2031-01-02 03:04:05.678 P00   INFO: archive-push command begin 2.54: [pg_wal/00000001000000000000000A] --archive-async
2031-01-02 03:04:06.001 P00   WARN: dropped WAL file '00000001000000000000000A' because archive queue exceeded 64MB
2031-01-02 03:04:07.001 P00   WARN: dropped WAL file '00000001000000000000000B' because archive queue exceeded 64MB
2031-01-02 03:04:08.001 P00   INFO: would have said: dropped WAL file '00000001000000000000000C'
"""


def test_dropped_wal_is_found_in_the_log_from_a_moment_on(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shop-archive-push-async.log").write_text(LOG)
    (tmp_path / "shop-archive-push-async.log.1.gz").write_bytes(b"\x1f\x8b")
    monkeypatch.setattr(control.glob, "glob", lambda pattern: [str(path) for path in tmp_path.glob(Path(pattern).name)])
    second = time.mktime((2031, 1, 2, 3, 4, 6, 0, 0, -1))
    assert control.dropped("shop", 0) == ["00000001000000000000000A", "00000001000000000000000B"]
    assert control.dropped("shop", second) == ["00000001000000000000000A", "00000001000000000000000B"]
    assert control.dropped("shop", second + 1) == ["00000001000000000000000B"]
    assert control.dropped("shop", second + 2) == []
    assert control.dropped("other", 0) == []


# --- the alarm


@pytest.mark.parametrize(
    ("told", "check", "words"),
    [
        ({}, 0, []),
        ({"error": "no route"}, 0, ["shop: no route"]),
        ({"last_backup_age_seconds": None}, 0, ["shop: there is no backup yet"]),
        ({"last_backup_age_seconds": 30 * 3600}, 0, []),
        ({"last_backup_age_seconds": 31 * 3600}, 0, ["shop: the last backup is 31 hours old"]),
        ({"dropped_wal": ["A", "B"]}, 0, ["shop: 2 WAL files were dropped"]),
        ({"backups_with_errors": ["20310101-023000F"]}, 0, ["shop: pages were damaged when these backups were made: 20310101-023000F"]),
        ({}, 82, ["shop: WAL did not arrive"]),
        ({"error": "no route", "dropped_wal": ["A"]}, 82, ["shop: no route", "shop: 1 WAL files were dropped"]),
    ],
)  # fmt: skip
def test_alarm_names_everything_that_is_wrong(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], check: int, words: list[str]
) -> None:
    answers(control, monkeypatch, check=(check, "", "WAL did not arrive"))
    good = {"error": "", "dropped_wal": [], "backups_with_errors": [], "last_backup_age_seconds": 60}
    found = control.wrong("shop", {**good, **told})
    assert len(found) == len(words)
    assert all(sentence.startswith(start) for sentence, start in zip(found, words, strict=True)), found


@pytest.mark.parametrize(
    ("groups", "warned"),
    [({"web": ["one"], "database": ["one"]}, True), ({"web": ["web1"], "database": ["db1"]}, False)],
)
def test_a_run_warns_where_the_only_machine_keeps_its_own_backups(
    make_inventory: Callable[..., Path], tmp_path: Path, groups: dict[str, list[str]], warned: bool
) -> None:
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    tasks = yaml.safe_load((ROLE / "tasks/run.yml").read_text())
    play = {
        "name": "The end of the role", "hosts": "database", "gather_facts": True, "gather_subset": ["!all", "!min", "platform"],
        "tasks": [task for task in tasks if "ansible.builtin.debug" in task and "same machine" in task["name"]],
    }  # fmt: skip
    (tmp_path / "end.yml").write_text(yaml.safe_dump([play]))
    hosts = {host: {**HERE, "host_address": f"198.18.9.{n}"} for n, [host] in enumerate(groups.values())}
    done = run_playbook(tmp_path / "end.yml", make_inventory(groups, hosts=hosts))
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())
    warning = "lie on the machine itself. They help against a mistake, not against the loss of the machine or its disk. Give the repository"
    assert (warning in said) is warned


# --- what is restored


def test_target_is_refused_unless_a_backup_reaches_it(control: ModuleType) -> None:
    told = {"error": "", "backups": [{}], "oldest_restorable_time": "2026-01-01 00:00:00+00"}
    now = datetime.datetime.now(datetime.UTC)
    for kind, target in (
        ("latest", ""),
        ("time", "2026-01-01 00:00:00+00"),
        ("time", "2026-01-01 02:00:00+02:00"),
        ("xid", "747"),
    ):
        control.refuse_target(kind, target, told)
    future = (now + datetime.timedelta(minutes=1)).isoformat()
    for kind, target, words in (
        ("time", "2025-12-31 23:59:59+00", "before the oldest backup"),
        ("time", "2026-01-01 00:00:00+02:00", "before the oldest backup"),
        ("time", future, "is in the future"),
        ("time", "2026-01-01 00:00:00", "has no zone"),
        ("time", "yesterday", "is none"),
        ("time", "", "is none"),
        ("xid", "", "the transaction '' is none"),
        ("xid", "747; drop", "is none"),
    ):
        with pytest.raises(control.Failed, match=words) as refused:
            control.refuse_target(kind, target, told)
        assert "Nothing was restored" in str(refused.value)
    for lacking in ({"error": "no route"}, {"backups": []}):
        with pytest.raises(control.Failed, match="there is no backup to restore"):
            control.refuse_target("latest", "", {**told, **lacking})


def test_directory_is_refused_unless_it_is_empty_and_in_nobodys_way(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(control, "STANZAS", {"shop": [{"path": str(data)}]})
    for good in ("empty", "new/deep", "data2"):
        control.refuse_directory("shop", str(tmp_path / good))
    for bad, words in (
        ("relative", "Give an absolute path"),
        ("/", "cannot be restored into"),
        ("//", "cannot be restored into"),
        (str(data), "own data"),
        (str(data / "base/below"), "own data"),
        (str(tmp_path), "own data"),
        (str(tmp_path / "link"), "own data"),
        (str(tmp_path / "full"), "is not empty"),
        (str(tmp_path / "full/file"), "is not empty"),
    ):
        with pytest.raises(control.Failed, match=words):
            control.refuse_directory("shop", bad)


def test_restore_is_refused_before_anything_is_made_where_its_postgres_is_not(control: ModuleType) -> None:
    with pytest.raises(control.Failed, match=r"PostgreSQL 8\.0, .* is not on this host. Nothing was restored"):
        control.binaries({"version": "8.0"})


def test_only_what_was_restored_is_removed(control: ModuleType, tmp_path: Path) -> None:
    for name, text in (("cluster", "port = '5432'\n"), ("named", "cluster_name = 'restored too'\n"), ("folder", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "PG_VERSION").write_text("17\n")
        if text:
            (tmp_path / name / "postgresql.auto.conf").write_text(text)
        with pytest.raises(control.Failed, match="is nothing that was restored by this program. Nothing was removed"):
            control.discard(str(tmp_path / name))
        assert (tmp_path / name / "PG_VERSION").exists()


# The program of a repository's host, with what it would say of its backups made up.
ANSWERS = """#!{python}
import json, sys

sys.path.insert(0, {folder!r})
import control{sample} as control

if sys.argv[1] == "status":
    backups = {{"error": "", "backups": [{{}}], "oldest_restorable_time": "2026-01-01 00:00:00+00", "version": "17"}}
    print(json.dumps({{"stanzas": {{"shop": backups}}}}))
elif sys.argv[1] == "restore":
    control.STANZAS = {{"shop": []}}
    control.main()
"""
# A whole day, for it is in tests' names: processes that collect them in different seconds must find the same ones.
FUTURE = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=400)).strftime("%Y-01-01 00:00:00+00")
[*_, INSTALL] = yaml.safe_load((ROLE / "tasks/restore_install.yml").read_text())


@pytest.fixture
def asked(make_inventory: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """asked("restore.yml", moment=...) -> how a run in check mode ends and what it says, on hosts with such a program."""
    program(tmp_path, REPOSITORY)
    path = tmp_path / "control"
    path.write_text(ANSWERS.format(python=sys.executable, folder=str(tmp_path), sample=REPOSITORY))
    path.chmod(0o755)
    hosts = {host: {**HERE, "ansible_become": False} for host in ("web1", "db1")}
    inventory = make_inventory({"web": ["web1"], "database": ["db1"]}, hosts=hosts)

    def run(playbook: Path | str, **given: Any) -> tuple[int, str]:
        known = {"_pgbackrest_control": str(path), "directory": str(tmp_path / "restored"), **given}
        done = run_playbook(playbook, inventory, "--check", "-e", json.dumps(known))
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"moment": "2026-02-01 00:00:00+00", "transaction": "747"}, "Both a moment and a transaction were given, and nothing was"),
        ({"moment": FUTURE}, f"pgbackrest: {FUTURE} is in the future. Nothing was restored. Choose a moment that has passed"),
        ({"moment": "2025-12-31 12:00:00+00"}, "2025-12-31 12:00:00+00 is before the oldest backup, of 2026-01-01 00:00:00+00:00."),
        ({"moment": "yesterday"}, "the moment 'yesterday' is none. Nothing was restored. Write it as 2031-05-01 12:00:00+00"),
        ({"transaction": "many"}, "the transaction 'many' is none. Nothing was restored."),
        ({"directory": "here"}, "the directory here cannot be restored into. Nothing was restored. Give an absolute path"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_restore_that_cannot_be_is_refused_before_anything_is_installed(
    asked: Callable[..., tuple[int, str]], given: dict[str, Any], words: str
) -> None:
    code, said = asked("playbooks/restore.yml", **given)
    assert code != 0 and words in said, said
    assert not [task["name"] for task in INSTALL["block"] if f": {task['name']}]" in said], said


def test_a_kind_of_restore_that_there_is_not_is_refused_with_those_that_there_are(
    asked: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    given = {"restore_stanza": "shop", "restore_directory": "/var/lib/restored/x", "restore_type": "immediate"}
    play = {
        "name": "Restore", "hosts": "web", "gather_facts": False,
        "tasks": [{"name": "Restore", "ansible.builtin.import_role": {"name": "pgbackrest", "tasks_from": "restore"},
                   "vars": {f"pgbackrest_{name}": value for name, value in given.items()}}],
    }  # fmt: skip
    (tmp_path / "role.yml").write_text(yaml.safe_dump([play]))
    code, said = asked(tmp_path / "role.yml")
    assert code != 0 and "value of pgbackrest_restore_type must be one of: latest, time, xid, got: immediate" in said, (
        said
    )
    assert "Ask whether it can be restored" not in said


# --- drills


def table(rows: int | None = 10, digest: str = "77", **changes: Any) -> dict[str, Any]:
    return {"rows": rows, "hash": digest, "node": "1", "inserted": 10, "updated": 0, "deleted": 0, **changes}


@pytest.mark.parametrize(
    ("before", "after", "found", "words"),
    [
        (table(), table(), table(), ""),
        (table(), table(), table(9), "has 9 rows, and other content than the 10"),
        (table(), table(), table(10, "78"), "has 10 rows, and other content"),
        (table(), table(), None, "is missing"),
        (table(), table(12, "79", inserted=12), table(11, "78", inserted=0), ""),
        (table(), table(12, "79", inserted=12), table(9, "78"), "has 9 rows, and between 10 and 14"),
        (table(), table(12, "79", inserted=12), table(15, "78"), "has 15 rows, and between 10 and 14"),
        (table(), table(8, "79", deleted=2), table(8, "78"), ""),
        (table(), table(8, "79", deleted=2), table(5, "78"), "has 5 rows, and between 6 and 10"),
        # Counted as unwritten, and yet of other content: what was written is counted late.
        (table(), table(11, "79"), table(11, "79"), ""),
        (table(), table(5, "79", node="2", inserted=15), table(2, "78"), ""),
        (table(), table(3, "79", inserted=0), table(55, "78"), ""),
        (table(), None, None, ""),
        (table(None, ""), table(None, ""), table(None, ""), ""),
    ],
)
def test_restored_table_must_be_what_it_can_have_been(
    control: ModuleType, before: Any, after: Any, found: Any, words: str
) -> None:
    first, second, here = ({"shop": {"orders": one} if one else {}} for one in (before, after, found))
    problems, exact, within = control.compare(first, second, here)
    assert words in " ".join(problems) and bool(problems) == bool(words)
    assert exact + within == int(after is not None and found is not None and after["rows"] is not None)


@pytest.mark.parametrize("code", [0, 2])
def test_damage_that_amcheck_finds_fails_the_drill(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    (tmp_path / "pg_amcheck").write_text(
        f"#!/bin/sh\necho 'item order invariant violated for index \"x\"'\nexit {code}\n"
    )
    (tmp_path / "pg_amcheck").chmod(0o755)
    monkeypatch.setattr(control, "content", lambda *words: {})
    note = {"databases": {}}
    problems, _, _ = control.judge({"directory": "/nowhere", "port": 1}, str(tmp_path), note, note)
    assert problems == (['pg_amcheck found damage: item order invariant violated for index "x"'] if code else [])


def test_drill_begins_from_two_notes_of_the_stanza_that_the_backups_reach(control: ModuleType) -> None:
    notes = [{"stanza": stanza, "seconds": at, "until": at + 5} for stanza, at in
             (("shop", 30), ("shop", 10), ("other", 40), ("shop", 20), ("shop", 33), ("shop", 90))]  # fmt: skip
    chosen = control.pairs(notes, "shop", 15)
    assert [(first["seconds"], second["seconds"]) for first, second in chosen] == [(20, 30), (33, 90)]


def test_alarm_rises_when_no_drill_has_proven_a_restore_for_too_long(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "LOG", str(tmp_path / "backups.log"))
    monkeypatch.setitem(control.GIVEN, "proof_max_age_days", 7)
    stop = {"start": time.time() - 60, "stop": time.time() - 50}
    good = info(backup=[{**info()["backup"][0], "timestamp": stop}])
    answers(control, monkeypatch, info=(0, json.dumps([good]), ""), check=(0, "", ""))

    def alarm() -> str:
        return " ".join(control.wrong("shop", control.describe("shop")))

    def drilled(days: float, ok: bool) -> None:
        with (tmp_path / "backups.log").open("a") as file:
            file.write(
                json.dumps({"stanza": "shop", "ok": ok, "time": control.moment(time.time() - days * 86400)}) + "\n"
            )

    assert "no drill has proven a restore yet" in alarm()
    drilled(8, True)
    drilled(1, False)
    assert "no drill has proven a restore for 8 days" in alarm()
    drilled(1, True)
    assert alarm() == ""


# --- stanzas and backups


def test_stanza_of_another_database_is_upgraded_only_on_request(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (0, json.dumps([info()]), "")
    asked = answers(
        control, monkeypatch, info=told, stanza_create=(control.MISMATCH, "", "mismatch"), stanza_upgrade=(0, "", "")
    )
    with pytest.raises(control.Failed, match="was made for another database"):
        control.create("shop", False, [])
    assert ("stanza-upgrade",) not in asked
    done: list[str] = []
    control.create("shop", True, done)
    assert done == ["upgraded the stanza shop"]


@pytest.mark.parametrize("patience", [90, 0])
def test_stanza_is_tried_again_while_the_database_sends_wal(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    locked = "WARN: unable to check pg1: [LockAcquireError] unable to acquire lock on file 'x' ERROR: [056]: unable to find primary cluster"
    left = [(56, "", locked), (56, "", locked), (0, "", "")]
    monkeypatch.setattr(
        control, "pgbackrest", lambda stanza, *words: left.pop(0) if words == ("stanza-create",) else (1, "", "")
    )
    monkeypatch.setattr(control, "PATIENCE", patience)
    monkeypatch.setattr(control.time, "sleep", lambda seconds: None)
    done: list[str] = []
    if patience:
        control.create("shop", False, done)
        assert done == ["made the stanza shop"] and left == []
    else:
        with pytest.raises(control.Failed, match="could not be made: WARN: unable to check pg1"):
            control.create("shop", False, done)


def test_stanza_is_upgraded_although_the_new_server_has_wal_to_send(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {
        "stanza-create": [(control.MISMATCH, "", "mismatch")],
        "stanza-upgrade": [(50, "", "ERROR: [050]: unable to acquire lock on file 'x'"), (0, "", "")],
    }
    monkeypatch.setattr(
        control, "pgbackrest", lambda stanza, *words: left[words[0]].pop(0) if words[0] in left else (1, "", "")
    )
    monkeypatch.setattr(control.time, "sleep", lambda seconds: None)
    done: list[str] = []
    control.create("shop", True, done)
    assert done == ["upgraded the stanza shop"] and left["stanza-upgrade"] == []


@pytest.mark.parametrize(("seen_at", "waits"), [("", True), ("old.test", True), ("repo.test", False)])
def test_database_waits_for_a_repository_that_is_new_to_it_and_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen_at: str, waits: bool
) -> None:
    control = program(tmp_path, DATABASE)
    (tmp_path / "pgbackrest.conf").write_text("new")
    (tmp_path / "mark").write_text(f"0123456789abcdef {seen_at}" if seen_at else "")
    monkeypatch.setattr(control, "CONFIGURATION", str(tmp_path / "pgbackrest.conf"))
    monkeypatch.setattr(control, "MARK", str(tmp_path / "mark"))
    answers(control, monkeypatch, info=(49, "", "unable to connect"), check=(49, "", "unable to connect"))
    if not waits:
        with pytest.raises(control.Failed, match="does not arrive in the repository: unable to connect"):
            control.ensure(False)
        return
    control.ensure(False)
    told = json.loads(capsys.readouterr().out)
    assert "WAL waits on this host" in told["notes"][0] and control.marked() == ("", "")
    # The one of before keeps them again, and its server does not run yet.
    monkeypatch.setitem(control.GIVEN, "repository", seen_at or "old.test")
    control.ensure(False)


@pytest.mark.parametrize(("codes", "arrives"), [((82, 0), True), ((82, 82), False), ((49, 0), False), ((0, 82), True)])
def test_wal_whose_sending_had_begun_before_the_repository_was_there_is_checked_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: tuple[int, int], arrives: bool
) -> None:
    control = program(tmp_path, DATABASE)
    (tmp_path / "pgbackrest.conf").write_text("new")
    monkeypatch.setattr(control, "CONFIGURATION", str(tmp_path / "pgbackrest.conf"))
    monkeypatch.setattr(control, "MARK", str(tmp_path / "mark"))
    left = list(codes)
    told = (0, json.dumps([info()]), "")
    monkeypatch.setattr(
        control,
        "pgbackrest",
        lambda stanza, verb, *words: (left.pop(0), "", "not archived") if verb == "check" else told,
    )
    if arrives:
        control.ensure(False)
        assert control.marked()[1] == "repo.test"
    else:
        with pytest.raises(control.Failed, match="does not arrive in the repository: not archived"):
            control.ensure(False)
        assert control.marked() == ("", "")


def test_database_of_another_version_waits_for_the_repositorys_host_to_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    control = program(tmp_path, DATABASE)
    (tmp_path / "pgbackrest.conf").write_text("new")
    (tmp_path / "mark").write_text("0123456789abcdef repo.test")
    monkeypatch.setattr(control, "CONFIGURATION", str(tmp_path / "pgbackrest.conf"))
    monkeypatch.setattr(control, "MARK", str(tmp_path / "mark"))
    asked = answers(control, monkeypatch, info=(0, json.dumps([info()]), ""), check=(28, "", "mismatch"))
    control.ensure(True)
    assert "goes on with this database when" in json.loads(capsys.readouterr().out)["notes"][0]
    assert ("check",) not in asked and control.marked()[0] == "0123456789abcdef", "the next run checks it"
    with pytest.raises(control.Failed, match="does not arrive in the repository: mismatch"):
        control.ensure(False)


def test_database_makes_no_backups(tmp_path: Path) -> None:
    control = program(tmp_path, DATABASE)
    for call in (control.backup, control.start):
        with pytest.raises(control.Failed, match="made on the repository's host"):
            call("full")


def test_one_failed_backup_does_not_keep_the_others_from_being_made(
    control: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def pgbackrest(stanza: str, *words: str) -> tuple[int, str, str]:
        made.append((stanza, *words))
        return (int(stanza == "a"), "", "broken")

    monkeypatch.setattr(control, "pgbackrest", pgbackrest)
    monkeypatch.setattr(control, "STANZAS", {"a": [], "b": []})
    monkeypatch.setattr(control, "STATE", str(tmp_path))
    with pytest.raises(control.Failed, match="^the backup of a failed: broken$"):
        control.backup("diff")
    assert made == [("a", "backup", "--type=diff"), ("b", "backup", "--type=diff")]


def test_what_would_have_been_lost_is_noted_before_the_drill_has_everything_arrive(tmp_path: Path) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/restore-drill.yml").read_text())
    tasks = [task for play in plays for task in play["tasks"]]
    [note] = [task for task in tasks if "drill_rpo_seconds" in task.get("ansible.builtin.set_fact", {})]
    [arrive] = [task for task in tasks if task.get("ansible.builtin.import_role", {}).get("tasks_from") == "check"]
    [drill] = [task for task in tasks if "pgbackrest_drill_rpo_seconds" in task.get("vars", {})]
    assert tasks.index(note) < tasks.index(arrive) < tasks.index(drill)
    assert drill["vars"]["pgbackrest_drill_rpo_seconds"] == "{{ drill_rpo_seconds }}"

    stanzas = [
        {"shop": {"last_wal_age_seconds": 0}},
        {"shop": {"last_wal_age_seconds": 41}},
        {"shop": {"last_wal_age_seconds": None}},
        {},
    ]
    seen = [
        {"vars": {"site_name": "shop", "pgbackrest_status": {"stanzas": found}},
         "block": [note, {"debug": {"msg": "rpo {{ drill_rpo_seconds | int }}."}}]}
        for found in stanzas
    ]  # fmt: skip
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "vars": HERE, "tasks": seen}])
    )
    (tmp_path / "hosts").write_text("here\n")
    said = run_playbook(tmp_path / "play.yml", tmp_path / "hosts").stdout
    assert re.findall(r"rpo (-?\d+)\.", said) == ["0", "41", "-1", "-1"], said
