from django.db import models
from django.db.models import Q


class Order(models.Model):
    """One line of the ledger: a client's key names exactly one order, forever."""

    key = models.CharField(max_length=100, unique=True)
    fingerprint = models.CharField(max_length=64)
    customer = models.CharField(max_length=120)
    created = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.key


class Confirmation(models.Model):
    """The order's confirmation: promised in the order's own transaction, made by a task, exactly once.

    A real shop would send a mail where `times` is raised.
    """

    order = models.OneToOneField(Order, on_delete=models.CASCADE, related_name="confirmation")
    sent = models.DateTimeField(help_text="when the task was last sent, or tried to be")
    made = models.DateTimeField(null=True)
    times = models.PositiveIntegerField(default=0)
    # Of these the database knows the default: releases that do not know the columns go on writing rows.
    sent_again = models.IntegerField(db_default=0, help_text="how often the task was sent after the first time")
    runs = models.IntegerField(db_default=0, help_text="how often the task ran, with or without something to do")

    class Meta:
        indexes = [
            models.Index(fields=["sent"], condition=Q(made__isnull=True), name="confirmation_waiting"),
        ]


class SalesReport(models.Model):
    """The newest report on so many days, and whether another is being made."""

    days = models.PositiveIntegerField(unique=True)
    rows = models.JSONField(null=True)
    made = models.DateTimeField(null=True)
    asked = models.DateTimeField(null=True, help_text="when the one that is being made was asked for")


class LongTask(models.Model):
    """A task that takes its time, for trying what becomes of it when machines fail."""

    name = models.CharField(max_length=100, unique=True)
    began = models.PositiveIntegerField(default=0)
    ended = models.PositiveIntegerField(default=0)


class OrderLine(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.ForeignKey("catalogue.Product", on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()
    price_cents = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(quantity__gte=1), name="line_quantity_positive"),
            models.UniqueConstraint(fields=["order", "product"], name="line_once_per_product"),
        ]
