"""What the gateway must reach, as ratios of one run wherever the machine would decide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from .results import Results


class Goal(NamedTuple):
    """One thing that must be, and what was found. ``least`` says which way is better."""

    what: str
    bound: float
    least: bool
    value: float
    unit: str = ""

    @property
    def must(self) -> str:
        """The goal in writing."""
        return f"{'≥' if self.least else '≤'} {self.bound:g}{self.unit}"

    @property
    def verdict(self) -> str:
        """Whether it is reached."""
        if math.isnan(self.value):
            return "not measured"
        reached = self.value >= self.bound if self.least else self.value <= self.bound
        return "reached" if reached else "**missed**"


def goals(results: Results, transports: list[str]) -> list[Goal]:
    """All of them."""
    return [
        *_answers(results, transports),
        *_stores(results, transports[0]),
        *_streams(results, transports),
        *_held(results, transports[0]),
        *_itself(results, transports[0]),
        *_crowd(results),
    ]


def _least(what: str, bound: float, value: float) -> Goal:
    return Goal(what, bound, True, value, " x")


def _most(what: str, bound: float, value: float, unit: str = "") -> Goal:
    return Goal(what, bound, False, value, unit)


def fastest(results: Results, transports: list[str]) -> str:
    """The transport with which the gateway gives most answers a second."""
    speeds = {
        each: results.median("answers", f"gateway/gthread/{each}", "per_s") for each in transports
    }
    return max(speeds, key=lambda each: -math.inf if math.isnan(speeds[each]) else speeds[each])


def _answers(results: Results, transports: list[str]) -> Iterator[Goal]:
    best = fastest(results, transports)

    def times(server: str, transport: str, other: str) -> float:
        return results.ratio("answers", "per_s", f"gateway/{server}/{transport}", other)

    for each in transports:
        what = f"answers a second: of the bare relay on {each}"
        yield _least(what, 0.75, times("gthread", each, f"bare/gthread/{each}"))
    yield _least("answers a second: of LiteLLM", 18, times("gthread", transports[0], "litellm"))
    what = "answers a second: of Portkey"
    yield _least(f"{what}, over {transports[0]}", 1.2, times("gthread", transports[0], "portkey"))
    yield _least(f"{what}, over the fastest, {best}", 1.6, times("gthread", best, "portkey"))
    yield _least(f"{what}, over {best} on granian", 2.5, times("granian", best, "portkey"))


def _stores(results: Results, transport: str) -> Iterator[Goal]:
    memory = f"gateway/gthread/{transport}"
    for name, kind, bound in (
        ("SQLite", "sqlite", 0.5),
        ("PostgreSQL and Redis", "postgresql", 0.35),
    ):
        value = results.ratio("answers", "per_s", f"{kind}/gthread/{transport}", memory)
        yield _least(f"answers a second: with {name}, of those with memory", bound, value)


def _streams(results: Results, transports: list[str]) -> Iterator[Goal]:
    for each in transports:
        ours, bare = f"gateway/gthread/{each}", f"bare/gthread/{each}"
        value = results.ratio("streams", "per_s", ours, bare)
        yield _least(f"events a second: of the bare relay on {each}", 0.7, value)
    ours, bare = f"gateway/gthread/{transports[0]}", f"bare/gthread/{transports[0]}"
    for name, other, bound in (("LiteLLM", "litellm", 20), ("Portkey", "portkey", 1.5)):
        yield _least(
            f"events a second: of {name}", bound, results.ratio("streams", "per_s", ours, other)
        )
    added = results.difference("paced", "p50_ms", ours, "direct")
    yield _most("added delay of an event, p50", 0.3, added, " ms")
    first = results.difference("first", "p50_ms", ours, "direct")
    by_bare = results.difference("first", "p50_ms", bare, "direct")
    what = "added time to the first event, p50: of the bare relay's"
    yield _most(what, 1.5, first / by_bare, " x")


def _held(results: Results, transport: str) -> Iterator[Goal]:
    for server, streams, kilobytes in (("gthread-520", 500, 110), ("gevent", 1000, 60)):
        name, what = f"gateway/{server}/{transport}", f"{streams} streams held on {server}"
        yield _most(f"{what}: errors", 0, results.median("held", name, "errors"))
        if server != "gevent":
            p50 = results.median("held", name, "p50_ms")
            yield _most(f"{what}: delay of an event, p50", 0.5, p50, " ms")
        each = results.median("held", name, "kb_each")
        yield _most(f"{what}: memory of each", kilobytes, each, " KB")


def _itself(results: Results, transport: str) -> Iterator[Goal]:
    ours = f"gateway/gthread/{transport}"
    yield _most("from its start to the first answer", 0.6, results.median("start", ours, "s"), " s")
    yield _most("memory at rest", 45, results.median("start", ours, "mb"), " MB")
    yield _most("packages installed", 10, results.median("size", "gateway", "packages"))
    yield _most("installed", 12, results.median("size", "gateway", "mb"), " MB")
    whole = results.median("steps", "an answer in one piece", "us")
    yield _most("own code, an answer in one piece", 120, whole, " µs")
    event = results.median("steps", "an event of a stream", "us")
    yield _most("own code, an event of a stream", 8, event, " µs")


def _crowd(results: Results) -> Iterator[Goal]:
    for kind in ("memory", "sqlite", "postgresql"):
        value = results.ratio("million", "per_s", f"{kind}, a million keys", f"{kind}, one key")
        yield _least(f"answers a second: with 10⁶ keys in {kind}, of those with one", 0.9, value)
