"""What a client asks for, checked, without a database."""

import hashlib
import json
import re
from dataclasses import dataclass

KEY = re.compile(r"[A-Za-z0-9._:-]{8,100}")


class BadOrder(ValueError):
    """The request cannot be an order; the message says why."""


@dataclass(frozen=True)
class OrderRequest:
    customer: str
    items: tuple[tuple[str, int], ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the meaning: order of items and spelling of the JSON do not matter."""
        meaning = json.dumps([self.customer, self.items])
        return hashlib.sha256(meaning.encode()).hexdigest()


def checked_key(key: str | None) -> str:
    if not key or not KEY.fullmatch(key):
        raise BadOrder("Idempotency-Key: send 8 to 100 letters, digits or . _ : -")
    return key


def parse_order(data: object) -> OrderRequest:
    """The order in `{"customer": ..., "items": [{"sku": ..., "quantity": ...}]}`."""
    if not isinstance(data, dict):
        raise BadOrder("Send a JSON object.")
    customer = data.get("customer")
    if not isinstance(customer, str) or not 1 <= len(customer) <= 120 or "\x00" in customer:
        raise BadOrder("customer: send 1 to 120 characters.")
    rows = data.get("items")
    if not isinstance(rows, list) or not 1 <= len(rows) <= 100:
        raise BadOrder("items: send a list of 1 to 100 items.")
    items: dict[str, int] = {}
    for row in rows:
        sku = row.get("sku") if isinstance(row, dict) else None
        quantity = row.get("quantity") if isinstance(row, dict) else None
        if not isinstance(sku, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", sku):
            raise BadOrder("items: each needs a sku.")
        if type(quantity) is not int or not 1 <= quantity <= 1000:
            raise BadOrder("items: each needs a quantity from 1 to 1000.")
        if sku in items:
            raise BadOrder(f"items: {sku} is there twice.")
        items[sku] = quantity
    return OrderRequest(customer, tuple(sorted(items.items())))
