"""What the project keeps in its database."""

from django.db import models


class Note(models.Model):
    """A text."""

    text = models.CharField(max_length=100)
