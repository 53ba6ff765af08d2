"""Money in the project's own database: ``LEDGER = "django"``, or none beside its key store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, Self

from django.db import connections, router
from django.db.models import Count, QuerySet, Sum

from ...errors import ConfigurationError
from ...ledgers.audit import faults
from ...ledgers.base import Entry, UsageRow, check_no_balances
from ...ledgers.bookkeeping import BookkeepingLedger
from ...ledgers.books import Books
from . import models
from .books import DjangoBooks, entry_of
from .database import named_errors, transaction_on
from .key_store import UPGRADE


class DjangoLedger(BookkeepingLedger):
    """Balances and entries in the app's tables, wherever the project's routers put them.

    ``clock``, seconds since 1970, replaces the database's own in tests. Who looks at much
    at once must be ``patient``: callers are not made to wait.
    """

    def __init__(self, *, clock: Callable[[], float] | None = None, patient: bool = False) -> None:
        self._clock = clock
        self._reading = _patiently_reading if patient else _reading

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        alias = _alias()
        if not connections.settings[alias]["AUTOCOMMIT"]:
            raise ConfigurationError(
                f"ledger: DATABASES[{alias!r}]['AUTOCOMMIT'] is False, so nothing would be "
                "committed before a provider is called; remove it"
            )
        check_no_balances(settings)
        return super().from_settings(settings, url)

    def upgrade(self) -> str:
        return UPGRADE

    def entries(
        self, account: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterable[Entry]:
        rows = _within(account, since, until).order_by("settled_at", "request_id")
        with self._reading():
            return [entry_of(row) for row in rows]

    def usage(
        self,
        account: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Literal["day", "model"] = "day",
    ) -> Iterable[UsageRow]:
        groups = _within(account, since, until).values_list("model" if by == "model" else "day")
        sums = groups.annotate(
            Count("request_id"), Sum("prompt_tokens"), Sum("completion_tokens"), Sum("cost")
        )
        with self._reading():
            return [
                UsageRow(name, *map(int, figures))
                for name, *figures in sums.order_by("model" if by == "model" else "day")
            ]

    def patient(self) -> DjangoLedger:
        return DjangoLedger(clock=self._clock, patient=True)

    def audit(self) -> list[str]:
        with _patiently_reading() as connection:
            return list(faults(DjangoBooks(connection)))

    @contextlib.contextmanager
    def begin(self, *, reading: bool = False) -> Iterator[Books]:
        """See :class:`~oneai_middleware.ledgers.bookkeeping.BookkeepingLedger`."""
        with transaction_on(_alias(), reading=reading) as connection:
            yield DjangoBooks(connection, self._clock)


def _reading() -> contextlib.AbstractContextManager[Any]:
    return transaction_on(_alias(), reading=True)


@contextlib.contextmanager
def _patiently_reading() -> Iterator[Any]:
    """The connection for a statement that may take long, because nobody waits for it."""
    connection = connections[_alias()]
    with named_errors(connection, nested=True):
        yield connection


def _within(
    account: str, since: datetime | None, until: datetime | None
) -> QuerySet[models.Entry, models.Entry]:
    rows = models.Entry.objects.using(_alias()).filter(account=account)
    if since is not None:
        rows = rows.filter(settled_at__gte=since)
    if until is not None:
        rows = rows.filter(settled_at__lt=until)
    return rows


def _alias() -> str:
    # Also for reading: a replica may not know yet what was written.
    return router.db_for_write(models.Balance)
