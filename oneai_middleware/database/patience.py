"""How long a database is waited for: whoever calls hears within two seconds that it is down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

_until: ContextVar[float | None] = ContextVar("oneai_until", default=None)

PATIENCE = 0.7
"""Seconds that a server's lock, or a free connection, is waited for; and after which, of
all that is done in one transaction, nothing more is begun."""
BUSY = 1.2
"""Seconds that others may write to a SQLite file meanwhile: one alone can at a time."""
ENDING = 0.7
"""Seconds longer that those who share a transaction wait for whoever ends it."""
ABANDONED = 10
"""Seconds after which a server undoes a transaction whose client says nothing more."""
SILENCE = 0.85
"""Seconds without a word in which a server counts as gone. A call may find its old
connection dead and a new one as well, and is to know it within two seconds."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let nothing more be begun after so many seconds, of what is done in here."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def is_late() -> bool:
    """Whether nothing more is to be begun."""
    until = _until.get()
    return until is not None and time.monotonic() > until


def time_left() -> float | None:
    """Seconds in which something may still be begun; ``None`` if it is never too late."""
    until = _until.get()
    return None if until is None else max(0.0, until - time.monotonic())
