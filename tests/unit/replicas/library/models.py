from django.db import models


class Book(models.Model):
    """The first one's title is the name of the database that it is in."""

    title = models.TextField()


class Chapter(models.Model):
    book = models.ForeignKey(Book, models.CASCADE)
    title = models.TextField()


class Ledger(models.Model):
    """The project's own router keeps it in the default database."""

    title = models.TextField()


class Scan(models.Model):
    """The project's own router keeps it in another one."""

    title = models.TextField()
