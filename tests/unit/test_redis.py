"""The role redis: how values are written, and what its modules make of a server's answers."""

from __future__ import annotations

import importlib.util
import io
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kit import ROOT

ROLE = ROOT / "roles/redis"
ODD = 'it\'s "100%" $ecret\\n`id`ü '


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    assert spec.loader
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wire() -> ModuleType:
    return load(ROLE / "module_utils/redis_wire.py", "ansible.module_utils.redis_wire")


@pytest.fixture(scope="module")
def filters() -> dict[str, Any]:
    return dict(load(ROLE / "filter_plugins/redis.py", "redis_filters").FilterModule().filters())


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "yes"),
        (False, "no"),
        (16, "16"),
        ("64mb", "64mb"),
        ("", '""'),
        (["3600", 1], '"3600 1"'),
        ("#x", '"#x"'),
        ('a"b\\n', '"a\\"b\\\\n"'),
    ],
)
def test_values_are_written_as_the_server_reads_them(filters: dict[str, Any], value: Any, written: str) -> None:
    assert filters["redis_value"](value) == written


def test_an_odd_password_is_one_argument(filters: dict[str, Any]) -> None:
    assert shlex.split(f"masterauth {filters['redis_value'](ODD)}") == ["masterauth", ODD]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_a_value_of_two_lines_is_refused(filters: dict[str, Any], value: str) -> None:
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match="one line"):
        filters["redis_value"](value)


def answering(wire: ModuleType, answer: bytes) -> tuple[Any, io.BytesIO]:
    sent = io.BytesIO()
    stream = SimpleNamespace(
        write=sent.write, flush=lambda: None, readline=(source := io.BytesIO(answer)).readline, read=source.read
    )
    return wire.Client(SimpleNamespace(settimeout=lambda seconds: None, makefile=lambda mode: stream)), sent


def test_a_command_is_sent_as_bytes_with_their_lengths(wire: ModuleType) -> None:
    client, sent = answering(wire, b"+OK\r\n")
    assert client.call("SET", "ü", 1) == "OK"
    assert sent.getvalue() == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$1\r\n1\r\n"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (b":-3\r\n", -3),
        (b"$-1\r\n", None),
        (b"$4\r\na\r\nb\r\n", "a\r\nb"),
        (b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", ["a", [1]]),
        (b"*-1\r\n", None),
    ],
)
def test_answers_are_read(wire: ModuleType, answer: bytes, value: Any) -> None:
    assert answering(wire, answer)[0].call("X") == value


def test_a_refusal_and_a_closed_connection_are_errors(wire: ModuleType) -> None:
    with pytest.raises(wire.ErrorReply, match="NOPERM no"):
        answering(wire, b"-NOPERM no\r\n")[0].call("X")
    with pytest.raises(OSError, match="closed"):
        answering(wire, b"")[0].call("X")


@pytest.mark.parametrize(("version", "rules"), [("8.0.2", "on -@all +get -set"), ("7.0.15", "+get -@all -set on")])
def test_users_are_listed_for_comparing(wire: ModuleType, version: str, rules: str) -> None:
    info = f"# Server\r\nredis_version:{version}\r\n"
    listed = b"*2\r\n$16\r\nuser default off\r\n$25\r\nuser a on -@all +get -set\r\n"
    client, _ = answering(wire, listed + f"${len(info)}\r\n{info}\r\n".encode())
    assert client.users() == {"default": "off", "a": rules}


def test_rules_are_taken_from_the_file(wire: ModuleType) -> None:
    text = "user default reset off\n\nuser a reset on #@LOCAL@ ~* +@all\n"
    assert wire.rules(text, "12ab") == {"default": ["reset", "off"], "a": ["reset", "on", "#12ab", "~*", "+@all"]}


@pytest.mark.parametrize(
    ("bind", "address"),
    [(["-::1"], "::1"), (["*"], "127.0.0.1"), (["0.0.0.0", "::"], "127.0.0.1"), (["10.0.0.5"], "10.0.0.5")],
)
def test_an_address_is_found_at_which_the_server_answers(wire: ModuleType, bind: list[str], address: str) -> None:
    assert wire.reachable(bind) == address


def test_the_last_value_of_a_setting_counts(wire: ModuleType) -> None:
    text = 'save "3600 1"\n# save 5\nappendonly no\nAPPENDONLY yes\nsave ""\n'
    assert (wire.setting(text, "appendonly"), wire.setting(text, "save"), wire.setting(text, "port", "1")) == (
        "yes",
        "",
        "1",
    )


def test_a_log_is_cut_to_the_complaint(wire: ModuleType) -> None:
    log = "1:C # oO0OoO0OoO0Oo\n1:C * Configuration loaded\n>>> 'maxmemorry 1'\nBad directive\n"
    assert wire.words_of(log) == ">>> 'maxmemorry 1'; Bad directive"
    assert wire.words_of("") == "it said nothing"
