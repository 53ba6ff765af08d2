"""What the models' columns are made of: names, moments, sums that stay above zero,
and what becomes of a row that others refer to."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import django
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import PROTECT, CharField, CheckConstraint, Field, Q
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
    To look for one: ``exact``, ``in``, ``gt``, ``gte``, ``lt``, ``lte``, ``range`` and
    ``isnull``, with what :meth:`to_python` takes. The database knows it as a number:
    there is no ``date``, no ``year`` and no other part of it, and no ``Trunc``.
    """

    def get_internal_type(self) -> str:
        """The kind of column."""
        return "BigIntegerField"

    def from_db_value(self, value: int | None, *_: Any) -> datetime | None:
        """What Python sees of a column."""
        return None if value is None else EPOCH + timedelta(microseconds=value)

    def to_python(self, value: Any) -> datetime | None:
        """A ``datetime``, a ``date`` (its first moment) or one of the two in ISO 8601, as
        a moment. Without a time zone it is in the project's.

        :raises ValidationError: it is none of these.
        """
        if value is None or value == "":
            return None
        try:
            if isinstance(value, date) and not isinstance(value, datetime):
                value = datetime.combine(value, time.min)
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return aware(moment).astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            raise ValidationError(f"{value!r} is no date and no time", code="invalid") from None

    def get_prep_value(self, value: Any) -> int | None:
        """What the column holds of ``value``, which is as for :meth:`to_python`."""
        moment = self.to_python(super().get_prep_value(value))
        return None if moment is None else (moment - EPOCH) // timedelta(microseconds=1)

    def value_to_string(self, obj: Any) -> str:
        """The moment in ISO 8601, for fixtures."""
        value = self.value_from_object(obj)
        return "" if value is None else value.isoformat()

    def formfield(self, **kwargs: Any) -> Any:
        """A field for a date and a time."""
        return super().formfield(**{"form_class": MomentFormField, **kwargs})


class MomentFormField(forms.DateTimeField):
    """A moment as the project's pages write it."""

    def prepare_value(self, value: Any) -> Any:
        """The moment as it is shown."""
        return super().prepare_value(local(value) if isinstance(value, datetime) else value)

    def to_python(self, value: Any) -> datetime | None:
        """What is written, as a moment."""
        written = super().to_python(value)
        return None if written is None else aware(written)


def local(moment: datetime) -> datetime:
    """The moment as pages show it: without a time zone where the project has none
    (``USE_TZ``). Where it has, Django sees to that itself."""
    if settings.USE_TZ or timezone.is_naive(moment):
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def aware(moment: datetime) -> datetime:
    """The moment, in the project's time zone where it has none."""
    if timezone.is_aware(moment):
        return moment
    return timezone.make_aware(moment, timezone.get_default_timezone())


def now() -> datetime:
    """The time, for rows that are made here."""
    return datetime.now(UTC)


def never_below_zero(column: str, name: str) -> CheckConstraint:
    """The constraint ``name``: no row has less than zero in ``column``."""
    argument = "condition" if django.VERSION >= (5, 1) else "check"
    return CheckConstraint(name=name, **{argument: Q(**{f"{column}__gte": 0})})  # type: ignore[arg-type]


def protect(collector: Any, field: Any, sub_objs: Any, using: str) -> None:
    """``PROTECT`` for what is referred to from another database, too.

    :raises ProtectedError: somebody refers to it.
    """
    rows = sub_objs.select_related(None).using(router.db_for_write(field.model))
    if rows:
        PROTECT(collector, field, rows, using)


# Or Django would ask the database of what is deleted, where our tables may not be.
protect.lazy_sub_objs = True  # type: ignore[attr-defined]
