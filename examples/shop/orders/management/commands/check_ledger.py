import sys
from argparse import ArgumentParser
from collections import Counter

from django.core.management.base import BaseCommand, CommandError

from orders.models import Order


class Command(BaseCommand):
    help = "Read acknowledged keys on stdin, one a line; say which are missing or doubled."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--report", action="store_true", help="say it, and do not fail")

    def handle(self, *args: object, report: bool, **options: object) -> None:
        keys = sorted({line.strip() for line in sys.stdin} - {""})
        found: Counter[str] = Counter()
        for start in range(0, len(keys), 1000):
            found.update(Order.objects.filter(key__in=keys[start : start + 1000]).values_list("key", flat=True))
        missing = [key for key in keys if not found[key]]
        doubled = [key for key, times in found.items() if times > 1]
        for word, bad in (("missing", missing), ("doubled", doubled)):
            for key in bad:
                self.stdout.write(f"{word} {key}")
        self.stdout.write(f"{len(keys)} keys, {len(missing)} missing, {len(doubled)} doubled")
        if (missing or doubled) and not report:
            raise CommandError("The ledger does not hold every acknowledged order exactly once.")
