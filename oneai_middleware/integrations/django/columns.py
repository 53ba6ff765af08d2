"""What the admin shows of a row that no field of its model shows, in lists and on pages:
these would show what is no text as Python does."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import display_for_value

from ...accounts import dollars
from ...ledgers.base import Balance as Money
from ...ledgers.base import budget_window
from .fields import local, now
from .models import APIKey, KeySpending

EMPTY = "-"


def in_dollars(name: str, heading: str = "", times: int = 1) -> Any:
    """A column that shows nano-dollars, the attribute ``name`` so many times, as dollars."""

    @admin.display(description=heading or name.replace("_", " "), ordering=name)
    def column(row: Any) -> str:
        """The amount of a row."""
        amount = getattr(row, name)
        return EMPTY if amount is None else dollars(amount * times)

    return column


def at(name: str) -> Any:
    """A column that shows a moment, the attribute ``name``, in the project's own time."""

    @admin.display(description=name.replace("_", " "), ordering=name)
    def column(row: Any) -> str:
        """The moment of a row."""
        moment = getattr(row, name)
        return EMPTY if moment is None else display_for_value(local(moment), EMPTY)

    return column


@admin.display(description="state")
def state(key: APIKey) -> str:
    """Whether a key opens its account, and if not, why."""
    if key.revoked:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= now() else "valid"


@admin.display(description="spent")
def spent(key: APIKey) -> str:
    """What a key has spent and may still spend, in dollars: in its period, if it has one."""
    window = budget_window(key.period, now())  # type: ignore[arg-type]
    its = KeySpending.objects.using(key._state.db).filter(key=key.id, budget_window=window)
    row = its.first() or KeySpending()
    parts = [f"{dollars(row.spent)} this {key.period}" if key.period else dollars(row.spent)]
    if row.held:
        parts.append(f"{dollars(row.held)} on hold")
    if key.budget is not None:
        parts.append(f"{dollars(max(0, key.budget - row.spent - row.held))} left")
    return ", ".join(parts)


BUDGET = in_dollars("budget")
CREATED_AT = at("created_at")
EXPIRES = at("expires")
LAST_USED = at("last_used")
MONEY = tuple(map(in_dollars, Money._fields))
