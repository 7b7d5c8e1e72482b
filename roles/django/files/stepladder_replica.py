"""Reads from the database's replicas, without the project's code knowing of them.

The replica gets what a GET, HEAD or OPTIONS request reads outside of a transaction, while neither the request nor, some
seconds ago, its visitor has written. Everything else reads from the primary: other methods, tasks, commands, migrations.

A replica is behind, and who has written must find it. So whoever writes gets a cookie, and reads from the primary until
it is over. That is by time, not by positions in the WAL: a replica that is behind for longer is out of rotation by then,
and at three in the morning the browser's own tools show why a page came from where it did.

A project that wants a say: `with reads_from_primary():` and `with reads_from_replica():`, or either as a decorator.
"""

import functools
import re
from contextlib import contextmanager
from contextvars import ContextVar

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.signals import connection_created
from django.utils.decorators import sync_and_async_middleware

MARKER = "stepladder_wrote"
SAFE = ("GET", "HEAD", "OPTIONS")
PRIMARY, REPLICA = "primary", "replica"

# Statements that change nothing by themselves. What is not known is taken for a write: at worst a page is read from the
# primary. A SELECT of a function that writes cannot be told from any other.
QUIET = re.compile(
    r"(?:[\s(]|--[^\n]*\n|/\*.*?\*/)*(SELECT|WITH|VALUES|TABLE|EXPLAIN|SHOW|DECLARE|FETCH|MOVE|CLOSE"
    r"|SET|RESET|BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b",
    re.S,
)
# A quoted word is a column's name.
INSIDE = re.compile(r'\b(?:INSERT|UPDATE|DELETE|MERGE|INTO|FOR\s+(?:KEY\s+)?SHARE)\b(?!")|;\s*\w')
TARGET = re.compile(r'\s*(?:INSERT INTO|UPDATE|DELETE FROM) "?(\w+)"?', re.I)


class Work:
    """What a request does, in all its threads and coroutines; or a block of code outside of requests."""

    def __init__(self, wrote_before=False):
        self.needs_primary = wrote_before
        self.wrote = False


# The work under way, where its reads go if somebody has said so, and what holds outside of that. What asgiref runs in
# another thread sees it too.
NOWHERE = (None, None, None)
_here = ContextVar("stepladder_replica", default=NOWHERE)
_tables_apart = set()


def apart(model):
    """Sessions and Django's cache in the database. Both are always read from the primary.

    So they are never late (a session that has ended has ended), and what nearly every page writes there keeps nobody
    else's reads from the replica.
    """
    return hasattr(model, "get_session_store_class") or model._meta.app_label == "django_cache"


def writes(sql):
    """Whether a statement may change something that others read."""
    if not isinstance(sql, str):
        return True  # composed by the driver's own means
    text = sql.upper()
    quiet = QUIET.match(text)
    return not quiet or bool(INSIDE.search(text, quiet.start(1)))


def watch(execute, sql, params, many, context):
    """Sees each statement on the primary, however the project sends it."""
    work, *_ = _here.get()
    if work is not None and not work.wrote and writes(sql):
        target = TARGET.match(sql) if isinstance(sql, str) else None
        if not target or target[1] not in _tables_apart:
            work.wrote = work.needs_primary = True
    return execute(sql, params, many, context)


def watch_connection(connection, **_):
    # Each thread has a connection of its own, hence not the middleware's. First in the list: Django takes a wrapper off
    # at its end, whichever it is.
    if connection.alias == DEFAULT_DB_ALIAS and watch not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, watch)


connection_created.connect(watch_connection, dispatch_uid="stepladder_replica")


class Marks:
    """The last of the routers while nothing is read from a replica yet: it decides nothing, and sees what is written."""

    def db_for_write(self, model, **_hints):
        if apart(model):
            _tables_apart.add(model._meta.db_table)


class Router:
    """The last of the routers: it speaks for what would be read from or written to the primary."""

    def __init__(self):
        self.replica = settings.STEPLADDER_READ_REPLICA
        self.ours = (DEFAULT_DB_ALIAS, self.replica)

    def _is_elsewhere(self, instance=None, **_):
        return instance is not None and instance._state.db not in (None, *self.ours)

    def db_for_read(self, model, **hints):
        if self._is_elsewhere(**hints):
            return None
        work, reads, _ = _here.get()
        if reads != REPLICA or work.needs_primary or apart(model) or connections[DEFAULT_DB_ALIAS].in_atomic_block:
            return DEFAULT_DB_ALIAS
        # What belongs to an object that was asked of the primary is asked there too, as Django does by itself.
        instance = hints.get("instance")
        return DEFAULT_DB_ALIAS if instance is not None and instance._state.db == DEFAULT_DB_ALIAS else self.replica

    def db_for_write(self, model, **hints):
        if self._is_elsewhere(**hints):
            return None
        work, *_ = _here.get()
        if apart(model):
            _tables_apart.add(model._meta.db_table)
        elif work is not None:
            # It is about to write. Whether it does, `watch` sees: get_or_create() that gets is no write.
            work.needs_primary = True
        return DEFAULT_DB_ALIAS

    def allow_relation(self, one, other, **_):
        return True if one._state.db in self.ours and other._state.db in self.ours else None

    def allow_migrate(self, db, app_label, **_):
        return False if db == self.replica else None


class _Reads:
    """As a context manager or a decorator. Who insists on the primary is not overruled by what is called from there."""

    def __init__(self, wanted):
        self.wanted = wanted

    def __enter__(self):
        outside = work, reads, _ = _here.get()
        _here.set((work or Work(), PRIMARY if reads == PRIMARY else self.wanted, outside))

    def __exit__(self, *_):
        _here.set(_here.get()[2] or NOWHERE)

    def __call__(self, function):
        if iscoroutinefunction(function):

            async def inner(*args, **kwargs):
                with _Reads(self.wanted):
                    return await function(*args, **kwargs)
        else:

            def inner(*args, **kwargs):
                with _Reads(self.wanted):
                    return function(*args, **kwargs)

        return functools.wraps(function)(inner)


def reads_from_primary():
    """All reads within come from the primary."""
    return _Reads(PRIMARY)


def reads_from_replica():
    """Reads within may come from the replica, in a task or a POST too: a report's.

    Not in a transaction, and not once the task or request has written.
    """
    return _Reads(REPLICA)


@contextmanager
def _request(request):
    outside = _here.get()
    work = Work(wrote_before=MARKER in request.COOKIES)
    _here.set((work, REPLICA if request.method in SAFE else None, outside))
    try:
        yield work
    finally:
        _here.set(outside)


def _marked(response, request, work):
    """The answer, with the marker when something was written. It goes wherever the session's cookie goes.

    There is nothing in it to steal or to forge: whoever makes one up reads from the primary.
    """
    if work.wrote:
        response.set_cookie(
            MARKER,
            "1",
            max_age=settings.STEPLADDER_READ_STICKY_SECONDS,
            domain=settings.SESSION_COOKIE_DOMAIN,
            secure=request.is_secure(),  # over plain HTTP a browser would drop it
            httponly=True,
            samesite=settings.SESSION_COOKIE_SAMESITE,
        )
    return response


@sync_and_async_middleware
def middleware(get_response):
    """Outside of all of the project's, so that what these write (a session, say) is seen."""
    if iscoroutinefunction(get_response):

        async def answer(request):
            with _request(request) as work:
                response = await get_response(request)
            return _marked(response, request, work)
    else:

        def answer(request):
            with _request(request) as work:
                response = get_response(request)
            return _marked(response, request, work)

    return answer
