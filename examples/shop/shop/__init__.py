# Tasks find their application by this, in whatever process they are sent from.
from shop.celery import app as celery_app

__all__ = ["celery_app"]
