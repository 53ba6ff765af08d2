"""Why a ledger refuses, in the words of all of them."""

from __future__ import annotations

from ..errors import (
    APIError,
    BalanceOnHold,
    InsufficientBalance,
    KeyBudgetExhausted,
    ReferenceConflict,
)


def no_room(least: int, owned: int | None, unspent: int | None) -> APIError:
    """Why a call cannot hold ``least``: for want of money, or of patience. ``owned`` is what
    its account has, on hold or not, and ``unspent`` what is left of its key's budget, in
    nano-dollars; ``None`` is without end."""
    if owned is not None and owned < least:
        return InsufficientBalance("The balance of this account does not cover the request.")
    if unspent is not None and unspent < least:
        return KeyBudgetExhausted("The budget of this API key does not cover the request.")
    return BalanceOnHold(
        "The balance is on hold for other requests that are still running. Try again in 1s.",
        retry_after=1,
    )


def used_up() -> APIError:
    """A call has cost more than it can hold."""
    return InsufficientBalance("The balance of this account is used up.")


def held_before(request_id: str) -> ValueError:
    """A request has been here."""
    return ValueError(f"request {request_id!r} has a hold or an entry already")


def booked_otherwise(reference: str) -> ReferenceConflict:
    """A top-up's reference is taken."""
    return ReferenceConflict(
        f"top-up reference {reference!r} was booked with another amount or for another account"
    )
