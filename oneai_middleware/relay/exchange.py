"""One admitted call from its admission to its end, which comes exactly once.

The end may be seen by the request's thread, by the server closing the body, or by
the watch. Whoever is first settles; the others find it done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..admission import Admission, AdmissionControl
from ..call import Call
from ..errors import APIError, BackendTimeout, CallerLeft, InsufficientBalance
from ..protocol.cancellation import Cancellation
from ..protocol.chat import Item, Timeouts
from ..protocol.usage import Usage
from .meter import NOTHING, Meter
from .watch import Watch

log = logging.getLogger("oneai_middleware.relay")

ANSWERED = "answered"
EXHAUSTED = "balance_exhausted"
"""The money ran out in mid-stream: for the caller an answer that was cut to length."""


SETTLING = 2.0
"""Seconds that whoever comes second waits for the first to have settled."""


class Ending(NamedTuple):
    """How a call ended: ``error`` is what the caller is told, if anything went wrong."""

    outcome: str
    usage: Usage
    error: APIError | None = None


class Exchange:
    """Deadlines, leases, cancellation and the single end of one call.

    ``is_present`` says whether the caller is still connected, where the server
    lets us see. ``timeouts`` hold until a provider's own are known. ``bill_departed``
    is whether a caller who left pays for what was delivered. Times are seconds of
    ``clock``.
    """

    def __init__(
        self,
        call: Call,
        admission: Admission,
        control: AdmissionControl,
        watch: Watch,
        *,
        timeouts: Timeouts,
        lease: float,
        clock: Callable[[], float],
        is_present: Callable[[], bool] | None = None,
        bill_departed: bool = True,
    ) -> None:
        self.call = call
        self.admission = admission
        self.meter = Meter(admission.prompt_tokens)
        self.cancellation = Cancellation()
        self.ending: Ending | None = None
        self._control = control
        self._watch = watch
        self._timeouts = timeouts
        self._clock = clock
        self._is_present = is_present
        self._bill_departed = bill_departed
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._started = clock()
        self._renew_every = lease / 3
        self._renewed = self._started
        self._renewing = False
        self._alive = False
        self._begun = False
        self._silent_since: float | None = None

    def start(self) -> None:
        """Have the watch look after the call."""
        self._watch.add(self)

    def listened(self, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, noting how long the provider is silent.

        Run in the thread that reads them. While an item waits for a caller who
        reads slowly, it is not the provider who is silent.
        """
        try:
            for item in items:
                self._alive = True
                self._begun = self._begun or item is not None
                self._silent_since = None
                yield item
                self._silent_since = self._clock()
        finally:
            if hasattr(items, "close"):
                items.close()

    # --- the end ------------------------------------------------------------

    def answer(self, usage: Usage) -> Ending:
        """The answer is complete. How the call ended: so, unless it had ended before."""
        return self._end(Ending(ANSWERED, usage))

    def fail(self, error: APIError) -> Ending:
        """``error`` ends the call: what was handed over is paid, unless we are to blame."""
        return self._end(self._failure(error))

    def leave(self) -> Ending:
        """The caller left: the prompt and what was handed over are paid."""
        return self._end(self._departure())

    def _failure(self, error: APIError) -> Ending:
        paid = self.meter.handed_any and error.fault != "gateway"
        return Ending(error.code, self.meter.delivered() if paid else NOTHING, error)

    def _departure(self) -> Ending:
        # A stream that the provider never took up has cost nobody anything. Of an
        # answer in one piece that cannot be known, and most likely it was at work.
        paid = self._bill_departed and (self._alive or not self._streaming)
        error = CallerLeft("The caller left.")
        return Ending(error.code, self.meter.delivered() if paid else NOTHING, error)

    def _end(self, ending: Ending, *, aside: bool = False) -> Ending:
        with self._lock:
            first = self.ending is None
            if self.ending is None:
                self.ending = ending
                self.call.outcome, self.call.usage = ending.outcome, ending.usage
                self.call.ended = self._clock()
            ending = self.ending
        if first:
            self._watch.remove(self)
            if ending.outcome != ANSWERED:
                self.cancellation.cancel()
            if aside:
                self._watch.aside(self._settle)
            else:
                self._settle()
        elif not aside:
            self._settled.wait(SETTLING)
        return ending

    def _settle(self) -> None:
        try:
            self._control.close(self.call, self.admission, self.call.usage or NOTHING)
        finally:
            self._settled.set()

    # --- from the watch -----------------------------------------------------

    def look(self) -> None:
        """End the call if its caller or its time is gone; see to its leases.

        Never waits for a store: one that is slow must not keep the watch from
        the other calls.
        """
        now = self._clock()
        if self.ending is not None:
            return
        if self._is_present is not None and not self._is_present():
            self._end(self._departure(), aside=True)
        elif late := self._overdue(now):
            call = self.call
            log.warning("%s: provider %s failed: %s", call.request_id, call.provider, late)
            self._end(self._failure(BackendTimeout(late)), aside=True)
        elif now - self._renewed >= self._renew_every and not self._renewing:
            self._renewed, self._renewing = now, True
            self._watch.aside(self._renew)

    def _renew(self) -> None:
        usage = self.meter.delivered()
        try:
            self._control.renew(self.call, self.admission, usage)
        except InsufficientBalance:
            self._end(Ending(EXHAUSTED, usage))
        finally:
            self._renewing = False

    @property
    def _streaming(self) -> bool:
        return self.call.request is not None and self.call.request.stream

    def _overdue(self, now: float) -> str | None:
        """Which deadline has passed."""
        timeouts = self.call.timeouts or self._timeouts
        if now - self._started > timeouts.total:
            return f"the whole call took over {timeouts.total:g} s"
        if not self._streaming:
            return None
        if not self._begun and now - self._started > timeouts.first_token:
            return f"no first token in {timeouts.first_token:g} s"
        silent_since = self._silent_since
        if self._begun and silent_since is not None and now - silent_since > timeouts.idle:
            return f"silent for {timeouts.idle:g} s"
        return None
