"""Preflight refuses what does not fit, all of it at once, in sentences that say what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit import HERE, KEY, ROOT, SITE, run_playbook
from lab.inventory import read_hosts, stage_file, stages
from preflighted import NEEDS, TWO, hosts, inventory_problems, preflight

PLAYBOOK = "playbooks/layers/preflight.yml"


def refusals(inventory: Path, *options: str) -> list[str]:
    """The problems that a refused run names; nothing is left behind, and no noise is shown."""
    done = run_playbook(PLAYBOOK, inventory, "-e", json.dumps(NEEDS), *options)
    assert done.returncode != 0, done.stdout
    said = done.stdout + done.stderr
    for noise in ("Traceback", "undefined", "AnsibleUndefined", "object at 0x"):
        assert noise not in said
    assert "nothing was changed" in said
    assert not (inventory / "secrets").exists()
    return re.findall(r"(?m)^        - (.+)$", done.stdout)


# The sentences, one function at a time.


@pytest.mark.parametrize(("version", "refused"), [("2.18.9", True), ("2.19.0", False), ("2.19.14", False),
                                                  ("2.20.0", True), ("3.0.0rc1", True)])  # fmt: skip
def test_only_the_core_that_was_tried_is_accepted(version: str, refused: bool) -> None:
    problem = preflight.core_problem(version)
    assert bool(problem) is refused
    if problem:
        assert version in problem and "2.19" in problem and "pip install" in problem


def test_unknown_variable_names_the_closest_and_the_way_out() -> None:
    known = {"postgres_version", "site_name"}
    names = {"a": ["postgres_verison", "unrelated"], "b": ["postgres_verison"]}
    [problem] = preflight.unknown_problems(names, known, ("postgres_", "site_"))
    assert "a, b" in problem and "Did you mean postgres_version?" in problem and "site_own_variables" in problem
    [problem] = preflight.unknown_problems({"a": ["site_qqqqqq"]}, known, ("site_",))
    assert "docs/settings.md" in problem and "Did you mean" not in problem


def test_long_lists_of_hosts_are_cut_for_reading() -> None:
    assert preflight.listed(["b", "a", "a"]) == "a, b"
    assert preflight.listed("abcdefg") == "a, b, c, d, e and 2 more"


def test_addresses_are_compared_across_hosts() -> None:
    assert preflight.address_problems({"a": "1", "b": "2"}) == []
    [problem] = preflight.address_problems({"a": "1", "b": "1"})
    assert problem.startswith("a, b have the same address 1.")


def test_shares_may_use_the_whole_host_and_not_more() -> None:
    assert preflight.memory_problem("a", {"postgres": 0.7, "gunicorn": 0.2, "nginx": 0.1}) is None
    problem = preflight.memory_problem("a", {"postgres": 0.8, "gunicorn": 0.3})
    assert "add up to 1.1" in problem and "postgres 0.8" in problem and "site_memory_shares" in problem
    assert "must be numbers" in preflight.memory_problem("a", {"postgres": "lots"})
    assert "must be numbers" in preflight.memory_problem("a", {"postgres": -0.5, "gunicorn": 0.9})


def test_hosts_answers_are_judged_together() -> None:
    answers = {
        "gone1": {"unreachable": "Connection refused"},
        "gone2": {"unreachable": "Connection refused"},
        "bare": {"failed": "python3: not found"},
        "old": {"distribution": "Debian", "version": "10", "skew": 0},
        "other": {"distribution": "Fedora", "version": "43", "skew": 0},
        "late": {"distribution": "Debian", "version": "12", "skew": -61.0},
        "fine": {"distribution": "Debian", "version": "13", "skew": 29.0},
    }
    problems = preflight.host_problems(answers, 30)
    assert len(problems) == 5 and "fine" not in " ".join(problems)
    said = "\n".join(problems)
    for words in ("gone1, gone2 (Connection refused)", "bare answers but cannot run Ansible: python3: not found",
                  "old runs Debian 10", "other runs Fedora 43", "clock of late is 61 s behind"):  # fmt: skip
        assert words in said


def test_ssh_speaks_for_itself() -> None:
    wrapped = "Task failed: Failed to connect to the host via ssh: ssh: connect to host 1.2.3.4 port 22: No route"
    assert preflight.last_words(wrapped) == "ssh: connect to host 1.2.3.4 port 22: No route"
    assert preflight.last_words("") == "no answer"


# The playbook, as a person meets it.


def test_all_unreachable_hosts_are_named_at_once(make_inventory: Callable[..., Path]) -> None:
    [problem] = refusals(make_inventory(TWO, hosts=hosts()))
    assert problem.startswith("Not reachable over SSH: db1, web1 (")
    assert "Failed to connect" not in problem


def test_every_problem_of_an_inventory_is_said_in_one_run(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_hostnmaes": ["x"], "postgres_memory": 1, "site_keep_releases": "five", "site_tls": "acme"}
    del settings["site_settings_module"]
    same = {"web1": {"ansible_host": "127.0.0.9"}, "db1": {"ansible_host": "127.0.0.9"}}
    said = refusals(make_inventory(TWO, settings, hosts=hosts(**same)))
    for sentence in (
        "site_settings_module is not set for db1, web1. Set it in group_vars/site.yml: The project's own settings module",
        "site_hostnmaes is set for db1, web1, and the kit knows no such variable. Did you mean site_hostnames?",
        "postgres_memory is set for db1, web1, and the kit knows no such variable. Did you mean postgres_memory_mb?",
        "site_keep_releases must be a whole number; found 'five'",
        "site_tls must be one of internal, files, letsencrypt; found 'acme'",
        "db1, web1 have the same address 127.0.0.9. Give each host its own",
    ):
        assert sum(problem.startswith(sentence) for problem in said) == 1, (sentence, said)
    assert len(said) == 6


def test_empty_or_missing_group_is_refused_with_its_reason(make_inventory: Callable[..., Path]) -> None:
    [problem] = inventory_problems(make_inventory({"web": ["web1"], "database": []}, hosts=hosts()))
    assert problem == ("The group database has no host, and this stage needs one: PostgreSQL runs there. "
                       "Add a host to database in the inventory.")  # fmt: skip


def test_inventory_without_the_kits_groups_is_refused(make_inventory: Callable[..., Path]) -> None:
    said = inventory_problems(make_inventory({"webservers": ["web1"]}, hosts=hosts()))
    assert [problem.split(",")[0] for problem in said] == [f"The group {g} has no host" for g in ("web", "database")]


def test_host_outside_the_group_site_is_refused(make_inventory: Callable[..., Path]) -> None:
    [problem] = inventory_problems(make_inventory(TWO, hosts=hosts(), outside=("web",)))
    assert problem.startswith("web1 in group web does not belong to the group site")
    assert "List web under site's children" in problem


def test_a_variable_of_ones_own_is_left_alone(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_slogan": "Up!", "site_own_variables": ["site_slogan"]}
    assert inventory_problems(make_inventory(TWO, settings, hosts=hosts())) == []


@pytest.mark.parametrize(
    ("choice", "lacks"), [("files", ["site_tls_certificate", "site_tls_key"]), ("letsencrypt", ["site_contact_email"])]
)
def test_tls_choice_without_what_it_needs_is_refused(
    make_inventory: Callable[..., Path], choice: str, lacks: list[str]
) -> None:
    said = inventory_problems(make_inventory(TWO, {**SITE, "site_tls": choice}, hosts=hosts()))
    assert [problem.split(";")[0] for problem in said] == [
        f"site_tls is {choice}, which needs {name}" for name in lacks
    ]


def test_uploads_on_a_host_that_does_not_run_the_site_are_refused(make_inventory: Callable[..., Path]) -> None:
    [said] = inventory_problems(make_inventory(TWO, {**SITE, "site_media_host": "db1"}, hosts=hosts()))
    assert said.startswith("site_media_host is db1, and the group web has web1. Name one of them")


def test_a_setting_that_cannot_be_read_is_named(make_inventory: Callable[..., Path]) -> None:
    said = inventory_problems(make_inventory(TWO, {**SITE, "site_name": "{{ nowhere }}"}, hosts=hosts()))
    assert said == ["site_name uses nowhere, which is not set on db1, web1. Set it, or correct site_name."]


def test_a_missing_setting_is_one_problem_though_others_are_built_from_it(make_inventory: Callable[..., Path]) -> None:
    said = inventory_problems(make_inventory(TWO, {k: v for k, v in SITE.items() if k != "site_name"}, hosts=hosts()))
    assert len(said) == 1 and said[0].startswith("site_name is not set for db1, web1.")


def test_shares_over_the_memory_are_refused_before_anything_changes(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_memory_shares": {"postgres": 0.8, "gunicorn": 0.5}}
    inventory = make_inventory({"web": ["one"], "database": ["one"]}, settings, hosts={"one": HERE})
    [problem] = refusals(inventory)
    assert problem.startswith("The memory shares of one add up to 1.3")


ELSEWHERE = {"celery": 0.3, "haproxy": 0.9, "redis_cache": 0.6, "redis_broker": 0.6}


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ({"postgres": 0.8, "gunicorn": 0.7}, []),
        ({"postgres": 1, "gunicorn": 0.7}, []),
        ({"postgres": 0.8}, ["gunicorn"]),
    ],
)
def test_shares_of_services_that_run_elsewhere_do_not_count(
    make_inventory: Callable[..., Path], shares: dict[str, float], found: list[str]
) -> None:
    settings = {**SITE, "site_memory_shares": {**ELSEWHERE, **shares}}
    said = inventory_problems(make_inventory(TWO, settings, hosts=hosts()))
    assert said == [f"site_memory_shares has no share for {name}, which runs on web1. Add one." for name in found]


def test_shares_over_the_memory_are_one_sentence_for_all_hosts(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_memory_shares": {"postgres": 0.8, "gunicorn": 0.7}}
    both = {"web": ["web1", "db1"], "database": ["web1", "db1"]}
    [problem] = [one for one in inventory_problems(make_inventory(both, settings, hosts=hosts())) if "memory" in one]
    assert problem.startswith("The memory shares of db1, web1 add up to 1.5 of what it has")


@pytest.mark.parametrize("group", ["edge", "worker"])
def test_hosts_that_are_for_web_hosts_need_one_whatever_is_run(make_inventory: Callable[..., Path], group: str) -> None:
    [problem] = inventory_problems(
        make_inventory({"database": ["db1"], group: ["web1"]}, hosts=hosts()), args={"groups": {}}
    )
    assert (
        problem
        == f"The group {group} has web1, and the group web, which it is for, has no host. Add a host to web in the inventory."
    )


def test_fitting_host_is_accepted_and_its_facts_are_kept(make_inventory: Callable[..., Path], tmp_path: Path) -> None:
    inventory = make_inventory({"web": ["one"], "database": ["one"]}, hosts={"one": HERE})
    after = tmp_path / "after.yml"
    show = {"name": "Show", "ansible.builtin.debug": {"msg": "FACTS={{ ansible_facts.memtotal_mb }}"}}
    after.write_text(json.dumps([
        {"name": "Preflight", "import_playbook": str(ROOT / PLAYBOOK), "vars": NEEDS},
        {"name": "After", "hosts": "site", "gather_facts": False, "tasks": [show]},
    ]))  # fmt: skip
    done = run_playbook(after, inventory)
    assert done.returncode == 0, done.stdout
    assert re.search(r"FACTS=\d+", done.stdout) and "changed=0" in done.stdout


def test_limit_asks_only_the_hosts_that_are_meant(make_inventory: Callable[..., Path]) -> None:
    [problem] = refusals(make_inventory(TWO, hosts=hosts()), "--limit", "web,localhost")
    assert problem.startswith("Not reachable over SSH: web1 (")


def test_the_example_to_copy_lacks_a_key_and_its_machines(tmp_path: Path) -> None:
    [problem] = refusals(ROOT / "inventories/example")
    assert problem.startswith("site_administrators, entry 1 (ada), has the key of inventories/example")
    copy = tmp_path / "prod"
    shutil.copytree(ROOT / "inventories/example", copy)
    settings = copy / "group_vars/site.yml"
    settings.write_text(re.sub(r"ssh-ed25519 \S+", KEY.rsplit(" ", 1)[0], settings.read_text()))
    [problem] = refusals(copy)
    assert problem.startswith("Not reachable over SSH: db1, web1 (")


def test_stage1_says_which_groups_it_needs() -> None:
    text = (ROOT / "playbooks/stage1.yml").read_text()
    assert text.index("preflight_groups") < text.index("layers/base.yml")
    for group in ("web", "database"):
        assert re.search(rf"(?m)^      {group}: \w", text)


def test_stage_that_does_not_run_all_groups_of_the_inventory_is_refused() -> None:
    stages = {"cache": 2, "worker": 3}
    assert preflight.stage_problems({"web": ["web1"], "cache": []}, stages, 1) == []
    assert preflight.stage_problems({"cache": ["c1"]}, stages, 2) == []
    [problem] = preflight.stage_problems({"cache": ["c1"], "worker": ["w1"]}, stages, 1)
    assert "cache, worker" in problem and "Run playbooks/stage3.yml" in problem


def test_more_hosts_than_a_layer_uses_are_refused() -> None:
    assert preflight.single_problems({"cache": ["c1"], "web": ["a", "b"]}) == []
    [problem] = preflight.single_problems({"cache": ["c1", "c2"]})
    assert "c1, c2" in problem and "cache" in problem


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            ["site_canary_seconds=5"],
            "What -e site_canary_seconds=... gives is text; write -e '{\"site_canary_seconds\": 5}'.",
        ),
        (["host=web1 site_canary_seconds=5"], "What -e site_canary_seconds=... gives is text"),
        (["my_site_canary_seconds=5", '{"site_canary_seconds": "5"}', "@file"], "Write it without quotes: 5."),
        ([], "Write it without quotes: 5."),
    ],
)
def test_what_came_by_the_command_line_is_corrected_there(given: list[str], advice: str) -> None:
    said = "site_canary_seconds must be a whole number; found '5' on @. Write it without quotes: 5."
    assert advice in preflight.on_command_line("site_canary_seconds", said, given)


# Background work.

FOUR = {**TWO, "cache": ["web1"], "worker": ["web1"]}


@pytest.mark.parametrize(
    ("queues", "consumed", "routed", "sentences"),
    [
        (["celery"], {"default on w": ["celery"]}, [], []),
        (
            ["celery", "slow"],
            {"default on w": ["celery"]},
            [],
            ["Nobody consumes the queue slow, which site_queues has"],
        ),
        (
            ["celery"],
            {"default on w": ["celery", "slwo"]},
            [],
            ["The worker default on w consumes slwo, and site_queues"],
        ),
        (
            ["celery"],
            {"default on w": ["celery"]},
            ["mail"],
            ["Nobody consumes the queue mail, which site_settings send"],
        ),
        (["celery"], {}, [], ["Nobody consumes the queue celery"]),
        (
            ["celery"],
            {"a on w1": ["celery", "b"], "a on w2": ["celery", "b"], "a on w3": ["celery", "c"]},
            [],
            ["The worker a on w1, w2 consumes b, and", "The worker a on w3 consumes c, and"],
        ),
    ],
)
def test_every_queue_has_a_worker_and_every_worker_a_queue(
    queues: list[str], consumed: dict[str, list[str]], routed: list[str], sentences: list[str]
) -> None:
    said = preflight.queue_problems(queues, consumed, routed)
    assert [problem.startswith(sentence) for problem, sentence in zip(said, sentences, strict=True)] == [True] * len(
        said
    )


def test_queues_of_the_settings_routes_are_found() -> None:
    own = {"CELERY_TASK_DEFAULT_QUEUE": "a", "CELERY_TASK_ROUTES": {"x.*": {"queue": "b"}, "y": "c", "z": {}}}
    assert preflight.routed_queues(own) == {"a", "b", "c"}
    assert preflight.routed_queues({}) == set()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"celery_beat": True}, "db1, web1 would each send every periodic task."),
        ({"site_beat_host": "cache9"}, "site_beat_host is 'cache9', which is no host of worker (db1, web1)"),
        ({"site_broker_url": "redis://:secret@h/0"}, "site_broker_url does not begin with amqps:// or rediss://"),
        (
            {"site_broker_settings": {"maxmemory-policy": "allkeys-lru"}},
            "site_broker_settings sets maxmemory-policy to all",
        ),
        ({"site_task_time_limit": 3600}, "A task of the worker default on db1 may run for 3600 s, and after 3600 s"),
        (
            {"site_settings": {"CELERY_TASK_TIME_LIMIT": 5000}},
            "A task of the worker default on db1 may run for 5000 s, and after 3600 s",
        ),
        (
            {"site_workers": [{"name": "a", "time_limit": 4000}]},
            "A task of the worker a on db1 may run for 4000 s, and after 3600 s",
        ),
        ({"site_workers": [{"name": "a", "queues": ["mail"]}]}, "The worker a on db1, web1 consumes mail"),
        ({"site_queues": {"celery": {}, "mail": {}}}, "Nobody consumes the queue mail"),
        ({"site_broker_password": "two\nlines"}, "site_broker_password has a line break in it on db1, web1, which"),
        ({"site_database_password": "two\r"}, "site_database_password has a line break in it on db1, web1, which"),
        (
            {"celery_flower": True, "celery_flower_password": "a secret\nof two lines"},
            "celery_flower_password has a line break in it on db1, web1, which",
        ),
        (
            {"site_media_token": "twenty-one-letters\nand"},
            "site_media_token has a line break in it on db1, web1, which",
        ),
    ],
)
def test_background_work_that_cannot_go_well_is_refused(
    make_inventory: Callable[..., Path], settings: dict[str, Any], sentence: str
) -> None:
    inventory = make_inventory({**FOUR, "worker": ["web1", "db1"]}, {**SITE, **settings}, hosts=hosts())
    said = inventory_problems(inventory)
    assert any(problem.startswith(sentence) for problem in said), said
    assert "secret" not in " ".join(said)


def test_background_work_as_the_kit_sets_it_up_is_accepted(make_inventory: Callable[..., Path]) -> None:
    assert inventory_problems(make_inventory({**FOUR, "worker": ["web1", "db1"]}, hosts=hosts())) == []


@pytest.mark.parametrize("host", ["db1", "web1"])
def test_a_password_of_one_host_is_looked_at_as_well(make_inventory: Callable[..., Path], host: str) -> None:
    inventory = make_inventory(TWO, hosts=hosts(**{host: {"site_database_password": "a secret\n"}}))
    [problem] = inventory_problems(inventory)
    assert (
        problem.startswith(f"site_database_password has a line break in it on {host}, which")
        and "secret" not in problem
    )


def test_workers_need_a_broker(make_inventory: Callable[..., Path]) -> None:
    [problem] = inventory_problems(make_inventory({**TWO, "worker": ["web1"]}, hosts=hosts()))
    assert problem.startswith("The group worker has hosts and tasks have no broker")


def test_a_broker_of_ones_own_needs_no_cache_and_no_visibility_timeout(make_inventory: Callable[..., Path]) -> None:
    settings = {**SITE, "site_broker_url": "amqps://shop:pass@rabbit.example.com/shop", "site_task_time_limit": 9000}
    assert inventory_problems(make_inventory({**TWO, "worker": ["web1"]}, settings, hosts=hosts())) == []


def test_several_web_hosts_need_an_edge() -> None:
    assert preflight.fleet_problems({"web": ["a"]}, 1) == []
    assert preflight.fleet_problems({"web": ["a", "b"], "edge": ["e"]}, 4) == []
    assert preflight.fleet_problems({"web": ["a", "b"]}, 0) == []  # an operation, not a stage
    [problem] = preflight.fleet_problems({"web": ["a", "b"]}, 3)
    assert "a, b" in problem and "playbooks/stage4.yml" in problem


def test_an_edge_without_a_web_host_is_refused(make_inventory: Callable[..., Path]) -> None:
    [play, *_] = yaml.safe_load((ROOT / "playbooks/stage4.yml").read_text())
    asked = {"groups": play["vars"]["preflight_groups"], "stage": play["vars"]["preflight_stage"]}
    edge = make_inventory({"edge": ["web1"], "database": ["db1"]}, hosts=hosts())
    [problem] = inventory_problems(edge, args=asked)
    assert (
        problem
        == "The group web has no host, and this stage needs one: the site runs there. Add a host to web in the inventory."
    )


def test_two_edges_cannot_both_prove_the_names() -> None:
    two = {"edge": ["e1", "e2"]}
    assert preflight.edge_tls_problems({"edge": ["e1"]}, "letsencrypt") == []
    assert preflight.edge_tls_problems(two, "files") == []
    [problem] = preflight.edge_tls_problems(two, "letsencrypt")
    assert "e1, e2" in problem and "site_tls: files" in problem


def test_shared_address_needs_edges_that_share_it() -> None:
    two = {"edge": ["e1", "e2"]}
    assert preflight.virtual_address_problems({}, "") == []
    assert preflight.virtual_address_problems(two, "192.0.2.9/24") == []
    assert "192.0.2.9/24" in preflight.virtual_address_problems(two, "192.0.2.9")[0]
    assert "Write an address" in preflight.virtual_address_problems(two, "somewhere/24")[0]
    assert "has e1" in preflight.virtual_address_problems({"edge": ["e1"]}, "192.0.2.9/24")[0]


def test_a_groups_stage_is_the_first_whose_lab_has_it() -> None:
    first: dict[str, int] = {}
    for number in stages(ROOT):
        for groups in read_hosts(stage_file(ROOT, number)).values():
            for group in groups:
                first.setdefault(group, number)
    # Backups are made from stage 1 on; a host for them alone comes when the lab has room.
    later = {group: number for group, number in first.items() if number > 1 and group != "backup"}
    assert later == preflight.GROUP_STAGES


def test_group_that_is_almost_one_of_the_kits_is_refused_with_its_name() -> None:
    [problem] = preflight.misspelt_problems({"all": ["a"], "site": ["a"], "web": [], "webs": ["a"]})
    assert "a group webs" in problem and "Did you mean web?" in problem
    assert (
        preflight.misspelt_problems({"workers": ["a", "b"], "worker": ["a", "b"], "office": ["a"], "web": ["a"]}) == []
    )


def test_run_without_an_inventory_says_so(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("site: {}\n")
    assert refusals(tmp_path / "hosts.yml") == [
        "No inventory was read, or it has no host. Say which: -i inventories/<env>."
    ]


def test_unknown_host_key_says_how_to_make_it_known() -> None:
    [problem] = preflight.host_problems({"web1": {"unreachable": "Host key verification failed."}}, 30)
    assert problem.endswith("Log in to each once with ssh, compare the key that it shows, and accept it.")


def test_hosts_are_named_where_that_helps() -> None:
    many = [f"web{n}" for n in range(1, 8)]
    assert preflight.placed(many, many) == "all hosts"
    assert preflight.placed(many[:6], many) == "web1, web2, web3, web4, web5 and 1 more"
    assert preflight.placed(["db1", "web1"], ["web1", "db1"]) == "db1, web1", "two are quickly named"
