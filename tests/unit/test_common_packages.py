"""packages asks dpkg first, and has apt load its lists only for what is missing."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleActionFail

from kit import load_plugin

module = load_plugin("roles/_common/library/packages.py")
action = load_plugin("roles/_common/action_plugins/packages.py")


@pytest.fixture
def dpkg(tmp_path):
    """A dpkg-query that knows three packages: one installed, one removed with its settings kept, one half-way."""
    program = tmp_path / "dpkg-query"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'installed nginx nginx:amd64'\n"
        "echo 'config-files redis redis:amd64'\n"
        "echo 'half-configured haproxy haproxy:amd64'\n"
        "exit 1\n"
    )
    program.chmod(0o755)
    return str(program)


def test_only_what_dpkg_has_finished_counts_as_installed(dpkg):
    assert module.installed(["nginx", "redis", "haproxy", "nosuch"], dpkg) == {"nginx", "nginx:amd64"}


class Task:
    async_val = 0

    def __init__(self, args):
        self.args = args


class Run(action.ActionModule):
    """The action with the host's answers put in; notes what it asked for."""

    def __init__(self, args, missing):
        self._task, self.missing, self.asked = Task(args), missing, []

    def _execute_module(self, name, given, task_vars=None):
        self.asked.append((name, given))
        return {"changed": False, "missing": self.missing} if name == "packages" else {"changed": True}


@pytest.fixture(autouse=True)
def no_connection(monkeypatch):
    monkeypatch.setattr(action.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})


def test_apt_is_not_asked_when_nothing_is_missing():
    run = Run({"names": ["nginx"]}, [])
    assert run.run(task_vars={})["changed"] is False
    assert run.asked == [("packages", {"names": ["nginx"]})]


def test_apt_is_asked_for_the_whole_list_when_something_is_missing():
    run = Run({"names": ["nginx", "redis"], "cache_valid_time": 0}, ["redis"])
    assert run.run(task_vars={})["changed"] is True
    assert run.asked[0] == ("packages", {"names": ["nginx", "redis"]})
    name, wanted = run.asked[1]
    assert name == "ansible.builtin.apt"
    assert wanted["name"] == ["nginx", "redis"]
    assert (wanted["state"], wanted["install_recommends"], wanted["cache_valid_time"]) == ("present", False, 0)


def test_one_name_may_stand_alone():
    run = Run({"names": "nftables"}, [])
    run.run(task_vars={})
    assert run.asked == [("packages", {"names": ["nftables"]})]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"names": ["nginx"], "state": "latest"}, "unknown key state"),
        ({}, "found None"),
        ({"names": []}, "found []"),
        ({"names": ["nginx", ""]}, "found ['nginx', '']"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused_in_one_sentence(args, words):
    run = Run(args, [])
    with pytest.raises(AnsibleActionFail) as refusal:
        run.run(task_vars={})
    assert words in str(refusal.value)
    assert run.asked == []
