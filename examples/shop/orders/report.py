"""The report that gets slow as the site grows: it reads every order of the period.

With a broker a task makes it, and a visitor gets the newest there is; without one it is made in the request.
"""

import datetime

from django.core.cache import cache
from django.db import connection
from django.db.models import Q
from django.utils import timezone

from orders import sending
from orders.models import SalesReport
from shop.celery import has_broker

FRESH = datetime.timedelta(seconds=30)  # nobody needs it to the second
ASK_AGAIN = datetime.timedelta(minutes=5)  # a task that was asked for this long ago is not waited for any more

SALES_BY_DAY = """
WITH sales AS (
    SELECT o.created::date AS day, o.id, l.quantity, l.quantity::bigint * l.price_cents AS cents
    FROM orders_order o JOIN orders_orderline l ON l.order_id = o.id
    WHERE o.created >= current_date - %(days)s::int
)
SELECT d::date AS day,
       count(DISTINCT s.id) AS orders,
       coalesce(sum(s.quantity), 0)::bigint AS pieces,
       coalesce(sum(s.cents), 0)::bigint AS cents,
       coalesce(avg(sum(s.cents)) OVER week, 0)::bigint AS cents_week_average,
       coalesce(sum(sum(s.cents)) OVER (ORDER BY d), 0)::bigint AS cents_so_far
FROM generate_series(current_date - %(days)s::int + 1, current_date, interval '1 day') AS d
LEFT JOIN sales s ON s.day = d::date
GROUP BY d
WINDOW week AS (ORDER BY d ROWS BETWEEN 6 PRECEDING AND CURRENT ROW)
ORDER BY d
"""


def newest(days: int) -> tuple[str, list[dict[str, object]] | None]:
    """("ready" or "being made", the newest rows, None when there are none yet)."""
    if not has_broker():
        return "ready", cache.get_or_set(f"sales-{days}", lambda: read(days), FRESH.seconds)
    found, _ = SalesReport.objects.get_or_create(days=days)
    now = timezone.now()
    if found.made and found.made > now - FRESH:
        return "ready", found.rows
    # Only one visitor of many asks for it.
    asks = SalesReport.objects.filter(Q(asked=None) | Q(asked__lt=now - ASK_AGAIN), days=days).update(asked=now)
    if asks and not sending.send("orders.tasks.make_report", days):
        SalesReport.objects.filter(days=days).update(asked=None)
    return "being made", found.rows


def make(days: int) -> None:
    SalesReport.objects.filter(days=days).update(rows=read(days), made=timezone.now(), asked=None)


def read(days: int) -> list[dict[str, object]]:
    with connection.cursor() as cursor:
        cursor.execute(SALES_BY_DAY, {"days": days})
        names = [column.name for column in cursor.description]
        return [{n: v.isoformat() if n == "day" else v for n, v in zip(names, row, strict=True)} for row in cursor]
