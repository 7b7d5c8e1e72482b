"""Tasks may run more than once, or later than another: each looks first at what is there."""

import time

from celery import shared_task
from django.db.models import F

from orders import confirmations, report
from orders.models import LongTask


@shared_task
def confirm(key: str) -> None:
    confirmations.make(key)


@shared_task
def send_again() -> None:
    """What a broker has not taken, or has lost, is sent once more."""
    for key in confirmations.overdue():
        confirm.delay(key)


@shared_task
def make_report(days: int) -> None:
    report.make(days)


@shared_task
def take_time(name: str, seconds: float) -> None:
    """Take so many seconds and count how often it began and ended."""
    LongTask.objects.filter(name=name).update(began=F("began") + 1)
    time.sleep(seconds)
    LongTask.objects.filter(name=name).update(ended=F("ended") + 1)
