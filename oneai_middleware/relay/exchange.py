"""One admitted call from its admission to its end, which comes exactly once.

The end may be seen by the request's thread, by the server closing the body, or by
the watch. Whoever is first settles; the others find it done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from ..admission import Admission, AdmissionControl
from ..call import Call
from ..errors import APIError, BackendTimeout, CallerLeft, HoldLost, InsufficientBalance
from ..protocol.cancellation import Cancellation
from ..protocol.chat import Timeouts
from ..protocol.usage import Usage
from ..servers import Connection
from .meter import NOTHING, Meter
from .watch import Watch

log = logging.getLogger("oneai_middleware.relay")

ANSWERED = "answered"
EXHAUSTED = "balance_exhausted"
"""The money ran out in mid-stream: for the caller an answer that was cut to length."""


SETTLING = 2.0
"""Seconds that whoever comes second waits for the first to have settled."""


RETRY = 1.0
"""Seconds after which a renewal that failed is tried again."""


class Ending(NamedTuple):
    """How a call ended: ``error`` is what the caller is told, if anything went wrong."""

    outcome: str
    usage: Usage
    error: APIError | None = None


class Exchange:
    """Deadlines, leases, cancellation and the single end of one call.

    ``connection`` is the caller's, where the server gives it to us. ``timeouts`` are
    for the call as a whole; each attempt keeps its provider's own. A caller who
    takes nothing for ``write_timeout`` has left; ``bill_departed`` is whether one
    who left pays for what was delivered. Times are seconds of ``clock``.
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
        write_timeout: float,
        connection: Connection | None = None,
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
        self._write_timeout = write_timeout
        self._connection = connection
        self._bill_departed = bill_departed
        self._lock = threading.Lock()
        self._settling = threading.Lock()  # held until the call is settled
        self._settling.acquire()
        self._renew_every = lease / 3
        self._renewed = clock()
        self._renewing = False
        self._sending_since: float | None = None
        self._taken: int | None = None
        self._taken_at = 0.0
        self._released = False

    def start(self) -> None:
        """Have the watch look after the call."""
        if self._connection is not None and self._streaming:
            self._connection.limit_writes(self._write_timeout)
        self._watch.add(self)

    def sending(self) -> None:
        """A piece of the answer is in the server's hands now."""
        self._sending_since = self._clock()

    def sent(self) -> None:
        """The server is back for the next piece."""
        self._sending_since = None

    def release(self) -> None:
        """The server's thread is done with the call: the last thing that happens to it.

        Its place is free only now. A caller can leave at once, but a thread that a
        provider keeps would be missed by the host's pages.
        """
        with self._lock:
            released, self._released = self._released, True
        if released:
            return
        self._sending_since = None
        self._watch.remove(self)
        if self._connection is not None and self._streaming:
            self._connection.restore_writes()  # the host's next page may be read slowly
        self._control.leave()

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
        # What no provider has taken up has cost nobody anything.
        attempt = self.call.attempt
        paid = self._bill_departed and attempt is not None and attempt.is_taken_up
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
            if ending.outcome != ANSWERED:
                self._log_failure(ending)
                self.cancellation.cancel()
            if aside:
                self._watch.aside(self._settle)
            else:
                self._settle()
        elif not aside and self._settling.acquire(timeout=SETTLING):
            self._settling.release()
        return ending

    def _settle(self) -> None:
        try:
            self._control.close(self.call, self.admission, self.call.usage or NOTHING)
        finally:
            self._settling.release()

    # --- from the watch -----------------------------------------------------

    def look(self) -> None:
        """End the call if its caller or its time is gone; see to its leases.

        Never waits for a store: one that is slow must not keep the watch from
        the other calls.
        """
        now = self._clock()
        if self._has_stalled(now):
            self._end(self._departure(), aside=True)
            self._cut()
        elif self.ending is not None:
            return
        elif self._connection is not None and not self._connection.is_present():
            self._end(self._departure(), aside=True)
        elif late := self._overdue(now):
            self._end(self._failure(BackendTimeout(late)), aside=True)
        elif now - self._renewed >= self._renew_every and not self._renewing:
            self._renewed, self._renewing = now, True
            self._watch.aside(self._renew)

    def _has_stalled(self, now: float) -> bool:
        """Whether the caller has taken nothing of a piece for too long."""
        since = self._sending_since
        if since is None:
            return False
        taken = self._connection.taken() if self._connection is not None else None
        if taken != self._taken:  # it may read slowly, but it reads
            self._taken, self._taken_at = taken, now
        return now - max(since, self._taken_at) > self._write_timeout

    def _cut(self) -> None:
        """Free the server's thread, which hangs in a send."""
        self._watch.remove(self)
        if self._connection is not None:
            self._connection.cut()

    def _renew(self) -> None:
        usage = self.meter.delivered()
        try:
            if not self._control.renew(self.call, self.admission, usage):
                # Before the lease is over there is to be more than one other try.
                self._renewed -= max(0.0, self._renew_every - RETRY)
        except InsufficientBalance:
            self._end(Ending(EXHAUSTED, usage))
        except HoldLost as error:  # ours, but what was handed over is theirs
            self._end(Ending(error.code, usage, error))
        finally:
            self._renewing = False

    @property
    def _streaming(self) -> bool:
        return self.call.request is not None and self.call.request.stream

    def _overdue(self, now: float) -> str | None:
        """Which deadline ends the whole call. That of an attempt ends the attempt
        alone, unless there has been output or its backend does not obey."""
        attempt, waited, limits = self.call.attempt, now - self.call.admitted, self._limits()
        begun = attempt is not None and attempt.begun
        late = attempt.overdue() if attempt is not None else None
        # Told in any case, so that its provider is known to be slow.
        stuck = attempt is not None and late is not None and attempt.expire(late)
        if waited > limits.total:
            return f"the whole call took over {limits.total:g} s"
        if self._streaming and not begun and waited > limits.first_token:
            return f"no first token in {limits.first_token:g} s"
        return late if begun or stuck else None

    def _limits(self) -> Timeouts:
        """What the whole call may take: a more patient provider is given its time."""
        ours, attempt = self._timeouts, self.call.attempt
        if attempt is None:
            return ours
        theirs = attempt.provider.timeouts
        return ours._replace(
            first_token=max(ours.first_token, theirs.first_token),
            total=max(ours.total, theirs.total),
        )

    def _log_failure(self, ending: Ending) -> None:
        """One line for the operator, unless the caller left."""
        call, error = self.call, ending.error
        if error is None or (error.detail is None and error.fault != "provider"):
            return
        detail = error.detail or "no detail"
        if call.attempt is None:  # nobody has failed just now
            model = self.admission.model.id
            log.info("%s: model %s: %s: %s", call.request_id, model, error.code, detail)
        else:
            log.warning(
                "%s: provider %s failed: %s: %s", call.request_id, call.provider, error.code, detail
            )
