"""A provider that says what its caller tells it to, in a process of its own.

The last message is three words: the caller's number, a number of pieces, and
``silent`` or ``talkative``. So many pieces come, one every 50 ms, then nothing more,
or more for ever; a stream's are events, those of an answer in one piece spaces before
its JSON. ``GET /seen`` tells how many connections are open and the numbers of all who
have asked. What is printed is the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import Any

PACE = 0.05
"""Seconds from one piece to the next."""


def _head(kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "up", "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


# The head and the piece that is repeated, by whether it is a stream.
SAID = {
    True: (_head("text/event-stream"), _piece(_event("word "))),
    False: (_head("application/json"), _piece(b" ")),
}


class Provider:
    """Serves one request a connection: it is always the caller who leaves."""

    def __init__(self) -> None:
        self.open = 0
        self.callers: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the caller has left."""
        self.open += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            line, body = await _request(reader)
            if line.startswith("GET /seen "):
                writer.write(self._seen())
            else:
                caller, pieces, manner = body["messages"][-1]["content"].split()
                self.callers.append(int(caller))
                end = int(pieces) if manner == "silent" else None
                await _talk(reader, writer, SAID[bool(body.get("stream"))], end)
        writer.close()
        self.open -= 1

    def _seen(self) -> bytes:
        others = self.open - 1
        body = json.dumps({"open": others, "callers": self.callers})
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def _request(reader: asyncio.StreamReader) -> tuple[str, Any]:
    """The first line of a request, and its body, decoded."""
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(field.lower().split(": ", 1) for field in fields if field)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return line, json.loads(body or b"null")


async def _talk(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    said: tuple[bytes, bytes],
    end: int | None,
) -> None:
    """Say ``said`` again and again; from piece ``end`` on be silent."""
    head, piece = said
    for number in itertools.count():
        if number == end:
            await reader.read(1)
            return
        writer.write(piece if number else head + piece)
        if await _has_left(reader, PACE):
            return


async def _has_left(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return not await reader.read(1)
    except TimeoutError:
        return False


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
