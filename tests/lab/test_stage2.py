"""Stage 2 on top of the running stage 1: growth that nobody notices, a cache that is used, and a site that survives its loss."""

from __future__ import annotations

import json
import subprocess
import time

import pytest


@pytest.fixture(scope="module")
def grown(lab):
    """The lab at stage 2, and what its visitors saw while it grew."""
    lab.ladder("traffic", "--seconds", "1")
    return lab, lab.rehearse(1, 2)


def shell(lab, code: str) -> str:
    """What a line of Python says in the site's own environment."""
    return lab.ssh("web1", f"sudo shop-manage shell --no-imports -c {json.dumps(code)} 2>/dev/null").stdout.strip()


def test_growth_fails_no_visit_and_loses_no_order(grown):
    _, report = grown
    assert report["orders"] > 50
    assert (report["failed"], report["lost"], report["doubled"]) == (0, 0, 0), report


@pytest.mark.long
@pytest.mark.parametrize("words", [(), ("--check", "--diff")])
def test_second_run_changes_nothing(grown, words):
    lab, _ = grown
    done = lab.play("stage2.yml", *words)
    assert "cache1" in done.stdout and lab.changes(done) == {}, done.stdout[-4000:]


def test_what_one_process_stores_another_finds(grown):
    lab, _ = grown
    shell(lab, "from django.core.cache import cache; cache.set('probe', 'kept', 60)")
    assert shell(lab, "from django.core.cache import cache; print(cache.get('probe'))") == "kept"


def test_sessions_are_read_through_the_cache(grown):
    lab, _ = grown
    assert shell(lab, "from django.conf import settings; print(settings.SESSION_ENGINE)").endswith("cached_db")


def test_cache_is_closed_to_everyone_but_the_web_host(grown):
    lab, _ = grown
    probe = f"timeout 3 bash -c '</dev/tcp/{lab.hosts['cache1']}/6379' && echo open || echo closed"
    assert lab.ssh("web1", probe).stdout.strip() == "open"
    assert lab.ssh("db1", probe).stdout.strip() == "closed"
    assert subprocess.run(["bash", "-c", probe], capture_output=True, text=True).stdout.strip() == "closed"


@pytest.mark.parametrize("lost", ["stop redis-cache", "kill --signal=STOP redis-cache"])
def test_site_goes_on_without_the_cache(grown, visitors, lost):
    lab, _ = grown
    back = "start redis-cache" if lost.startswith("stop") else "kill --signal=CONT redis-cache"
    with visitors:
        lab.ssh("cache1", f"sudo systemctl {lost}")
        try:
            time.sleep(8)
        finally:
            lab.ssh("cache1", f"sudo systemctl {back}")
        time.sleep(3)
    visitors.were_all_served(more_than=60)


def test_nothing_outdated_comes_back_with_the_cache(grown):
    """What could not be replaced while the cache hung is deleted before anything is read from it again."""
    lab, _ = grown
    code = (
        "import time; from django.core.cache import cache; cache.set('price', 'old'); print(cache.get('price'), flush=True); "
        "input(); cache.set('price', 'new'); cache.set('price', 'newer'); print(cache.get('price'), flush=True); "
        "input(); time.sleep(2.5); print(cache.get('price'), flush=True)"
    )
    command = lab.ssh_command("web1", f"sudo shop-manage shell --no-imports -c {json.dumps(code)} 2>/dev/null")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().strip() == "old"
            lab.ssh("cache1", "sudo systemctl kill --signal=STOP redis-cache")
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline().strip() == "None"
        finally:
            lab.ssh("cache1", "sudo systemctl kill --signal=CONT redis-cache")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline().strip() == "None"


def test_a_lower_stage_is_refused_where_the_inventory_has_more(grown):
    lab, _ = grown
    done = lab.play("stage1.yml", check=False)
    assert done.returncode != 0
    assert "cache" in done.stdout and "stage2.yml" in done.stdout
    assert lab.changes(done) == {}
