"""Leaving a failing provider alone for a while, so that it can recover and no call
waits for it in vain."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("oneai_middleware.dispatch")

FAILURES = 5
"""Calls that fail in a row until a provider is left alone."""
LONGEST = 60.0
"""Seconds that a provider is left alone at most, before the next call tries it."""
PROBE = 1.0
"""Seconds after which to ask again while somebody else's call is trying it."""


class Cooldown:
    """What one process knows of one provider's failures.

    After :data:`FAILURES` in a row no call goes there for ``seconds``; then a
    single one does, and while such probes fail the pause doubles up to
    :data:`LONGEST`. With 0 seconds the provider is never left alone. ``clock`` is
    monotonic seconds.
    """

    def __init__(self, name: str, seconds: float, clock: Callable[[], float]) -> None:
        self._name = name
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._pause = seconds
        self._until = 0.0
        self._probe: Visit | None = None

    @property
    def remaining(self) -> float:
        """Seconds until it is worth asking again."""
        with self._lock:
            if not self._is_cooling():
                return 0.0
            left = max(0.0, self._until - self._clock())
            return left if self._probe is None else min(left, PROBE)

    def admit(self) -> Visit | None:
        """A call may go there now, and says on its visit how it went; or it may not."""
        with self._lock:
            visit = Visit(self)
            if self._is_cooling():
                now = self._clock()
                if now < self._until:
                    return None
                # In place of a probe that never tells there will be another.
                self._until, self._probe = now + LONGEST, visit
            return visit

    def _answers(self, visit: Visit, *, whole: bool) -> None:
        with self._lock:
            if not whole and visit is not self._probe:
                return  # it may still break
            recovered = self._is_cooling()
            self._failures, self._pause, self._probe = 0, self._seconds, None
        if recovered:
            log.info("provider %s answers again", self._name)

    def _failed(self, visit: Visit, asked: float | None) -> None:
        with self._lock:
            if self._is_cooling() and visit is not self._probe:
                return  # a call from before the pause
            self._failures += 1
            if not self._is_cooling():
                return
            pause = min(max(self._pause, asked or 0), LONGEST)
            self._until, self._probe = self._clock() + pause, None
            self._pause = min(2 * self._pause, LONGEST)
            failures = self._failures
        log.warning(
            "provider %s failed %d times in a row: left alone for %g s",
            self._name,
            failures,
            pause,
        )

    def _undecided(self, visit: Visit) -> None:
        with self._lock:
            if visit is self._probe:
                self._until, self._probe = self._clock(), None

    def _is_cooling(self) -> bool:
        return self._seconds > 0 and self._failures >= FAILURES


class Visit:
    """One call at a provider. The first word on how it ended counts."""

    def __init__(self, cooldown: Cooldown) -> None:
        self._cooldown = cooldown
        self._told = False

    def answers(self) -> None:
        """The provider has begun to answer: whoever waits for a probe need not any more."""
        self._cooldown._answers(self, whole=False)

    def succeeded(self) -> None:
        """The answer is complete."""
        if self._is_first():
            self._cooldown._answers(self, whole=True)

    def failed(self, asked: float | None = None) -> None:
        """It does not; it asked to be left alone for ``asked`` seconds, if it said."""
        if self._is_first():
            self._cooldown._failed(self, asked)

    def undecided(self) -> None:
        """The call was given up before anybody could tell."""
        if self._is_first():
            self._cooldown._undecided(self)

    def _is_first(self) -> bool:
        first, self._told = not self._told, True
        return first
