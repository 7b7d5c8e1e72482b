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
