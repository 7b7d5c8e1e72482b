"""celery_units and the health check: what decides about restarts, without systemd."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from kit import ROOT, load_module, load_shared_utilities

ROLE = ROOT / "roles/celery"
load_shared_utilities()
units = load_module(ROLE / "library/celery_units.py")
health = load_module(ROLE / "files/health.py")
beat = load_module(ROLE / "files/beat.py")
ask = load_module(ROLE / "files/ask.py", "celery_ask")


@pytest.fixture
def site(tmp_path):
    for folder in ("units", "etc/celery-x", "lib/celery-x"):
        (tmp_path / folder).mkdir(parents=True)
    site = units.Site("x", *(str(tmp_path / folder) for folder in ("units", "etc", "lib")))
    for name in (site.template, f"{site.worker('a')}.conf", f"{site.worker('b')}.conf", site.beat):
        Path(site.ready, name).write_text(f"text of {name} {units.MARK}\n")
    Path(site.lib, "beat.py").write_text("beat")
    return site


def fleet(site, **changes):
    wanted = {"workers": ["a", "b"], "beat": True, "flower": False, "health": False, "environment_files": [],
              "release": "r1"}  # fmt: skip
    return units.Fleet(site, {**wanted, **changes})


def generations(site, **changes):
    made = fleet(site, **changes)
    return {unit: made.generation(unit) for unit in made.workers + made.others}


def differing(before, after):
    return sorted(unit for unit in before if before[unit] != after.get(unit))


def test_only_what_a_change_concerns_gets_another_fingerprint(site, tmp_path):
    a, b = site.worker("a"), site.worker("b")
    environment = tmp_path / "env"
    environment.write_text("A=1\n")
    files = {"environment_files": [str(environment)]}
    first = generations(site, **files)
    assert generations(site, **files) == first
    Path(site.ready, f"{b}.conf").write_text(f"text of {b}.conf {units.MARK}\nMemoryMax=300M\n")
    with_limit = generations(site, **files)
    Path(site.ready, f"{b}.conf").write_text(f"text of {b}.conf {units.MARK}\nMemoryMax=400M\n")
    assert generations(site, **files) == with_limit, "a limit needs no restart"
    Path(site.ready, f"{b}.conf").write_text("other")
    second = generations(site, **files)
    assert differing(first, second) == [b]
    Path(site.lib, "beat.py").write_text("other")
    third = generations(site, **files)
    assert differing(second, third) == [site.beat]
    Path(site.ready, site.template).write_text("other")
    fourth = generations(site, **files)
    assert differing(third, fourth) == [a, b]
    environment.write_text("A=2\n")
    fifth = generations(site, **files)
    assert differing(fourth, fifth) == sorted(fourth)
    assert differing(fifth, generations(site, release="r2", **files)) == sorted(fifth)


def test_units_in_use_carry_the_fingerprint(site):
    made = fleet(site)
    text = made.files()[site.drop_in(site.worker("a"))]
    assert units.MARK not in text and made.generation(site.worker("a")) in text


def test_names_of_workers_come_back_from_their_units(site):
    assert site.worker_of(site.worker("a-b_c")) == "a-b_c"


def test_secrets_are_masked_in_messages(tmp_path):
    environment = tmp_path / "env"
    environment.write_text("SECRET_KEY='s3cr3t'\nBROKER_URL=redis://x:pw@h/0\n")
    lines = "s3cr3t redis://x:pw@h/0 rediss://shop:hunter2@broker/0"
    assert units.masked(lines, [str(environment)]) == "******** ******** rediss://shop:********@broker/0"


ANSWERS = {"broker": "", "answered": ["a"]}
DOWN = {"broker": "refused", "answered": []}


def test_silent_worker_is_killed_after_its_time_and_gets_longer_the_next_time():
    state, running = {}, {"a": 0.0, "b": 0.0}
    assert health.judge(state, ANSWERS, running, 50.0, 60) == {}
    assert health.judge(state, ANSWERS, running, 60.0, 60) == {"b": 60}
    assert health.judge(state, ANSWERS, running, 170.0, 60) == {}
    assert health.judge(state, ANSWERS, running, 180.0, 60) == {"b": 120}
    assert health.judge(state, {"broker": "", "answered": ["a", "b"]}, running, 181.0, 60) == {}
    assert health.judge(state, ANSWERS, running, 241.0, 60) == {"b": 60}


def test_nothing_is_killed_while_the_broker_is_away_and_time_starts_anew_after():
    state, running = {}, {"a": 0.0, "b": 0.0}
    assert health.judge(state, DOWN, running, 500.0, 60) == {}
    assert health.judge(state, ANSWERS, running, 550.0, 60) == {}
    assert health.judge(state, ANSWERS, running, 560.0, 60) == {"b": 60}


def test_worker_that_has_just_started_gets_its_time():
    state = {"b": {"heard": 10.0, "kills": 0}}
    assert health.judge(state, ANSWERS, {"b": 480.0}, 500.0, 60) == {}


def test_beat_ends_itself_once_its_lease_is_over(monkeypatch):
    lease = beat.Lease(None, "x", "me", 6)
    monkeypatch.setattr(beat.time, "monotonic", lambda: 100.0)
    lease.until = 100.1
    lease.hold()
    lease.until = 100.0
    with pytest.raises(SystemExit):
        lease.hold()


def test_a_task_that_waits_too_long_and_a_queue_without_consumer_are_told():
    rows = [
        {"queue": "a", "length": 3, "oldest": 61.0, "consumers": 1},
        {"queue": "b", "length": 3, "oldest": 61.0, "consumers": 1},
        {"queue": "c", "length": 1, "oldest": None, "consumers": 0},
        {"queue": "d", "length": 0, "oldest": None, "consumers": 0},
    ]
    words = units.late(rows, {"a": {"max_wait": 60}, "b": {"max_wait": 62}, "c": {"max_wait": 1}, "d": None})
    assert len(words) == 2
    assert "oldest task in the queue a has waited for 61 s, more than its max_wait of 60 s" in words[0]
    assert "nobody consumes the queue c, in which tasks wait: 1." in words[1]


def test_how_the_workers_run_is_read_from_their_units(site):
    with pytest.raises(units.Refused, match="no worker of x runs on this host"):
        units.in_use(site)
    units.write(f"{site.units}/{site.template}", "[Service]\nUser=x-run\nGroup=x\nWorkingDirectory=/srv/x/r1\n"
                "Environment=A=1\nEnvironmentFile=/srv/x/env\nEnvironmentFile=/srv/x/more\n")  # fmt: skip
    units.write(
        site.drop_in(site.worker("a")), "ExecStart=/srv/x/venv/bin/python -m celery -A shop.celery worker \\\n  --x\n"
    )
    assert units.in_use(site) == {
        "venv": "/srv/x/venv", "app": "shop.celery", "directory": "/srv/x/r1", "user": "x-run", "group": "x",
        "environment_files": ["/srv/x/env", "/srv/x/more"],
    }  # fmt: skip


# What the release says of itself (time limit, soft one), and which of the role's limits, 600 and 540, its workers get.
@pytest.mark.parametrize(
    ("hard", "soft", "options"),
    [
        (None, None, "--time-limit 600 --soft-time-limit 540"),
        (600, None, ""),
        (1800, None, ""),
        (1800, 1700, ""),
        (None, 100, "--time-limit 600"),
        (None, 600, ""),
    ],
)
def test_applications_own_time_limits_win_over_the_roles(site, hard, soft, options):
    made = fleet(site, default_limits=[600, 540])
    written = made.limits({"time_limit": hard, "soft_time_limit": soft})
    assert written[f"{site.ready}/limits"].splitlines()[-1] == f'CELERY_LIMITS="{options}"'
    units.write(*next(iter(written.items())))
    assert made.limits({"time_limit": hard, "soft_time_limit": soft}) == {}, "it is there already"


def proved(
    site, monkeypatch, *, hard=None, soft=None, task=0, own=0, limits=(600, 540), transport="redis", celery="5.6.3"
):
    """What the proof warns of in a release whose visibility timeout is an hour."""
    made = fleet(site, default_limits=list(limits), longest_seconds=own, queues={})
    answer = {"celery": celery, "flower": False, "sent_to": [], "visibility": 3600, "transport": transport,
              "longest_task": task, "time_limit": hard, "soft_time_limit": soft}  # fmt: skip
    monkeypatch.setattr(made, "ask", lambda *words, seconds: (answer, ""))
    made.prove()
    return made.warnings


@pytest.mark.parametrize(
    "longer",
    [
        {"hard": 3600},
        {"soft": 3600},
        {"task": 4000},
        {"own": 3600},
        {"limits": (5000, 1)},
        {"hard": 5000, "own": 60, "limits": ()},
    ],
)
def test_whoever_sets_the_longest_time_limit_the_visibility_timeout_must_be_longer(site, monkeypatch, longer):
    seconds = max(number for value in longer.values() for number in (value if isinstance(value, tuple) else (value,)))
    with pytest.raises(units.Refused, match=f"a task may run for {seconds} s, and after 3600 s"):
        proved(site, monkeypatch, **longer)
    [warning] = proved(site, monkeypatch, **longer, transport="amqp")
    assert f"a task may run for {seconds} s" in warning and "consumer_timeout" in warning


def test_the_roles_time_limit_is_not_counted_where_the_applications_holds(site, monkeypatch):
    assert proved(site, monkeypatch, hard=60, limits=(5000, 4000)) == []
    assert proved(site, monkeypatch, hard=60, limits=(5000, 4000), transport="amqp") == []


def test_limits_of_workers_that_an_applications_own_defeats_are_warned_of(site, monkeypatch):
    [warning] = proved(site, monkeypatch, hard=60, own=1800, celery="5.7.0")
    assert "sets task_time_limit to 60 s" in warning and "the time limits in celery_workers do not hold" in warning
    assert proved(site, monkeypatch, hard=60, own=1800, celery="5.6.3") == [], "there the worker's own wins"
    assert proved(site, monkeypatch, own=1800, celery="5.7.0") == []


def test_the_applications_time_limits_are_among_what_it_tells(monkeypatch):
    celery = ModuleType("celery")
    celery.__version__ = "5.5.3"
    monkeypatch.setitem(sys.modules, "celery", celery)
    connection = nullcontext(SimpleNamespace(transport=SimpleNamespace(driver_type="redis")))
    app = SimpleNamespace(
        loader=SimpleNamespace(import_default_modules=lambda: None), finalize=lambda: None,
        tasks={"celery.a": SimpleNamespace(time_limit=7), "celery.b": SimpleNamespace(time_limit=None)},
        conf=SimpleNamespace(task_time_limit=1800, task_soft_time_limit=1700, beat_schedule={},
                             broker_transport_options={"visibility_timeout": 3600}),
        connection_for_write=lambda: connection,
    )  # fmt: skip
    told = ask.load(app)
    assert (told["time_limit"], told["soft_time_limit"], told["longest_task"]) == (1800, 1700, 7)
