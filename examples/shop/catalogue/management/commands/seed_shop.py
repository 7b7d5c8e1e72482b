from argparse import ArgumentParser

from django.core.management.base import BaseCommand

from catalogue.models import Product


class Command(BaseCommand):
    help = "Make sure that the first N products exist; existing ones stay as they are."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--products", type=int, default=100)
        parser.add_argument("--stock", type=int, default=1_000_000)

    def handle(self, *args: object, products: int, stock: int, **options: object) -> None:
        before = Product.objects.count()
        Product.objects.bulk_create(
            (
                Product(
                    sku=f"item-{number:06d}",
                    name=f"Step {number}",
                    description=f"A ladder's step with {number % 9 + 1} rungs.",
                    price_cents=100 + number * 37 % 9900,
                    stock=stock,
                )
                for number in range(1, products + 1)
            ),
            ignore_conflicts=True,
            batch_size=1000,
        )
        self.stdout.write(f"{Product.objects.count() - before} products added")
