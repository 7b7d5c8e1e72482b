"""keepalived: which settings are refused and in which words, without keepalived."""

import importlib.util
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "roles/keepalived/filter_plugins/keepalived_problems.py"
spec = importlib.util.spec_from_file_location(PLUGIN.stem, PLUGIN)
plugin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)


def settings(**changes):
    good = {
        "name": "edge", "addresses": ["192.0.2.10/24"], "peers": ["192.0.2.12"], "source": "192.0.2.11",
        "interface": "eth0", "script_user": "haproxy", "commands": {"keepalived_check": "/etc/x/control alive"},
        "numbers": {"keepalived_priority": [100, 1, 254]},
    }  # fmt: skip
    return {**good, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"commands": {"keepalived_check": "", "keepalived_notify": ""}},
        {"addresses": ["2001:db8::10/64"], "peers": ["2001:db8::12", "2001:db8::13"], "source": "2001:db8::11"},
    ],
)
def test_settings_that_work_are_not_refused(changes):
    assert plugin.keepalived_problems(settings(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "My Edge"}, "keepalived_name is My Edge. Use small letters"),
        ({"interface": ""}, "keepalived_interface is ''. Name a network interface"),
        ({"script_user": "a b"}, "keepalived_script_user is 'a b'. Name a user"),
        ({"commands": {"keepalived_check": "curl localhost"}}, "keepalived_check is curl localhost. Give the full path"),
        ({"commands": {"keepalived_notify": '/bin/sh -c "x"'}}, "without quotation marks"),
        ({"numbers": {"keepalived_priority": [255, 1, 254]}}, "keepalived_priority is 255. It is a whole number from 1 to 254"),
        ({"source": ""}, "Set it to this host's own address."),
        ({"peers": []}, "keepalived_peers is []. List the other hosts' own addresses."),
        ({"peers": ["edge2"]}, "keepalived_peers is ['edge2']."),
        ({"peers": ["192.0.2.11"]}, "which is this host's own address. List only the others."),
        ({"addresses": []}, "keepalived_addresses is empty."),
        ({"addresses": ["192.0.2.10"]}, "Give an address with the bits of its network"),
        ({"addresses": ["192.0.2.12/24"]}, "which is a host's own address. Take one that nobody has."),
        ({"addresses": ["2001:db8::10/64"]}, "Make an instance for each."),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_in_a_sentence(changes, words):
    found = plugin.keepalived_problems(settings(**changes))
    assert any(words in sentence for sentence in found), found
