"""What the shop sells."""

from django.db import models


class Product(models.Model):
    """A row of the shelf."""

    name = models.CharField(max_length=80, unique=True)
    stock = models.PositiveIntegerField()
