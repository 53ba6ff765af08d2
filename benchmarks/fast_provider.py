"""A provider that costs next to nothing, in a process of its own.

What it is to say stands in the message: ``say answer`` for an answer in one piece of
1 KB, ``say 2000 at 0`` for a stream of so many pieces at once, ``say 40 at 20`` for one
of so many a second. Between two ``@`` every piece has the nanoseconds of the system's
monotonic clock at which it was sent; zero where they come at once. What is printed is
the port.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
from typing import Any

USAGE = {"prompt_tokens": 20, "completion_tokens": 200, "total_tokens": 220}
MARK = "@%019d@"
"""What every piece has once, and so has an answer: the time it was sent."""

WISH = re.compile(rb"say (?:answer|(\d+) at (\d+))")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _object(kind: str, choice: dict[str, Any] | None, usage: Any = None) -> bytes:
    body = {
        "id": "chatcmpl-000000000000000000000000",
        "object": kind,
        "created": 1_700_000_000,
        "model": "bot",
        "choices": [] if choice is None else [{"index": 0, **choice}],
        "usage": usage,
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _head(*fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, "", ""]).encode()


def _whole() -> bytes:
    message = {"role": "assistant", "content": MARK % 0 + " word" * 145}
    choice = {"message": message, "finish_reason": "stop"}
    body = _object("chat.completion", choice, USAGE)
    return _head("Content-Type: application/json", f"Content-Length: {len(body)}") + body


def _piece(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
    return _piece(_object("chat.completion.chunk", {"delta": delta, "finish_reason": reason}))


ANSWER = _whole()
STREAM = _head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
SAYING = _chunk({"content": MARK % 0})
UNSTAMPED = (MARK % 0).encode()
END = b"".join(
    [
        _chunk({}, "stop"),
        _piece(_object("chat.completion.chunk", None, USAGE)),
        _piece(b"[DONE]"),
        b"0\r\n\r\n",
    ]
)


@functools.cache
def at_once(pieces: int) -> bytes:
    """A whole stream, in one piece of memory. There are gateways that cut off a model which
    says the same again and again, so every piece has its number."""
    said = (_chunk({"content": MARK % 0 + f" {number}"}) for number in range(pieces))
    return STREAM + b"".join(said) + END


class Provider(asyncio.Protocol):
    """One connection: request by request, none before the one before it is answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._received = b""
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(received, 0, end)
        if len(received) >= end + 4 + (int(length[1]) if length else 0):
            self._received = b""
            self._answer(WISH.search(received, end))

    def _answer(self, wish: re.Match[bytes] | None) -> None:
        if wish is None or wish[1] is None:
            self._transport.write(ANSWER)
        elif wish[2] == b"0":
            self._transport.write(at_once(int(wish[1])))
        else:
            self._transport.write(STREAM)
            self._say(int(wish[1]), 1 / int(wish[2]), self._loop.time())

    def _say(self, left: int, pace: float, at: float) -> None:
        if not left:
            self._transport.write(END)
            return
        stamp = (MARK % time.monotonic_ns()).encode()
        self._transport.write(SAYING.replace(UNSTAMPED, stamp))
        self._next = self._loop.call_at(at + pace, self._say, left - 1, pace, at + pace)


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(loop), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
