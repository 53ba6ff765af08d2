"""Many callers at once and providers that fail at random: every call ends with an answer or
an error, and the books say what was handed over."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

CALLERS = 8
STUCK = 60.0
"""Seconds after which a call counts as stuck."""
JITTER = 0.004
"""The longest that a provider thinks, in seconds."""
TIMEOUTS = {"first_token": 1.0, "idle": 1.0, "total": 1.0}
TOLD = (7, 3)
SEED = 4


# --- what providers do ----------------------------------------------------------------


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def drip(line: Any, text: str) -> None:
    """A good answer, a few bytes at a time."""
    line.stream()
    data = line.events(text) if line.streams else json.dumps(line.completion(text)).encode()
    for start in range(0, len(data), 23):
        line.raw(data[start : start + 23])


def leave_untold(line: Any, text: str) -> None:
    """A good answer that lacks its usage, and at its end the mark."""
    if not line.streams:
        line.whole(line.completion(text, usage=None))
        return
    line.stream()
    line.event(piece(text[:9]))
    line.event(piece(text[9:], "stop"))


def begin(line: Any, text: str) -> None:
    """Some of an answer."""
    line.stream(framing="chunked")
    if line.streams:
        for start in range(0, len(text) // 2, 9):
            line.event(piece(text[start : start + 9]))
    else:
        line.send(b'{"choices": [{"mess')


def refuse(status: str) -> Any:
    return lambda line, text: line.whole({"error": {"message": line.private}}, status=status)


FATES: dict[str, tuple[int, Any]] = {
    "well": (40, lambda line, text: line.well(text)),
    "drip": (8, drip),
    "untold": (8, leave_untold),
    "cut": (4, lambda line, text: None),
    "reset": (4, lambda line, text: line.reset()),
    "cut later": (4, begin),
    "reset later": (4, lambda line, text: (begin(line, text), line.reset())),
    "error later": (4, lambda line, text: (begin(line, text), line.event({"error": "no"}))),
    "nonsense later": (3, lambda line, text: (begin(line, text), line.send(b"data: {\n\n"))),
    "gives up": (3, lambda line, text: (line.stream(), line.event(piece("", "network_error")))),
    "no HTTP": (3, lambda line, text: line.raw(b"220 smtp.example ESMTP\r\n")),
    "a page": (3, lambda line, text: line.whole(b"<html>")),
    "nothing": (2, lambda line, text: line.whole(b"")),
    "done at once": (2, lambda line, text: (line.stream(), line.event("[DONE]"))),
    "an error": (3, refuse("200 OK")),
    "401": (3, refuse("401 No")),
    "429": (3, refuse("429 No")),
    "500": (3, refuse("500 No")),
    "503": (3, refuse("503 No")),
    "stall": (1, lambda line, text: line.turn.hold()),
    "stall later": (1, lambda line, text: (begin(line, text), line.turn.hold())),
}


def answer_to(call: int) -> str:
    """A text that nobody else is given."""
    length = random.Random(f"{SEED} answer {call}").randrange(2, 40)
    return f"to call {call}: " + "so and so " * length


class Providers:
    """Draw a fate for every request, the same in every run; ``told`` is the usage that
    was told of each call by whoever was asked last."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[int, int] | None] = {}
        self._tries: Counter[int] = Counter()
        self._lock = threading.Lock()

    def play(self, line: Any) -> None:
        call = int(line.turn.json["messages"][0]["content"])
        with self._lock:
            self._tries[call] += 1
            draw = random.Random(f"{SEED} try {self._tries[call]} of {call}")
        (fate,) = draw.choices(list(FATES), [weight for weight, _ in FATES.values()])
        self.told[call] = None if fate == "untold" else TOLD
        line.turn.hold(patience=draw.random() * JITTER)
        FATES[fate][1](line, answer_to(call))


# --- what callers do ------------------------------------------------------------------


def ask(stage: Any, call: int) -> Any:
    """One call, as a stream or not, left early or not, as the number of the call has it."""
    draw = random.Random(f"{SEED} caller {call}")
    stream = draw.random() < 0.6
    return stage.see(
        stream,
        take=draw.randrange(8) if stream and draw.random() < 0.3 else None,
        messages=[{"role": "user", "content": str(call)}],
        stream_options={"include_usage": draw.random() < 0.5},
    )


@pytest.fixture
def run(make_stage: Any, eventually: Any) -> Any:
    """Make many calls, and check every one of them and all together."""

    def run(calls: int, cooldown: float) -> Counter[str]:
        providers = Providers()
        stage = make_stage(
            *[providers.play] * 2,
            row={"cooldown": cooldown, "timeouts": TIMEOUTS},
            account={"tier": "enterprise", "balance": "100"},
            clock=time.monotonic,
        )
        with ThreadPoolExecutor(CALLERS) as callers:
            futures = [callers.submit(ask, stage, call) for call in range(calls)]
            answers = [future.result(timeout=STUCK) for future in futures]
        ledger = stage.gateway.ledger
        rows = {row.request_id: row for row in ledger.entries("alice")}
        for call, seen in enumerate(answers):
            assert_is_right(stage, seen, answer_to(call), providers.told.get(call), rows[seen.id])
        assert len(rows) == calls
        assert sum(row.cost for row in rows.values()) == ledger.balance("alice").spent
        assert len(stage.notes()) == sum(seen.error is not None for seen in answers)
        cooldowns = stage.gateway._endpoints["chat"]._dispatch._cooldowns().values()
        eventually(lambda: not any(each.remaining for each in cooldowns))
        return Counter(row.outcome for row in rows.values())

    return run


def assert_is_right(stage: Any, seen: Any, text: str, told: Any, row: Any) -> None:
    """The caller got their own answer or its beginning, and pays for what they got."""
    assert text.startswith(seen.text)
    if row.outcome == "answered":
        assert seen.text == text
        seen.is_done = True  # if they left, then with nothing but its end missing
    stage.assert_is_booked(seen, told, row)


OUTCOMES = {
    "answered",
    "caller_left",
    "upstream_error",
    "upstream_timeout",
    "model_overloaded",
    "provider_unavailable",
}


def test_whatever_providers_do_every_call_ends_and_is_booked_rightly(run: Any) -> None:
    outcomes = run(500, cooldown=0)
    assert set(outcomes) == OUTCOMES
    assert outcomes["answered"] > 250


def test_the_same_holds_while_failing_providers_are_left_alone(run: Any) -> None:
    outcomes = run(100, cooldown=0.02)
    assert set(outcomes) <= OUTCOMES
    assert outcomes["answered"] > 0


@pytest.mark.soak
@pytest.mark.parametrize(("calls", "cooldown"), [(10_000, 0), (3_000, 0.02)])
def test_the_same_holds_of_thousands_of_calls(run: Any, calls: int, cooldown: float) -> None:
    assert run(calls, cooldown)["answered"] > calls // 2
