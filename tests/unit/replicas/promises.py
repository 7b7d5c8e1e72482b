"""What the replica's part of the overlay promises, asked of a real Django with its settings: run by test_replica.py.

The replica is a copy of the default database's file with other contents, so an answer tells where it was read.
"""

import asyncio
import json
import shutil
import sys
import threading
import unittest

import django
from django.db import connection

django.setup()
# As an app of the project may do it, long before the first request.
connection.ensure_connection()
AT_FIRST = [wrapper.__module__ for wrapper in connection.execute_wrappers]

from asgiref.testing import ApplicationCommunicator  # noqa: E402
from django.conf import settings  # noqa: E402
from django.contrib.auth import authenticate, login, logout  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import OperationalError, connections, router, transaction  # noqa: E402
from django.http import HttpResponseRedirect, StreamingHttpResponse  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402
from django.test.utils import get_unique_databases_and_mirrors  # noqa: E402
from library import site  # noqa: E402
from library.models import Book, Chapter, Ledger, Scan  # noqa: E402
from stepladder_replica import MARKER, middleware, reads_from_primary, reads_from_replica, watch, writes  # noqa: E402


def make_databases():
    for alias in ("default", "scans"):
        call_command("migrate", database=alias, run_syncdb=True, interactive=False, verbosity=0)
    call_command("createcachetable", verbosity=0)
    book = Book.objects.create(id=1, title="default")
    Chapter.objects.create(id=1, book=book, title="default")
    Ledger.objects.create(id=1, title="default")
    Scan.objects.create(id=1, title="scans")
    User.objects.create_user("ada", password="of ada")
    connections.close_all()
    if "replica" not in settings.DATABASES:
        return
    shutil.copy(settings.DATABASES["default"]["NAME"], settings.DATABASES["replica"]["NAME"])
    for model in (Book, Chapter, Ledger):
        model.objects.using("replica").update(title="replica")


def where(*_):
    """The database that a read goes to."""
    return Book.objects.get(id=1).title


def write(*_):
    Book.objects.create(title="new")
    return "written"


class Visitor(Client):
    """A browser. The site answers it with what the view, a function of the test, returns."""

    def ask(self, view, method="get", secure=True, **headers):
        site.answer = view
        return getattr(self, method)("/", secure=secure, headers=headers)

    def asks(self, view, method="get", **headers):
        return self.ask(view, method, **headers).content.decode()

    def wait(self):
        """Until the marker is over: then a browser forgets it, which this one does not by itself."""
        self.cookies.pop(MARKER, None)

    @property
    def marked(self):
        return MARKER in self.cookies


async def asgi(path, method="GET"):
    """(text, marked) of a request as an ASGI server makes it: each has a thread of its own for what is no coroutine."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "query_string": b"", "headers": [(b"host", b"testserver"), (b"x-forwarded-proto", b"https")],
        "client": ("127.0.0.1", 1), "server": ("testserver", 443),
    }  # fmt: skip
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    start = await communicator.receive_output(10)
    body = await communicator.receive_output(10)
    return body["body"].decode(), any(MARKER.encode() in value for _, value in start["headers"])


class Promises(unittest.TestCase):
    def setUp(self):
        self.visitor = Visitor()

    def asks(self, view, method="get", **headers):
        return self.visitor.asks(view, method, **headers)

    # What a request reads.

    def test_pages_are_read_from_the_replica(self):
        self.assertEqual([self.asks(where), self.asks(where, "options")], ["replica", "replica"])
        seen = []
        self.visitor.ask(lambda _: seen.append(where()), "head")
        self.assertEqual(seen, ["replica"])
        self.assertFalse(self.visitor.marked)

    def test_other_methods_read_from_the_primary_and_leave_no_marker_when_they_write_nothing(self):
        for method in ("post", "put", "patch", "delete"):
            self.assertEqual(self.asks(where, method), "default", method)
        self.assertFalse(self.visitor.marked)
        self.assertEqual(self.asks(where), "replica")

    def test_who_has_written_reads_from_the_primary_until_the_marker_is_over_and_others_do_not(self):
        self.asks(write, "post")
        self.assertEqual([self.asks(where), Visitor().asks(where)], ["default", "replica"])
        self.assertEqual(self.asks(where), "default")
        self.visitor.wait()
        self.assertEqual(self.asks(where), "replica")

    def test_marker_lasts_as_long_as_the_role_says_and_goes_nowhere_else(self):
        marker = self.visitor.ask(write, "post").cookies[MARKER]
        self.assertEqual((marker.value, marker["max-age"]), ("1", 7))
        self.assertEqual((marker["secure"], marker["httponly"], marker["samesite"]), (True, True, "Lax"))
        self.assertEqual((marker["path"], marker["domain"]), ("/", ""))
        with override_settings(SECURE_SSL_REDIRECT=False):
            self.assertFalse(Visitor().ask(write, "post", secure=False).cookies[MARKER]["secure"])

    def test_marker_goes_where_the_sessions_cookie_goes(self):
        with override_settings(SESSION_COOKIE_DOMAIN=".example.com", SESSION_COOKIE_SAMESITE="Strict"):
            marker = self.visitor.ask(write, "post").cookies[MARKER]
        self.assertEqual((marker["domain"], marker["samesite"]), (".example.com", "Strict"))
        with override_settings(SESSION_COOKIE_SAMESITE=False):
            self.assertEqual(self.visitor.ask(write, "post").cookies[MARKER]["samesite"], "")

    def test_within_a_transaction_reads_come_from_the_primary(self):
        def view(_):
            with transaction.atomic():
                inside = where()
            return [inside, where()]

        self.assertEqual(self.asks(view), "['default', 'replica']")
        self.assertFalse(self.visitor.marked)

    def test_a_project_whose_every_request_is_a_transaction_stays_with_the_primary(self):
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
        self.addCleanup(connections["default"].settings_dict.update, ATOMIC_REQUESTS=False)
        self.assertEqual(self.asks(where), "default")

    def test_a_page_that_writes_reads_the_rest_from_the_primary(self):
        def view(_):
            before = where()
            write()
            return [before, where()]

        self.assertEqual(self.asks(view), "['replica', 'default']")
        self.assertTrue(self.visitor.marked)

    def test_what_is_streamed_after_the_answer_has_begun_is_read_from_the_primary(self):
        response = self.visitor.ask(lambda _: StreamingHttpResponse(where() for _ in range(1)))
        self.assertEqual(b"".join(response), b"default")

    # What counts as a write.

    def test_a_failed_request_that_wrote_is_marked(self):
        def view(_):
            write()
            raise ZeroDivisionError

        self.visitor.raise_request_exception = False
        self.assertEqual(self.visitor.ask(view, "post").status_code, 500)
        self.assertTrue(self.visitor.marked)

    def test_statements_that_go_around_the_router_are_seen(self):
        def raw(_):
            with connection.cursor() as cursor:
                cursor.execute("UPDATE library_book SET title = 'raw' WHERE id = 1000")
            return where()

        def many(_):
            with connection.cursor() as cursor:
                cursor.executemany("DELETE FROM library_book WHERE id = %s", [[1000], [1001]])
            return where()

        for view in (raw, many, lambda _: [Book.objects.using("default").create(title="x"), where()][1]):
            visitor = Visitor()
            self.assertEqual((visitor.asks(view), visitor.marked), ("default", True))

    def test_statements_that_only_read_are_no_writes(self):
        def raw(_):
            with connection.cursor() as cursor:
                cursor.execute("SELECT title FROM library_book WHERE id = 1")
                return [cursor.fetchone()[0], where()]

        self.assertEqual(self.asks(raw), "['default', 'replica']")
        self.assertEqual(self.asks(lambda _: [Book.objects.using("default").get(id=1).title, where()][1]), "replica")
        self.assertFalse(self.visitor.marked)

    def test_the_connection_is_watched_though_the_project_watches_it_too(self):
        def own(execute, *given):
            return execute(*given)

        def view(_):
            connection.close()
            with connection.execute_wrapper(own):
                Book.objects.using("default").get(id=1)  # connects here
            left = own in connection.execute_wrappers
            write()
            return left

        connection.close()
        connection.execute_wrappers.clear()
        self.assertEqual((self.asks(view), self.visitor.marked), ("False", True))

    def test_a_connection_from_before_the_first_request_is_watched(self):
        self.assertEqual(AT_FIRST, ["stepladder_replica"])

    def test_a_connection_that_is_opened_again_is_watched_once(self):
        for _ in range(3):
            connection.close()
            where()
        self.assertEqual(connection.execute_wrappers.count(watch), 1)

    def test_a_write_in_another_thread_of_the_view_does_not_reach_the_replica(self):
        def view(_):
            thread = threading.Thread(target=lambda: seen.append(where()))
            thread.start()
            thread.join()
            return seen

        seen = []
        self.assertEqual(self.asks(view), "['default']")

    def test_get_or_create_is_a_write_only_when_it_creates(self):
        def getting(_):
            book, created = Book.objects.get_or_create(id=1)
            return [book.title, created, where()]

        def creating(_):
            _, created = Book.objects.get_or_create(title="not there before", id=2000)
            return [created, where()]

        self.assertEqual((self.asks(getting), self.visitor.marked), ("['default', False, 'default']", False))
        self.assertEqual((self.asks(creating), self.visitor.marked), ("[True, 'default']", True))

    def test_locked_rows_are_the_primarys(self):
        self.assertEqual(self.asks(lambda _: Book.objects.select_for_update().get(id=1).title), "default")

    def test_words_of_a_statement_tell_reads_from_writes(self):
        reads = [
            'SELECT "a"."update" FROM "a"',
            "  select 1;",
            '(SELECT "a" FROM "b") UNION (SELECT "a" FROM "c")',
            "/* page=1 */ SELECT 1",
            "-- UPDATE\nSELECT 1",
            'SELECT "updated_at", "for_share" FROM "insert_log"',
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "VALUES (1)",
            "EXPLAIN SELECT 1",
            'SAVEPOINT "s1"',
            'RELEASE SAVEPOINT "s1"',
            'ROLLBACK TO SAVEPOINT "s1"',
            "BEGIN",
            "SET LOCAL statement_timeout = 100",
            'DECLARE "c" NO SCROLL CURSOR WITH HOLD FOR SELECT 1',
        ]
        changes = [
            "INSERT INTO a VALUES (1)",
            "update a set b = 1",
            "DELETE FROM a",
            "MERGE INTO a USING b ON true WHEN MATCHED THEN DELETE",
            "TRUNCATE a",
            "COPY a FROM STDIN",
            "CALL f()",
            "DO $$ BEGIN END $$",
            "REFRESH MATERIALIZED VIEW a",
            "SELECT * FROM a FOR UPDATE",
            "SELECT * FROM a FOR NO KEY UPDATE OF a SKIP LOCKED",
            "SELECT * FROM a for  key\nshare",
            "SELECT * INTO b FROM a",
            "WITH x AS (INSERT INTO a VALUES (1) RETURNING id) SELECT * FROM x",
            "WITH x AS (SELECT 1) DELETE FROM a",
            "WITH x AS (\n  UPDATE a SET b = 1 RETURNING b) SELECT * FROM x",
            "EXPLAIN ANALYZE DELETE FROM a",
            "SELECT 1; DROP TABLE a",
            "/* SELECT */ DELETE FROM a",
            "",
            b"SELECT 1",
        ]
        self.assertEqual([sql for sql in reads if writes(sql)], [])
        self.assertEqual([sql for sql in changes if not writes(sql)], [])

    # Sessions, logins and Django's cache.

    def test_a_login_is_there_after_the_redirect(self):
        def log_in(request):
            login(request, authenticate(request, username="ada", password="of ada"))
            return HttpResponseRedirect("/")

        def name(request):
            return [request.user.get_username(), where()]

        self.assertEqual(self.visitor.ask(log_in, "post").status_code, 302)
        self.assertTrue(self.visitor.marked)
        self.assertEqual(self.asks(name), "['ada', 'default']")
        self.visitor.wait()
        self.assertEqual(self.asks(name), "['ada', 'replica']")
        self.asks(lambda request: logout(request), "post")
        self.visitor.wait()
        self.assertEqual(self.asks(name), "['', 'replica']")

    def test_an_ended_session_has_ended_though_the_replica_has_it(self):
        self.asks(lambda request: request.session.update({"cart": 3}), "post")
        stored = Session.objects.get(pk=self.visitor.cookies["sessionid"].value)
        self.addCleanup(Session.objects.using("replica").all().delete)
        stored.save(using="replica", force_insert=True)
        self.assertEqual(self.asks(lambda request: request.session.get("cart")), "3")
        stored.delete(using="default")
        self.assertEqual(self.asks(lambda request: request.session.get("cart")), "None")

    def test_a_session_that_is_saved_is_found_and_keeps_nothing_else_from_the_replica(self):
        def count(request):
            request.session["pages"] = request.session.get("pages", 0) + 1
            request.session.save()
            return [request.session["pages"], where()]

        self.assertEqual([self.asks(count) for _ in range(3)], [f"[{n}, 'replica']" for n in (1, 2, 3)])
        self.assertFalse(self.visitor.marked)
        with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
            self.assertEqual([self.asks(where), self.asks(where)], ["replica", "replica"])
        self.assertFalse(self.visitor.marked)

    def test_what_a_middleware_of_the_project_writes_at_the_end_is_seen(self):
        self.assertEqual(self.asks(where, **{"X-Write": "1"}), "replica")
        self.assertTrue(self.visitor.marked)
        self.assertEqual(self.asks(where), "default")

    def test_djangos_cache_in_the_database_is_the_primarys_and_its_entries_are_no_writes(self):
        def view(_):
            before = cache.get("key")
            cache.set("key", "cached")
            return [before, cache.get("key"), where()]

        self.assertEqual(self.asks(view), "[None, 'cached', 'replica']")
        self.asks(lambda _: cache.delete("key"))
        self.assertFalse(self.visitor.marked)

    # Objects that come from both.

    def test_an_object_from_the_replica_is_saved_in_the_primary(self):
        def view(_):
            chapter = Chapter.objects.get(id=1)
            origin, chapter.title = chapter._state.db, "saved"
            chapter.save(update_fields=["title"])
            return [origin, chapter._state.db]

        self.addCleanup(Chapter.objects.update, title="default")
        self.assertEqual(self.asks(view), "['replica', 'default']")
        self.assertEqual(Chapter.objects.using("default").get(id=1).title, "saved")
        self.assertEqual(Chapter.objects.using("replica").get(id=1).title, "replica")

    def test_an_object_from_the_replica_is_deleted_in_the_primary(self):
        Chapter.objects.using("replica").create(id=5, book_id=1, title="replica")
        Chapter.objects.create(id=5, book_id=1, title="default")
        self.addCleanup(Chapter.objects.using("replica").filter(id=5).delete)
        self.asks(lambda _: Chapter.objects.get(id=5).delete())
        self.assertFalse(Chapter.objects.filter(id=5).exists())
        self.assertTrue(Chapter.objects.using("replica").filter(id=5).exists())

    def test_objects_of_both_may_refer_to_each_other(self):
        book = Book.objects.using("replica").get(id=1)
        chapter = Chapter.objects.using("default").get(id=1)
        chapter.book = book
        self.assertIs(router.allow_relation(book, chapter), True)
        self.assertIs(router.allow_relation(book, Scan.objects.get(id=1)), False)

    def test_what_belongs_to_an_object_from_the_primary_is_read_there(self):
        def view(_):
            book = Book.objects.using("default").get(id=1)
            return [book.chapter_set.get().title, Chapter.objects.get(id=1).title]

        self.assertEqual(self.asks(view), "['default', 'replica']")

    def test_what_belongs_to_an_object_from_the_replica_is_read_from_the_primary_once_the_page_has_written(self):
        def view(_):
            book = Book.objects.get(id=1)
            before = book.chapter_set.get(id=1).title
            write()
            return [book._state.db, before, book.chapter_set.get(id=1).title]

        self.assertEqual(self.asks(view), "['replica', 'replica', 'default']")

    # Coroutines.

    def test_coroutines_follow_the_same_rules(self):
        async def read(_):
            return (await Book.objects.aget(id=1)).title

        async def read_then_write(_):
            before = await read(_)
            await Book.objects.acreate(title="new")
            return [before, await read(_)]

        async def ask(client, view, method="get"):
            site.answer = view
            return (await getattr(client, method)("/async", secure=True)).content.decode()

        async def story():
            client, other = AsyncClient(), AsyncClient()
            seen = [await ask(client, read), await ask(client, read, "post"), MARKER in client.cookies]
            seen += [await ask(client, read_then_write), MARKER in client.cookies]
            return [*seen, await ask(client, read), await ask(other, read)]

        expected = ["replica", "default", False, "['replica', 'default']", True, "default", "replica"]
        self.assertEqual(asyncio.run(story()), expected)
        # The same view behind WSGI.
        site.answer = read
        self.assertEqual(self.visitor.get("/async", secure=True).content, b"replica")

    def test_the_middleware_takes_coroutines_without_a_thread_for_each(self):
        self.assertTrue(middleware.sync_capable and middleware.async_capable)

    def test_a_write_in_a_thread_of_the_asgi_server_is_seen(self):
        """There a view that is no coroutine runs in a thread, with a connection that the middleware's own never sees."""

        def raw(_):
            with connections["default"].cursor() as cursor:
                cursor.execute("UPDATE library_book SET title = 'raw' WHERE id = 1000")
            return [threading.current_thread() is main, where()]

        async def story():
            site.answer = where
            first = await asgi("/")
            site.answer = raw
            return [first, await asgi("/")]

        main = threading.current_thread()
        self.assertEqual(asyncio.run(story()), [("replica", False), ("[False, 'default']", True)])

    def test_requests_that_run_at_the_same_time_do_not_mix(self):
        async def story():
            arrived, go_on = asyncio.Event(), asyncio.Event()

            async def answer(request):
                if request.method == "POST":
                    await Book.objects.acreate(title="new")
                    go_on.set()
                else:
                    arrived.set()
                    await asyncio.wait_for(go_on.wait(), 5)
                return (await Book.objects.aget(id=1)).title

            site.answer = answer
            page = asyncio.create_task(asgi("/async"))
            await asyncio.wait_for(arrived.wait(), 5)
            return [await asgi("/async", "POST"), await page]

        self.assertEqual(asyncio.run(story()), [("default", True), ("replica", False)])

    # The project's say.

    def test_code_outside_of_requests_reads_from_the_primary(self):
        self.assertEqual(where(), "default")
        self.asks(where)
        self.assertEqual(where(), "default")

    def test_a_report_may_ask_for_the_replica(self):
        with reads_from_replica():
            inside = where()
            with transaction.atomic():
                in_transaction = where()
            after_it = where()
            write()
            after_a_write = where()
        self.assertEqual(
            [inside, in_transaction, after_it, after_a_write, where()],
            ["replica", "default", "replica", "default", "default"],
        )

    def test_a_report_within_a_post_may_ask_for_the_replica_until_it_writes(self):
        def view(_):
            seen = [where()]
            with reads_from_replica():
                seen.append(where())
                write()
                seen.append(where())
            with reads_from_replica():
                seen.append(where())
            return seen

        self.assertEqual(self.asks(view, "post"), "['default', 'replica', 'default', 'default']")
        self.assertTrue(self.visitor.marked)
        self.assertEqual(self.asks(reads_from_replica()(where)), "default")

    def test_the_primary_can_be_insisted_on(self):
        def view(_):
            with reads_from_primary(), reads_from_replica():
                inside = where()
            return [inside, where()]

        self.assertEqual(self.asks(view), "['default', 'replica']")
        self.assertFalse(self.visitor.marked)

    def test_both_are_decorators_of_functions_and_coroutines(self):
        @reads_from_replica()
        def report():
            return where()

        @reads_from_replica()
        async def async_report():
            return (await Book.objects.aget(id=1)).title

        self.assertEqual([report(), report(), report.__name__], ["replica", "replica", "report"])
        self.assertEqual([asyncio.run(async_report()), where()], ["replica", "default"])

        @reads_from_primary()
        async def async_view(_):
            return (await Book.objects.aget(id=1)).title

        site.answer = async_view
        self.assertEqual(self.visitor.get("/async", secure=True).content, b"default")

    def test_one_block_can_be_used_again_and_within_itself(self):
        block = reads_from_replica()
        with block:
            with block:
                inside = where()
            between = where()
        self.assertEqual([inside, between, where()], ["replica", "replica", "default"])
        with block:
            self.assertEqual(where(), "replica")

    def test_the_projects_own_router_and_databases_come_first(self):
        def view(_):
            scan = Scan.objects.get(id=1)
            scan.save()
            return [Ledger.objects.get(id=1).title, scan.title, scan._state.db, where()]

        self.assertEqual(self.asks(view), "['default', 'scans', 'scans', 'replica']")
        self.assertFalse(self.visitor.marked)

    def test_what_belongs_to_an_object_of_another_database_stays_there(self):
        def view(_):
            book = Book.objects.using("scans").get(id=1)
            book.chapter_set.create(title="new")
            return [book.chapter_set.get().title, book.chapter_set.get()._state.db, where()]

        Book.objects.using("scans").create(id=1, title="scans")
        self.addCleanup(Book.objects.using("scans").all().delete)
        self.assertEqual(self.asks(view), "['new', 'scans', 'replica']")
        self.assertFalse(self.visitor.marked)

    # Around it.

    def test_the_replica_is_never_migrated(self):
        listed = [router.allow_migrate(alias, "library") for alias in ("default", "scans", "replica")]
        self.assertEqual(listed, [True, True, False])

    def test_in_tests_the_replica_is_the_default_database(self):
        _, mirrors = get_unique_databases_and_mirrors()
        self.assertEqual(mirrors, {"replica": "default"})

    def test_a_replica_that_cannot_be_reached_is_an_ordinary_error_of_the_database(self):
        replica = connections["replica"]
        self.addCleanup(replica.settings_dict.update, NAME=replica.settings_dict["NAME"])
        replica.close()
        replica.settings_dict["NAME"] = "/nowhere/replica.sqlite3"
        with self.assertRaises(OperationalError):
            self.asks(where)
        self.assertEqual(self.asks(where, "post"), "default")

    def test_the_middleware_is_outside_of_the_projects_and_the_router_after_its_own(self):
        self.assertEqual(settings.MIDDLEWARE[:2], ["stepladder_queue.middleware", "stepladder_replica.middleware"])
        self.assertEqual(settings.DATABASE_ROUTERS, ["library.site.OwnRouter", "stepladder_replica.Router"])


class BeforeThereIsAReplica(unittest.TestCase):
    """With django_read_marks alone: hosts that read from a replica already have to know who has written here."""

    def setUp(self):
        self.visitor = Visitor()

    def test_marks_alone_who_has_written_is_marked_for_the_hosts_that_have_a_replica(self):
        marker = self.visitor.ask(write, "post").cookies[MARKER]
        self.assertEqual((marker.value, marker["max-age"], marker["secure"]), ("1", 7, True))

    def test_marks_alone_nobody_else_is_marked(self):
        self.assertEqual([self.visitor.asks(where), self.visitor.asks(where, "post")], ["default", "default"])
        self.assertFalse(self.visitor.marked)

    def test_marks_alone_sessions_and_cache_entries_are_no_writes(self):
        def view(request):
            request.session["pages"] = request.session.get("pages", 0) + 1
            request.session.save()
            cache.set("key", "cached")
            return request.session["pages"]

        self.assertEqual([self.visitor.asks(view) for _ in range(2)], ["1", "2"])
        self.assertFalse(self.visitor.marked)

    def test_marks_alone_decide_nothing(self):
        self.assertEqual(settings.DATABASE_ROUTERS, ["library.site.OwnRouter", "stepladder_replica.Marks"])
        self.assertEqual((router.db_for_read(Book), router.db_for_write(Book)), ("default", "default"))
        self.assertEqual((router.db_for_read(Scan), router.db_for_write(Scan)), ("scans", "scans"))
        with reads_from_replica():
            self.assertEqual(where(), "default")


class Noted(unittest.TextTestResult):
    """How each of the promises went, by name."""

    def __init__(self, *given):
        super().__init__(*given)
        self.words = {}

    def stopTest(self, test):
        super().stopTest(test)
        bad = [words for failed, words in (*self.failures, *self.errors) if failed is test]
        self.words[test.id().split(".")[-1]] = "\n".join(bad)


if __name__ == "__main__":
    make_databases()
    run = unittest.TextTestRunner(stream=sys.stderr, resultclass=Noted).run(
        unittest.defaultTestLoader.loadTestsFromTestCase(
            Promises if "replica" in settings.DATABASES else BeforeThereIsAReplica
        )
    )
    print(json.dumps(run.words))
