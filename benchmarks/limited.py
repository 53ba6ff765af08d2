"""A gateway whose limits are counted in Redis; its model says how many it serves at once.

Whoever is served counts itself in the same Redis, and says the count.
"""

from __future__ import annotations

import os
import time
from typing import Any

from redis import Redis

from oneai_middleware import Gateway
from oneai_middleware.per_process import PerProcess
from oneai_middleware.protocol.chat import ChatRequest

ACCOUNT = "caller"
COUNT = "benchmark:running"
WORK = 0.01
"""Seconds that a call takes."""

URL = os.environ["BENCHMARK_REDIS"]
redis: PerProcess[Any] = PerProcess(lambda: Redis.from_url(URL))


def count(request: ChatRequest) -> str:
    """How many calls there are, this one counted."""
    running = redis().incr(COUNT)
    try:
        time.sleep(WORK)
    finally:
        redis().decr(COUNT)
    return str(running)


app = Gateway(
    rate_limiter=URL,
    ledger="unlimited",
    max_calls=1_000,
    providers={"counter": {"backend": count}},
    models={"bot": {"routes": ["counter/bot"], "input": "1", "output": "2"}},
    accounts={
        ACCOUNT: {
            "tier": "enterprise",
            "keys": ["env:BENCHMARK_KEY"],
            "limits": {
                "rpm": int(os.environ["BENCHMARK_RPM"]),
                "tpm": 10**8,
                "concurrent": int(os.environ["BENCHMARK_CALLS"]),
            },
        }
    },
)
