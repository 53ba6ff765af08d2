"""The two bodies of an answer: a JSON object, and a stream of server-sent events."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..errors import APIError, BackendUnavailable, InternalError
from ..protocol import json, sse
from ..protocol.chat import Chunk, Completion, Item
from ..protocol.normalise import StreamNormaliser, normalise_completion
from ..protocol.usage import Usage
from ..telemetry import log_call
from .exchange import ANSWERED, Exchange
from .pump import Pump, Signal
from .threads import Threads

log = logging.getLogger("oneai_middleware.relay")

TOGETHER = 256 * 1024
"""Bytes of events that go out in one write, and not many more."""


def completion_of(
    exchange: Exchange, run: Callable[[], Completion], *, id: str, created: int, model: str
) -> bytes:
    """The answer in one piece, encoded, and settled before it is handed over.

    It runs in the request's own thread; the watch can end it meanwhile.

    :raises APIError: what ended the call.
    """
    try:
        exchange.start()
        raw = run()
        usage = exchange.meter.of(raw)
        completion = normalise_completion(raw, model=model, id=id, created=created, usage=usage)
        data = _encoded(completion)
        ending = exchange.answer(usage)
    except APIError as error:
        raise exchange.fail(error).error or error from None
    except BaseException:
        exchange.fail(InternalError())
        raise
    finally:
        exchange.release()
    if ending.error is not None:
        raise ending.error
    return data


class _Piece(NamedTuple):
    """What goes out in one write: the chunks that are in it, which count once they are
    handed over, and so does the usage told with the last of them; what was told after
    it counts once the server is back for more."""

    data: bytes
    chunks: Sequence[Chunk] = ()
    usage: Usage | None = None
    usage_after: Usage | None = None


class _Joined:
    """Chunks that are to go out together, and the usage that came with them."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.size = 0
        self.usage_after: Usage | None = None
        self._chunks: list[Chunk] = []
        self._usage: Usage | None = None

    def add(self, chunk: Chunk) -> None:
        """One more.

        :raises BackendUnavailable: it cannot be written.
        """
        event = sse.event(_encoded(chunk))
        self.events.append(event)
        self.size += len(event)
        self._chunks.append(chunk)
        if self.usage_after is not None:
            self._usage, self.usage_after = self.usage_after, None

    def piece(self) -> _Piece:
        return _Piece(b"".join(self.events), self._chunks, self._usage, self.usage_after)


class EventStream:
    """The body of a streamed answer.

    A class and no generator: a generator's ``finally`` is skipped when the server
    closes it before its first item, and a second thread may not close it while it
    runs. ``close`` is safe from any thread, any number of times.

    Each item is one whole event, or several that had come by then: those are sent in one
    write. The first goes out alone. Every abnormal end is an error event without a
    ``[DONE]``: the SDKs take a stream that merely stops for a complete one.
    """

    def __init__(
        self,
        exchange: Exchange,
        items: Iterator[Item],
        normaliser: StreamNormaliser,
        *,
        keep_alive: float,
        clock: Callable[[], float] = time.monotonic,
        threads: Threads | None = None,
    ) -> None:
        self._exchange = exchange
        self._pump = Pump(items, threads=threads)
        self._normaliser = normaliser
        self._keep_alive = keep_alive
        self._clock = clock
        self._last_sent = clock()
        self._ready: deque[_Piece] = deque()
        self._usage_after: Usage | None = None
        self._failure: Exception | None = None
        self._opened = False
        self._over = False
        self._closing = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """Wait for the first event, so that a refusal still has a status of its own.

        After ``keep_alive`` seconds of silence the status goes out all the same,
        with a comment.

        :raises APIError: the call failed before anything went out.
        """
        self._exchange.cancellation.on_cancel(self._pump.stop)
        try:
            self._exchange.start()
            self._pump.start()
            self._fill()
            self._opened = True
            ending = self._exchange.ending
            if ending is not None and ending.error is not None:
                raise ending.error
        except BaseException:
            try:
                self._exchange.fail(InternalError())  # unless it has ended before
            finally:
                self._exchange.release()
            raise

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> bytes:
        self._exchange.sent()
        self._exchange.meter.told(self._usage_after)
        self._fill()
        if not self._ready:
            self.close()  # which a server may skip whose caller hangs up now
            raise StopIteration
        piece = self._ready.popleft()
        for chunk in piece.chunks:
            self._exchange.meter.hand(chunk)
        self._exchange.meter.told(piece.usage)
        self._usage_after = piece.usage_after
        self._last_sent = self._clock()
        self._exchange.sending()
        return piece.data

    def close(self) -> None:
        """The server is done with the body, at its end or before it."""
        with self._closing:
            if self._closed:
                return
            self._closed = self._over = True
        try:
            self._exchange.leave()
        finally:  # a host's scope may raise, and a place is lost for good
            self._exchange.release()
            log_call(self._exchange.call)

    # --- what comes next ----------------------------------------------------

    def _fill(self) -> None:
        """Wait until there is something to send, or it is over."""
        while not self._ready and not self._over:
            try:
                self._advance()
            except APIError as error:
                self._break(error)
            except Exception:
                log.exception("%s: the relay failed", self._exchange.call.request_id)
                self._break(InternalError())

    def _advance(self) -> None:
        if self._failure is not None:
            raise self._failure
        item = self._pump.take(self._last_sent + self._keep_alive - self._clock())
        if item is Signal.SILENCE:
            self._ready.append(_Piece(sse.KEEP_ALIVE))
        elif item is Signal.END:
            self._complete()
        else:
            self._relay([item, *self._pump.take_waiting()] if self._opened else [item])

    def _relay(self, items: list[Item]) -> None:
        joined, more_in = _Joined(), self._normaliser.more
        try:
            for item in items:
                if joined.size > TOGETHER:
                    self._ready.append(joined.piece())
                    joined = _Joined()
                more = more_in(item)
                if more is not None:
                    joined.add(more)
                else:
                    self._join(joined, item)
        except Exception as error:  # told after what came before it has gone out
            self._failure = error
        if joined.events:
            self._ready.append(joined.piece())
        else:
            self._exchange.meter.told(joined.usage_after)

    def _join(self, joined: _Joined, item: Item) -> None:
        joined.usage_after = _usage_of(item) or joined.usage_after
        for chunk in self._normaliser.chunk(item):
            joined.add(chunk)

    def _complete(self) -> None:
        """The provider is done; so is the call, unless it was ended from outside."""
        ending = self._exchange.answer(self._exchange.meter.total())
        if ending.error is not None:
            self._break(ending.error)
            return
        reason = "stop" if ending.outcome == ANSWERED else "length"
        for chunk in self._normaliser.finish(ending.usage, reason):
            self._ready.append(_Piece(sse.event(_encoded(chunk)), [chunk]))
        self._ready.append(_Piece(sse.DONE))
        self._over = True

    def _break(self, error: APIError) -> None:
        seen = self._exchange.fail(error).error or error
        self._ready.append(_Piece(sse.event(json.encode(seen.envelope()))))
        self._over = True


def _encoded(value: Chunk | Completion) -> bytes:
    try:
        return json.encode(value)
    except json.MalformedJSON:
        raise BackendUnavailable("an answer that cannot be written as JSON") from None


def _usage_of(item: Item) -> Usage | None:
    if isinstance(item, Chunk):
        return item.usage
    return item if isinstance(item, Usage) else None
