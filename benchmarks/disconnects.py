"""Callers who leave at random, and what is left of them: it must be nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from oneai_middleware.ledgers.memory import KEPT_ENTRIES
from oneai_middleware.secret import new_secret

from .servers import PATIENCE, SERVERS, Running, gateway, provider

CALLERS = 64
"""At a time; there is room for so many, so that a place that one kept is missed."""

THREADS = CALLERS + 4
"""Of the server, where it has a number of them."""

UNSEEN = 1.0
"""Seconds after which a caller who has left will not be taken for one any more."""

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: a close drops everything and says so."""


# --- one caller -----------------------------------------------------------------------


@dataclass
class Call:
    """What a caller does, and what the gateway says became of it. Times are monotonic."""

    number: int
    stream: bool
    pieces: int
    manner: str
    part: int
    pause: float
    reset: bool
    refused: bool = False
    left_at: float = 0.0
    freed_at: float = 0.0
    taken: threading.Event = field(default_factory=threading.Event)
    freed: threading.Event = field(default_factory=threading.Event)


def draw(seed: int, number: int) -> Call:
    """The call of this number: always the same for the same seed."""
    choice = random.Random(f"{seed} {number}")
    stream = choice.random() < 0.8
    pieces = choice.randint(0, 8)
    return Call(
        number,
        stream=stream,
        pieces=pieces,
        manner=choice.choice(["silent", "talkative"]),
        part=choice.randint(0, pieces) if stream else 0,
        pause=choice.uniform(0, 0.2),
        reset=choice.random() < 0.5,
    )


def make(call: Call, port: int, key: str) -> None:
    """Ask, take a part of the answer, and leave; come back when there is room again."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(_request(call, key))
        if call.part:
            call.refused = not _take(connection, call.part)
        else:
            time.sleep(call.pause)
        _prepare_to_leave(connection, call.reset)
        call.left_at = time.monotonic()
    if call.taken.wait(UNSEEN):
        call.freed.wait(PATIENCE)


def _request(call: Call, key: str) -> bytes:
    messages = [{"role": "user", "content": f"{call.number} {call.pieces} {call.manner}"}]
    body = json.dumps({"model": "bot", "stream": call.stream, "messages": messages})
    head = (
        "POST /oneai/v1/chat/completions HTTP/1.1\r\nHost: benchmark\r\n"
        f"Authorization: Bearer {key}\r\nX-Client-Request-Id: {call.number}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


def _take(connection: socket.socket, part: int) -> bool:
    """Read so many events; false if they are not what was asked for."""
    with connection.makefile("rb") as reply, contextlib.suppress(OSError):
        if reply.readline().startswith(b"HTTP/1.1 200 "):
            events = (line for line in reply if line.startswith(b"data: "))
            return all(b"word" in next(events, b"") for _ in range(part))
    return False


def _prepare_to_leave(connection: socket.socket, reset: bool) -> None:
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return
    # A close with bytes unread would be a reset, too.
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.recv(2**16)


# --- all of them ----------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the table: what came of the callers of one server."""

    server: str
    callers: int
    not_called: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int
    slots: int
    places: int
    held: int
    threads: int
    sockets: int
    faults: int
    entries: int
    requests: int
    not_asked: int

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left, and every call was asked and booked once."""
        left = (self.slots, self.places, self.held, self.threads, self.sockets)
        return (
            not any((*left, self.refused, self.faults))
            and self.entries == self.callers - self.not_called
            and self.entries == self.requests + self.not_asked
        )


def measure(kind: str, count: int, seed: int) -> Row:
    """Let so many callers leave a kind of server."""
    key = new_secret()
    calls = [draw(seed, number) for number in range(count)]
    with (
        provider() as asked,
        gateway(kind, threads=THREADS, calls=CALLERS, key=key, provider=asked) as served,
    ):
        threading.Thread(target=_listen, args=(served, calls), daemon=True).start()
        with ThreadPoolExecutor(CALLERS) as pool:
            running = [pool.submit(make, call, served.port, key) for call in calls]
            for number, one in enumerate(running, 1):
                one.result()
                if number % 500 == 0 or number == count:
                    print(f"{kind}: {number} of {count}", file=sys.stderr)
        return _row(kind, calls, *_rest(served, asked))


def _listen(served: Running, calls: Sequence[Call]) -> None:
    """Write down who was let in and when their slots were free."""
    for line in served.said:
        what, number, at = line.split()
        call = calls[int(number)]
        if what == "freed":
            call.freed_at = float(at)
        getattr(call, what).set()


def _rest(served: Running, asked: Running) -> tuple[Any, Any]:
    """What is left in the gateway and at the provider, once no less will be."""
    end = time.monotonic() + PATIENCE
    while True:
        left, seen = served.get("/"), asked.get("/seen")
        running = left["slots"] or left["places"] or left["held"] or left["threads"]
        if not (running or seen["open"]) or time.monotonic() > end:
            return left, seen
        time.sleep(0.1)


def _row(kind: str, calls: Sequence[Call], left: Any, seen: Any) -> Row:
    for fault in left["faults"]:
        print(f"{kind}: {fault}", file=sys.stderr)
    called = [call for call in calls if call.taken.is_set()]
    waits = sorted((call.freed_at - call.left_at) * 1000 for call in called if call.freed.is_set())
    asking = set(seen["callers"])
    return Row(
        kind,
        callers=len(calls),
        not_called=len(calls) - len(called),
        p50_ms=_percentile(waits, 0.5),
        p99_ms=_percentile(waits, 0.99),
        max_ms=_percentile(waits, 1),
        refused=sum(call.refused for call in calls),
        **{name: left[name] for name in ("slots", "places", "held", "threads", "entries")},
        sockets=seen["open"],
        faults=len(left["faults"]),
        requests=len(seen["callers"]),
        # Who has taken a part of an answer must have been heard of.
        not_asked=sum(not call.part and call.number not in asking for call in called),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[math.ceil(share * len(ordered)) - 1]) if ordered else math.nan


# --- the command ----------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--count", type=_count, default=10_000, help="callers a server")
    parser.add_argument("--servers", type=_servers, default=list(SERVERS), help=",".join(SERVERS))
    parser.add_argument("--seed", type=int, default=1, help="another one draws other callers")


def run(options: argparse.Namespace) -> int:
    """Print a row for each server; the exit status is 1 if one is not clean."""
    rows = []
    _print([name.replace("_", " ") for name in Row._fields])
    _print(["---", *["---:"] * (len(Row._fields) - 1)])
    for kind in options.servers:
        rows.append(measure(kind, options.count, options.seed))
        _print(rows[-1])
    return 0 if all(row.is_clean for row in rows) else 1


def _print(cells: Sequence[object]) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def _count(text: str) -> int:
    # The ledger in memory keeps no more entries to count.
    if not 0 < int(text) <= KEPT_ENTRIES:
        raise argparse.ArgumentTypeError(f"from 1 to {KEPT_ENTRIES}")
    return int(text)


def _servers(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(SERVERS):
        raise argparse.ArgumentTypeError(f"no such server: {', '.join(unknown)}")
    return names
