"""Limits counted in this process: the default, and exact with one worker."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Self

from ..errors import ConfigurationError
from ..per_process import PerProcess
from .base import Claim, Grant, LimitStatus, RateLimiter, limited
from .subject import NEVER, SECOND, Subject, figures, refuse_if_short

FEW = 100
"""Subjects that are kept, needed or not, where there have never been more: to look for what
can go costs more than they do."""
AT_ONCE = 10
"""How many subjects that left nothing to remember are forgotten at a call, at most."""


class MemoryRateLimiter(RateLimiter):
    """Token buckets and slots in this process's memory.

    ``lease`` is in seconds; ``clock`` answers nanoseconds and never goes back. A
    forked child starts with full buckets. Memory is kept only for subjects whose
    buckets are not full or whose calls are running.
    """

    one_process = True

    def __init__(
        self, *, lease: float = 30.0, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._lease = round(lease * SECOND)
        self._clock = clock
        self._state = PerProcess(_State)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is not None:
            raise ConfigurationError(f"rate_limiter: {cls.__name__} is not configured by a URL")
        return cls(lease=settings["lease"])

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        claims = limited(claims)
        state = self._state()
        with state.free_lock():
            now = self._clock()
            if now >= state.soonest:
                state.close_expired(now)
            if len(state.subjects) > state.few:
                state.forget_full(now, at_least=len(claims) + 1)
            subjects = [state.look(claim, now) for claim in claims]
            refuse_if_short(subjects, tokens)
            for subject in subjects:
                subject.take(tokens)
                state.subjects[subject.name] = subject
            id = state.keep_open(claims, now + self._lease)
            left = [subject.buckets() for subject in subjects]
        # Not in the lock, in which one of many threads is interrupted more often than not.
        return Grant(id, account, claims, tokens, figures(left))

    def renew(self, grant: Grant) -> None:
        state = self._state()
        with state.free_lock():
            now = self._clock()
            state.close_expired(now)
            if grant.id in state.open:
                state.open[grant.id] = (now + self._lease, grant.claims)
                state.open.move_to_end(grant.id)

    def settle(self, grant: Grant, tokens: int) -> None:
        self._close(grant, requests=0, tokens=grant.tokens - tokens)

    def cancel(self, grant: Grant) -> None:
        self._close(grant, requests=1, tokens=grant.tokens)

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        state = self._state()
        with state.free_lock():
            now = self._clock()
            left = [state.look(claim, now).buckets() for claim in limited(claims)]
        return figures(left)

    def _close(self, grant: Grant, *, requests: int, tokens: int) -> None:
        """Free the slots and give back; a grant that is not open is closed already."""
        state = self._state()
        with state.free_lock():
            now = self._clock()
            if now >= state.soonest:
                state.close_expired(now)
            if state.open.pop(grant.id, None) is not None:
                for claim in grant.claims:
                    state.subjects[claim.subject].give_back(requests, tokens, now)


class _State:
    """What one process knows. The lock is held over every use.

    ``open`` has when the lease of a grant is over, and its claims, by its id. It is ordered
    by expiry, since all leases are equally long and a renewed one goes to the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.subjects: OrderedDict[str, Subject] = OrderedDict()
        self.open: OrderedDict[str, tuple[int, tuple[Claim, ...]]] = OrderedDict()
        self.soonest: float = NEVER
        """Before then no lease is over."""
        self.few = FEW
        self._most = 0
        self._prefix = f"{os.getpid()}-"
        self._ids = count(1)

    def free_lock(self) -> threading.Lock:
        """The lock, once nobody holds it: to be taken at once, and for a moment.

        A thread that waits in a lock gets it before it can run, and whoever runs has to wait
        for that one: with many threads, at every call. So nobody waits in it.
        """
        while self._lock.locked():
            time.sleep(0)
        return self._lock

    def keep_open(self, claims: tuple[Claim, ...], expiry: int) -> str:
        """Remember a new grant of ``claims``: its id."""
        if not self.open:
            self.soonest = expiry
        id = self._prefix + str(next(self._ids))
        self.open[id] = (expiry, claims)
        return id

    def look(self, claim: Claim, now: int) -> Subject:
        """The subject as it stands at ``now``; what was never seen, or stood under other
        limits, is not kept yet: a refusal changes nothing."""
        subject = self.subjects.get(claim.subject)
        if subject is None:
            return Subject.new(claim, now)
        subject.refill(now)
        return subject if subject.limits == claim.limits else subject.under(claim.limits)

    def close_expired(self, now: int) -> None:
        """Forget grants whose lease is over: the slots come back, the tokens do not."""
        while self.open:
            id, (expiry, claims) = next(iter(self.open.items()))
            if expiry > now:
                self.soonest = expiry
                return
            del self.open[id]
            for claim in claims:
                self.subjects[claim.subject].running -= 1

    def forget_full(self, now: int, *, at_least: int) -> None:
        """Look at the next subjects in turn and drop those that equal new ones.

        Looking at more than a call can add keeps the turn going round.
        """
        subjects, staying = self.subjects, 0
        if len(subjects) > self._most:
            self._most = len(subjects)
        for _ in range(min(AT_ONCE, len(subjects))):
            name, subject = subjects.popitem(last=False)
            if not subject.is_like_new(now):
                subjects[name] = subject
                staying += 1
                if staying == at_least:
                    break
        # Once a crowd has come, it is looked after until all that it left is gone.
        self.few = FEW if staying == len(subjects) else 0
        if len(subjects) < self._most // 64:  # the room of those that left is kept till then
            self.subjects, self._most = OrderedDict(subjects), len(subjects)
