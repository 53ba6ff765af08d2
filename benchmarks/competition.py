"""Turns: every measure of everyone, A B A B, so that what comes and goes hits all alike."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

from . import contenders
from .contenders import Start
from .measures import ALONE, ANSWERS, FIRST, MEASURES, PACED, STREAMS, Figures, Measure, held, taken
from .processes import Served
from .results import Results
from .servers import Absent

DIRECTLY = (ALONE, FIRST, PACED)
STORED = (ANSWERS, ALONE)
ON_GRANIAN = (ANSWERS, STREAMS)
STREAMS_HELD = {"gthread-520": 500, "gevent": 1_000}
"""How many, by server."""


class Entrant(NamedTuple):
    """Who takes part, and in what.

    The name is of the application, its server and its client, with slashes between.
    """

    name: str
    start: Start
    measures: Sequence[Measure] = MEASURES


def field(transports: Sequence[str]) -> list[Entrant]:
    """Everyone, in the order of every round."""
    entrants = [Entrant("direct", contenders.direct, DIRECTLY)]
    for transport in transports:
        entrants += _both("gthread", transport, MEASURES)
        entrants += _both("granian", transport, ON_GRANIAN)
    for kind in ("sqlite", "postgresql"):
        entrants.append(_gateway("gthread", transports[0], STORED, kind=kind))
    return [
        *entrants,
        Entrant("litellm", contenders.litellm),
        Entrant("portkey", contenders.portkey),
    ]


def _both(server: str, transport: str, measures: Sequence[Measure]) -> list[Entrant]:
    """The bare relay and the gateway on the same server and client."""
    bare = functools.partial(contenders.bare, server=server, transport=transport)
    return [
        Entrant(f"bare/{server}/{transport}", bare, measures),
        _gateway(server, transport, measures),
    ]


def _gateway(
    server: str, transport: str, measures: Sequence[Measure] = (), *, kind: str = "memory"
) -> Entrant:
    start = functools.partial(contenders.gateway, server=server, transport=transport, kind=kind)
    name = "gateway" if kind == "memory" else kind
    return Entrant(f"{name}/{server}/{transport}", start, measures)


class Competition:
    """Lets them take turns, and notes what it finds. ``provider`` is its port; ``seconds``
    are those of a round; who has none of ``names`` in its name does not take part."""

    def __init__(
        self,
        provider: int,
        results: Results,
        *,
        rounds: int,
        seconds: float,
        names: Sequence[str] = ("",),
    ) -> None:
        self._provider = provider
        self._results = results
        self._rounds = rounds
        self._seconds = seconds
        self._names = names

    def run(self, transports: Sequence[str]) -> None:
        """Every measure of everyone."""
        with contextlib.ExitStack() as stack:
            present = self._present(stack, field(transports))
            for measure in MEASURES:
                taking = [each for each in present if measure in each[0].measures]
                self._take_turns(measure, [(each.name, served) for each, served in taking])

    def start(self, transports: Sequence[str]) -> None:
        """Starts again, of the bare relay and of the gateway: the first was one of many."""
        for _ in range(self._rounds):
            for transport in transports:
                for entrant in _both("gthread", transport, ()):
                    with contextlib.ExitStack() as stack:
                        self._present(stack, [entrant])

    def hold(
        self, transports: Sequence[str], seconds: float, names: Sequence[str] = ("bare", "gateway")
    ) -> None:
        """Many streams at once, of one server after the other; ``names`` are whose."""
        for server, streams in STREAMS_HELD.items():
            entrants = [each for one in transports for each in _both(server, one, ())]
            for entrant in entrants:
                if entrant.name.startswith(tuple(names)):
                    with contextlib.ExitStack() as stack:
                        for _, served in self._present(stack, [entrant]):
                            self._note("held", entrant.name, *held(served, seconds, streams))

    def crowd(self, transport: str) -> None:
        """A million keys of others against none."""
        for kind in contenders.STORES:
            quiet = functools.partial(
                contenders.gateway, server="gthread", transport=transport, kind=kind
            )
            pair = [
                Entrant(f"{kind}, one key", quiet),
                Entrant(f"{kind}, a million keys", functools.partial(quiet, crowded=True)),
            ]
            with contextlib.ExitStack() as stack:
                present = self._present(stack, pair)
                measure = ANSWERS._replace(name="million")
                self._take_turns(measure, [(each.name, served) for each, served in present])

    def _take_turns(self, measure: Measure, present: Sequence[tuple[str, Served]]) -> None:
        for number in range(self._rounds):
            say(f"{measure.name}: round {number + 1} of {self._rounds}")
            for name, served in present:
                self._note(measure.name, name, *taken(measure, served, self._seconds))

    def _present(
        self, stack: contextlib.ExitStack, entrants: Sequence[Entrant]
    ) -> list[tuple[Entrant, Served]]:
        """Those who can take part, started."""
        present = []
        for entrant in entrants:
            if not any(part in entrant.name for part in self._names):
                continue
            served = self._started(stack, entrant)
            if served is not None:
                present.append((entrant, served))
        return present

    def _started(self, stack: contextlib.ExitStack, entrant: Entrant) -> Served | None:
        """Its server; none, with a note, if it is not here or fails: the others go on."""
        try:
            served = stack.enter_context(entrant.start(self._provider))
        except Absent as reason:
            self._leave_out(entrant, str(reason))
            return None
        except Exception as error:
            self._leave_out(entrant, f"did not start: {type(error).__name__}: {error}")
            self._results.errors += 1
            return None
        if served.session:
            costs = {"s": served.start, "mb": served.memory / 1024}
            self._note("start", entrant.name, costs)
        return served

    def _leave_out(self, entrant: Entrant, reason: str) -> None:
        self._results.absent[entrant.name] = reason.partition("\n")[0]
        say(f"{entrant.name}: {reason}")

    def _note(self, measure: str, name: str, figures: Figures, errors: int = 0) -> None:
        self._results.add(measure, name, figures)
        self._results.errors += errors
        say(f"  {measure:8} {name:32}", *(f"{each} {value:.4g}" for each, value in figures.items()))


def say(*words: str) -> None:
    """Tell whoever waits."""
    print(*words, file=sys.stderr, flush=True)
