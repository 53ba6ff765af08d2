"""Contracts that every key store, rate limiter, ledger and backend keeps, and a clock to move.

A contract is a class of tests. Inherit it, say how to make your part, and pytest
runs it::

    from oneai_middleware.testing import FakeClock, LedgerContract

    class TestMyLedger(LedgerContract):
        def make_ledger(self):
            self.clock = FakeClock()
            return MyLedger(clock=self.clock)

        def advance(self, seconds):
            self.clock.advance(seconds)

A part that needs other fixtures overrides the fixture (``ledger``) instead. Where
time cannot be moved, leave :meth:`advance` alone: tests that need it are skipped.
Add ``pytest.register_assert_rewrite("oneai_middleware.testing")`` to your
``conftest.py`` to see the values behind a failure.
"""

from .backends import BackendContract, said
from .clock import FakeClock
from .contract import LEASE, in_threads
from .holds import draft, hold, try_hold
from .key_stores import KeyLookupContract, KeyStoreContract, find
from .ledgers import LedgerContract
from .rate_limiters import RateLimiterContract, attempt, claim, close, refusal, remains

__all__ = [
    "BackendContract",
    "FakeClock",
    "KeyLookupContract",
    "KeyStoreContract",
    "LEASE",
    "LedgerContract",
    "RateLimiterContract",
    "attempt",
    "claim",
    "close",
    "draft",
    "find",
    "hold",
    "in_threads",
    "refusal",
    "remains",
    "said",
    "try_hold",
]
