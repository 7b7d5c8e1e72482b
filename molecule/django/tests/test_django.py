"""What the role promises, asked of the sites that the scenario deployed and of deploys that go wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import testinfra
import yaml

SCENARIO = Path(__file__).resolve().parents[1]
GIVEN = {site: yaml.safe_load((SCENARIO / f"vars/{site}.yml").read_text()) for site in ("shop", "blog", "notes")}
PASSWORDS = yaml.safe_load((SCENARIO / "vars/password.yml").read_text())
PASSWORD, INDEX_PASSWORD = PASSWORDS["database_password"], PASSWORDS["index_password"]
MIGRATION = """
import time

from django.db import migrations, models


def fail(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("select current_setting('lock_timeout'), current_setting('statement_timeout')")
        raise RuntimeError("wrong with %%s and %%s" %% cursor.fetchone())


class Migration(migrations.Migration):
    dependencies = [("notes", "%s")]
    operations = [%s]
"""
HOOKS = [f"{when}_{step}" for step in ("static", "gates", "migrate", "activate") for when in ("before", "after")]
COLUMN = 'migrations.AddField("Note", "%s", models.IntegerField(default=0, db_default=0))'


@pytest.fixture(scope="module")
def host(host: Any) -> Any:
    """The same host without Ansible in between: a command takes a tenth of the time."""
    return testinfra.get_host(host.backend.get_pytest_id().replace("ansible://", "docker://"))


def live(host: Any, site: str) -> str:
    return str(host.check_output("basename $(readlink /srv/%s/current)", site))


def release(host: Any, site: str) -> dict[str, Any]:
    return dict(json.loads(host.file(f"/srv/{site}/current/RELEASE.json").content_string))


def log(host: Any, site: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in host.file(f"/srv/{site}/shared/deploys.log").content_string.splitlines()]


def sql(host: Any, text: str, database: str = "notes") -> str:
    done = host.run("runuser -u postgres -- psql -XqAt -v ON_ERROR_STOP=1 -d %s -c %s", database, text)
    assert done.rc == 0, done.stderr
    return str(done.stdout.strip())


def migrations(host: Any) -> list[str]:
    return sql(host, "select name from django_migrations where app = 'notes' order by name").split()


# As over SSH, modules go through the programs' input, not through files; molecule asks for colours, which split sentences.
ENVIRONMENT = {**os.environ, "ANSIBLE_PIPELINING": "true", "ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"}


def command(*words: str, playbook: str = "deploy.yml", **variables: Any) -> list[str]:
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return ["ansible-playbook", "-i", inventory, str(SCENARIO / playbook), "-e", json.dumps(variables), *words]


def play(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    """Run the scenario's deploy (or another playbook) with other variables; its output on one line, without secrets."""
    done = subprocess.run(
        command(*words, **given), capture_output=True, text=True, timeout=300, cwd=SCENARIO.parents[1], env=ENVIRONMENT
    )
    done.stdout = re.sub(r"\s+", " ", done.stdout)
    for secret in (PASSWORD, INDEX_PASSWORD, "BEGIN OPENSSH PRIVATE KEY"):
        assert secret not in done.stdout and json.dumps(secret)[1:-1] not in done.stdout
    return done


def deployed(*words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    done = play(*words, **given)
    assert done.returncode == 0, done.stdout[-4000:]
    return done


def refused(sentence: str, **given: Any) -> subprocess.CompletedProcess[str]:
    done = play(**given)
    assert done.returncode != 0, done.stdout[-4000:]
    assert sentence in done.stdout, done.stdout[-4000:]
    return done


class Serving:
    """The live release behind its environment's own gunicorn, started as roles/gunicorn would: by systemd, as the service user."""

    def __init__(self, host: Any, site: str, wsgi: str) -> None:
        self.host, self.name, self.unit, self.socket = host, f"{site}.test", f"serve-{site}", f"/run/serve-{site}/web"
        home = host.check_output("readlink -f /srv/%s/current", site)
        words = [f"--unit={self.unit}", "--quiet", "--collect"]
        for line in (
            f"User={site}", f"EnvironmentFile=/srv/{site}/current-config/env", f"RuntimeDirectory={self.unit}",
            f"WorkingDirectory={release(host, site)['code']}", "Type=notify", "NotifyAccess=all",
        ):  # fmt: skip
            words += ["-p", line]
        command = [f"{home}/venv/bin/gunicorn", "-b", f"unix:{self.socket}", wsgi]
        done = host.run("systemd-run " + " ".join(["%s"] * len(words + command)), *words, *command)
        assert done.rc == 0, done.stderr + host.run("journalctl -n 40 -o cat -u %s", self.unit).stdout

    def get(self, path: str, *words: str, scheme: str = "https", name: str = "") -> tuple[int, str]:
        """(status, body) as nginx would ask: over HTTPS, by the site's name."""
        listed = [
            "-s", "--unix-socket", self.socket, "-H", f"X-Forwarded-Proto: {scheme}", "-w", "\n%{http_code}",
            *words, f"http://{name or self.name}{path}",
        ]  # fmt: skip
        body, status = self.host.check_output("curl " + " ".join(["%s"] * len(listed)), *listed).rsplit("\n", 1)
        return int(status), body

    def stop(self) -> None:
        self.host.run("systemctl stop %s", self.unit)


@pytest.fixture
def serving(host: Any) -> Iterator[Any]:
    started: list[Serving] = []

    def serve(site: str, wsgi: str) -> Serving:
        started.append(Serving(host, site, wsgi))
        return started[-1]

    yield serve
    for one in started:
        one.stop()


def test_project_from_a_directory_answers_with_its_database(host: Any, serving: Any) -> None:
    site = serving("shop", "shop.wsgi")
    status, body = site.get("/readyz")
    assert (status, json.loads(body)["release"]) == (200, live(host, "shop")), body
    host.check_output("shop-manage seed_shop --products 2")
    body = json.dumps({"customer": "Zoë", "items": [{"sku": "item-000001", "quantity": 1}]})
    status, answer = site.get(
        "/api/orders", "-d", body, "-H", "Content-Type: application/json", "-H", "Idempotency-Key: key-00001"
    )
    assert status in (200, 201), answer
    assert json.loads(site.get("/api/orders/key-00001")[1])["customer"] == "Zoë"
    assert site.get("/", scheme="http")[0] == 301
    assert site.get("/", name="elsewhere.test")[0] == 400


def test_project_from_a_repository_answers_with_its_submodule(host: Any, serving: Any) -> None:
    assert serving("blog", "blog.wsgi").get("/") == (200, "posts of blog.test")
    code = release(host, "blog")["code"]
    assert code.endswith("/code/site")
    assert host.run("find %s -name .git | grep .", code).rc == 1


def test_project_of_other_people_answers(host: Any, serving: Any) -> None:
    status, body = serving("talks", "pretalx.wsgi").get("/orga/login/")
    assert status == 200 and "<title>Sign in :: pretalx</title>" in body, body[:2000]
    sheets = re.findall(r"/static/(\S+\.[0-9a-f]{12}\.css)", body)
    assert sheets, "no style sheet has a hashed name"
    assert all(host.file(f"/srv/talks/shared/static/{name}").size for name in sheets)


def test_odd_values_reach_the_site_as_they_were_given(host: Any) -> None:
    code = (
        "import json, os; from django.conf import settings as s; "
        "print(json.dumps([s.SECRET_KEY, s.DATABASES['default']['PASSWORD'], os.environ['GREETING'], os.environ['PAYMENT_TOKEN']]))"
    )
    shop = GIVEN["shop"]
    wanted = [
        shop["django_secret_key"], PASSWORD, shop["django_environment"]["GREETING"],
        shop["django_secret_environment"]["PAYMENT_TOKEN"],
    ]  # fmt: skip
    assert json.loads(host.check_output("shop-manage shell -v 0 -c %s", code)) == wanted
    by_systemd = host.check_output(
        "systemd-run --quiet --wait --pipe -p User=shop -p EnvironmentFile=/srv/shop/current-config/env "
        "-p WorkingDirectory=/srv/shop/current/code /srv/shop/current/venv/bin/python manage.py shell -v 0 -c %s",
        code,
    )
    assert json.loads(by_systemd) == wanted


def test_environment_is_for_the_service_user_only(host: Any) -> None:
    for site in ("shop", "blog", "talks"):
        for name in ("env", "stepladder_settings.py"):
            file = host.file(host.check_output("readlink -f /srv/%s/current-config/%s", site, name))
            assert (file.user, file.group, file.mode) == ("root", site, 0o640)
        group = host.check_output("getent group %s", site)
        assert group.endswith(":"), f"others are in the service user's group: {group}"
        for user, read in ((site, True), (f"{site}-deploy", False), ("nobody", False)):
            done = host.run("runuser -u %s -- cat /srv/%s/current-config/env", user, site)
            assert (done.rc == 0) == read, (site, user)


def test_service_user_cannot_change_its_code_nor_what_is_served(host: Any) -> None:
    places = "code venv RELEASE.json static"
    for site in ("shop", "blog", "talks"):
        script = (
            f"cd /srv/{site}; touch shared/media/x && rm shared/media/x || exit 9; "
            f"for x in shared shared/static current/. {' '.join('current/' + place for place in places.split())} releases config;"
            " do test -w $x && echo $x; done; true"
        )
        done = host.run("runuser -u %s -- sh -c %s", site, script)
        assert (done.rc, done.stdout) == (0, ""), done.stderr
        # What runs during a build must not be able to plant links where root writes afterwards.
        build = f"for x in /srv/{site} /srv/{site}/releases $(readlink -f /srv/{site}/current); do test -w $x && echo $x; done; true"
        assert host.check_output("runuser -u %s -- sh -c %s", f"{site}-deploy", build) == ""
        outside = (
            f"ls /srv/{site}/releases $(readlink -f /srv/{site}/current)/code $(readlink -f /srv/{site}/current)/venv"
        )
        assert host.run("runuser -u nobody -- sh -c %s", outside).stdout == ""


def test_both_installers_build_from_the_private_index_and_requirements_with_hashes(host: Any) -> None:
    assert [release(host, site)["installer"] for site in ("shop", "blog", "talks")] == ["uv", "pip", "uv"]
    assert "--hash=sha256:" in host.file(release(host, "blog")["code"] + "/requirements.txt").content_string
    # `ours` is in no other index than the scenario's own.
    assert "our own index" in host.check_output("/srv/blog/current/venv/bin/python -c 'import ours; print(ours.WORD)'")


def test_deploy_log_says_who_deployed_what_and_when(host: Any) -> None:
    [entry] = log(host, "shop")
    assert (entry["by"], entry["kind"], entry["release"]) == ("ada", "deploy", live(host, "shop"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["at"])
    assert "orders.0001_initial" in entry["migrations"] and entry["previous"] == ""
    text = host.file("/srv/shop/shared/deploys.log")
    assert (text.user, text.mode) == ("root", 0o600)
    assert PASSWORD not in text.content_string


def test_shops_own_tests_pass(host: Any) -> None:
    sql(host, "alter role shop createdb", "postgres")
    line = (
        'DJANGO_SETTINGS_MODULE=shop.settings DATABASE_HOST=127.0.0.1 DATABASE_PASSWORD="$SITE_DATABASE_PASSWORD_DEFAULT" '
        "exec ../venv/bin/python manage.py test --noinput"
    )
    words = "User=shop", "EnvironmentFile=/srv/shop/current-config/env", "WorkingDirectory=/srv/shop/current/code"
    done = host.run("systemd-run --quiet --wait --pipe -p %s -p %s -p %s sh -c %s", *words, line)
    assert done.rc == 0 and re.search(r"Ran \d\d tests", done.stderr), done.stderr
    sql(host, "alter role shop nocreatedb", "postgres")


class Notes:
    """A project on the controller that the tests change, and its site on the host."""

    def __init__(self, host: Any, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.again()

    def again(self) -> None:
        """The project as it was at first."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(SCENARIO / "files/notes", self.folder)

    def migration(self, name: str, after: str, *operations: str) -> None:
        (self.folder / f"notes/migrations/{name}.py").write_text(MIGRATION % (after, ", ".join(operations)))

    def stars(self) -> None:
        """The migration that most tests deploy, or try to."""
        self.migration("0002_stars", "0001_initial", COLUMN % "stars")

    @property
    def given(self) -> dict[str, Any]:
        return {"site": "notes", "tree": str(self.folder)}

    @property
    def live(self) -> str:
        return live(self.host, "notes")

    @property
    def releases(self) -> list[str]:
        return str(self.host.check_output("ls /srv/notes/releases")).split()

    def deploy(self, **more: Any) -> str:
        """Deploy the directory as it is; returns the release."""
        deployed(**self.given, **more)
        return self.live

    def start(self, **more: Any) -> Any:
        """A deploy that runs on its own."""
        words = command(**self.given, **more)
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, cwd=SCENARIO.parents[1], start_new_session=True, env=ENVIRONMENT
        )

    def ended(self, running: Any) -> str:
        """Wait for it; returns what it said."""
        output, _ = running.communicate(timeout=180)
        assert running.returncode == 0, output[-4000:]
        return re.sub(r"\s+", " ", output)

    def stays(self, sentence: str, **more: Any) -> str:
        """A deploy that is refused and leaves everything that is live as it was; returns what it said."""
        before = self.state()
        said = refused(sentence, **self.given, **more).stdout
        assert self.state() == before
        return said

    def state(self) -> list[Any]:
        links = self.host.check_output("readlink /srv/notes/current /srv/notes/current-config")
        return [links, migrations(self.host), log(self.host, "notes")]


@pytest.fixture(scope="module")
def notes(host: Any, tmp_path_factory: Any) -> Notes:
    """The site notes with its first release. Each test goes on from what is live then; `first` is the first release."""
    site = Notes(host, tmp_path_factory.mktemp("notes") / "tree")
    build = yaml.safe_load((SCENARIO / "vars/notes.yml").read_text())["django_hooks"]
    around = {name: [{"shell": f"echo {name} >>/srv/notes/shared/media/hooks"}] for name in HOOKS}
    site.first = site.deploy(django_hooks={**build, **around})
    return site


class Session:
    """A session of the database that does something and then sleeps, as a long transaction of the site would."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def hold(self, text: str) -> str:
        """Returns the number of its server process."""
        words = ["runuser", "-u", "postgres", "--", "env", "PGAPPNAME=held", "psql", "-d", "notes", "-c"]
        start = "systemd-run --quiet --collect --unit=session " + " ".join(words) + " %s"
        self.host.check_output(start, f"begin; {text}; select pg_sleep(600)")
        for _ in range(100):
            pid = self.ask("pid", "and wait_event = 'PgSleep'")
            if pid:
                return pid
            time.sleep(0.1)
        raise AssertionError("the session does not hold what it should")

    def ask(self, what: str, more: str = "") -> str:
        return sql(self.host, f"select {what} from pg_stat_activity where application_name = 'held' {more}")

    def end(self) -> None:
        self.ask("pg_terminate_backend(pid, 5000)")
        self.host.run("systemctl stop session")


@pytest.fixture
def session(host: Any) -> Iterator[Session]:
    one = Session(host)
    yield one
    one.end()


def wait(host: Any, script: str, seconds: int = 60) -> None:
    done = host.run(
        "for i in $(seq %s); do sh -c %s >/dev/null 2>&1 && exit 0; sleep 0.1; done; exit 1", str(10 * seconds), script
    )
    assert done.rc == 0, f"{script} did not come true"


def test_hooks_run_around_each_step_in_order(host: Any, notes: Notes) -> None:
    assert host.file("/srv/notes/shared/media/hooks").content_string.split() == HOOKS
    assert host.file(f"/srv/notes/releases/{notes.first}/code/hooks").content_string.split() == [
        "before_build",
        "after_build",
    ]


def test_second_run_changes_nothing_and_check_mode_tells_what_would_change(notes: Notes) -> None:
    before = [notes.state(), notes.releases]
    assert "changed=0" in deployed(**notes.given).stdout
    notes.stars()
    checked = deployed("--check", "--diff", **notes.given).stdout
    assert int(re.search(r"changed=(\d+)", checked).group(1)) > 0
    assert [notes.state(), notes.releases] == before


def test_gate_that_fails_leaves_what_is_live_and_the_database(notes: Notes) -> None:
    notes.stars()
    said = notes.stays("the gate `manage.py no_such_command` failed", django_gates=["check", "no_such_command"])
    assert "What is live was not touched" in said and "Unknown command: 'no_such_command'" in said
    said = notes.stays("failed (exit 1)", django_https=False, django_check_fail_level="WARNING")
    assert "security.W008" in said


def test_linter_refuses_a_migration_that_drops_a_column_unless_it_was_thought_about(notes: Notes) -> None:
    wiring = yaml.safe_load((SCENARIO.parents[1] / "group_vars/all/web.yml").read_text())
    package = f"django-migration-linter=={wiring['web_migration_linter_version']}"
    given = {
        "django_packages": [*GIVEN["notes"]["django_packages"], package],
        "django_apps": ["django_migration_linter"],
        "django_gates": [wiring["web_migration_lint"]],
    }
    drop, thought_about = (
        'migrations.RemoveField("Note", "text")',
        "__import__('django_migration_linter').IgnoreMigration()",
    )
    notes.again()
    notes.migration("0002_dropped", "0001_initial", drop)
    said = notes.stays(f"the gate `manage.py {wiring['web_migration_lint']}` failed (exit 1)", **given)
    assert "DROPPING columns (table: notes_note, column: text)" in said
    # It lets pass what breaks nothing: the gate behind it is the one that refuses.
    notes.again()
    notes.migration(
        "0002_stars", "0001_initial", 'migrations.AddField("Note", "stars", models.IntegerField(null=True))'
    )
    notes.migration("0003_dropped", "0002_stars", drop, thought_about)
    given["django_gates"] = [wiring["web_migration_lint"], "no_such_command"]
    notes.stays("the gate `manage.py no_such_command` failed", **given)
    notes.again()


def test_locked_table_stops_the_migration_and_not_the_site(notes: Notes, session: Session) -> None:
    notes.stars()
    session.hold("lock table notes_note in access share mode")
    said = notes.stays("a table's lock was not to be had within 300ms, 2 times in a row")
    assert "The database is as it was." in said


def test_one_migration_at_a_time(host: Any, notes: Notes, session: Session) -> None:
    key = f"select pg_advisory_lock({0x53746570}, {zlib.crc32(b'default') & 0x7FFFFFFF})"
    notes.stars()
    holder = session.hold(key)
    notes.stays(f"another migration of this database runs (its lock is held by PostgreSQL process {holder})")
    waiting = notes.start(django_migrate_wait=60)
    asks = "select 1 from pg_stat_activity where query like '%pg_try_advisory_lock%' and pid <> pg_backend_pid()"
    wait(host, f'runuser -u postgres -- psql -XAtc "{asks}" | grep 1')
    time.sleep(1)
    assert migrations(host) == ["0001_initial"]
    session.end()
    notes.ended(waiting)
    assert notes.live != notes.first
    assert migrations(host) == ["0001_initial", "0002_stars"]


def test_migration_that_fails_takes_those_before_it_with_it(host: Any, notes: Notes) -> None:
    notes.stars()
    notes.migration("0003_likes", "0002_stars", COLUMN % "likes")
    notes.migration("0004_wrong", "0003_likes", "migrations.RunPython(fail, migrations.RunPython.noop)")
    limits = {"django_migrate_statement_timeout": "9min"}
    said = notes.stays("a migration failed: RuntimeError: wrong with 300ms and 9min", **limits)
    assert re.search(r"notes.0003_likes(, notes.0002_stars)? had been applied before that and were undone", said)
    assert "likes" not in sql(
        host, "select string_agg(attname, ' ') from pg_attribute where attrelid = 'notes_note'::regclass"
    )
    notes.migration("0004_wrong", "0003_likes", 'migrations.RunSQL("select pg_sleep(60)", migrations.RunSQL.noop)')
    limits = {"django_migrate_statement_timeout": "200ms"}
    notes.stays("a statement took longer than 200ms (django_migrate_statement_timeout)", **limits)


def test_rollback_undoes_migrations_and_goes_on_where_it_was_interrupted(
    host: Any, notes: Notes, session: Session, serving: Any
) -> None:
    notes.again()
    notes.stars()
    second = notes.deploy()
    notes.migration("0003_likes", "0002_stars", COLUMN % "likes")
    third = notes.deploy()
    assert migrations(host)[-1] == "0003_likes" and len({notes.first, second, third}) == 3
    session.hold("lock table notes_note in access share mode")
    refused("still applied: notes.0003_likes", playbook="rollback.yml", **notes.given)
    assert (notes.live, migrations(host)[-1]) == (second, "0003_likes")
    # The table is free before the second try.
    running = notes.start(playbook="rollback.yml", django_migrate_attempts=9)
    wait(host, 'runuser -u postgres -- psql -XAtc "select 1 from pg_locks where not granted" | grep 1')
    time.sleep(1)
    session.end()
    assert "will be undone after the switch: notes.0003_likes" in notes.ended(running)
    assert (notes.live, migrations(host)) == (second, ["0001_initial", "0002_stars"])
    assert serving("notes", "notes.wsgi").get("/") == (200, f"{second} from our own index 0 notes")
    # What was rolled back from is no release to go back to.
    deployed(playbook="rollback.yml", **notes.given)
    assert (notes.live, migrations(host)) == (notes.first, ["0001_initial"])
    assert [entry["kind"] for entry in log(host, "notes")][-2:] == ["rollback", "rollback"]


def test_migrations_that_an_earlier_run_left_are_applied_though_the_release_is_live(host: Any, notes: Notes) -> None:
    notes.again()
    notes.migration("0002_marks", "0001_initial", COLUMN % "marks")
    unmigrated = notes.deploy(django_migrate=False)
    assert migrations(host) == ["0001_initial"]
    assert "changed=0" in deployed(django_migrate=False, **notes.given).stdout
    checked = deployed("--check", **notes.given).stdout
    assert "changed=1 " in checked and migrations(host) == ["0001_initial"]
    said = deployed(**notes.given).stdout
    assert "changed=1 " in said
    assert (notes.live, migrations(host)) == (unmigrated, ["0001_initial", "0002_marks"])
    assert "changed=0" in deployed(**notes.given).stdout
    # A database that does not answer is no reason to say that all is well.
    host.check_output("systemctl stop postgresql.service")
    try:
        refused("the database does not do what was asked", **notes.given)
    finally:
        host.check_output("systemctl start postgresql.service")
        wait(host, "runuser -u postgres -- pg_isready")
    deployed(playbook="rollback.yml", **notes.given)
    assert (notes.live, migrations(host)) == (notes.first, ["0001_initial"])


def test_caches_of_the_build_are_kept_for_the_next_one_and_emptied_when_they_are_too_large(
    host: Any, notes: Notes
) -> None:
    def caches() -> list[str]:
        return str(host.check_output("find /srv/notes/build -maxdepth 1 -name uv -o -maxdepth 1 -name pip")).split()

    (notes.folder / "notes/text.py").write_text("LARGE = True\n")
    assert caches() == ["/srv/notes/build/uv"]
    large = notes.deploy(django_build_cache_mb=0)
    assert large != notes.first and caches() == []
    deployed(playbook="rollback.yml", **notes.given)
    assert notes.live == notes.first


def test_rollback_refuses_what_cannot_be_undone_and_old_releases_go(host: Any, notes: Notes) -> None:
    notes.again()
    notes.migration("0002_stars", "0001_initial", COLUMN % "stars", "migrations.RunPython(lambda *given: None)")
    older = notes.live
    newest = notes.deploy(django_keep_releases=2)
    assert notes.releases == sorted([older, newest])
    before = notes.state()
    said = refused("going back from", playbook="rollback.yml", **notes.given).stdout
    assert "notes.0002_stars (" in said and "What is live stays live" in said
    assert notes.state() == before


def test_interrupted_build_is_made_again_or_waited_for(host: Any, notes: Notes) -> None:
    notes.again()
    (notes.folder / "notes/text.py").write_text("")
    before = notes.live

    held = "pgrep -f '^/bin/sh -c while test -e /run/hold-build'"

    def start() -> Any:
        host.check_output("touch /run/hold-build")
        running = notes.start()
        wait(host, held)
        return running

    # The module is killed: what it ran goes with it.
    running = start()
    host.check_output(f"kill -KILL $(ps -o ppid= -p $({held}))")
    running.communicate(timeout=60)
    assert running.returncode != 0
    wait(host, f"! {held}", 10)
    assert notes.live == before
    half = next(name for name in notes.releases if not host.file(f"/srv/notes/releases/{name}/RELEASE.json").exists)
    # The controller goes away: the build ends without it, and the next run waits for it.
    running = start()
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    next_one = notes.start()
    wait(host, "test $(ls -l /proc/[0-9]*/fd | grep -c /srv/notes/.building) -gt 1")
    time.sleep(1.5)
    assert next_one.poll() is None
    host.check_output("rm /run/hold-build")
    notes.ended(next_one)
    assert notes.live == half
    assert host.file(f"/srv/notes/releases/{half}/code/hooks").content_string.split() == ["before_build", "after_build"]


def test_deploy_that_was_not_noted_is_noted_by_the_next_run(host: Any, notes: Notes) -> None:
    size = len(log(host, "notes"))
    host.check_output("truncate --size=-20 /srv/notes/shared/deploys.log")
    deployed(**notes.given)
    lines = host.file("/srv/notes/shared/deploys.log").content_string.splitlines()
    assert len(lines) == size + 1
    assert json.loads(lines[-1])["release"] == notes.live and json.loads(lines[-1])["reason"] == "the tests"
    assert "changed=0" in deployed(**notes.given).stdout


def test_branch_is_fetched_with_a_login_and_a_wrong_key_is_refused(host: Any) -> None:
    before = live(host, "blog")
    known = host.file("/root/known_hosts").content_string
    wrong = {**GIVEN["blog"]["django_source"], "deploy_key": "wrong", "known_hosts": known}
    said = refused("could not be fetched. What is live stays live.", site="blog", django_source=wrong).stdout
    assert "Permission denied" in said or "error in libcrypto" in said
    assert live(host, "blog") == before
    source = {
        "git": "http://127.0.0.1:3141/git/blog.git", "user": "lab", "password": INDEX_PASSWORD, "submodules": True, "subdirectory": "site",
    }  # fmt: skip
    deployed(site="blog", django_source=source, django_version="next")
    code = release(host, "blog")["code"]
    assert "NEXT = True" in host.file(f"{code}/blog/settings.py").content_string
    assert host.file(f"{code}/posts/views.py").exists
    seen = host.file("/run/seen-command-lines").content_string
    assert "git/blog.git" in seen and quote(INDEX_PASSWORD, safe="") not in seen and INDEX_PASSWORD not in seen


REFUSED = [
    ({"django_source": {}}, "django_source names no source"),
    ({"django_source": {"package": "pretalx>=2025"}}, "leaves the version open"),
    (
        {"django_source": {"git": "https://me:token@git.test/x.git"}},
        "a login in the address django_source.git would be",
    ),
    ({"django_package_index_url": "https://me:token@index.test/"}, "a login in django_package_index_url would be"),
    ({"django_databases": {"default": {"name": "x", "password": "y"}}}, "a password in django_databases would be"),
    ({"django_database_passwords": {"other": "x"}}, "django_database_passwords names other, django_databases has none"),
    ({"django_name": "My Shop"}, "found the name My Shop"),
    ({"django_user": "root"}, "neither is root"),
    ({"django_environment": {"PYTHONPATH": "/x"}}, "PYTHONPATH in django_environment"),
    ({"django_environment": {"TWO": "a\nb"}}, "the value of TWO has a newline"),
    ({"django_hooks": {"before_migrations": []}}, "there is no step for the hook before_migrations"),
    ({"django_hooks": {"after_build": "npm run build"}}, "django_hooks.after_build is no list"),
    ({"django_gates": [{"mange": "check"}]}, "django_gates has {'mange': 'check'}"),
]


def test_impossible_input_is_refused_before_any_change(host: Any) -> None:
    cases = [{"django_name": "nothing", **values} for values, _ in REFUSED]
    said = deployed(playbook="refusals.yml", cases=cases).stdout
    for _, sentence in REFUSED:
        assert sentence in said, f"{sentence!r} is not in {said}"
    assert not host.file("/srv/nothing").exists


def test_secrets_are_in_no_process_list_and_no_journal(host: Any) -> None:
    """The last of the tests: all that ran before is judged."""
    seen = host.file("/run/seen-command-lines").content_string
    assert "pip install" in seen and "git" in seen and "django_helper.py" in seen, "the watcher saw nothing"
    logged = host.check_output("journalctl -o cat")
    assert "Invoked with" in logged
    key = host.file("/root/deploy_key").content_string.split("\n")[2]
    secrets = [PASSWORD, INDEX_PASSWORD, GIVEN["shop"]["django_secret_key"], key]
    secrets += [GIVEN["shop"]["django_secret_environment"]["PAYMENT_TOKEN"]]
    for secret in secrets:
        for form in (
            secret,
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            quote(secret, safe=""),
        ):
            assert form not in seen and form not in logged, form
