"""Writing an order exactly once, whatever is sent twice, at once or again after a crash."""

from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from catalogue.models import Product
from orders import confirmations
from orders.models import Order, OrderLine
from orders.requests import OrderRequest

# One statement, so that both are of the same moment.
PIECES = """
SELECT coalesce((SELECT sum(stock) FROM catalogue_product), 0)
     + coalesce((SELECT sum(quantity) FROM orders_orderline), 0)
"""


class KeyTaken(Exception):
    """The key already names an order with another content."""


class CannotSell(Exception):
    """A product does not exist or has too little stock."""


def place_order(key: str, wanted: OrderRequest) -> tuple[Order, bool]:
    """The order of that key, and whether this call wrote it; KeyTaken or CannotSell otherwise."""
    with transaction.atomic():
        # The insert waits for another transaction with the same key to end: either it
        # committed, and its order is ours to return, or it rolled back, and we write.
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO orders_order (key, fingerprint, customer, created)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (key) DO NOTHING RETURNING id",
                [key, wanted.fingerprint, wanted.customer, timezone.now()],
            )
            written = cursor.fetchone() is not None
        order = Order.objects.get(key=key)
        if not written:
            if order.fingerprint != wanted.fingerprint:
                raise KeyTaken(f"The key {key} names another order.")
            return order, False
        products = {p.sku: p for p in Product.objects.filter(sku__in=dict(wanted.items))}
        # Items are sorted by sku, so rows are locked in one order and orders cannot deadlock.
        for sku, quantity in wanted.items:
            if sku not in products:
                raise CannotSell(f"There is no product {sku}.")
            enough = Product.objects.filter(sku=sku, stock__gte=quantity)
            if not enough.update(stock=F("stock") - quantity):
                raise CannotSell(f"There are not {quantity} of {sku} in stock.")
        OrderLine.objects.bulk_create(
            OrderLine(
                order=order,
                product=products[sku],
                quantity=quantity,
                price_cents=products[sku].price_cents,
            )
            for sku, quantity in wanted.items
        )
        confirmations.promise(order)
        return order, True


def pieces() -> int:
    """How many pieces are in stock or sold. Orders leave it as it is, unless one is applied twice, or in part."""
    with connection.cursor() as cursor:
        cursor.execute(PIECES)
        return int(cursor.fetchone()[0])
