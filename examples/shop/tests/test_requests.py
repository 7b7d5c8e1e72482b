"""Pure: no database, no settings."""

import unittest

from catalogue.uploads import RefusedUpload, accepted_name
from orders.requests import BadOrder, checked_key, parse_order

ITEM = {"sku": "item-1", "quantity": 2}


class Requests(unittest.TestCase):
    def test_same_meaning_has_same_fingerprint(self) -> None:
        other = {"sku": "a", "quantity": 1}
        first = parse_order({"customer": "Eve", "items": [ITEM, other]})
        second = parse_order({"items": [other, ITEM], "customer": "Eve"})
        self.assertEqual(first.fingerprint, second.fingerprint)

    def test_another_quantity_has_another_fingerprint(self) -> None:
        first = parse_order({"customer": "Eve", "items": [ITEM]})
        second = parse_order({"customer": "Eve", "items": [{**ITEM, "quantity": 3}]})
        self.assertNotEqual(first.fingerprint, second.fingerprint)

    def test_what_is_no_order_is_refused(self) -> None:
        for items in (None, [], [ITEM, ITEM], [{"sku": "a", "quantity": True}], [{"sku": "a b"}]):
            with self.subTest(items=items), self.assertRaises(BadOrder):
                parse_order({"customer": "Eve", "items": items})

    def test_key_needs_eight_harmless_characters(self) -> None:
        self.assertEqual(checked_key("a.b_c:d-8"), "a.b_c:d-8")
        for key in (None, "short", "x" * 101, "with space", "newline1\n"):
            with self.subTest(key=key), self.assertRaises(BadOrder):
                checked_key(key)


class Uploads(unittest.TestCase):
    def test_content_decides_the_extension(self) -> None:
        self.assertTrue(accepted_name(b"\x89PNG\r\n\x1a\n...", 9, 10).endswith(".png"))

    def test_page_and_big_file_are_refused(self) -> None:
        for head, size in ((b"<html>", 6), (b"GIF89a", 11)):
            with self.subTest(head=head), self.assertRaises(RefusedUpload):
                accepted_name(head, size, 10)
