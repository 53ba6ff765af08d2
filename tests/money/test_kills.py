"""Workers killed in mid-call, under load: no money is lost, made or charged twice."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

CALLERS = 8
LEASE = 1.0

on_both = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@on_both
def test_after_many_kills_the_books_are_exact(
    shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    _kill_many_times(20, shop, serve, call, provider, eventually)


@pytest.mark.soak
@on_both
def test_after_a_great_many_kills_the_books_are_exact(
    shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    _kill_many_times(200, shop, serve, call, provider, eventually)


def _kill_many_times(
    count: int, shop: Any, serve: Any, call: Any, provider: Any, eventually: Any
) -> None:
    provider.respond = _respond
    shop.top_up(10**12)
    server = serve("--preload", "-k", "gthread", "--threads", "8", "--workers", "2", lease=LEASE)
    answered: list[str] = []
    over = threading.Event()
    choice = random.Random(count)
    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [
            pool.submit(_call_on, number, over, server, call, answered) for number in range(CALLERS)
        ]
        try:
            for _ in range(count):
                more = len(answered) + choice.randint(1, 6)
                eventually(lambda more=more: len(answered) >= more, 30)
                eventually(lambda: _kill(choice.choice(_workers(server) or [0])))
        finally:
            over.set()
        for caller in callers:
            caller.result()
    eventually(lambda: shop.ledger.sweep() == 0 and not shop.has_open_holds(), 30)
    shop.assert_books_are_exact()
    rows = {row.request_id: row for row in shop.rows}
    # Who has a whole answer has paid for it, once; and some calls were lost.
    assert {rows[request_id].outcome for request_id in answered} == {"answered"}
    assert {rows[request_id].cost for request_id in answered} == {13_000}
    assert "abandoned" in {row.outcome for row in rows.values()}


def _workers(server: Any) -> list[int]:
    """The workers that there are."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def _call_on(
    number: int, over: threading.Event, server: Any, call: Any, answered: list[str]
) -> None:
    """Call, one time after the other, and note the calls whose answers were complete."""
    choice = random.Random(number)
    while not over.is_set():
        caller = call(server)
        with contextlib.suppress(OSError, http.client.HTTPException):
            stream = choice.random() < 0.5
            if caller.ask(stream=stream) == 200 and _is_complete(caller, stream):
                answered.append(caller.request_id)
        caller.leave()


def _is_complete(caller: Any, stream: bool) -> bool:
    if not stream:
        return "choices" in caller.json
    return "[DONE]" in iter(caller.event, None)


def _respond(turn: Any) -> None:
    """A short answer that takes its time."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    turn.hold(patience=0.03)
    if not turn.json["stream"]:
        answer = {"index": 0, "message": {"role": "assistant", "content": "one two three"}}
        turn.answer({"choices": [{**answer, "finish_reason": "stop"}], "usage": usage})
        return
    turn.start_stream()
    for word in ("one ", "two "):
        turn.text(word)
        turn.hold(patience=0.03)
    turn.text("three", "stop", usage=usage)
    turn.event("[DONE]")
