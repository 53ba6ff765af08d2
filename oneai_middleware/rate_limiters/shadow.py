"""Limits that are tried out: they are looked at and never enforced."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

from ..accounts import Limits
from ..errors import RateLimitExceeded, StoreUnavailable
from ..per_process import PerProcess
from .base import Claim, Grant, LimitStatus, RateLimiter

log = logging.getLogger("oneai_middleware.rate_limiters")


class ShadowRateLimiter(RateLimiter):
    """A limiter that lets the calls pass which limits that are not to be enforced would refuse.

    Such a call is a line in the log at INFO and is counted; of what it would have been
    granted it takes nothing.
    """

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        """The one that counts."""
        self._tally = PerProcess(_Tally)

    @property
    def would_refuse(self) -> Mapping[str, int]:
        """How many calls of this process each limit (``"rpm"``, …) would have refused."""
        return self._tally().counts

    def counts(self) -> Mapping[str, int]:
        refused = self.would_refuse
        own = {f"would_refuse_{limit}": refused.get(limit, 0) for limit in Limits._fields}
        return {**self.limiter.counts(), **own}

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        enforced = [claim for claim in claims if claim.enforced]
        grant = self.limiter.acquire(account, enforced, tokens)
        if len(enforced) == len(claims):
            return grant
        observed = [claim for claim in claims if not claim.enforced]
        try:
            return _Both.of(grant, self._observe(account, observed, tokens))
        except BaseException:  # such as a server that ends its worker
            self.limiter.cancel(grant)
            raise

    def renew(self, grant: Grant) -> None:
        for part in _parts(grant):
            self.limiter.renew(part)

    def settle(self, grant: Grant, tokens: int) -> None:
        for part in _parts(grant):
            self.limiter.settle(part, tokens)

    def cancel(self, grant: Grant) -> None:
        for part in _parts(grant):
            self.limiter.cancel(part)

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        return self.limiter.status(account, [claim for claim in claims if claim.enforced])

    def _observe(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant | None:
        """A grant for claims that nobody is held to, if there is room."""
        with contextlib.suppress(StoreUnavailable):
            try:
                return self.limiter.acquire(account, claims, tokens)
            except RateLimitExceeded as refused:
                self._tally().add(refused.limit)
                log.info("not enforced: %r: %s", refused.subject, refused.message)
        return None


class _Tally:
    """Counts by name, none of which gets lost between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """One more."""
        with self._lock:
            self.counts[name] += 1


class _Both(Grant):
    """A grant, and the one for the claims that are not enforced; each is given back as it
    was given."""

    granted: Grant
    observed: Grant | None

    @classmethod
    def of(cls, granted: Grant, observed: Grant | None) -> Self:
        both = cls(*granted)
        both.granted, both.observed = granted, observed
        return both


def _parts(grant: Grant) -> tuple[Grant, ...]:
    if not isinstance(grant, _Both):
        return (grant,)
    return (grant.granted,) if grant.observed is None else (grant.granted, grant.observed)
