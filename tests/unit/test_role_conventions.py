"""Every role keeps the rules of the house."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import role_readme
import yaml

import role_reads
from kit import ROOT

ROLES = sorted(path.parents[1].name for path in ROOT.glob("roles/*/tasks/main.yml"))
STAGE1 = {"base", "firewall", "certificates", "postgres", "django", "gunicorn", "nginx"}
SHARED = ("roles/_common", "_common")


@pytest.fixture(params=sorted(STAGE1 | set(ROLES)))
def role(request: pytest.FixtureRequest) -> Path:
    return ROOT / "roles" / request.param


def load(path: Path) -> Any:
    assert path.is_file(), f"{path.relative_to(ROOT)} is not there"
    return yaml.safe_load(path.read_text())


def options(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
        found.update(entry.get("options") or {})
    return found


def python_files(role: Path) -> list[Path]:
    folders = ("action_plugins", "filter_plugins", "lookup_plugins")  # what runs on the controller
    return [path for folder in folders for path in (role / folder).glob("*.py")]


def test_specs_and_defaults_name_the_same_variables(role: Path) -> None:
    specs, defaults = options(role), load(role / "defaults/main.yml") or {}
    optional = {name for name, spec in specs.items() if not spec.get("required")}
    assert optional == set(defaults), "in one and not in the other: " + ", ".join(sorted(optional ^ set(defaults)))


def test_every_variable_is_typed_described_and_prefixed(role: Path) -> None:
    bare = [name for name, spec in options(role).items() if not (spec.get("type") and spec.get("description"))]
    strangers = [name for name in options(role) if not name.startswith(f"{role.name}_")]
    assert (bare, strangers) == ([], [])


def test_defaults_have_the_type_that_the_specs_say(role: Path) -> None:
    types = {"str": str, "path": str, "list": list, "dict": dict, "int": int, "float": (int, float), "bool": bool}
    specs, wrong = options(role), []
    for name, value in (load(role / "defaults/main.yml") or {}).items():
        expected = types.get(specs.get(name, {}).get("type"), object)
        is_template = isinstance(value, str) and "{{" in value
        if value is not None and not is_template and not isinstance(value, expected):
            wrong.append(f"{name}: {value!r}")
        choices = specs.get(name, {}).get("choices")
        if choices and not is_template and not isinstance(value, list) and value not in choices:
            wrong.append(f"{name}: {value!r} is not among {choices}")
    assert wrong == []


def test_readme_table_is_current(role: Path) -> None:
    assert role_readme.updated(role) == (role / "README.md").read_text(), "run python tests/tools/role_readme.py"


def test_readme_has_a_play_says_what_it_does_not_do_and_what_to_copy(role: Path) -> None:
    text = (role / "README.md").read_text()
    plays = [yaml.safe_load(block) for block in re.findall(r"(?ms)^```ya?ml\n(.*?)^```", text)]
    applied = [play for listed in plays if isinstance(listed, list) for play in listed if "hosts" in play]
    assert any(role.name in json.dumps(play, default=str) for play in applied), "no play that applies the role"
    assert re.search(r"(?mi)^#+ .*does not do", text), 'no heading "What it does not do"'
    assert "_common" in text, "does not say that roles/_common is copied with it"


def test_readmes_play_gives_every_required_variable(role: Path) -> None:
    text = (role / "README.md").read_text()
    required = options_of(role, "main")
    missing = [name for name, spec in required.items() if spec.get("required") and f"{name}:" not in text]
    assert missing == []


def options_of(role: Path, entry: str) -> dict[str, Any]:
    return load(role / "meta/argument_specs.yml")["argument_specs"][entry].get("options") or {}


def test_role_reads_only_its_own_variables_and_facts(role: Path) -> None:
    assert role_reads.files(role), "the role has no tasks"
    assert role_reads.foreign(role) == {}


def test_roles_plugins_never_look_at_the_inventory(role: Path) -> None:
    looks = re.compile(
        r"""\b(hostvars|group_names|inventory_hostname\w*|play_hosts)\b|(?:vars|variables)(?:\[|\.get\()["']groups["']"""
    )
    hits = [f"{path.name}: {hit.group()}" for path in python_files(role) for hit in looks.finditer(path.read_text())]
    assert hits == []


def test_what_a_role_keeps_for_itself_is_named_so(role: Path) -> None:
    """Registered and set names; `<role>_...` without the underscore is what a role hands to those that come after it."""
    strangers = [n for n in role_reads.makes(role) if not n.startswith((f"_{role.name}_", f"{role.name}_"))]
    assert sorted(strangers) == []


def test_roles_read_only_facts_that_preflight_gathers(gathered: set[str], role: Path) -> None:
    assert role_reads.facts(role) - gathered == set()


def test_wiring_reads_only_facts_that_preflight_gathers(gathered: set[str]) -> None:
    texts = [text for path in (ROOT / "group_vars/all").glob("*.yml")
             for text in role_reads.expressions(yaml.safe_load(path.read_text()))]  # fmt: skip
    names = {name for text in texts for name in role_reads.facts_of(text)}
    assert names
    assert names - gathered == set()


@pytest.fixture(scope="session")
def gathered() -> set[str]:
    """The facts that preflight's subsets give, asked of this machine."""
    listed = re.search(r"(?s)^FACTS = (\[.*?\])", (ROOT / "plugins/action/preflight.py").read_text(), re.M)
    subsets = ",".join(json.loads(re.sub(r",\s*\]", "]", listed[1])))
    ansible = Path(sys.executable).with_name("ansible")
    command = [
        ansible,
        "localhost",
        "-c",
        "local",
        "-o",
        "-m",
        "ansible.builtin.setup",
        "-a",
        f"gather_subset={subsets}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout.split("=>", 1)[1])["ansible_facts"]
    return {name.removeprefix("ansible_") for name in found}


def test_role_is_described_licensed_and_finds_the_shared_plugins(role: Path) -> None:
    meta = load(role / "meta/main.yml")
    galaxy = meta["galaxy_info"]
    assert {"role": "_common"} in meta["dependencies"]
    assert (galaxy["license"], galaxy["author"], galaxy["min_ansible_version"]) == ("Apache-2.0", "Stepladder", "2.19")
    assert galaxy["platforms"] == [{"name": "Debian", "versions": ["bookworm", "trixie"]}]
    assert galaxy["description"]


def test_role_has_a_scenario_with_tests(role: Path) -> None:
    """Files elsewhere than in tests/ are never collected, and a scenario without any is green."""
    folder = ROOT / "molecule" / role.name
    assert (folder / "molecule.yml").is_file()
    tests = [
        name
        for path in (folder / "tests").glob("test_*.py")
        for name in re.findall(r"(?m)^def test_", path.read_text())
    ]
    assert tests, "the scenario has no test"
    assert list(folder.rglob("test_*.py")) == list((folder / "tests").rglob("test_*.py"))


def test_scenario_keeps_idempotence_and_check_mode(role: Path) -> None:
    sequence = (load(ROOT / "molecule" / role.name / "molecule.yml").get("scenario") or {}).get("test_sequence")
    if sequence:
        assert "idempotence" in sequence
        assert sequence.count("check") >= 2
        assert "verify" in sequence


def test_main_reads_as_a_table_of_contents_that_starts_with_preflight(role: Path) -> None:
    tasks = load(role / "tasks/main.yml")
    first = next(
        (task[key] for task in tasks[:1] for key in task if key.split(".")[-1] in ("import_tasks", "include_tasks")), ""
    )
    assert "preflight" in str(first)
    assert (role / "tasks/preflight.yml").is_file()


def test_files_are_of_one_screen(role: Path) -> None:
    long = {path.name: lines for path in (role / "tasks").glob("*.yml")
            if (lines := len(path.read_text().splitlines())) > 120}  # fmt: skip
    assert long == {}


def test_errors_are_not_ignored(role: Path) -> None:
    for path in role_reads.files(role):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            assert "ignore_errors" not in line, f"{path.name}: {line}"
            if re.search(r"failed_when:\s*false", line):
                assert "#" in line or before.strip().startswith("#"), f"{path.name}: say why"


def test_packages_are_installed_in_one_call_without_recommends(role: Path) -> None:
    calls = [task for path in (role / "tasks").glob("*.yml") for task in flat(load(path) or [])
             if "ansible.builtin.apt" in task and task["ansible.builtin.apt"].get("state", "present") != "absent"]  # fmt: skip
    assert [task["name"] for task in calls if task["ansible.builtin.apt"].get("install_recommends", True)] == []
    assert [task["name"] for task in calls if "lock_timeout" not in task["ansible.builtin.apt"]] == []


def flat(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks with those of blocks among them."""
    found = []
    for task in tasks:
        found.append(task)
        for key in ("block", "rescue", "always"):
            found += flat(task.get(key) or [])
    return found


# The checker itself: what it must find.


def sample(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = tmp_path / "redis" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "redis"


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("tasks/main.yml", "[{name: A, when: 'inventory_hostname == 1'}]", "inventory_hostname"),
        (
            "tasks/main.yml",
            "[{name: A, when: [redis_x, groups.web | ansible.netcommon.ipaddr is any.thing]}]",
            "groups",
        ),
        ("tasks/main.yml", "[{name: A, assert: {that: ['1 == 1', 'group_names | length']}}]", "group_names"),
        ("tasks/main.yml", "[{block: [{name: A, until: nginx_port}]}]", "nginx_port"),
        ("tasks/main.yml", "[{name: A, loop: '{{ play_hosts }}'}]", "play_hosts"),
        ("tasks/main.yml", "[{name: \"{{ hostvars['x'].y }}\"}]", "hostvars"),
        ("handlers/main.yml", "[{name: A, changed_when: site_name}]", "site_name"),
        ("defaults/main.yml", "redis_a: '{{ postgres_port }}'", "postgres_port"),
        ("templates/sub/a.conf.j2", "{% for host in groups['web'] %}{{ host }}{% endfor %}", "groups"),
        ("templates/a.conf.j2", "{% if redis_a and vars['x'] %}{% endif %}", "vars"),
        ("templates/a.conf.j2", "{{ ansible_distribution }}", "ansible_distribution"),
    ],
)
def test_checker_finds_what_is_not_the_roles(tmp_path: Path, file: str, text: str, name: str) -> None:
    assert role_reads.foreign(sample(tmp_path, {file: text})) == {file: [name]}


def test_checker_leaves_alone_what_is(tmp_path: Path) -> None:
    tasks = """
- {name: A, command: "{{ redis_x }} {{ item }}", loop: [1], register: _redis_done, when: ansible_check_mode}
- {name: B, debug: {msg: "groups and hostvars in words"}, loop: "{{ redis_y }}", loop_control: {loop_var: one}}
- {name: "{{ one }}", assert: {that: ["_redis_done is changed", "'groups' != redis_x"]}, vars: {_redis_z: 1}}
"""
    template = "{% for a in redis_list %}{{ a }}{{ loop.index }}{% endfor %}{{ ansible_facts.memtotal_mb }}{{ port }}"
    made = "[{name: C, config_files: {files: [{template: a.j2, vars: {port: 1}}]}}]"
    role = sample(tmp_path, {"tasks/main.yml": tasks, "tasks/more.yml": made, "templates/a.j2": template})
    assert role_reads.foreign(role) == {}
    assert role_reads.facts(role) == {"memtotal_mb"}
    assert role_reads.makes(role) == {"_redis_done"}


def test_checker_names_a_template_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.j2"):
        role_reads.foreign(sample(tmp_path, {"templates/a.j2": "{% if %}"}))


def test_roles_say_of_themselves_only_what_was_not_changed() -> None:
    """A role that refuses in the midst of a run cannot know what the roles before it have done."""
    files = [path for path in (ROOT / "roles").rglob("*") if path.suffix in (".py", ".yml", ".j2") and path.is_file()]
    said = [path for path in files if re.search(r"nothing (was|has been|is) changed", path.read_text(), re.IGNORECASE)]
    assert said == []
