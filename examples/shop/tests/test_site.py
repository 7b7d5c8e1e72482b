"""Needs a PostgreSQL on which the user may create a database."""

import datetime
import json
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.db.utils import OperationalError
from django.test import Client, TransactionTestCase, override_settings
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerError

from catalogue.models import Product
from orders import sending, tasks
from orders.models import Confirmation, Order


class Shop(TransactionTestCase):
    def setUp(self) -> None:
        cache.clear()
        call_command("seed_shop", products=3, stock=10, stdout=StringIO())

    def order(self, key: str, quantity: int = 1, sku: str = "item-000001"):
        body = {"customer": "Eve", "items": [{"sku": sku, "quantity": quantity}]}
        return Client().post("/api/orders", json.dumps(body), "application/json", headers={"Idempotency-Key": key})

    def ledger_says(self, keys: str) -> str:
        out = StringIO()
        with patch("sys.stdin", StringIO(keys)):
            call_command("check_ledger", report=True, stdout=out)
        return out.getvalue()

    def stock(self) -> int:
        return Product.objects.get(sku="item-000001").stock


class Site(Shop):
    def test_order_is_written_once_and_read_back(self) -> None:
        statuses = [self.order("key-00001").status_code for _ in range(2)]
        self.assertEqual((statuses, self.stock()), ([201, 200], 9))
        self.assertEqual(self.client.get("/api/orders/key-00001").json()["customer"], "Eve")
        self.assertEqual(self.order("key-00001", 2).status_code, 409)

    def test_one_key_sent_at_once_is_one_order(self) -> None:
        def send(_: int) -> int:
            try:
                return self.order("key-00001").status_code
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            statuses = sorted(pool.map(send, range(16)))
        self.assertEqual(statuses, [200] * 15 + [201])
        self.assertEqual((Order.objects.count(), self.stock()), (1, 9))

    def test_refused_order_leaves_its_key_free(self) -> None:
        self.assertEqual(self.order("key-00001", 11).status_code, 422)
        self.assertEqual(self.order("key-00001", 10).status_code, 201)
        self.assertEqual(self.stock(), 0)

    def test_ledger_names_what_is_missing(self) -> None:
        self.order("key-00001")
        out = StringIO()
        with patch("sys.stdin", StringIO("key-00001\n")):
            call_command("check_ledger", stdout=out)
        with patch("sys.stdin", StringIO("key-00001\nkey-00002\n")), self.assertRaises(CommandError):
            call_command("check_ledger", stdout=out)
        self.assertIn("missing key-00002", out.getvalue())

    def test_ledger_tells_an_order_that_was_applied_twice_or_in_part_by_the_pieces(self) -> None:
        before = self.ledger_says("")
        self.assertIn("30 pieces in stock and sold", before)
        for quantity in (2, 2, 3, 11):  # written, repeated, another under the same key, more than there is
            self.order("key-00001", quantity)
        self.order("key-00002", 11)
        self.assertIn("30 pieces in stock and sold", self.ledger_says(""))
        Product.objects.filter(sku="item-000001").update(stock=F("stock") - 2)
        self.assertIn("28 pieces in stock and sold", self.ledger_says(""))

    def test_release_that_does_not_know_the_counters_goes_on_writing(self) -> None:
        self.order("key-00001")
        Confirmation.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO orders_confirmation (order_id, sent, made, times)"
                " SELECT id, now(), NULL, 0 FROM orders_order"
            )
        self.assertEqual(Confirmation.objects.values_list("sent_again", "runs").get(), (0, 0))

    def test_search_report_form_and_pages_answer(self) -> None:
        self.order("key-00001")
        self.assertContains(self.client.get("/?q=rung"), "Step 1")
        self.assertNotContains(self.client.get("/?q=piano"), "Step 1")
        self.assertEqual(self.client.get("/products/item-000001/").status_code, 200)
        days = self.client.get("/reports/sales?days=7").json()["days"]
        self.assertEqual((len(days), days[-1]["orders"]), (7, 1))
        form = {"key": "key-00002", "sku": "item-000001", "quantity": "1", "customer": "Eve"}
        self.assertEqual(self.client.post("/order", form).status_code, 201)
        self.assertEqual(self.client.post("/order", form).status_code, 200)

    def test_pages_name_their_stylesheet_by_its_content(self) -> None:
        static = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, static)
        hashed = {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"}
        with override_settings(STATIC_ROOT=static, STORAGES={**settings.STORAGES, "staticfiles": hashed}):
            call_command("collectstatic", interactive=False, verbosity=0)
            for page in ("/", "/products/item-000001/", "/order"):
                named = re.search(r'href="/static/([^"]+\.[0-9a-f]{12}\.css)"', self.client.get(page).text)
                self.assertTrue(named and (Path(static) / named[1]).is_file(), page)

    def test_zero_bytes_are_no_errors(self) -> None:
        self.assertEqual(self.client.get("/?q=rung%00").status_code, 200)
        self.assertEqual(self.client.get("/api/orders/key%00-00001").status_code, 404)

    def test_admin_signs_in_and_lists_orders(self) -> None:
        self.order("key-00001")
        self.assertEqual(self.client.get("/admin/").status_code, 302)
        self.client.force_login(User.objects.create_superuser("root"))
        for page in ("/admin/orders/order/?q=key-00001", "/admin/catalogue/product/?q=item-000001"):
            self.assertEqual(self.client.get(page).status_code, 200)
        self.assertContains(self.client.get("/admin/orders/order/"), "key-00001")

    def test_migrations_are_complete(self) -> None:
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)

    def test_upload_is_checked_and_stored(self) -> None:
        media = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, media)
        page = "/products/item-000001/photo"
        self.assertEqual(self.client.post(page).status_code, 403)
        self.client.force_login(User.objects.create_superuser("root"))
        with override_settings(MEDIA_ROOT=media):
            for content, status in ((b"<html>", 400), (b"\x89PNG\r\n\x1a\n0", 302)):
                photo = SimpleUploadedFile("x.png", content)
                self.assertEqual(self.client.post(page, {"photo": photo}).status_code, status)
        self.assertTrue(Product.objects.get(sku="item-000001").photo.name.endswith(".png"))

    def test_alive_without_database_but_not_ready(self) -> None:
        self.assertEqual(self.client.get("/readyz").status_code, 200)
        with patch("shop.health.connection.cursor", side_effect=OperationalError):
            self.assertEqual(self.client.get("/readyz").status_code, 503)
            self.assertEqual(self.client.get("/healthz").status_code, 200)


class WithoutBroker(Shop):
    def test_order_is_confirmed_in_the_request(self) -> None:
        self.assertTrue(self.order("key-00001").json()["confirmed"])
        self.assertEqual(Confirmation.objects.get().times, 1)

    def test_nothing_is_sent(self) -> None:
        with patch("orders.sending.app.send_task") as sent:
            self.order("key-00001")
            self.client.get("/reports/sales?days=7")
        sent.assert_not_called()


@override_settings(CELERY_BROKER_URL="memory://")
class WithBroker(Shop):
    def setUp(self) -> None:
        super().setUp()
        sending._silent_until = 0.0
        patcher = patch("orders.sending.app.send_task")
        self.sent = patcher.start()
        self.addCleanup(patcher.stop)

    def age(self, seconds: float) -> None:
        Confirmation.objects.update(sent=timezone.now() - datetime.timedelta(seconds=seconds))

    def test_order_is_confirmed_by_the_task_once_however_often_it_runs(self) -> None:
        self.assertFalse(self.order("key-00001").json()["confirmed"])
        self.sent.assert_called_once_with("orders.tasks.confirm", ("key-00001",), retry=False)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run_and_close, ["key-00001"] * 8))
        self.assertTrue(self.client.get("/api/orders/key-00001").json()["confirmed"])
        self.assertEqual(Confirmation.objects.get().times, 1)

    def test_same_order_again_sends_nothing(self) -> None:
        self.order("key-00001")
        self.order("key-00001")
        self.sent.assert_called_once()

    def test_broker_that_is_away_fails_no_order_and_is_left_alone_for_a_while(self) -> None:
        self.sent.side_effect = BrokerError("no route to host")
        with self.assertLogs("orders.sending", "WARNING"):
            self.assertEqual(self.order("key-00001").status_code, 201)
        self.assertEqual(self.order("key-00002").status_code, 201)
        self.sent.assert_called_once()

    def test_what_was_not_taken_is_sent_again_when_it_is_overdue(self) -> None:
        self.order("key-00001")
        with patch.object(tasks.confirm, "delay") as again:
            tasks.send_again()
            again.assert_not_called()
            self.age(61)
            tasks.send_again()
            again.assert_called_once_with("key-00001")
            tasks.send_again()
            again.assert_called_once()

    def test_what_is_confirmed_is_not_sent_again(self) -> None:
        self.order("key-00001")
        tasks.confirm("key-00001")
        self.age(61)
        with patch.object(tasks.confirm, "delay") as again:
            tasks.send_again()
        again.assert_not_called()

    def test_ledger_names_what_is_not_confirmed(self) -> None:
        self.order("key-00001")
        out = StringIO()
        with patch("sys.stdin", StringIO("key-00001\n")), self.assertRaises(CommandError):
            call_command("check_ledger", stdout=out)
        self.assertIn("unconfirmed key-00001", out.getvalue())
        Confirmation.objects.update(made=timezone.now(), times=2)
        with patch("sys.stdin", StringIO("key-00001\n")):
            call_command("check_ledger", report=True, stdout=out)
        self.assertIn("0 unconfirmed, 1 confirmed twice", out.getvalue())

    def test_ledger_counts_what_was_sent_again_and_what_ran_again(self) -> None:
        self.order("key-00001")
        tasks.confirm("key-00001")
        self.assertIn("sent again 0, ran again 0", self.ledger_says("key-00001\n"))
        self.order("key-00002")
        self.age(61)
        with patch.object(tasks.confirm, "delay"):
            tasks.send_again()
        for _ in range(3):
            tasks.confirm("key-00002")
        said = self.ledger_says("key-00001\nkey-00002\n")
        self.assertIn("0 unconfirmed, 0 confirmed twice; sent again 1, ran again 2", said)

    def test_report_is_made_by_a_task_that_one_visitor_asks_for(self) -> None:
        self.order("key-00001")
        self.sent.reset_mock()
        first, second = (self.client.get("/reports/sales?days=7") for _ in range(2))
        self.assertEqual([first.status_code, second.status_code], [202, 202])
        self.assertEqual(first.json(), {"state": "being made", "days": None})
        self.sent.assert_called_once_with("orders.tasks.make_report", (7,), retry=False)
        tasks.make_report(7)
        ready = self.client.get("/reports/sales?days=7").json()
        self.assertEqual((ready["state"], len(ready["days"]), ready["days"][-1]["orders"]), ("ready", 7, 1))

    def test_report_that_no_broker_took_is_asked_for_again(self) -> None:
        self.sent.side_effect = BrokerError("no route to host")
        with self.assertLogs("orders.sending", "WARNING"):
            self.assertEqual(self.client.get("/reports/sales?days=7").status_code, 202)
        sending._silent_until = 0.0
        self.sent.side_effect = None
        self.client.get("/reports/sales?days=7")
        self.assertEqual(self.sent.call_count, 2)


def run_and_close(key: str) -> None:
    try:
        tasks.confirm(key)
    finally:
        connection.close()
