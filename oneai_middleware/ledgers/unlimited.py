"""The ledger of a house that does not sell: it records and never refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from ..accounts import Period
from ..errors import ConfigurationError
from .base import Entry, check_no_balances
from .memory import MemoryLedger


class UnlimitedLedger(MemoryLedger):
    """Every account is invoiced: its calls are recorded and no money is asked for.

    What a key may spend in all, its budget, still holds.
    """

    one_process = False  # there is no balance that several workers could each spend

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is not None:
            raise ConfigurationError(f"ledger: {cls.__name__} is not configured by a URL")
        check_no_balances(settings)
        return cls()

    def hold(
        self,
        draft: Entry,
        *,
        least: int,
        most: int,
        lease: float,
        budget: int | None = None,
        period: Period | None = None,
    ) -> int:
        return super().hold(
            _invoiced(draft), least=least, most=most, lease=lease, budget=budget, period=period
        )

    def checkpoint(self, draft: Entry, *, lease: float) -> None:
        super().checkpoint(_invoiced(draft), lease=lease)

    def settle(self, entry: Entry) -> Entry:
        return super().settle(_invoiced(entry))


def _invoiced(entry: Entry) -> Entry:
    return entry._replace(prepaid=False)
