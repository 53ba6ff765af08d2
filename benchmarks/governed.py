"""The gateway as it is measured: every key, limit and balance is looked at, none is reached."""

from __future__ import annotations

import os
from typing import Any

from oneai_middleware import Gateway
from oneai_middleware.accounts import NANO, Account, Limits
from oneai_middleware.key_stores.cached import CachedKeyStore
from oneai_middleware.rate_limiters.base import Claim, RateLimiter
from oneai_middleware.rate_limiters.memory import MemoryRateLimiter

ACCOUNT = "caller"
LIMITS = {"rpm": 10**9, "tpm": 10**11, "concurrent": 10_000}
DOLLARS = 1_000_000


def gateway(
    *, provider: dict[str, Any], key: str, store: str, limiter: str | RateLimiter
) -> Gateway:
    """A gateway over one provider; who has ``key`` may call, if the ``store`` is memory."""
    account = {
        "tier": "enterprise",
        "balance": str(DOLLARS),
        "keys": [key],
        "limits": LIMITS,
    }
    return Gateway(
        key_store=store,
        rate_limiter=limiter,
        providers={"fast": provider},
        models={"bot": {"routes": ["fast/bot"], "input": "1", "output": "2"}},
        accounts={ACCOUNT: account} if store == "memory" else {},
    )


def opened(store: str) -> str:
    """Make the tables of a database and an account with money in it; the secret of its key."""
    made = gateway(provider={"backend": "echo"}, key="", store=store, limiter="memory")
    keys = made.key_store
    assert isinstance(keys, CachedKeyStore)
    keys.store.upgrade()
    made.ledger.upgrade()
    keys.save_account(Account(ACCOUNT, tier="enterprise", limits=Limits(**LIMITS)))
    made.ledger.top_up(ACCOUNT, DOLLARS * NANO, "benchmark")
    return keys.create(ACCOUNT)[1]


def crowded(subjects: int) -> MemoryRateLimiter:
    """A limiter that counts for so many others as well, each with a call under way."""
    limiter = MemoryRateLimiter(lease=3600.0)
    for number in range(subjects):
        limiter.acquire(f"other{number}", [Claim(f"account:other{number}", Limits(**LIMITS))], 100)
    return limiter


def _provider() -> dict[str, Any]:
    provider = {"base_url": os.environ["BENCHMARK_PROVIDER"], "api_key": "upstream"}
    transport = os.environ["BENCHMARK_TRANSPORT"]
    # What is there by default need not be named.
    return provider if transport == "requests" else {**provider, "transport": transport}


def app() -> Gateway:
    """The application of the server's process."""
    limiter = os.environ["BENCHMARK_LIMITER"]
    return gateway(
        provider=_provider(),
        key=os.environ["BENCHMARK_KEY"],
        store=os.environ["BENCHMARK_STORE"],
        limiter=crowded(int(limiter)) if limiter.isdigit() else limiter,
    )
