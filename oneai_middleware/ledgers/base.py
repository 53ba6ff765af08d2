"""The ledger family: what a plug-in author implements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Self

from ..accounts import MOST_MONEY, Period, check_name
from ..errors import ConfigurationError


class Entry(NamedTuple):
    """One call in the books: drafted at the hold, completed at the settlement.

    Prices are nano-dollars per token and ``cost`` nano-dollars, all integers;
    they are written down here, so a later change of price alters no past row.
    ``cached_price`` is the price of cached prompt tokens. ``outcome`` is
    ``"answered"`` or the cause of the end; ``duration`` is in seconds;
    ``settled_at`` is filled in by the store, from its own clock. An entry that is
    not ``prepaid`` is recorded and touches no balance.
    """

    request_id: str
    account: str
    key: str | None = None
    model: str = ""
    provider: str = ""
    input_price: int = 0
    output_price: int = 0
    cached_price: int = 0
    prepaid: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    outcome: str = ""
    cost: int = 0
    duration: float = 0.0
    settled_at: datetime | None = None


class Balance(NamedTuple):
    """An account's money in nano-dollars: ``available + held + spent == topped_up``.

    ``invoiced`` is the cost of calls that were not prepaid.
    """

    available: int = 0
    held: int = 0
    spent: int = 0
    topped_up: int = 0
    invoiced: int = 0


class UsageRow(NamedTuple):
    """Calls, tokens and cost (nano-dollars) of one group of entries."""

    group: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: int


def budget_window(period: Period | None, at: datetime) -> str:
    """The name of the UTC day or month that ``at`` lies in; ``""`` without a period."""
    if period is None:
        return ""
    return at.astimezone(UTC).strftime("%Y-%m-%d" if period == "day" else "%Y-%m")


ABANDONED = "abandoned"
"""The outcome of a call that the sweep gave up as lost. Should it come back, its row is
completed."""


def check_top_up(account: str, amount: int, reference: str) -> None:
    """See that a top-up can be booked as it is.

    :raises ValueError: it cannot.
    """
    if type(amount) is not int or amount <= 0:
        raise ValueError(f"a top-up is whole nano-dollars above zero, not {amount!r}")
    check_total(amount)
    check_name("account", account)
    check_name("reference", reference)


def check_no_balances(settings: Mapping[str, Any]) -> None:
    """See that no account in the settings has a balance, which only memory reads.

    :raises ConfigurationError: one has.
    """
    for name, row in settings.get("accounts", {}).items():
        if isinstance(row, Mapping) and "balance" in row:
            raise ConfigurationError(
                f"accounts[{name!r}]: only the ledger 'memory' reads a balance; remove it here "
                "and top the account up"
            )


def check_cost(entry: Entry) -> None:
    """See that a call takes money, and gives none.

    :raises ValueError: it does not.
    """
    if type(entry.cost) is not int or entry.cost < 0:
        raise ValueError(f"a cost is whole nano-dollars, not below zero, not {entry.cost!r}")


def check_total(amount: int) -> None:
    """See that an account may own so much.

    :raises ValueError: it may not.
    """
    if amount > MOST_MONEY:
        raise ValueError("the account would own more than four billion dollars")


class Ledger:
    """Balances and the record of every call, in integer nano-dollars.

    A call first *holds* what it may cost, then *settles* what it did cost. A hold
    carries a lease in seconds (the store owns its clock) and a *floor*, the cost
    so far: when a worker dies, the sweep settles its holds at the floor once the
    lease is over. Nothing ever takes a balance below zero.
    """

    one_process = False
    """Whether the money lives in this process alone, so that several workers
    would each have their own."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        """A ledger as the settings describe it; ``url`` where the setting is one.

        :raises ConfigurationError: naming the setting and the fix.
        """
        if url is not None:
            raise ConfigurationError(f"ledger: {cls.__name__} is not configured by a URL")
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
        """Set aside up to ``most`` nano-dollars for the call; the amount held.

        Everything available is held when that lies between ``least`` and
        ``most``. ``budget`` is the most the draft's key may spend in each ``period``
        of the store's clock, or without one in all; what its calls hold counts. A draft
        that is not prepaid holds nothing of the account's, and gets ``most`` within the
        budget.

        :raises InsufficientBalance: the account does not own ``least``.
        :raises BalanceOnHold: it does, but other calls hold it.
        :raises KeyBudgetExhausted: the key's budget does not allow ``least``.
        :raises StoreUnavailable: when the ledger cannot tell.
        """
        raise NotImplementedError

    def checkpoint(self, draft: Entry, *, lease: float) -> None:
        """The call lives: ``draft.cost`` is its floor, its lease starts anew.

        A cost above the hold enlarges the hold from what is available and within the
        key's budget, and the draft's figures are what the sweep would write. Of a call
        that has been settled nothing is changed.

        :raises InsufficientBalance: the hold cannot grow to the cost; the floor
            and the lease are renewed all the same.
        :raises HoldLost: the sweep has settled the call: it must end.
        """
        raise NotImplementedError

    def settle(self, entry: Entry) -> Entry:
        """Close the hold, charge ``entry.cost`` and write the row, as one act.

        The cost is cut to what is held and available together; the row as written
        is returned. It is real, and may go beyond the key's budget. A cost of 0 releases
        the hold and records the call. Idempotent per request id: the second time, the
        first row is returned, but for one that the sweep has written (:data:`ABANDONED`),
        which is completed.

        :raises ValueError: the cost is below zero.
        """
        raise NotImplementedError

    def top_up(self, account: str, amount: int, reference: str) -> bool:
        """Add ``amount`` nano-dollars; false if ``reference`` was booked before.

        :raises ReferenceConflict: the reference was booked with another amount or
            for another account.
        :raises ValueError: the amount is not a whole number above zero, or a name is
            none that can be written down.
        """
        raise NotImplementedError

    def balance(self, account: str) -> Balance:
        """The account's money; all zeros for an account never seen."""
        raise NotImplementedError

    def entries(
        self, account: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> Iterable[Entry]:
        """The account's calls, oldest first, from ``since`` up to before ``until``."""
        raise NotImplementedError

    def usage(
        self,
        account: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: Literal["day", "model"] = "day",
    ) -> Iterable[UsageRow]:
        """The account's calls summed up by UTC day (``YYYY-MM-DD``) or by model."""
        raise NotImplementedError

    def upgrade(self) -> str | None:
        """Make or change tables to the version this package wants; what was done, in
        words. ``None`` where there are none to see to."""
        return None

    def patient(self) -> Ledger:
        """The same ledger for somebody who has time, and looks at much at once."""
        return self

    def sweep(self) -> int:
        """Settle at their floor all holds whose lease is over; how many there were."""
        raise NotImplementedError

    def audit(self) -> list[str]:
        """A sentence for every account whose books do not add up; none is good."""
        raise NotImplementedError
