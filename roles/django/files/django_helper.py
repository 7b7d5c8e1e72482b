"""What the kit asks of a Django project, run by the project's own Python with the site's environment.

Usage: django_helper.py migrate|pending|undo|unknown|names|static and JSON; the answer is JSON after "stepladder: " on a line.
"""

from __future__ import annotations

import json
import sys
import time
import zlib

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections
from django.db.backends.signals import connection_created
from django.db.migrations.executor import MigrationExecutor

LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"


class Refused(Exception):
    """Something that cannot go on; its text is the sentence for the operator."""


def key(migration):
    return f"{migration.app_label}.{migration.name}"


def applied(executor):
    return [f"{app}.{name}" for app, name in executor.loader.applied_migrations]


def names(given):
    """Every migration that this release knows, with those it replaces."""
    loader = MigrationExecutor(connections[given["database"]]).loader
    found = {f"{app}.{name}" for app, name in loader.disk_migrations}
    for migration in loader.disk_migrations.values():
        found.update(f"{app}.{name}" for app, name in migration.replaces)
    return {"names": sorted(found)}


def irreversible(migration):
    """The words that name what in a migration cannot be undone, "" when all of it can."""
    parts = [operation.describe() for operation in migration.operations if not operation.reversible]
    return "; ".join(parts)


def to_undo(executor, known):
    """The migrations that are applied and that an older release does not know, newest first.

    The order of the whole plan is Django's own, so what depends on a migration is undone before it.
    """
    done = set(executor.loader.applied_migrations)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes(), clean_start=True)
    wanted = []
    for migration, _backwards in plan:
        replaced = {f"{app}.{name}" for app, name in migration.replaces}
        if (migration.app_label, migration.name) not in done or key(migration) in known:
            continue
        if replaced and replaced <= known:
            continue
        wanted.append(migration)
    return wanted[::-1]


def unknown(given):
    """What going back to a release that knows given["known"] would undo, and what of it cannot be undone."""
    executor = MigrationExecutor(connections[given["database"]])
    wanted = to_undo(executor, set(given["known"]))
    stuck = {key(migration): irreversible(migration) for migration in wanted if irreversible(migration)}
    return {"undo": [key(migration) for migration in wanted], "irreversible": stuck}


def limit(alias, lock_timeout, statement_timeout):
    """Make every later connection to a PostgreSQL database give up instead of queueing behind the site's queries."""

    def set_limits(connection, **_signal):
        if connection.alias == alias and connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('lock_timeout', %s, false)", [lock_timeout])
                cursor.execute("SELECT set_config('statement_timeout', %s, false)", [statement_timeout])

    connections[alias].close()
    connection_created.connect(set_limits, weak=False)


class OneAtATime:
    """An advisory lock of the database, held on a connection of its own; nothing where the database has none."""

    def __init__(self, alias, wait):
        self.alias, self.wait, self.holder = alias, wait, None

    def __enter__(self):
        if connections[self.alias].vendor != "postgresql":
            return self
        self.holder = connections.create_connection(self.alias)
        # 0x53746570: the kit's own corner of the lock space; the rest tells databases' sites apart.
        numbers = [0x53746570, zlib.crc32(self.alias.encode()) & 0x7FFFFFFF]
        end = time.monotonic() + self.wait
        with self.holder.cursor() as cursor:
            while True:
                cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", numbers)
                if cursor.fetchone()[0]:
                    return self
                if time.monotonic() >= end:
                    cursor.execute(
                        "SELECT string_agg(pid::text, ', ') FROM pg_locks WHERE locktype = 'advisory' AND granted"
                        " AND classid = %s AND objid = %s"
                        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                        numbers,
                    )
                    raise Refused(
                        f"another migration of this database runs (its lock is held by PostgreSQL process "
                        f"{cursor.fetchone()[0]}) and did not end within {self.wait} seconds. It was left alone. "
                        f"Run again when it has ended."
                    )
                time.sleep(0.5)

    def __exit__(self, *_error):
        if self.holder:
            self.holder.close()


def code_of(error):
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def with_retries(given, work):
    """Do it; a lock that was not to be had is tried again. Raises what the last try raised."""
    for attempt in range(given["attempts"]):
        try:
            work()
            return
        except OperationalError as error:
            if code_of(error) != LOCK_NOT_AVAILABLE or attempt == given["attempts"] - 1:
                raise
            print(f"A lock was not to be had within {given['lock_timeout']}; trying again.", file=sys.stderr)
            connections[given["database"]].close()
            time.sleep(2 * (attempt + 1))


def why(error, given):
    code = code_of(error) if isinstance(error, OperationalError) else None
    if code == LOCK_NOT_AVAILABLE:
        return (
            f"a table's lock was not to be had within {given['lock_timeout']}, {given['attempts']} times in a row: "
            f"a long transaction of the site holds it"
        )
    if code == QUERY_CANCELED:
        return f"a statement took longer than {given['statement_timeout']} (django_migrate_statement_timeout)"
    return f"{type(error).__name__}: {error}".strip()


def go_back(alias, plan):
    executor = MigrationExecutor(connections[alias])
    wanted = [executor.loader.graph.nodes[migration.app_label, migration.name] for migration in plan]
    executor.migrate(None, plan=[(migration, True) for migration in wanted])


def undo_after_failure(alias, before):
    """Undo what this run has applied; returns the sentence that says how the database is now."""
    connections[alias].close()
    executor = MigrationExecutor(connections[alias])
    wanted = to_undo(executor, set(before))
    if not wanted:
        return "The database is as it was."
    listed = ", ".join(key(migration) for migration in wanted)
    stuck = [key(migration) for migration in wanted if irreversible(migration)]
    if stuck:
        return f"{listed} had been applied before that and stay, because {', '.join(stuck)} cannot be undone."
    try:
        go_back(alias, wanted)
    except Exception as error:
        return f"{listed} had been applied before that and could not be undone ({type(error).__name__}: {error})."
    return f"{listed} had been applied before that and were undone: the database is as it was."


def pending(given):
    """The migrations of this release that the database lacks."""
    executor = MigrationExecutor(connections[given["database"]])
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return {"pending": [key(migration) for migration, _backwards in plan]}


def migrate(given):
    """Apply what is pending, one run at a time; returns the names of what was applied."""
    alias = given["database"]
    if not pending(given)["pending"]:
        return {"applied": []}
    limit(alias, given["lock_timeout"], given["statement_timeout"])
    with OneAtATime(alias, given["wait"]):
        before = applied(MigrationExecutor(connections[alias]))
        try:
            with_retries(
                given,
                lambda: call_command("migrate", database=alias, interactive=False, verbosity=1, stdout=sys.stderr),
            )
        except Exception as error:
            reason = why(error, given)
            raise Refused(f"a migration failed: {reason}.\n{undo_after_failure(alias, before)}") from error
        after = applied(MigrationExecutor(connections[alias]))
    return {"applied": [name for name in after if name not in set(before)]}


def undo(given):
    """Undo what a release that knows given["known"] does not know; returns the names of what was undone."""
    alias = given["database"]

    def left():
        return to_undo(MigrationExecutor(connections[alias]), set(given["known"]))

    limit(alias, given["lock_timeout"], given["statement_timeout"])
    with OneAtATime(alias, given["wait"]):
        wanted = left()
        stuck = {key(migration): irreversible(migration) for migration in wanted if irreversible(migration)}
        if stuck:
            raise Refused("; ".join(f"{name} cannot be undone ({words})" for name, words in stuck.items()) + ".")
        try:
            with_retries(given, lambda: go_back(alias, left()))
        except Exception as error:
            reason = why(error, given)
            connections[alias].close()
            listed = ", ".join(key(migration) for migration in left())
            raise Refused(
                f"undoing the migrations stopped: {reason}. The older release is live; still applied: {listed}. "
                f"Roll back again: it goes on from here."
            ) from error
    return {"undone": [key(migration) for migration in wanted]}


def static(_given):
    """Collect the static files where the project has any to collect."""
    if not apps.is_installed("django.contrib.staticfiles"):
        return {"collected": False}
    call_command("collectstatic", interactive=False, verbosity=0, stdout=sys.stderr)
    return {"collected": True, "root": str(settings.STATIC_ROOT)}


VERBS = {"migrate": migrate, "pending": pending, "undo": undo, "unknown": unknown, "names": names, "static": static}


def main() -> int:
    django.setup()
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    try:
        answer = VERBS[sys.argv[1]](given)
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except DatabaseError as error:
        answer = {"refused": f"the database does not do what was asked: {error}".strip()}
    # On a line of its own: the project may have printed something, and may print more when it ends.
    print("\nstepladder: " + json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
