"""Callers that cost next to nothing and look at every answer.

Each has a connection and asks over it again and again, as long as it is to. What they
found is in a :class:`Tally`; only what falls into its window counts, errors always do.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .fast_provider import UNSTAMPED
from .processes import Served

PATIENCE = 5.0
"""Seconds after the window in which what was begun may end, if nothing else is said."""

STAMP = re.compile(rb"@(\d+)@")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LAST = b"0\r\n\r\n"


def _refusal(received: bytes) -> str:
    head, _, body = received.partition(b"\r\n\r\n")
    return repr(head.partition(b"\r\n")[0] + b" " + body[:300])


@dataclass
class Tally:
    """What a crowd of callers found between ``since`` and ``until``, on the monotonic clock.

    Times are in seconds. ``delays`` are how long pieces were under way that said when
    they were sent; ``first`` from asking to the first piece.
    """

    since: float
    until: float
    answers: int = 0
    marks: int = 0
    times: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    cpu: float = 0.0
    memory: int = 0
    """Seconds that the server worked in the window, and KB that it had at its end."""

    @property
    def pieces(self) -> int:
        """How many pieces came; each has two marks."""
        return self.marks // 2

    @property
    def seconds(self) -> float:
        """How long the window is."""
        return self.until - self.since

    def has(self, moment: float) -> bool:
        """Whether the moment falls into the window."""
        return self.since <= moment < self.until

    def begin(self, served: Served) -> None:
        """Note what the server has cost before."""
        self.cpu -= served.cpu

    def end(self, served: Served) -> None:
        """Note what it has cost now."""
        self.cpu += served.cpu
        self.memory = served.memory


def request(port: int, headers: Mapping[str, str], wish: str) -> bytes:
    """The bytes of a request for what the provider is to say."""
    message = {"role": "user", "content": f"say {wish}"}
    body = json.dumps({"model": "bot", "messages": [message], "stream": wish != "answer"})
    fields = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", **headers}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    lines += [f"Content-Length: {len(body)}", "", body]
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines]).encode()


class Caller(asyncio.Protocol):
    """One connection: asks for answers in one piece until the window is over."""

    def __init__(self, request: bytes, tally: Tally, over: Callable[[Caller], object]) -> None:
        self._request = request
        self._tally = tally
        self._over = over
        self._asking = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._asking:
            self._end(f"connection lost: {error}")

    def leave(self) -> None:
        """Wait no longer."""
        self._asking = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._is_whole():
            self._answered(self._fault())

    # --- an answer in one piece -----------------------------------------------------

    def _ask(self) -> None:
        self._asking = True
        self._received = b""
        self._asked = time.monotonic()
        self._transport.write(self._request)

    def _is_whole(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        length = LENGTH.search(self._received, 0, end) if end > 0 else None
        if length is None:
            return self._received.endswith(LAST)
        return len(self._received) >= end + 4 + int(length[1])

    def _fault(self) -> str:
        """What is wrong with the answer; empty if nothing is."""
        if not self._received.startswith(b"HTTP/1.1 200 "):
            return _refusal(self._received)
        is_said = self._received.count(b"@") == 2 and b'"finish_reason"' in self._received
        return "" if is_said else "not the answer"

    def _answered(self, fault: str) -> None:
        now = time.monotonic()
        if fault:
            self._end(fault)
            return
        if self._tally.has(now):
            self._tally.answers += 1
            self._tally.times.append(now - self._asked)
        if now < self._tally.until:
            self._ask()
        else:
            self._end()

    def _end(self, fault: str = "") -> None:
        if fault:
            self._tally.errors[fault] += 1
        self.leave()
        self._over(self)


class StreamCaller(Caller):
    """Asks for streams of so many pieces; those that say when they were sent are timed."""

    def __init__(self, pieces: int, *rest: Any) -> None:
        super().__init__(*rest)
        self._wanted = pieces

    def _ask(self) -> None:
        super()._ask()
        self._seen = 0
        self._tail = self._split = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._seen:
            self._received += data
        marks = data.count(b"@")
        if marks or self._split:
            self._note(data, marks, now)
        self._tail = data[-64:] if len(data) >= 64 else (self._tail + data)[-64:]
        if self._tail.endswith(LAST) or b"\r\n\r\n" in self._received and self._is_refused():
            self._answered(self._fault())

    def _note(self, data: bytes, marks: int, now: int) -> None:
        if marks and not self._seen:
            self._tally.first.append(now / 1e9 - self._asked)
        self._seen += marks
        if not self._tally.has(now / 1e9):
            return
        self._tally.marks += marks
        text, read = self._split + data, 0
        self._split = b""
        if UNSTAMPED in text:
            return
        for stamp in STAMP.finditer(text):
            read = stamp.end()
            if sent := int(stamp[1]):
                self._tally.delays.append((now - sent) / 1e9)
        if b"@" in text[read:]:
            self._split = text[text.rindex(b"@") :]

    def _is_refused(self) -> bool:
        return not self._received.startswith(b"HTTP/1.1 200 ") and self._is_whole()

    def _fault(self) -> str:
        if not self._received.startswith(b"HTTP/1.1 200 "):
            return _refusal(self._received)
        if self._seen != 2 * self._wanted:
            return f"{self._seen / 2:g} pieces instead of {self._wanted}"
        return "" if b"[DONE]" in self._tail else "no [DONE]"


async def call(
    served: Served,
    wish: str,
    *,
    callers: int,
    seconds: float,
    warm: float = 0.5,
    spread: float = 0.0,
    patience: float = PATIENCE,
) -> Tally:
    """Let so many callers ask for ``wish`` for so many seconds.

    They come evenly over ``spread`` seconds; nothing counts for the first ``warm`` ones.
    What was begun may end within ``patience`` seconds more.
    """
    start = time.monotonic() + warm
    tally = Tally(start, start + seconds)
    crowd = _Crowd(tally, request(served.port, served.headers, wish), wish)
    loop = asyncio.get_running_loop()
    loop.call_at(tally.since, tally.begin, served)
    loop.call_at(tally.until, tally.end, served)
    begun = loop.time()
    for number in range(callers):
        await asyncio.sleep(begun + number * spread / callers - loop.time())
        await loop.create_connection(crowd.caller, "127.0.0.1", served.port)
    await asyncio.sleep(tally.until - time.monotonic())
    tally.unfinished = await crowd.leave(patience)
    return tally


class _Crowd:
    """The callers who are there."""

    def __init__(self, tally: Tally, request: bytes, wish: str) -> None:
        self._tally = tally
        self._request = request
        self._pieces = 0 if wish == "answer" else int(wish.split()[0])
        self._present: set[Caller] = set()

    def caller(self) -> Caller:
        """One more."""
        rest = (self._request, self._tally, self._present.discard)
        one = StreamCaller(self._pieces, *rest) if self._pieces else Caller(*rest)
        self._present.add(one)
        return one

    async def leave(self, patience: float) -> int:
        """Wait for all to end, but not for longer; how many had to leave before."""
        end = time.monotonic() + patience
        while self._present and time.monotonic() < end:
            await asyncio.sleep(0.01)
        left = list(self._present)
        for one in left:
            one.leave()
        return len(left)
