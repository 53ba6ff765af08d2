"""What is done while the store of the limits cannot be asked."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ..errors import OneAIError, StoreUnavailable, store_errors
from ..per_process import PerProcess
from .base import Claim, Grant, LimitStatus, RateLimiter, limited
from .memory import MemoryRateLimiter

T = TypeVar("T")

log = logging.getLogger("oneai_middleware.rate_limiters")

FAILURES = 3
"""Failures one after the other after which the store counts as down."""
PAUSE = 1.0
"""Seconds in which a store that is down is asked by one call, and the others do not wait."""
FIRST_PAUSE = PAUSE / 8
"""The first such pause, for a store that was held up for a moment; each is twice the last."""
PROBE = 60.0
"""Seconds after which another call is sent after one of which nothing has been heard."""
QUIET = 60.0
"""Seconds in which single failures are not written down again."""


class GuardedRateLimiter(RateLimiter):
    """A limiter whose store may be slow or gone, and what stands in for it then.

    ``on_store_down`` is ``"closed"``: new calls are refused (503); ``"open"``: they pass
    without limits; or ``"local"``: this process counts them alone. Whichever it is, a
    call waits for the store as long as ``limiter`` itself does, and once the store is
    known to be down not at all. ``lease`` is in seconds, ``clock`` monotonic seconds.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        on_store_down: str,
        *,
        lease: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limiter = limiter
        """The one that is asked."""
        meanwhile, make = _POLICIES[on_store_down]
        self._stand_in = make(lease)
        self._breaker = PerProcess(lambda: _Breaker(meanwhile, clock))

    @property
    def failures(self) -> int:
        """How often the store has failed this process."""
        return self._breaker().failures

    @property
    def stood_in(self) -> int:
        """How many calls of this process were decided without the store."""
        return self._breaker().stood_in

    def counts(self) -> Mapping[str, int]:
        own = {"failures": self.failures, "stood_in": self.stood_in}
        return {**self.limiter.counts(), **own}

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        claims = limited(claims)
        if not claims:  # nothing to count, so nobody to ask
            return Grant("", account, claims, tokens)
        try:
            return self._ask(lambda: self.limiter.acquire(account, claims, tokens))
        except StoreUnavailable:
            self._breaker().passed_over()
            return _StandIn(*self._stand_in.acquire(account, claims, tokens))

    def renew(self, grant: Grant) -> None:
        self._tell(grant, lambda limiter: limiter.renew(grant))

    def settle(self, grant: Grant, tokens: int) -> None:
        self._tell(grant, lambda limiter: limiter.settle(grant, tokens))

    def cancel(self, grant: Grant) -> None:
        self._tell(grant, lambda limiter: limiter.cancel(grant))

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        claims = limited(claims)
        if not claims:
            return LimitStatus()
        try:
            return self._ask(lambda: self.limiter.status(account, claims))
        except StoreUnavailable:
            return self._stand_in.status(account, claims)

    def _tell(self, grant: Grant, tell: Callable[[RateLimiter], None]) -> None:
        """Tell whoever gave the grant; what a store that is down does not hear ends with
        the lease."""
        if isinstance(grant, _StandIn):
            tell(self._stand_in)
        elif grant.claims:
            with contextlib.suppress(StoreUnavailable):
                self._ask(lambda: tell(self.limiter))

    def _ask(self, ask: Callable[[], T]) -> T:
        """What the store says.

        :raises StoreUnavailable: it fails, or is known to be down.
        """
        breaker = self._breaker()
        seen = breaker.admit()
        try:
            with store_errors("rate limiter"):
                answer = ask()
        except StoreUnavailable as error:
            breaker.failed(seen, error.detail)
            raise
        except OneAIError:  # such as a refusal
            breaker.answered(seen)
            raise
        except BaseException:  # such as a server that ends its worker
            breaker.learned_nothing(seen)
            raise
        breaker.answered(seen)
        return answer


class _StandIn(Grant):
    """A grant that the store does not know of."""


class _Closed(RateLimiter):
    """Gives nothing."""

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        raise StoreUnavailable(
            "The service cannot check your limits at the moment. Try again shortly.",
            retry_after=1,
        )

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        return LimitStatus()


class _Open(RateLimiter):
    """Gives everything, and counts nothing."""

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        return Grant("", account, (), tokens)

    def renew(self, grant: Grant) -> None:
        """There is nothing to prolong."""

    def settle(self, grant: Grant, tokens: int) -> None:
        """There is nothing to correct."""

    def cancel(self, grant: Grant) -> None:
        """There is nothing to give back."""

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        return LimitStatus()


_POLICIES: dict[str, tuple[str, Callable[[float], RateLimiter]]] = {
    "closed": ("calls with limits are refused", lambda lease: _Closed()),
    "open": ("calls pass without limits", lambda lease: _Open()),
    "local": ("every process counts for itself", lambda lease: MemoryRateLimiter(lease=lease)),
}


class _Breaker:
    """Whether the store of one process is down, and who may find out.

    Calls that are under way at the same moment may all fail for one and the same reason:
    they have *seen* equally many troubles, and are one trouble more together.
    """

    def __init__(self, meanwhile: str, clock: Callable[[], float]) -> None:
        self._meanwhile = meanwhile
        self._clock = clock
        self._lock = threading.Lock()
        self._troubles = 0
        self._in_a_row = 0
        self._down_since: float | None = None
        self._pause = FIRST_PAUSE
        self._next_probe = 0.0
        self._quiet_until = -math.inf
        self.failures = 0
        self.stood_in = 0

    def admit(self) -> int:
        """A call may ask the store; how many troubles it has seen.

        :raises StoreUnavailable: the store is down, and another call looks after it.
        """
        if self._down_since is None:
            return self._troubles
        with self._lock:
            now = self._clock()
            if now < self._next_probe:
                raise StoreUnavailable("The store of the limits is down.")
            self._next_probe = now + PROBE
            return self._troubles

    def passed_over(self) -> None:
        """A call was decided without the store."""
        with self._lock:
            self.stood_in += 1

    def learned_nothing(self, seen: int) -> None:
        """A call was broken off."""
        with self._lock:
            if seen == self._troubles:
                self._next_probe = self._clock()

    def answered(self, seen: int) -> None:
        """The store has answered."""
        if self._in_a_row == 0:
            return
        with self._lock:
            if self._down_since is not None and seen != self._troubles:
                return  # what was asked before says nothing of now
            since, self._down_since, self._in_a_row = self._down_since, None, 0
            self._pause = FIRST_PAUSE
        if since is not None:
            log.warning(
                "the rate limiter's store answers again after %.1f s; %d calls so far were "
                "decided without it",
                self._clock() - since,
                self.stood_in,
            )

    def failed(self, seen: int, detail: str | None) -> None:
        """The store has not answered."""
        with self._lock:
            self.failures += 1
            if seen != self._troubles:
                return
            is_news, is_down = self._count(), self._down_since is not None
        if is_news:
            level, what = (logging.ERROR, "is down") if is_down else (logging.WARNING, "failed")
            log.log(level, "the rate limiter's store %s (%s): %s", what, detail, self._meanwhile)

    def _count(self) -> bool:
        """One trouble more; whether it is worth a line in the log."""
        now = self._clock()
        self._troubles += 1
        self._in_a_row += 1
        if self._down_since is not None:
            self._pause = min(2 * self._pause, PAUSE)
            self._next_probe = now + self._pause
            return False
        self._next_probe = now + self._pause
        is_down = self._in_a_row >= FAILURES
        if is_down:
            self._down_since = now
        elif now < self._quiet_until:
            return False
        self._quiet_until = now + QUIET
        return True
