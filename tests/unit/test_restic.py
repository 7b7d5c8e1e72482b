"""restic: what the program on the host keeps, doubts, compares and refuses."""

from __future__ import annotations

import datetime
import functools
import json
import os
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_templates import samples

from kit import ROOT, load_module
from rendered import Role

ROLE = ROOT / "roles/restic"
SOURCE, REPOSITORY, BOTH = 0, 1, 2


@functools.cache
def written(sample: int) -> dict[str, str]:
    return {Path(file.dest).name: file.text for file in Role(ROLE, samples("restic")[sample]).files()}


def program(folder: Path, sample: int) -> ModuleType:
    path = folder / f"control{sample}.py"
    path.write_text(written(sample)["control"])
    return load_module(path)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    control = program(tmp_path, SOURCE)
    (tmp_path / "live").mkdir()
    monkeypatch.setattr(control, "DIRECTORIES", [str(tmp_path / "live")])
    return control


@pytest.fixture
def repository(tmp_path: Path) -> ModuleType:
    return program(tmp_path, REPOSITORY)


def at(text: str) -> float:
    return datetime.datetime.fromisoformat(text + "+00:00").timestamp()


# --- what is wrong


@pytest.mark.parametrize("sample", [SOURCE, REPOSITORY])
@pytest.mark.parametrize(
    ("hours", "errors"), [(0, []), (29, []), (31, ["there is no backup yet"]), (None, ["there is no backup yet"])]
)
def test_a_new_repository_has_as_long_for_its_first_backup_as_any_backup_may_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int, hours: int | None, errors: list[str]
) -> None:
    control = program(tmp_path, sample)
    monkeypatch.setattr(control, "MARK", str(tmp_path / "ensured"))
    monkeypatch.setattr(control, "REPOSITORY", str(tmp_path))
    monkeypatch.setattr(control, "reach", lambda: None)
    monkeypatch.setattr(control, "snapshots", lambda: [])
    monkeypatch.setattr(control, "wrong_upkeep", lambda kind: [])
    if hours is not None:
        for name in ("ensured", "config"):
            (tmp_path / name).write_text("")
            os.utime(tmp_path / name, times=(time.time() - hours * 3600,) * 2)
    assert control.describe()["errors"] == errors


# --- what is kept


@pytest.mark.parametrize(
    ("rules", "stay"),
    [
        ({"daily": 2, "weekly": 0, "monthly": 0}, {"2031-05-20 12:00", "2031-05-19 03:00"}),
        ({"daily": 1, "weekly": 3, "monthly": 0}, {"2031-05-20 12:00", "2031-05-18 03:00", "2031-05-05 03:00"}),
        ({"daily": 1, "weekly": 0, "monthly": 2}, {"2031-05-20 12:00", "2031-04-30 03:00"}),
        ({"daily": 99, "weekly": 0, "monthly": 0}, None),
    ],
)
def test_the_last_backup_of_each_day_week_and_month_stays(
    repository: ModuleType, rules: dict[str, int], stay: set[str] | None
) -> None:
    made = [
        "2031-05-20 12:00",
        "2031-05-20 03:00",
        "2031-05-19 03:00",
        "2031-05-18 03:00",
        "2031-05-05 03:00",
        "2031-04-30 03:00",
    ]
    times = {text: at(text) for text in made}
    assert repository.kept(times, rules) == (stay or set(made) - {"2031-05-20 03:00"})


def test_many_backups_of_one_day_displace_none_of_another(repository: ModuleType) -> None:
    times = {str(n): at("2031-05-20 00:00") + n for n in range(1000)} | {"good": at("2031-05-19 03:00")}
    assert repository.kept(times, {"daily": 2, "weekly": 0, "monthly": 0}) == {"999", "good"}


@pytest.mark.parametrize(
    ("later", "doubted"),
    [(0, False), (3600, False), (71 * 3600, False), (73 * 3600, True), (-300, False), (-3600, True)],
)
def test_a_backup_is_doubted_when_its_time_does_not_go_with_its_arrival(
    repository: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, later: int, doubted: bool
) -> None:
    monkeypatch.setattr(repository, "ACCEPTED", str(tmp_path / "accepted"))
    one = {"id": "a" * 64, "short_id": "a" * 8, "time": 1000000.0, "arrived": 1000000.0 + later}
    assert bool(repository.doubtful([one])) is doubted
    (tmp_path / "accepted").write_text(f'["{one["id"]}"]')
    assert repository.doubtful([one]) == []


def test_nothing_is_forgotten_while_a_backup_is_doubted(
    repository: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"id": "a", "short_id": "a", "time": 0.0, "arrived": time.time()}
    monkeypatch.setattr(repository, "snapshots", lambda: [entry])
    asked: list[Any] = []
    monkeypatch.setattr(repository, "restic", lambda *words, lock=False: asked.append(words) or (0, "", ""))
    with pytest.raises(repository.Failed, match="nothing is removed until that is settled"):
        repository.prune()
    assert asked == []
    entry["arrived"] = 60.0
    assert repository.prune() == {"kept": 1, "removed": 0}
    assert asked == [("prune",)]


# --- reading


def test_times_of_restic_are_read_with_all_their_digits_and_zones(source: ModuleType) -> None:
    for text in ("2031-05-20T12:00:00.123456789Z", "2031-05-20T14:00:00.123456789+02:00", "2031-05-20T12:00:00Z"):
        assert int(source.seconds(text)) == int(at("2031-05-20 12:00:00"))


def test_reason_is_what_went_wrong_without_the_tries(source: ModuleType) -> None:
    errors = "Remove(<x>) returned error, retrying after 1s\nFatal: wrong password or no key found\ngithub.com/restic/x\n\tfile.go:1\n"
    assert source.reason(errors) == "wrong password or no key found"
    assert source.reason("something\nelse") == "something else"
    assert source.reason("") == "it says nothing"


# --- what is chosen and compared


def test_names_are_taken_as_they_are_and_not_as_patterns(source: ModuleType) -> None:
    assert source.escaped(r"/a/b [1]*?\x") == r"/a/b \[1\]\*\?\\x"


def test_files_below_a_path_are_those_of_its_directory(source: ModuleType) -> None:
    files = [("/m/a", 1), ("/m/ab", 1), ("/m/a/x", 1)]
    assert source.below(files, "/m/a/") == source.below(files, "/m/a") == [("/m/a", 1), ("/m/a/x", 1)]
    assert source.below(files, "") == files


def test_a_drill_takes_all_files_or_as_many_as_it_may(source: ModuleType) -> None:
    files = [(f"/m/{n}", 10) for n in range(1000)]
    assert source.sample(files, 10000) == files
    some = source.sample(files, 95)
    assert len(some) == 9 and set(some) < set(files)
    assert len(source.sample(files, 9999)) == source.FEW


def test_a_drill_tells_equal_changed_and_wrong_files_apart(source: ModuleType, tmp_path: Path) -> None:
    live, scratch = tmp_path / "live", tmp_path / "scratch"
    restored = Path(f"{scratch}{live}")
    restored.mkdir(parents=True)
    for name in ("equal", "wrong", "lost", "absent"):
        (live / name).write_text("x")
        (restored / name).write_text("x")
    (restored / "wrong").write_text("y")
    (restored / "lost").unlink()
    (live / "absent").unlink()
    time.sleep(0.05)
    since = time.time()
    time.sleep(0.05)
    for path in (live / "changed", restored / "changed"):
        path.write_text(str(path))
    files = [(str(live / name), 1) for name in ("equal", "wrong", "lost", "absent", "changed")]
    equal, other, problems = source.judge(str(scratch), files, since)
    assert (equal, other) == (1, 2)
    assert len(problems) == 2 and "wrong has other content" in problems[0] and "lost was not restored" in problems[1]

    (live / ".incoming").mkdir()
    (live / ".incoming/part").write_text("x")
    left = source.left_out(time.time() + 1, {path for path, _ in files})
    assert left == []
    (live / "forgotten").write_text("x")
    assert source.left_out(time.time() + 1, {path for path, _ in files}) == [str(live / "forgotten")]
    assert source.left_out(since, {path for path, _ in files}) == []


def test_what_is_put_back_takes_no_other_files_place(source: ModuleType, tmp_path: Path) -> None:
    live, scratch = tmp_path / "live", tmp_path / "scratch"
    (Path(f"{scratch}{live}") / "a/b").mkdir(parents=True)
    for name in ("a/b/new", "there"):
        (Path(f"{scratch}{live}") / name).write_text("restored")
    (live / "there").write_text("live")
    assert [source.link(str(scratch), str(live / name)) for name in ("a/b/new", "there")] == [1, 0]
    assert [(live / name).read_text() for name in ("a/b/new", "there")] == ["restored", "live"]


# --- what is refused


@pytest.mark.parametrize(
    ("directory", "words"),
    [("relative", "Give an absolute path"), ("/", "Give an absolute path"), ("{live}/x", "is in the way of"), ("{tmp}", "is in the way of"),
     ("{tmp}/full", "is not empty")],
)  # fmt: skip
def test_directories_that_are_restored_into_are_empty_and_apart(
    source: ModuleType, tmp_path: Path, directory: str, words: str
) -> None:
    (tmp_path / "full/x").mkdir(parents=True)
    with pytest.raises(source.Failed, match=words):
        source.refuse_directory(directory.format(live=tmp_path / "live", tmp=tmp_path))
    source.refuse_directory(str(tmp_path / "new"))


def test_a_restore_without_room_is_refused_before_it_begins(
    source: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    monkeypatch.setattr(source, "restic", lambda *words: pytest.fail("restic was run"))
    files = [("/m/a", 2**30)]
    with pytest.raises(source.Failed, match="has 1024 MiB left, and the files need 1024. Nothing was restored"):
        source.fetch("a" * 64, str(tmp_path / "target"), files, files)
    assert not (tmp_path / "target").exists()


def test_few_files_are_named_and_many_are_not(
    source: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(source, "restic", lambda *words: asked.append(words[3:]) or (0, "", ""))
    there = [(f"/m/{n}", 1) for n in range(2000)]
    source.fetch("a" * 64, str(tmp_path / "1"), there[:2], there)
    source.fetch("a" * 64, str(tmp_path / "2"), there[:600], there)
    source.fetch("a" * 64, str(tmp_path / "3"), there[:600], there, "/m/x[1]")
    assert asked == [("--include=/m/0", "--include=/m/1"), (), (r"--include=/m/x\[1\]",)]


def test_no_backup_is_made_of_nothing_when_there_was_something(
    source: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "reach", lambda: None)
    monkeypatch.setattr(source, "snapshots", lambda: [{"id": "a" * 64, "short_id": "a" * 8}])
    monkeypatch.setattr(source, "size", lambda snapshot: 7)
    asked: list[Any] = []
    summary = '{"message_type": "summary", "snapshot_id": "b", "total_files_processed": 1, "total_bytes_processed": 1, "data_added": 1}'
    monkeypatch.setattr(source, "restic", lambda *words, lock=False: asked.append(words) or (3, summary, errors))
    errors = ""
    with pytest.raises(source.Failed, match="there is no file any more"):
        source.backup()
    assert asked == []
    (tmp_path / "live/x").write_text("x")
    errors = json.dumps({"message_type": "error", "item": f"{tmp_path}/gone"})
    assert source.backup()["files"] == 1  # what was removed while it ran is nobody's loss
    errors = json.dumps({"message_type": "error", "item": f"{tmp_path}/live/x"})
    with pytest.raises(source.Failed, match="1 files could not be read"):
        source.backup()


# --- what is written


def test_secrets_are_in_their_own_files_and_in_no_command(tmp_path: Path) -> None:
    for sample in (SOURCE, REPOSITORY, BOTH):
        files = written(sample)
        door = next((text.split(":")[3].split("@")[0] for name, text in files.items() if name == "url"), "")
        for name, text in files.items():
            assert ("passphrase-of-the-sample" in text) is (name == "passphrase"), name
            assert not door or (door in text) is (name == "url"), name
    assert "RCLONE_PASS=" + written(SOURCE)["url"].split(":")[3].split("@")[0] in written(REPOSITORY)["server.env"]


def test_each_host_has_the_units_of_what_it_is() -> None:
    units = {
        sample: {name.split("-")[2] for name in written(sample) if name.endswith(".service")}
        for sample in (SOURCE, REPOSITORY, BOTH)
    }
    assert units[SOURCE] == {"alarm.service", "backup.service"}
    assert units[REPOSITORY] == {"alarm.service", "prune.service", "check.service", "server.service"}
    assert units[BOTH] == {"alarm.service", "backup.service", "prune.service", "check.service"}
    assert "--append-only" in written(REPOSITORY)["restic-shop-server.service"]
    assert "--addr [2001:db8::7]:8433" in written(REPOSITORY)["restic-shop-server.service"]


def test_only_the_backup_reads_what_is_not_its_own() -> None:
    for sample in (SOURCE, REPOSITORY, BOTH):
        for name, text in written(sample).items():
            if name.endswith(".service"):
                assert ("CAP_DAC_READ_SEARCH" in text) is name.endswith("-backup.service"), name
                assert "User=restic-shop" in text and "NoNewPrivileges=true" in text
