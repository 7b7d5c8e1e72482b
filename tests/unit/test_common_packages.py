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
    )
    program.chmod(0o755)
    return str(program)


def test_only_what_dpkg_has_finished_counts_as_installed(dpkg):
    assert module.installed(dpkg) == {"nginx", "nginx:amd64"}


class Task:
    async_val = 0

    def __init__(self, args, delegate_to=None):
        self.args, self.delegate_to = args, delegate_to


class Run(action.ActionModule):
    """The action with the host's answers put in; notes what it asked for."""

    def __init__(self, args, missing, delegate_to=None):
        self._task, self.missing, self.asked = Task(args, delegate_to), missing, []

    def _execute_module(self, name, given, task_vars=None):
        self.asked.append((name, given))
        if name != "packages":
            return {"changed": True}
        return {"changed": False, "missing": self.missing, "installed": "nginx nginx:amd64 sudo sudo:amd64"}


@pytest.fixture(autouse=True)
def no_connection(monkeypatch, tmp_path):
    monkeypatch.setattr(action.constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(action.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})


def test_apt_is_not_asked_when_nothing_is_missing():
    run = Run({"names": ["nginx"]}, [])
    assert run.run(task_vars={})["changed"] is False
    assert run.asked == [("packages", {"names": ["nginx"]})]


def test_a_host_is_asked_once_a_run_what_it_has():
    def asked(names, host="web1", **more):
        run = Run({"names": names}, [], **more)
        assert "installed" not in run.run(task_vars={"inventory_hostname": host})
        return len(run.asked)

    assert asked(["nginx"]) == 1
    assert asked(["sudo", "nginx:amd64"]) == 0
    assert asked(["sudo"], host="web2") == 1
    assert asked(["sudo", "redis"]) == 1, "what it was not heard to have is asked for"
    assert asked(["sudo"], delegate_to="web3") == 1, "another host than the one that was asked"


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
