"""What the models' columns are made of: names, moments, sums that stay above zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import django
from django import forms
from django.db.models import CharField, CheckConstraint, Field, Q
from django.utils import timezone

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Of MariaDB and MySQL: two names are the same only if every byte is, spaces at the end too.
_EXACT = {True: "utf8mb4_nopad_bin", False: "utf8mb4_0900_bin"}


class NameField(CharField):  # type: ignore[type-arg]
    """A text that is another's equal only if every byte is, in every database."""

    def db_type(self, connection: Any) -> str | None:
        """The column's type; MySQL's own would take ``a`` for ``A``."""
        kind = super().db_type(connection)
        if connection.vendor != "mysql":
            return kind
        return f"{kind} CHARACTER SET utf8mb4 COLLATE {_EXACT[connection.mysql_is_mariadb]}"


class MomentField(Field):  # type: ignore[type-arg]
    """A moment: microseconds since 1970 in the database, a ``datetime`` in UTC in Python.

    It means the same in every database and with every ``TIME_ZONE`` and ``USE_TZ``.
    """

    def get_internal_type(self) -> str:
        """The kind of column."""
        return "BigIntegerField"

    def from_db_value(self, value: int | None, *_: Any) -> datetime | None:
        """What Python sees of a column."""
        return None if value is None else EPOCH + timedelta(microseconds=value)

    def to_python(self, value: Any) -> datetime | None:
        """What is written in a form or a fixture, as a moment."""
        moment: datetime | None = forms.DateTimeField(required=False).clean(value)
        return moment

    def get_prep_value(self, value: Any) -> int | None:
        """What the column holds of ``value``; without a time zone it is in the project's."""
        moment = super().get_prep_value(value)
        if moment is None:
            return None
        if timezone.is_naive(moment):
            moment = timezone.make_aware(moment, timezone.get_default_timezone())
        micros: int = (moment - EPOCH) // timedelta(microseconds=1)
        return micros

    def value_to_string(self, obj: Any) -> str:
        """The moment in ISO 8601, for fixtures."""
        value = self.value_from_object(obj)
        return "" if value is None else value.isoformat()

    def formfield(self, **kwargs: Any) -> Any:
        """A field for a date and a time."""
        return super().formfield(**{"form_class": forms.DateTimeField, **kwargs})


def now() -> datetime:
    """The time, for rows that are made here."""
    return datetime.now(UTC)


def never_below_zero(column: str, name: str) -> CheckConstraint:
    """The constraint ``name``: no row has less than zero in ``column``."""
    argument = "condition" if django.VERSION >= (5, 1) else "check"
    return CheckConstraint(name=name, **{argument: Q(**{f"{column}__gte": 0})})  # type: ignore[arg-type]
