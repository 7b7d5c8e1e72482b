import sys
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator

from django.core.management.base import BaseCommand, CommandError

from orders.models import Confirmation, Order


class Command(BaseCommand):
    help = "Read acknowledged keys on stdin, one a line; say which are missing or doubled, and which unconfirmed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--report", action="store_true", help="say it, and do not fail")
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
            times = dict(of_keys(Confirmation.objects.values_list("order__key", "times"), "order__key", list(there)))
            found["unconfirmed"] = [key for key in there if not times.get(key)]
            if not found["unconfirmed"] or time.monotonic() > end:
                break
            time.sleep(1)
        found["confirmed twice"] = [key for key, number in times.items() if number > 1]
        for word, bad in found.items():
            for key in bad:
                self.stdout.write(f"{word} {key}")
        counted = ", ".join(f"{len(bad)} {word}" for word, bad in found.items())
        self.stdout.write(f"{len(keys)} keys, {counted}")
        if any(found.values()) and not report:
            raise CommandError("Not every acknowledged order is in the ledger and confirmed, each exactly once.")


def of_keys(rows, field: str, keys: list[str]) -> Iterator:
    for start in range(0, len(keys), 1000):
        yield from rows.filter(**{f"{field}__in": keys[start : start + 1000]})
