"""One try at one route of a model, from asking its provider to the end of its answer."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .backends.base import running
from .cooldown import Visit
from .errors import (
    BackendDisconnected,
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    OneAIError,
)
from .protocol.chat import ChatRequest, Chunk, Completion, Item
from .protocol.usage import Usage
from .providers import Provider

log = logging.getLogger("oneai_middleware.dispatch")

HELD = 16
"""Items without output that are held back, to be forgotten if the provider fails."""
GRACE = 1.0
"""Seconds, beyond those a connection may take, in which a backend must have come back
once its attempt was cancelled."""

# Finish reasons by which providers say that they gave up: DeepSeek's and Zhipu's.
_GAVE_UP = frozenset({"insufficient_system_resource", "network_error"})


class Attempt:
    """Asks ``provider`` for an answer to ``request``, and notes how long it is silent.

    ``request`` is as it goes to this provider, with a cancellation of its own, so
    that the attempt can end and the call go on. The ``visit`` learns that the
    provider answers, or that it is late. ``repeatable`` says that no attempt of the
    call has been repeated yet. ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        provider: Provider,
        request: ChatRequest,
        visit: Visit,
        clock: Callable[[], float],
        *,
        repeatable: bool = False,
    ) -> None:
        self.provider = provider
        self.request = request
        self.visit = visit
        self.begun = False
        """Whether there has been output: from then on its failure is the call's."""
        self.failure: BackendError | None = None
        """Why it failed before any output."""
        self._clock = clock
        self._repeatable = repeatable
        self._started = clock()
        self._alive = False
        self._silent_since: float | None = None
        self._late: tuple[str, float] | None = None
        self._is_over = False

    @property
    def is_worth_repeating(self) -> bool:
        """Whether it failed as a connection does that the provider had closed before,
        and may be made once more."""
        return self._repeatable and isinstance(self.failure, BackendDisconnected)

    @property
    def is_given_up(self) -> bool:
        """Whether it was cancelled because nobody waits for the answer any more."""
        return self.request.cancellation.cancelled and self._late is None

    @property
    def is_taken_up(self) -> bool:
        """Whether the provider is at work for us, as far as that can be known: of a
        stream it has given a sign of life, of an answer in one piece it has the request."""
        if self.request.stream:
            return self._alive
        return self.failure is None and not self.request.connecting.is_set()

    def stream(self) -> Iterator[Item]:
        """The answer piece by piece; nothing but ``None`` before there is output.

        Run in the thread that reads it. While an item waits for a caller who reads
        slowly, it is not the provider who is silent.

        :raises BackendError: the provider failed.
        :raises InvalidRequest: it says that the caller is at fault.
        """
        with _ending(self), contextlib.closing(running(self.provider.backend, self.request)) as up:
            for item in self._from_first_output(up):
                self._alive, self._silent_since = True, None
                yield item
                self._silent_since = self._clock()

    def complete(self) -> Completion:
        """The answer in one piece; otherwise as :meth:`stream`."""
        with _ending(self):
            completion = self.provider.backend.complete(self.request)
            if not isinstance(completion, Completion):
                raise TypeError(f"{type(completion).__name__} is no completion")
            _check(completion)
            self._begin()
            return completion

    def overdue(self) -> str | None:
        """Which of the provider's deadlines has passed, in words."""
        if self._is_over:
            return None
        now, timeouts = self._clock(), self.provider.timeouts
        took, silent_since = now - self._started, self._silent_since
        if took > timeouts.total:
            return f"the whole answer took over {timeouts.total:g} s"
        if not self.request.stream:
            return None
        if not self.begun and took > timeouts.first_token:
            return f"no first token in {timeouts.first_token:g} s"
        if self.begun and silent_since is not None and now - silent_since > timeouts.idle:
            return f"silent for {timeouts.idle:g} s"
        return None

    def expire(self, late: str) -> bool:
        """Cancel the attempt because of the deadline that passed, as :meth:`overdue`
        words it. True if its backend should have come back by now and has not."""
        if self._late is None:
            self._late = late, self._clock()
            self.visit.failed()
            self.request.cancellation.cancel()
        return self._clock() - self._late[1] > self.provider.timeouts.connect + GRACE

    def _begin(self) -> None:
        self.begun = True
        self.visit.answers()

    def _from_first_output(self, items: Iterator[Item]) -> Iterator[Item]:
        held: deque[Item] = deque(maxlen=HELD)
        for item in items:
            _check(item)
            if self.begun or item is None:
                yield item
            elif _is_output(item):
                self._begin()
                yield from held
                yield item
            else:
                held.append(item)
                yield None
        if not self.begun:
            yield from held

    def ended(self, error: BaseException | None) -> None:
        """It is over. Whatever a backend raises beside this package's errors is a bug of
        its own, and what it raises because it was cancelled for a deadline means that.

        :raises BackendError: what ``error`` means, if that is something else.
        """
        self._is_over = True
        is_known = isinstance(error, OneAIError)
        if not isinstance(error, Exception) or (is_known and self._late is None):
            return
        if self._late is not None and (not is_known or isinstance(error, BackendUnavailable)):
            raise BackendTimeout(self._late[0]) from error
        if is_known:
            return
        # The words of a foreign error may hold anything, a prompt or a password.
        log.debug(
            "%s: provider %s: its backend raised",
            self.request.request_id,
            self.provider.name,
            exc_info=error,
        )
        raise BackendUnavailable(
            f"the backend raised {type(error).__name__}; log at DEBUG to see where"
        ) from error


class _ending(contextlib.AbstractContextManager[None]):
    """Tells ``attempt`` when it has ended, and how."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._attempt.ended(error)


def _check(item: Item | Completion) -> None:
    """:raises BackendOverloaded: the provider gave up and says so as a finish_reason."""
    if isinstance(item, (Chunk, Completion)):
        for choice in item.choices:
            reason = choice.get("finish_reason")
            if reason is not None and isinstance(reason, str) and reason in _GAVE_UP:
                raise BackendOverloaded(f"finish_reason {reason}")


def _is_output(item: Item) -> bool:
    if isinstance(item, Chunk):
        return item.has_output or any(choice.get("finish_reason") for choice in item.choices)
    return bool(item) and not isinstance(item, Usage)
