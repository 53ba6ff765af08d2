"""The application that is measured: the gateway in front of a host with one page.

Whose slot was taken, and when it was free again, is said on standard output. Callers
are told apart by their ``X-Client-Request-Id``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from werkzeug.test import Client

from oneai_middleware import OneAIMiddleware
from oneai_middleware.accounts import Limits
from oneai_middleware.errors import RateLimitExceeded
from oneai_middleware.rate_limiters.base import Claim, Grant
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter

ACCOUNT = "caller"
CALLS = int(os.environ["BENCHMARK_CALLS"])
CLAIM = Claim(f"account:{ACCOUNT}", Limits(concurrent=CALLS))

LEASE = 3600.0
"""Seconds: what is kept must not come back by itself before it is counted."""

# It has a line for everyone who leaves, and for whoever waits a moment for a thread.
logging.getLogger("waitress").setLevel(logging.ERROR)

asking = threading.local()


class TellingLimiter(MemoryRateLimiter):
    """The memory's, which says who takes a slot and when it is free again."""

    def __init__(self) -> None:
        super().__init__(lease=LEASE)
        self._callers: dict[str, str] = {}

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        grant = super().acquire(account, claims, tokens)
        self._callers[grant.id] = asking.caller
        _say("taken", asking.caller)
        return grant

    def settle(self, grant: Grant, tokens: int) -> None:
        super().settle(grant, tokens)
        _say("freed", self._callers.pop(grant.id))

    def used_slots(self) -> int:
        """How many there are too few of, found by taking all that can be had."""
        grants: list[Grant] = []
        with contextlib.suppress(RateLimitExceeded):
            while len(grants) < CALLS:
                grants.append(super().acquire(ACCOUNT, [CLAIM], 0))
        for grant in grants:
            self.cancel(grant)
        return CALLS - len(grants)


def _say(what: str, caller: str) -> None:
    os.write(1, f"{what} {caller} {time.monotonic()}\n".encode())


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Remember who asks."""
    asking.caller = environ.get("HTTP_X_CLIENT_REQUEST_ID", "")
    return mounted(environ, start_response)


def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Take no more calls, and say what is left of those there were."""
    mounted.gateway.drain()
    body = json.dumps(_left()).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]


def _left() -> dict[str, Any]:
    ledger = mounted.gateway.ledger
    health: Any = Client(mounted).get("/oneai/health").json
    return {
        "slots": limiter.used_slots(),
        "places": health["calls"],
        "held": ledger.balance(ACCOUNT).held,
        "threads": sum(thread.name == "oneai-pump" for thread in threading.enumerate()),
        "faults": list(_faults()),
        "entries": len(list(ledger.entries(ACCOUNT))),
    }


def _faults() -> Iterator[str]:
    ledger = mounted.gateway.ledger
    yield from ledger.audit()
    entries = list(ledger.entries(ACCOUNT))
    if sum(entry.cost for entry in entries) != ledger.balance(ACCOUNT).spent:
        yield "the entries cost together something else than what was spent"
    for outcome in {entry.outcome for entry in entries} - {"caller_left"}:
        yield f"a call ended with {outcome!r}"


limiter = TellingLimiter()
mounted = OneAIMiddleware(
    page,
    rate_limiter=limiter,
    lease=LEASE,
    max_calls=2 * CALLS,  # a place is free a moment after its slot
    providers={"scripted": {"base_url": "env:BENCHMARK_PROVIDER"}},
    models={"bot": {"routes": ["scripted/bot"], "input": "1", "output": "2"}},
    accounts={
        ACCOUNT: {
            "tier": "enterprise",
            "balance": "10000",
            "keys": ["env:BENCHMARK_KEY"],
            "limits": {"concurrent": CALLS},
        }
    },
)
