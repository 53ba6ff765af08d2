"""Transactions that a database undoes in favour of another are begun again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from .errors import StoreUnavailable

C = TypeVar("C")
T = TypeVar("T")

TRIES = 5
"""How often a transaction is begun that the database breaks off."""


class BrokenOff(StoreUnavailable):
    """The database undid a transaction in favour of another: it may be begun again."""


def in_one(begin: Callable[[], AbstractContextManager[C]], act: Callable[[C], T]) -> T:
    """Do ``act`` in one transaction, and again if that was broken off.

    :raises BrokenOff: it was, at every try.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(BrokenOff), begin() as begun:
            return act(begun)
    with begin() as begun:
        return act(begun)
