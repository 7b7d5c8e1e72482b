import time
import uuid
from argparse import ArgumentParser

from django.core.management.base import BaseCommand

from orders import tasks
from orders.models import LongTask


class Command(BaseCommand):
    help = "Send tasks that take their time, or, with --of, say what has become of those that were sent before."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=8)
        parser.add_argument("--seconds", type=float, default=5)
        parser.add_argument("--of", default="", help="the word that an earlier call printed")

    def handle(self, *args: object, count: int, seconds: float, of: str, **options: object) -> None:
        if of:
            found = LongTask.objects.filter(name__startswith=f"{of}-")
            began, ended = (found.filter(**{f"{what}__gt": 0}).count() for what in ("began", "ended"))
            again = found.filter(began__gt=1).count()
            self.stdout.write(f"{found.count()} tasks, {began} begun, {ended} ended, {again} begun again")
            return
        word = f"{int(time.time())}{uuid.uuid4().hex[:6]}"
        names = [f"{word}-{number}" for number in range(count)]
        LongTask.objects.bulk_create(LongTask(name=name) for name in names)
        for name in names:
            tasks.take_time.delay(name, seconds)
        self.stdout.write(word)
