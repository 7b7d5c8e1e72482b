"""Needs a PostgreSQL on which the user may create a database."""

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from unittest.mock import patch

from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.utils import OperationalError
from django.test import Client, TransactionTestCase, override_settings

from catalogue.models import Product
from orders.models import Order


class Site(TransactionTestCase):
    def setUp(self) -> None:
        cache.clear()
        call_command("seed_shop", products=3, stock=10, stdout=StringIO())

    def order(self, key: str, quantity: int = 1, sku: str = "item-000001"):
        body = {"customer": "Eve", "items": [{"sku": sku, "quantity": quantity}]}
        return Client().post("/api/orders", json.dumps(body), "application/json", headers={"Idempotency-Key": key})

    def stock(self) -> int:
        return Product.objects.get(sku="item-000001").stock

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
