"""Background work. Without a broker nothing is sent, and what tasks would do is done in the request."""

import os

from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def has_broker() -> bool:
    return bool(getattr(settings, "CELERY_BROKER_URL", ""))
