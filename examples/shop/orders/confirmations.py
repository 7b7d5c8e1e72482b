"""Confirming an order exactly once, in the background where there is a broker.

The promise is a row that is written with the order, so it is kept whatever becomes of the message: a broker that does
not answer, a message that is lost or delivered twice, a worker that dies half way.
"""

import datetime

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from orders import sending
from orders.models import Confirmation, Order
from shop.celery import has_broker

SEND_AGAIN_AFTER = datetime.timedelta(seconds=60)
AT_ONCE = 500


def promise(order: Order) -> None:
    """To be called in the transaction that writes the order."""
    Confirmation.objects.create(order=order, sent=timezone.now())
    if has_broker():
        transaction.on_commit(lambda: sending.send("orders.tasks.confirm", order.key))
    else:
        make(order.key)


def make(key: str) -> bool:
    """Confirm the order unless that is done; whether this call did it."""
    with transaction.atomic():
        # Whoever comes second waits here, and then finds it made. Each run counts, so that one for nothing shows.
        Confirmation.objects.filter(order__key=key).update(runs=F("runs") + 1)
        found = Confirmation.objects.select_for_update().get(order__key=key)
        if found.made:
            return False
        # A real shop would send its mail here. Counted by the database, so that a second time would show.
        found.made, found.times = timezone.now(), F("times") + 1
        found.save(update_fields=["made", "times"])
        return True


def overdue() -> list[str]:
    """The keys of orders whose task should have run by now; they count as sent at this moment."""
    now = timezone.now()
    with transaction.atomic():
        waiting = (
            Confirmation.objects.filter(made=None, sent__lt=now - SEND_AGAIN_AFTER)
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("order")
            .order_by("sent")[:AT_ONCE]
        )
        found = list(waiting)
        Confirmation.objects.filter(pk__in=[one.pk for one in found]).update(sent=now, sent_again=F("sent_again") + 1)
        return [one.order.key for one in found]
