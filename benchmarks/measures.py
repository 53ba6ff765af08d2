"""What is measured of a server, and the figures that are made of it."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .callers import Tally, call
from .processes import Served

Figures = dict[str, float]
"""By name. Those of one measure are the same for all servers."""


REST = 20.0
"""Seconds that a server may take to come to an end, or to notice that its callers have left."""

APART = {20: 0.021, 2: 0.0055}
"""Seconds between the beginnings of two streams, by their events a second: such that no two of
fifty, or of a thousand, have theirs at the same moment."""


class Measure(NamedTuple):
    """One thing that is measured: what it is called, and how."""

    name: str
    title: str
    take: Callable[[Served, float], tuple[Tally, Figures]]


def taken(measure: Measure, served: Served, seconds: float) -> tuple[Figures, int]:
    """The figures of one window of so many seconds, and how much went wrong."""
    tally, figures = measure.take(served, seconds)
    if tally.unfinished:
        _let_rest(served)
    return figures, _said(tally)


def _let_rest(served: Served) -> None:
    """Wait until it no longer works for those who have left: the next turn is another's."""
    end = time.monotonic() + REST
    while time.monotonic() < end:
        before = served.cpu
        time.sleep(0.25)
        if served.cpu - before < 0.05:
            return


def _said(tally: Tally) -> int:
    """How many errors there were; what they were goes to standard error."""
    for fault, times in tally.errors.items():
        print(f"  {times} x {fault}", file=sys.stderr)
    return tally.errors.total()


def _answers(served: Served, seconds: float) -> tuple[Tally, Figures]:
    tally = asyncio.run(call(served, "answer", callers=32, seconds=seconds))
    return tally, {"per_s": tally.answers / seconds, "cpu_us": _each(tally.cpu, tally.answers)}


def _alone(served: Served, seconds: float) -> tuple[Tally, Figures]:
    tally = asyncio.run(call(served, "answer", callers=1, seconds=seconds))
    return tally, {
        "per_s": tally.answers / seconds,
        "cpu_us": _each(tally.cpu, tally.answers),
        "p50_ms": percentile(tally.times, 0.5) * 1000,
        "p99_ms": percentile(tally.times, 0.99) * 1000,
    }


def _streams(served: Served, seconds: float) -> tuple[Tally, Figures]:
    tally = asyncio.run(call(served, "2000 at 0", callers=8, seconds=seconds))
    return tally, {"per_s": tally.pieces / seconds, "cpu_us": _each(tally.cpu, tally.pieces)}


def _first(served: Served, seconds: float) -> tuple[Tally, Figures]:
    tally = asyncio.run(call(served, "1 at 0", callers=1, seconds=seconds))
    return tally, {
        "p50_ms": percentile(tally.first, 0.5) * 1000,
        "p99_ms": percentile(tally.first, 0.99) * 1000,
    }


def _paced(served: Served, seconds: float) -> tuple[Tally, Figures]:
    return at_pace(served, seconds, callers=50, rate=20)


def at_pace(served: Served, seconds: float, *, callers: int, rate: int) -> tuple[Tally, Figures]:
    """So many streams side by side, of so many pieces a second each, all of them under way
    all the time."""
    spread = callers * APART[rate]
    warm = spread + 0.5
    pieces = math.ceil((warm + seconds) * rate)
    tally = asyncio.run(
        call(
            served,
            f"{pieces} at {rate}",
            callers=callers,
            seconds=seconds,
            warm=warm,
            spread=spread,
            patience=spread + REST,
        )
    )
    return tally, {
        "p50_ms": percentile(tally.delays, 0.5) * 1000,
        "p99_ms": percentile(tally.delays, 0.99) * 1000,
        "cpu_us": _each(tally.cpu, tally.pieces),
    }


def held(served: Served, seconds: float, streams: int) -> tuple[Figures, int]:
    """So many streams that are held for so many seconds, two events a second each: what they
    cost, and how many went wrong."""
    asyncio.run(call(served, "answer", callers=16, seconds=1.0))
    before = served.memory
    tally, figures = at_pace(served, seconds, callers=streams, rate=2)
    if tally.unfinished:
        tally.errors["did not end in time"] = tally.unfinished
    faults = _said(tally)
    grown = (tally.memory - before) / streams
    return {**figures, "kb_each": grown, "errors": faults}, faults


def _each(seconds: float, count: int) -> float:
    return seconds / count * 1e6 if count else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


ANSWERS = Measure("answers", "Answers of 1 KB in one piece, 32 callers", _answers)
ALONE = Measure("alone", "Answers of 1 KB in one piece, 1 caller", _alone)
STREAMS = Measure("streams", "8 streams of 2,000 events that come all at once", _streams)
FIRST = Measure("first", "The first event of a stream, 1 caller", _first)
PACED = Measure("paced", "50 streams of 20 events a second", _paced)

MEASURES = [ANSWERS, ALONE, FIRST, PACED, STREAMS]
