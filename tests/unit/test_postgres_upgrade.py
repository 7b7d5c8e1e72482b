"""An upgrade to another major version: what is refused and in which words, what is noted, and what a call that was cut off does."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from kit import HERE, ROOT, SITE, load_module, run_playbook

ROLE = ROOT / "roles/postgres"
server = load_module(ROLE / "module_utils/postgres_server.py", "ansible.module_utils.postgres_server")
noted = load_module(ROLE / "module_utils/postgres_upgrading.py", "ansible.module_utils.postgres_upgrading")

WELL: dict[str, Any] = {
    "in_recovery": False, "owner": "postgres", "replicas": [], "slots": [], "prepared": [], "tablespaces": [],
    "databases": ["postgres", "shop", "template1"], "closed": [], "bytes": 4711, "checksums": True, "segment_mb": 16,
    "lc": {"messages": "C.UTF-8", "monetary": "C.UTF-8", "numeric": "C.UTF-8", "time": ""},
    "template": {"encoding": "UTF8", "collate": "C.UTF-8", "ctype": "C.UTF-8", "provider": "c", "locale": ""},
}  # fmt: skip


class Server:
    """A server as the module asks it; what it says can be changed."""

    about, extensions, up = WELL, ["plpgsql", "pg_trgm"], "15"

    def __init__(self, version: str, data: str) -> None:
        self.running, self.port, self.socket, self.psql = version == self.up, 5432, "/run", "psql"

    def ask(self, database: str, text: str) -> Any:
        return self.about if text != upgraded().EXTENSIONS else self.extensions


current: list[ModuleType] = []


def upgraded() -> ModuleType:
    return current[-1]


@pytest.fixture
def upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with the folders of an instance 15 in a folder of the test's own, and a healthy server."""
    module = load_module(ROLE / "library/postgres_upgrade.py")
    current.append(module)
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for one in (server, noted, module):
        if hasattr(one, "LIB"):
            monkeypatch.setattr(one, "LIB", str(lib))
    monkeypatch.setattr(server, "ETC", str(etc))
    monkeypatch.setattr(module, "Server", type("Mine", (Server,), {}))
    monkeypatch.setattr(module, "SHARED", str(tmp_path / "share/%s/%s.control"))
    monkeypatch.setattr(module, "PROGRAMS", str(tmp_path / "bin/%s/"))
    monkeypatch.setattr(module, "owners", lambda names, version: dict.fromkeys(names, f"postgresql-{version}"))
    monkeypatch.setattr(module, "candidates", set)
    monkeypatch.setattr(os, "chown", lambda *words: None)
    me = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(module.pwd, "getpwnam", lambda name: me)
    room = SimpleNamespace(f_bavail=1 << 22, f_frsize=4096)
    monkeypatch.setattr(module.os, "statvfs", lambda path: room)
    (etc / "15/main/conf.d").mkdir(parents=True)
    (etc / "15/main/postgresql.conf").touch()
    (etc / "15/main/start.conf").write_text("# who\nauto\n")
    (lib / "15/main/global").mkdir(parents=True)
    (lib / "15/main/PG_VERSION").write_text("15\n")
    (lib / "15/main/global/pg_control").write_text("control")
    return module


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(server.Refused) as raised:
        call()
    return str(raised.value)


# --- what is refused


def test_a_healthy_instance_is_found_and_may_go_on(upgrade: ModuleType, tmp_path: Path) -> None:
    told = upgrade.look("main", "17", ["postgresql-15-postgis-3"])
    assert told == {
        "from": "15", "to": "17", "done": [], "packages": ["postgresql-17-postgis-3"], "databases": WELL["databases"], "bytes": 4711,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == ["15"], "a look changes nothing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_recovery": True}, "only a primary is upgraded"),
        ({"replicas": ["db2"]}, "db2 copies it, and could not follow it. Take the replicas out"),
        ({"slots": ["db2", "db3"]}, "select pg_drop_replication_slot('db2'); select pg_drop_replication_slot('db3')"),
        ({"prepared": ["it's"]}, "rollback prepared 'it''s'"),
        ({"tablespaces": ["fast"]}, "it has tablespaces (fast)"),
        ({"closed": ["old"]}, "alter database old allow_connections true"),
        ({"owner": "ada"}, "it was made by the role ada"),
    ],
)
def test_what_an_upgrade_would_lose_or_choke_on_is_refused(
    upgrade: ModuleType, change: dict[str, Any], words: str
) -> None:
    upgrade.Server.about = {**WELL, **change}
    said = refusal(lambda: upgrade.look("main", "17", []))
    assert words in said and "PostgreSQL 15 cannot become 17. postgres changed nothing." in said


def test_too_little_room_is_refused(upgrade: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade.os, "statvfs", lambda path: SimpleNamespace(f_bavail=1000 << 8, f_frsize=4096))
    assert "has 1000 MiB left, and the new version's own tables need up to 1120" in refusal(
        lambda: upgrade.look("main", "17", [])
    )


def test_two_file_systems_are_refused(upgrade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat
    data = str(tmp_path / "lib/15/main")
    monkeypatch.setattr(
        upgrade.os, "stat", lambda path, **more: SimpleNamespace(st_dev=-1) if path == data else real(path, **more)
    )
    assert "between which no file can be linked" in " ".join(upgrade.against(WELL, "main", "15", "17"))


@pytest.mark.parametrize(
    ("to", "words"),
    [("15", "the data is version 15 already, and 15 is not newer"), ("14", "the data is version 15 already, and 14")],
)
def test_a_version_that_is_not_newer_is_refused(upgrade: ModuleType, to: str, words: str) -> None:
    assert words in refusal(lambda: upgrade.look("main", to, []))


def test_a_version_that_no_source_has_is_refused_with_the_setting_that_helps(
    upgrade: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "candidates", lambda packages: set())
    assert "has postgresql-18. " in (said := refusal(lambda: upgrade.look("main", "18", [])))
    assert "postgres_repository: pgdg" in said


def test_an_extension_without_a_package_or_left_out_by_the_new_version_is_refused(
    upgrade: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = {"plpgsql": "postgresql-15", "postgis": "postgresql-15-postgis-3", "adminpack": "postgresql-15"}
    monkeypatch.setattr(upgrade, "owners", lambda names, version: {name: mine[name] for name in names if name in mine})
    monkeypatch.setattr(upgrade, "candidates", lambda packages: {"postgresql-17", "postgresql-client-17"})
    upgrade.Server.extensions = ["plpgsql", "postgis"]
    said = refusal(lambda: upgrade.look("main", "17", []))
    assert "the package postgresql-17-postgis-3 is in no package source of this host" in said
    monkeypatch.setattr(upgrade, "candidates", set)
    upgrade.Server.extensions = ["plpgsql", "adminpack"]
    assert "drop extension adminpack" in refusal(lambda: upgrade.look("main", "17", []))
    assert upgrade.look("main", "16", [])["packages"] == []
    upgrade.Server.extensions = ["plpgsql", "home_made"]
    assert "the extension home_made (in postgres, shop, template1) came from no package" in refusal(
        lambda: upgrade.look("main", "17", [])
    )
    # Once the new version is there, its own files say it.
    for name in ("bin/17/postgres", "share/17/plpgsql.control"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert "the extension home_made" in refusal(lambda: upgrade.look("main", "17", []))
    (tmp_path / "share/17/home_made.control").touch()
    assert upgrade.look("main", "17", [])["packages"] == []


def test_an_instance_that_somebody_else_starts_or_that_does_not_run_is_refused(
    upgrade: ModuleType, tmp_path: Path
) -> None:
    upgrade.Server.up = ""
    assert "sudo systemctl start postgresql@15-main" in refusal(lambda: upgrade.look("main", "17", []))
    (tmp_path / "etc/15/main/start.conf").write_text("manual\n")
    assert "start.conf says manual" in refusal(lambda: upgrade.look("main", "17", []))
    (tmp_path / "etc/15/main/patroni.conf").touch()
    assert "Patroni leads this instance" in refusal(lambda: upgrade.look("main", "17", []))
    assert "there is no data of the instance other" in refusal(lambda: upgrade.look("other", "17", []))


def test_what_stands_where_the_new_one_goes_is_not_touched(upgrade: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "lib/17/main").mkdir(parents=True)
    assert upgrade.look("main", "17", [])["done"] == []
    (tmp_path / "lib/17/main/somebodys").touch()
    assert "which no upgrade made. postgres changed nothing" in refusal(lambda: upgrade.look("main", "17", []))


def begun(tmp_path: Path, *done: str) -> dict[str, Any]:
    (tmp_path / "lib/stepladder-upgrade-main").mkdir(exist_ok=True)
    state = {"from": "15", "to": "17", "done": list(done), "initdb": ["--data-checksums"]}
    noted.note("main", state)
    return state


def test_one_that_was_begun_is_gone_on_with_and_no_other_is_begun(upgrade: ModuleType, tmp_path: Path) -> None:
    begun(tmp_path, "made", "checked", "held")
    upgrade.Server.up = ""
    assert upgrade.look("main", "17", [])["done"] == ["made", "checked", "held"]
    assert "an upgrade from 15 to 17 was begun" in refusal(lambda: upgrade.look("main", "18", []))
    assert noted.summary("main") == {"from": "15", "to": "17", "step": "held", "held": True}
    assert noted.summary("other") == {}


# --- how packages are found


def test_packages_are_renamed_for_the_new_version(upgrade: ModuleType) -> None:
    names = ["postgresql-15", "postgresql-15-postgis-3", "postgresql-plpython3-15", "postgresql-153-x", "libfoo15"]
    assert [upgrade.of_version(name, "15", "17") for name in names] == [
        "postgresql-17", "postgresql-17-postgis-3", "postgresql-plpython3-17", "postgresql-153-x", "libfoo15",
    ]  # fmt: skip


def test_what_apt_and_dpkg_say_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(ROLE / "library/postgres_upgrade.py")
    policy = """postgresql-17:
  Installed: (none)
  Candidate: 17.5-1
  Version table:
     17.5-1 500
postgresql-18:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
    monkeypatch.setattr(module.subprocess, "run", lambda *words, **more: SimpleNamespace(stdout=policy))
    assert module.candidates(["postgresql-17", "postgresql-18", "postgresql-99"]) == {"postgresql-17"}
    found = "postgresql-15: /usr/share/postgresql/15/extension/pg_trgm.control\n"
    found += "postgresql-15-x:amd64, y: /usr/share/postgresql/15/extension/x.control\n"
    monkeypatch.setattr(module.subprocess, "run", lambda *words, **more: SimpleNamespace(stdout=found))
    assert module.owners(["pg_trgm", "x", "mine"], "15") == {"pg_trgm": "postgresql-15", "x": "postgresql-15-x"}


# --- how the new one is made


def test_the_new_cluster_is_made_as_the_old_one_was(upgrade: ModuleType) -> None:
    words = upgrade.initdb_words(WELL, "17", group=False)
    for word in ("--encoding=UTF8", "--lc-collate=C.UTF-8", "--lc-messages=C.UTF-8", "--data-checksums", "--wal-segsize=16"):  # fmt: skip
        assert word in words
    assert not [word for word in words if word.startswith(("--lc-time", "--locale-provider", "--allow-group"))]
    bare = {
        **WELL,
        "checksums": False,
        "segment_mb": 64,
        "template": {**WELL["template"], "provider": "i", "locale": "de"},
    }
    assert {"--icu-locale=de", "--locale-provider=icu", "--wal-segsize=64", "--allow-group-access"} <= set(
        upgrade.initdb_words(bare, "17", group=True)
    )
    assert "--data-checksums" not in upgrade.initdb_words(bare, "17", False)
    assert "--no-data-checksums" in upgrade.initdb_words(bare, "18", False)
    assert "--no-data-checksums" not in upgrade.initdb_words(bare, "17", False)


def test_what_an_attempt_left_is_moved_aside_and_not_overwritten(
    upgrade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(upgrade, "run", lambda *command, **words: ran.append(command[1]))
    (tmp_path / "lib/17/main").mkdir(parents=True)
    (tmp_path / "lib/17/main/file").write_text("left")
    upgrade.make_data("main", "17", [])
    [aside] = (tmp_path / "lib/17").glob("main.failed-*")
    assert (aside / "file").read_text() == "left" and ran == [f"--pgdata={tmp_path}/lib/17/main"]


def test_what_was_set_beside_the_role_comes_along(upgrade: ModuleType, tmp_path: Path) -> None:
    old, new = tmp_path / "etc/15/main", tmp_path / "etc/17/main"
    new.mkdir(parents=True)
    (tmp_path / "lib/17/main").mkdir(parents=True)
    (old / "conf.d/10-stepladder.conf").write_text("the role's")
    (old / "conf.d/50-mine.conf").write_text("mine")
    (old / "pg_ident.conf").write_text("names")
    (tmp_path / "lib/15/main/postgresql.auto.conf").write_text("altered")
    upgrade.carry("main", "15", "17")
    assert [path.name for path in (new / "conf.d").iterdir()] == ["50-mine.conf"]
    assert (new / "pg_ident.conf").read_text() == "names"
    assert (tmp_path / "lib/17/main/postgresql.auto.conf").read_text() == "altered"


# --- link, start, finish


@pytest.fixture
def linked(upgrade: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What link does, in its order; pg_upgrade hides pg_control as the real one does."""
    did: list[str] = []
    control = tmp_path / "lib/15/main/global/pg_control"

    def pg_upgrade(*words: Any) -> None:
        did.append("pg_upgrade")
        assert control.exists(), "the old server cannot be read"
        control.rename(f"{control}.old")

    upgrade.Server.up = ""
    monkeypatch.setattr(upgrade, "pg_upgrade", pg_upgrade)
    monkeypatch.setattr(upgrade, "settle", lambda *words: did.append("settle"))
    monkeypatch.setattr(upgrade, "carry", lambda *words: None)
    monkeypatch.setattr(upgrade, "make_data", lambda *words: did.append("make"))
    return did


def test_a_link_is_done_once(upgrade: ModuleType, linked: list[str], tmp_path: Path) -> None:
    state = begun(tmp_path, "made", "checked", "held")
    assert upgrade.link(state, "main", "17", 0) and not upgrade.link(state, "main", "17", 0)
    assert linked == ["settle", "pg_upgrade"] and noted.progress("main")["done"][-2:] == ["linking", "linked"]


@pytest.mark.parametrize("hidden", [True, False])
def test_a_link_that_was_cut_off_begins_anew(
    upgrade: ModuleType, linked: list[str], tmp_path: Path, hidden: bool
) -> None:
    state = begun(tmp_path, "made", "checked", "held", "linking")
    control = tmp_path / "lib/15/main/global/pg_control"
    if hidden:
        control.rename(f"{control}.old")
    upgrade.link(state, "main", "17", 0)
    assert linked == ["make", "settle", "pg_upgrade"]


def test_nothing_is_linked_while_the_old_server_runs(upgrade: ModuleType, linked: list[str], tmp_path: Path) -> None:
    upgrade.Server.up = "15"
    assert "PostgreSQL 15 still runs" in refusal(lambda: upgrade.link(begun(tmp_path, "held"), "main", "17", 0))
    assert linked == []


def test_an_old_server_that_could_still_be_started_ends_it(
    upgrade: ModuleType, linked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "pg_upgrade", lambda *words: None)
    assert "so the old server could be started" in refusal(
        lambda: upgrade.link(begun(tmp_path, "held"), "main", "17", 0)
    )
    assert "linked" not in noted.progress("main")["done"]


def test_the_new_server_may_start_only_when_all_was_carried_over(upgrade: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "etc/17/main").mkdir(parents=True)
    assert "nothing to start" in refusal(lambda: upgrade.start(begun(tmp_path, "held", "linking"), "main", "17"))
    assert not (tmp_path / "etc/17/main/start.conf").exists()
    state = begun(tmp_path, "held", "linking", "linked")
    assert upgrade.start(state, "main", "17") and not upgrade.start(state, "main", "17")
    assert (tmp_path / "etc/17/main/start.conf").read_text() == "auto\n"
    assert noted.progress("main")["done"][-1] == "starting"


def test_the_old_server_is_kept_down_by_debians_own_word(upgrade: ModuleType, tmp_path: Path) -> None:
    state = begun(tmp_path, "made", "checked")
    assert upgrade.hold(state, "main") and not upgrade.hold(state, "main")
    assert (tmp_path / "etc/15/main/start.conf").read_text() == "disabled\n"


def test_in_the_end_the_old_data_has_another_name_and_nothing_is_deleted(upgrade: ModuleType, tmp_path: Path) -> None:
    assert "not at its end" in refusal(lambda: upgrade.finish(begun(tmp_path, "linked"), "main", "17"))
    (tmp_path / "lib/17/main.failed-x").mkdir(parents=True)
    aside, rest = upgrade.finish(begun(tmp_path, "linked", "analysed"), "main", "17")
    assert aside == f"{tmp_path}/lib/15/main.upgraded-to-17" and (Path(aside) / "PG_VERSION").exists()
    assert rest == [aside, f"{tmp_path}/lib/17/main.failed-x", f"{tmp_path}/etc/15/main"]
    assert noted.progress("main") == {}


def test_two_at_a_time_are_refused(upgrade: ModuleType, tmp_path: Path) -> None:
    with upgrade.work("main", "15", "17"):
        done = subprocess.run(["flock", "--nonblock", f"{tmp_path}/lib/stepladder-upgrade-main/lock", "true"])
        assert done.returncode == 1
        with pytest.raises(server.Refused, match="still at work"), upgrade.work("main", "15", "17"):
            pass


# --- what a run of the role says


def preflighted(tmp_path: Path, cases: list[dict[str, Any]]) -> list[str]:
    """What preflight_host says to each case, empty where it says nothing."""
    usual = {
        "upgrade": {}, "data_version": "15", "other_versions": [], "data_directory": "/d", "configured": True, "checksums": True,
        "unreadable": [], "databases_present": {}, "replication": {"role": "primary"},
    }  # fmt: skip
    attempts = [
        {
            "block": [
                {
                    "include_role": {"name": "postgres", "tasks_from": "preflight_host"},
                    "vars": {**case, "_postgres_state": {**usual, **case["_postgres_state"]}},
                },
                {"debug": {"msg": f"case {number}: END"}},
            ],
            "rescue": [{"debug": {"msg": f"case {number}: " + "{{ ansible_failed_result.msg }}END"}}],
        }
        for number, case in enumerate(cases)
    ]
    facts = {"ansible_facts": {"hostname": "db1", "distribution_major_version": "13"}}
    play = {"hosts": "all", "gather_facts": False, "vars": {**HERE, **facts}, "tasks": attempts}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    (tmp_path / "hosts").write_text("here\n")
    said = re.sub(r"\s+", " ", run_playbook(tmp_path / "play.yml", tmp_path / "hosts").stdout)
    found = dict(re.findall(r'"?case (\d+): (.*?)END', said))
    assert len(found) == len(cases), said
    return [found[str(number)] for number in range(len(cases))]


def test_a_run_says_how_to_get_to_the_version_that_is_asked_for(tmp_path: Path) -> None:
    after = {"data_version": "", "other_versions": ["17"]}
    midst = {"from": "15", "to": "17", "step": "checked", "held": False}
    newer, older, before, wrong, held, going_on, none = preflighted(
        tmp_path,
        [
            {"postgres_version": "17", "_postgres_state": {"data_version": "", "other_versions": ["15"]}},
            {"postgres_version": "15", "_postgres_state": after},
            {"postgres_version": "15", "_postgres_state": {"upgrade": midst}},
            {"postgres_version": "17", "_postgres_state": {"data_version": "17", "upgrade": midst}},
            {"postgres_version": "15", "_postgres_state": {"upgrade": {**midst, "step": "linked", "held": True}}},
            {
                "postgres_version": "17",
                "_postgres_upgrading": True,
                "_postgres_state": {"data_version": "17", "upgrade": {**midst, "held": True}},
            },
            {"postgres_version": "15", "_postgres_state": {}},
        ],
    )
    assert "is version 15, postgres_version asks for 17. postgres changed nothing." in newer
    assert "Run playbooks/upgrade-postgres.yml -e to=17, or set" in newer
    assert "is version 17, postgres_version asks for 15. postgres changed nothing. Set postgres_version:" in older
    assert "upgrade-postgres" not in older
    assert before == "" and going_on == "" and none == ""
    assert "has come to the step" in wrong and "checked" in wrong
    assert "-e to=17" in held and "linked" in held and "postgres changed nothing" in held


# --- what the playbook asks before it begins


@pytest.fixture
def asked(make_inventory: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """What the play says that asks whether it is meant, with answers of the hosts that were made up; empty when it goes on."""
    plays = yaml.safe_load((ROOT / "playbooks/upgrade-postgres.yml").read_text())
    play = next(play for play in plays if play["name"] == "Ask whether it is meant")
    first = {"name": "First", "hosts": "localhost", "gather_facts": False, "tasks": []}
    (tmp_path / "ask.yml").write_text(yaml.safe_dump([first, play]))
    inventory = make_inventory(
        {"web": ["one"], "database": ["one"]}, {**SITE, "database_primary": "one"}, {"one": HERE}
    )

    def ask(done: list[str] | None = None, confirm: str = "shop", **told: Any) -> str:
        usual = {
            "error": "", "last_backup": "F", "last_backup_age_seconds": 3600, "last_backup_time": "2031-05-01 12:00:00+00",
            "dropped_wal": [], "backups_with_errors": [],
        }  # fmt: skip
        given = {
            "postgres_upgrade": {"from": "15", "to": "17", "done": done or [], "packages": [], "databases": ["shop"], "bytes": 4711},
            "pgbackrest_status": {"stanzas": {"shop": {**usual, **told}} if told.get("there", True) else {}}, "confirm": confirm,
            "backup_host": "one",
        }  # fmt: skip
        run = run_playbook(tmp_path / "ask.yml", inventory, "-e", json.dumps(given))
        said = " ".join((run.stdout + run.stderr).split())
        assert run.returncode == 0 or "Nothing was changed." in said, said
        return said if run.returncode else ""

    return ask


def test_without_confirm_it_says_what_would_happen_and_what_to_add(asked: Callable[..., str]) -> None:
    assert asked() == ""
    said = asked(confirm="")
    assert "PostgreSQL 15 on one becomes 17" in said and "add -e confirm=shop" in said
    assert "add -e confirm=shop" in asked(confirm="yes")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"there": False}, "does not say what there is"),
        ({"error": "no path"}, "The backups are not well: no path"),
        ({"last_backup_age_seconds": None}, "There is no backup of the database"),
        ({"last_backup_age_seconds": 24 * 3600 + 1}, "more than 24 hours ago"),
        ({"dropped_wal": ["0001"]}, "WAL was dropped since the last backup"),
        ({"backups_with_errors": ["F"]}, "damaged pages"),
    ],
)
def test_without_a_fresh_backup_it_is_refused(asked: Callable[..., str], told: dict[str, Any], words: str) -> None:
    said = asked(**told)
    assert words in said and "playbooks/backup.yml makes one" in said
    # Once the old server is held, a backup of it can no longer be made, and the way on is the way out.
    assert asked(done=["made", "checked", "held"], **told) == ""


def test_everything_that_asks_for_the_version_comes_after_it_was_set() -> None:
    """The backups' roles find the data by postgres_version, on the database's host and on the one that keeps them."""
    plays = yaml.safe_load((ROOT / "playbooks/upgrade-postgres.yml").read_text())
    names = [play["name"] for play in plays]
    order = ["Look", "Look at the backups", "Ask whether it is meant", "Deploy lock", "Prepare", "Close the site", "Switch",
             "What is backed up", "Where backups are kept", "End", "Let go of the deploy lock", "Open the site",
             "A full backup of the new version", "Say what was done"]  # fmt: skip
    assert [name for name in names if name in order] == order
    [switch] = [play for play in plays if play["name"] == "Switch"]
    assert "postgres_version" in switch["tasks"][-1]["ansible.builtin.set_fact"]
    assert all(
        play.get("any_errors_fatal") for play in plays if "hosts" in play and play["name"] != "Say what was done"
    )
