"""What decides about a site's releases, without a host: which one is earlier, which stay, what is read and written."""

import importlib.util
import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROLE = Path(__file__).resolve().parents[2] / "roles/django"


def load(path: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROLE / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


for utility in ("django_site", "django_files"):
    name = f"ansible.module_utils.{utility}"
    sys.modules[name] = load(f"module_utils/{utility}.py", name)
site = sys.modules["ansible.module_utils.django_site"]
activate = load("library/django_activate.py", "django_activate")
rollback = load("library/django_rollback.py", "django_rollback")
filters = load("filter_plugins/django.py", "django_filters")
tree = load("action_plugins/django_source_tree.py", "django_source_tree")


def entry(release: str, previous: str, kind: str = "deploy", config: str = "c") -> dict[str, Any]:
    return {"release": release, "previous": previous, "kind": kind, "config": config, "at": "", "by": ""}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A site without a release."""
    for folder in ("releases", "config/c", "config/unused", "shared/static"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def build(base: Path, release: str) -> None:
    home = base / "releases" / release
    (home / "static").mkdir(parents=True)
    (home / "static" / f"{release}.css").write_text("")
    record = {"release": release, "revision": "v", "built": release, "migrations": [], "code": str(home)}
    (home / "RELEASE.json").write_text(json.dumps(record))


def go_live(base: Path, release: str, **more: Any) -> dict[str, Any]:
    given = {
        "directory": str(base),
        "release": release,
        "config": "c",
        "keep": 2,
        "protected": [],
        "by": "ada",
        "reason": "",
    }
    if not (base / "releases" / release).exists():
        build(base, release)
    return dict(activate.activate({**given, "kind": "deploy", **more}))


def test_earlier_release_is_the_last_that_was_live_and_not_rolled_back_from() -> None:
    entries = [entry("r1", ""), entry("r2", "r1"), entry("r3", "r2"), entry("r2", "r3", "rollback")]
    assert site.choose_earlier(entries, "r2", {"r1", "r2", "r3"}) == ("r1", [])
    assert site.choose_earlier(entries[:3], "r3", {"r1", "r2", "r3"}) == ("r2", [])
    assert site.choose_earlier(entries[:3], "r3", {"r1", "r3"}) == ("r1", ["r2"])
    assert site.choose_earlier([], "r1", {"r1"}) == ("", [])


def test_release_that_a_rollback_would_choose_stays(base: Path) -> None:
    for release in ("r1", "r2", "r3"):
        go_live(base, release, keep=3)
    go_live(base, "r2", keep=2, kind="rollback")
    # Kept: the live one, the one that was rolled back from (its migrations may have to be undone), and the next way back.
    assert sorted(os.listdir(base / "releases")) == ["r1", "r2", "r3"]
    assert sorted(os.listdir(base / "config")) == ["c"]
    assert sorted(os.listdir(base / "shared/static")) == ["r1.css", "r2.css", "r3.css"]
    assert site.choose_earlier(site.log_entries(base), "r2", set(os.listdir(base / "releases"))) == ("r1", [])


def test_as_many_releases_stay_as_were_asked_for_the_live_one_among_them(base: Path) -> None:
    for release in ("r1", "r2", "r3", "r4", "r5"):
        go_live(base, release, keep=3)
    assert sorted(os.listdir(base / "releases")) == ["r3", "r4", "r5"]


def test_protected_release_stays_and_the_others_go(base: Path) -> None:
    for release in ("r1", "r2", "r3", "r4"):
        go_live(base, release, keep=1, protected=["r1"])
    assert sorted(os.listdir(base / "releases")) == ["r1", "r3", "r4"]


def test_deploy_log_mends_what_a_killed_run_left(base: Path) -> None:
    go_live(base, "r1")
    go_live(base, "r2")
    log = base / "shared/deploys.log"
    log.write_bytes(log.read_bytes()[:-20])
    assert site.state(str(base))["noted"] is False
    assert go_live(base, "r2")["changed"] is True
    assert [one["release"] for one in site.log_entries(base)] == ["r1", "r2"]
    assert site.state(str(base))["noted"] is True
    assert go_live(base, "r2")["changed"] is False


def test_rollback_that_still_has_migrations_to_undo_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Comparison:
        undo = ["shop.0002"]

        def undone(self, newer: str, older: str) -> list[str]:
            assert (newer, older) == ("r2", "r1")
            return self.undo

    entries = [entry("r1", ""), entry("r2", "r1"), entry("r1", "r2", "rollback"), entry("r1", "r1", "settings")]
    comparison = Comparison()
    assert rollback.unfinished(entries, "r1", {"r1", "r2"}, comparison) == ("r2", ["shop.0002"])
    comparison.undo = []
    assert rollback.unfinished(entries, "r1", {"r1", "r2"}, comparison) == ("", [])
    assert rollback.unfinished(entries[:2], "r2", {"r1", "r2"}, comparison) == ("", [])


def test_environment_comes_back_as_it_was_written() -> None:
    odd = {"A": "q\"'%\\ $HOME `id` ünï", "B": "line\u2028sep\u0085arated", "C": "", "D": None, "E": 5}
    text = (
        filters.django_environment(odd)
        + site.SECRETS_MARK
        + ": not for logs.\n"
        + filters.django_environment({"F": "#=x"})
    )
    values, secrets = site.parse_environment(text)
    assert values == {**odd, "D": "", "E": "5", "F": "#=x"} and secrets == ["F"]


def test_answer_is_read_as_it_was_given_and_messages_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"names": ["orders.0001_initial"]}

    class Runner:
        clean = staticmethod(lambda text: text.replace("orders", "********"))

        def must(self, _argv: list[str], _what: str) -> str:
            return f"the project says something\nstepladder: {json.dumps(answers)}\nand something at its end"

    monkeypatch.setattr(site, "helper", lambda *_given: [])
    assert site.ask(Runner(), "/srv/x", "r1", "names", "what") == answers
    answers = {"refused": "orders.0002 cannot be undone"}
    with pytest.raises(site.Refused, match=r"^django: \*{8}.0002 cannot be undone$"):
        site.ask(Runner(), "/srv/x", "r1", "names", "what")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"SUDO_USER": "ada", "USER": "root"}, "ada"),
        ({"USER": "grace"}, "grace"),
        ({}, pwd.getpwuid(os.getuid()).pw_name),
    ],
)
def test_deploy_log_knows_who_deploys_also_where_no_variable_tells(variables: dict[str, str], name: str) -> None:
    words = [
        Path(sys.executable).with_name("ansible"),
        "localhost",
        "-c",
        "local",
        "-m",
        "debug",
        "-a",
        "var=django_deployer",
    ]
    around = {key: value for key, value in os.environ.items() if key not in ("SUDO_USER", "USER", "LOGNAME")}
    done = subprocess.run(
        [*words, "-e", f"@{ROLE}/defaults/main.yml"],
        env={**around, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert re.search(r'"?django_deployer"?: "?(\S+?)"?\s*$', done.stdout, re.M)[1] == name, done.stdout + done.stderr


def test_package_gets_one_version_whatever_its_requirement_says() -> None:
    for text in ("pretalx", "pretalx==1", "pretalx>=1,<2", "pretalx [x,y] ~= 1"):
        assert filters.django_package_requirement({"package": text}, "3.1") in ("pretalx==3.1", "pretalx [x,y]==3.1")
    assert filters.django_package_version({"package": "a==1.2 ; python_version > '3'"}, "") == "1.2"
    assert filters.django_package_version({"package": "a==1.*"}, "") == ""


def test_tree_leaves_out_what_is_no_source(tmp_path: Path) -> None:
    for name in ("a.py", "media/up.png", "app/media/kept.png", ".env", "node_modules/x.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("a.py")
    (tmp_path / "folder").symlink_to("app")
    found = tree.tree(tmp_path, [*tree.EXCLUDED])
    assert found == ["a.py", "app/media/kept.png", "folder", "link"]
    revision = tree.revision_of(tmp_path, found)
    (tmp_path / "a.py").chmod(0o755)
    assert tree.revision_of(tmp_path, found) != revision
