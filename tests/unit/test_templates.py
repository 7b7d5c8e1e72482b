"""Every template renders from the role's defaults and from odd values, and a real parser can read the result."""

from __future__ import annotations

import ast
import configparser
import functools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import crossplane
import pytest
import yaml

from kit import ROOT
from rendered import File, Role

SAMPLES = ROOT / "tests/unit/samples"
ROLES = sorted(path.parent.name for path in ROOT.glob("roles/*/templates"))
ODD = 'it\'s "100%" $ecret\\n`id`ü'
INI = re.compile(r"\.(service|socket|timer|path|target|slice|mount|ini|local)$|/systemd/.*\.conf$|/fail2ban/.*\.conf$")
# Newer than the parser's own list.
NEWER_NGINX = {"http2", "ssl_reject_handshake"}
# Their bodies are values, which the parser takes for directives.
TABLES_OF_NGINX = re.compile(r"(?ms)^((?:map|geo) [^\n]*\{)$.*?^\}$")


@functools.cache
def samples(role: str) -> list[dict]:
    from ansible.parsing.dataloader import DataLoader

    return DataLoader().load_from_file(str(SAMPLES / f"{role}.yml"), trusted_as_template=True)


@functools.cache
def written(role: str, number: int) -> tuple[File, ...]:
    return tuple(Role(ROOT / "roles" / role, samples(role)[number]).files())


def cases() -> list[tuple[str, int]]:
    return [(role, n) for role in ROLES if (SAMPLES / f"{role}.yml").is_file() for n in range(len(samples(role)))]


def parse_ini(text: str) -> None:
    """systemd's and fail2ban's files; the same key may be there many times."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes=("#", ";"))
    parser.read_string(re.sub(r"\\\n\s*", " ", text))
    assert parser.sections(), "no section"
    for section in parser.sections():
        assert all(value is not None for value in parser[section].values())


def parse_environment(text: str) -> None:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            words = shlex.split(line)
            assert len(words) == 1, line
            assert re.match(r"[A-Za-z_]\w*=", words[0]), line


def parse_settings_of_postgres(text: str) -> None:
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            assert re.fullmatch(r"(include\w* '[^']+'|[a-z_.]+ = ('([^']|'')*'|[-\w.]+))(\s+#.*)?", line.strip()), line


def parse_start_of_postgres(text: str) -> None:
    assert text.strip() in ("auto", "manual", "disabled")


def parse_access_rules_of_postgres(text: str) -> None:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            kind, *rest = shlex.split(line)
            assert kind in ("local", "host", "hostssl", "hostnossl"), line
            assert len(rest) >= (3 if kind == "local" else 4), line
            assert "trust" not in rest, line


def parse_nftables(text: str) -> None:
    """No parser without nft itself: balanced braces, and the rules of others are never flushed."""
    bare = re.sub(r'"[^"]*"|#.*', "", text)
    assert bare.count("{") == bare.count("}") > 0
    assert "flush ruleset" not in bare


PARSERS = (
    (re.compile(r"\.py$"), ast.parse),
    (re.compile(r"\.json$"), json.loads),
    (re.compile(r"\.ya?ml$"), yaml.safe_load),
    (INI, parse_ini),
    (re.compile(r"(/|\.)env$|/etc/default/"), parse_environment),
    (re.compile(r"pg_hba"), parse_access_rules_of_postgres),
    (re.compile(r"/start\.conf$"), parse_start_of_postgres),
    (re.compile(r"/postgresql/.*\.conf$"), parse_settings_of_postgres),
    (re.compile(r"\.nft$|/nftables"), parse_nftables),
)


def check(file: File) -> None:
    assert "{{" not in file.text
    assert "{%" not in file.text
    if file.text.startswith("#!/usr/bin/python3"):
        ast.parse(file.text)
        return
    assert not re.search(
        r"\b(None|AnsibleUndefined|True|False)\b", re.sub(r"#.*", "", file.text)
    ) or file.dest.endswith(".py")
    for name, parser in PARSERS:
        if name.search(file.dest):
            parser(file.text)
            return


@pytest.mark.parametrize("role", ROLES)
def test_there_are_sample_values_beside_the_test(role: str) -> None:
    assert (SAMPLES / f"{role}.yml").is_file(), f"write tests/unit/samples/{role}.yml"


@pytest.mark.parametrize(("role", "number"), cases())
def test_files_that_a_role_writes_can_be_parsed(role: str, number: int) -> None:
    files = written(role, number)
    assert files
    for file in files:
        try:
            check(file)
        except (AssertionError, ValueError, SyntaxError, configparser.Error, yaml.YAMLError) as error:
            pytest.fail(f"{file.dest} ({file.template}): {error}\n{file.text}")


@pytest.mark.parametrize("role", ROLES)
def test_every_template_is_used_and_rendered(role: str) -> None:
    folder = ROOT / "roles" / role / "templates"
    all_of_them = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    text = "\n".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    included = set(re.findall(r"""{%-?\s*(?:include|import|from)\s+["']([^"']+)["']""", text))
    rendered = {
        file.template for number in range(len(samples(role))) for file in written(role, number) if file.template
    }
    assert all_of_them - included - rendered == set()


@pytest.mark.parametrize(("role", "number"), cases())
def test_a_number_or_a_choice_given_as_text_is_the_same(role: str, number: int) -> None:
    """`-e name=value` gives text, which argument specs take: 3 * "4000" is not 400040004000, and "false" is not true."""
    specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())["argument_specs"]
    known = {**yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text()), **samples(role)[number]}
    as_text = {
        name: str(known[name]).lower()
        for name, option in specs["main"]["options"].items()
        if option.get("type") in ("int", "float", "bool") and type(known.get(name)) in (int, float, bool)
    }
    given = Role(ROOT / "roles" / role, {**samples(role)[number], **as_text}).files()
    assert [(file.dest, file.text) for file in given] == [(file.dest, file.text) for file in written(role, number)]


@pytest.mark.parametrize("role", ROLES)
def test_rendering_twice_gives_the_same(role: str) -> None:
    """Else a run without changes would change something: a time, a random number, an order that is none."""
    for number, sample in enumerate(samples(role)):
        assert tuple(Role(ROOT / "roles" / role, sample).files()) == written(role, number)


@pytest.mark.parametrize("number", [n for role, n in cases() if role == "nginx"])
def test_nginx_configuration_is_accepted_by_a_parser_of_nginxs_grammar(number: int, tmp_path: Path) -> None:
    """Contexts and the numbers of arguments; `nginx -t` itself runs in the role's scenario."""
    for file in written("nginx", number):
        if file.dest.startswith("/etc/nginx/"):
            path = tmp_path / file.dest.removeprefix("/etc/nginx/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(TABLES_OF_NGINX.sub(r"\1}", file.text).replace("/etc/nginx/", f"{tmp_path}/"))
    root = tmp_path / "nginx.conf"
    if not root.exists():
        sites = "".join(f"include {path};\n" for path in sorted(tmp_path.rglob("*.conf")))
        root.write_text(f"events {{}}\nhttp {{\n{sites}}}\n")
    for name in ("mime.types", "modules-enabled/none.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    parsed = crossplane.parse(str(root), strict=True)
    errors = [f"{e['file']}:{e['line']}: {e['error']}" for e in parsed["errors"]
              if not re.match(rf'unknown directive "({"|".join(NEWER_NGINX)})"', str(e["error"]))]  # fmt: skip
    assert errors == []
    assert any(block["directive"] == "http" for config in parsed["config"] for block in config["parsed"])


def test_odd_secrets_arrive_whole_in_djangos_environment(tmp_path: Path) -> None:
    """A shell reads the file as systemd does."""
    [text] = [file.text for file in written("django", 1) if file.dest.endswith("/env")]
    (tmp_path / "env").write_text(text)
    script = 'set -a; . "$0"; exec env -0'
    done = subprocess.run(["sh", "-c", script, tmp_path / "env"], capture_output=True, text=True, env={}, check=True)
    found = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
    assert found["SITE_SECRET_KEY"] == found["SITE_DATABASE_PASSWORD_DEFAULT"] == found["TOKEN"] == ODD


def test_settings_overlay_holds_no_secret_and_keeps_the_values() -> None:
    [text] = [file.text for file in written("django", 1) if file.dest.endswith("stepladder_settings.py")]
    assert "ecret" not in text.replace("SECRET", "")
    assigned = {node.targets[0].id: node.value for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}  # fmt: skip
    assert ast.literal_eval(assigned["NAMES"]) == ["a", "it's"]
    assert ast.literal_eval(assigned["EMPTY"]) is None
    assert ast.literal_eval(assigned["DEBUG"]) is False


def test_a_default_setting_yields_to_the_projects_own_key_by_key() -> None:
    [text] = [file.text for file in written("django", 1) if file.dest.endswith("stepladder_settings.py")]
    called = "_unless_set"
    chosen = [
        node
        for node in ast.parse(text).body
        if getattr(node, "name", "") == called or called in ast.dump(getattr(node, "value", ast.Constant(0)))
    ]
    overlay = compile(ast.Module(chosen, []), "overlay", "exec")

    def settings(**project: object) -> dict[str, object]:
        found: dict[str, object] = {"_project": project}
        exec(overlay, found)
        return found

    alone = settings()
    assert alone["CELERY_TASK_ACKS_LATE"] is True
    assert alone["CELERY_BROKER_TRANSPORT_OPTIONS"] == {"visibility_timeout": 3600}
    own = settings(CELERY_TASK_ACKS_LATE=False, CELERY_BROKER_TRANSPORT_OPTIONS={"x": 1, "visibility_timeout": 9})
    assert own["CELERY_TASK_ACKS_LATE"] is False
    assert own["CELERY_BROKER_TRANSPORT_OPTIONS"] == {"x": 1, "visibility_timeout": 9}
    assert settings(CELERY_BROKER_TRANSPORT_OPTIONS={"x": 1})["CELERY_BROKER_TRANSPORT_OPTIONS"] == {
        "visibility_timeout": 3600,
        "x": 1,
    }


def test_only_a_workers_own_time_limits_win_over_the_applications() -> None:
    units = {file.dest.rsplit("@", 1)[-1]: file.text for file in written("celery", 1) if "@" in file.dest}
    options = {name: text.split("ExecStart=", 1)[1] for name, text in units.items() if name.endswith(".conf")}
    others, own, soft = (options[f"{name}.service.conf"] for name in ("default", "reports", "quick"))
    assert "$CELERY_LIMITS" in others and "-limit" not in others
    assert "--time-limit 1800 --soft-time-limit 1620" in own and "$CELERY_LIMITS" not in own
    assert "$CELERY_LIMITS --soft-time-limit 30" in soft, "the last one of an option holds"
    # What the role says goes into a variable, which the file that follows replaces.
    said = re.search(r'(?m)^Environment="CELERY_LIMITS=(.*)"\nEnvironmentFile=-(.*)$', units["default.service.conf"])
    assert said and said.groups() == ("--time-limit 600 --soft-time-limit 540", "/etc/celery-my-shop/limits")
    assert "CELERY_LIMITS" not in units["reports.service.conf"]


def test_databases_of_the_kit_keep_how_the_projects_code_works(monkeypatch: pytest.MonkeyPatch) -> None:
    [text] = [file.text for file in written("django", 1) if file.dest.endswith("stepladder_settings.py")]
    chosen = [
        node
        for node in ast.parse(text).body
        if (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DATABASES")
        or (isinstance(node, ast.For) and "DATABASES" in ast.unparse(node.iter))
    ]
    monkeypatch.setenv("SITE_DATABASE_PASSWORD_DEFAULT", "secret")
    own = {
        "ATOMIC_REQUESTS": True,
        "AUTOCOMMIT": False,
        "TIME_ZONE": "Asia/Tokyo",
        "HOST": "elsewhere",
        "OPTIONS": {"sslmode": "disable"},
    }

    def default(**project: object) -> dict[str, object]:
        found: dict = {"_project": project, "_os": os}
        exec(compile(ast.Module(chosen, []), "overlay", "exec"), found)
        return found["DATABASES"]["default"]

    plain, kept = default(), default(DATABASES={"default": own, "other": own})
    assert "ATOMIC_REQUESTS" not in plain
    assert kept == {**plain, "ATOMIC_REQUESTS": True, "AUTOCOMMIT": False, "TIME_ZONE": "Asia/Tokyo"}


@pytest.mark.parametrize(
    ("keep", "version", "kind", "kept"),
    [
        (True, "", "path", True),
        (False, "", "path", False),
        (False, "p123", "path", True),
        (False, "p124", "path", False),
        (False, "p123", "git", False),
    ],
)
def test_what_is_live_is_not_fetched_again(keep: bool, version: str, kind: str, kept: bool) -> None:
    [sample, _] = samples("django")
    live = {"releases": {"p123-a": {"revision": "p123", "kind": kind}}, "live": "p123-a", "live_config": ""}
    asked = {"django_keep_live_version": keep, "django_version": version, "_django_state": live}
    assert Role(ROOT / "roles/django", {**sample, **asked}).value("_django_kept") is kept


# The parsers themselves: what they must refuse.


@pytest.mark.parametrize(
    ("dest", "text"),
    [
        ("/a.py", "x = = 1\n"),
        ("/a.json", "{'a': 1}"),
        ("/a.yml", "a: [1"),
        ("/etc/systemd/system/a.service", "ExecStart=/bin/true\n"),
        ("/etc/systemd/system/a.service", "[Service]\nExecStart /bin/true\n"),
        ("/srv/env", "A=b c\n"),
        ("/etc/postgresql/17/main/pg_hba.conf", "host all all 0.0.0.0/0 trust\n"),
        ("/etc/postgresql/17/main/start.conf", "never\n"),
        ("/etc/postgresql/17/main/conf.d/a.conf", "port = it's\n"),
        ("/etc/x.nft", "table inet x {\n"),
        ("/etc/x.nft", "flush ruleset\ntable inet x {\n}\n"),
        ("/etc/motd", "{{ a }}"),
        ("/etc/motd", "Port None\n"),
    ],
)
def test_parsers_refuse_what_is_broken(dest: str, text: str) -> None:
    with pytest.raises((AssertionError, ValueError, SyntaxError, configparser.Error, yaml.YAMLError)):
        check(File(dest, text, "a.j2"))
