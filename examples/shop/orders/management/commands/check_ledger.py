import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator

from django.core.management.base import BaseCommand, CommandError

from orders.ledger import pieces
from orders.models import Confirmation, Order


class Command(BaseCommand):
    help = "Read acknowledged keys on stdin, one a line; say which are missing or doubled, and which unconfirmed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--report", action="store_true", help="say it and more, and do not fail")
        parser.add_argument("--wait", type=float, default=0, help="seconds in which confirmations may still be made")

    def handle(self, *args: object, report: bool, wait: float, **options: object) -> None:
        keys = sorted({line.strip() for line in sys.stdin} - {""})
        there = Counter(of_keys(Order.objects.values_list("key", flat=True), "key", keys))
        found = {
            "missing": [key for key in keys if not there[key]],
            "doubled": [key for key, number in there.items() if number > 1],
        }
        end = time.monotonic() + wait
        while True:
            made = list(of_keys(Confirmation.objects.select_related("order"), "order__key", list(there)))
            found["unconfirmed"] = sorted(there.keys() - {one.order.key for one in made if one.times})
            if not found["unconfirmed"] or time.monotonic() > end:
                break
            time.sleep(1)
        found["confirmed twice"] = [one.order.key for one in made if one.times > 1]
        for word, bad in found.items():
            for key in bad:
                self.stdout.write(f"{word} {key}")
        counted = ", ".join(f"{len(bad)} {word}" for word, bad in found.items())
        sent, ran = sum(one.sent_again for one in made), sum(max(one.runs - 1, 0) for one in made)
        # Without the report it may be asked of a database that has no table yet, as a gate before the first migration.
        more = f"; sent again {sent}, ran again {ran}; {pieces()} pieces in stock and sold" if report else ""
        self.stdout.write(f"{len(keys)} keys, {counted}{more}")
        if any(found.values()) and not report:
            raise CommandError("Not every acknowledged order is in the ledger and confirmed, each exactly once.")


def of_keys(rows, field: str, keys: list[str]) -> Iterator:
    for start in range(0, len(keys), 1000):
        yield from rows.filter(**{f"{field}__in": keys[start : start + 1000]})
