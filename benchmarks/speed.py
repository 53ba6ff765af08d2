"""How fast the gateway is, beside a bare relay on the same server and other gateways."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import contenders, processes
from .contenders import Absent, Start
from .measures import ALONE, ANSWERS, FIRST, MEASURES, PACED, STREAMS, Measure, taken
from .processes import Served
from .results import Results
from .servers import started

ALONE_HERE = (ALONE, FIRST, PACED)
STORED = (ANSWERS, ALONE)
ON_GRANIAN = (ANSWERS, STREAMS)


class Entrant(NamedTuple):
    """Who takes part, and in what.

    The name is of the application, its server and its client, with slashes between.
    """

    name: str
    start: Start
    measures: Sequence[Measure] = MEASURES


def field(transports: Sequence[str]) -> list[Entrant]:
    """Everyone, in the order of every round."""
    first, bare, gateway = transports[0], contenders.bare, contenders.gateway
    entrants = [Entrant("direct", contenders.direct, ALONE_HERE)]
    for server, measures in (("gthread", MEASURES), ("granian", ON_GRANIAN)):
        for transport in transports:
            for name, start in (("bare", bare), ("gateway", gateway)):
                start = functools.partial(start, server=server, transport=transport)
                entrants.append(Entrant(f"{name}/{server}/{transport}", start, measures))
    for kind in ("sqlite", "postgresql"):
        start = functools.partial(gateway, server="gthread", transport=first, kind=kind)
        entrants.append(Entrant(f"{kind}/gthread/{first}", start, STORED))
    return [
        *entrants,
        Entrant("litellm", contenders.litellm),
        Entrant("portkey", contenders.portkey),
    ]


# --- the rounds -------------------------------------------------------------------------


class Competition:
    """Takes turns at measuring, and notes what it finds."""

    def __init__(self, provider: int, results: Results, seconds: float) -> None:
        self._provider = provider
        self._results = results
        self._seconds = seconds

    def run(self, entrants: Sequence[Entrant], rounds: int) -> None:
        """Start all, and let them take turns: A B A B."""
        with contextlib.ExitStack() as stack:
            present = []
            for entrant in entrants:
                served = self._started(stack, entrant)
                if served is not None:
                    present.append((entrant, served))
            for measure in MEASURES:
                for number in range(rounds):
                    _say(f"{measure.title}: round {number + 1} of {rounds}")
                    for entrant, served in present:
                        if measure in entrant.measures:
                            self._measure(measure, entrant.name, served)

    def _started(self, stack: contextlib.ExitStack, entrant: Entrant) -> Served | None:
        try:
            return stack.enter_context(entrant.start(self._provider))
        except Absent as reason:
            self._results.absent[entrant.name] = str(reason)
            _say(f"{entrant.name}: {reason}")
            return None

    def _measure(self, measure: Measure, name: str, served: Served) -> None:
        figures, errors = taken(measure, served, self._seconds)
        self._results.add(measure.name, name, figures)
        self._results.errors += errors
        _say(f"  {name:32}", *(f"{figure} {value:.4g}" for figure, value in figures.items()))


def _say(*words: str) -> None:
    print(*words, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _provider() -> Iterator[int]:
    with started(["benchmarks.fast_provider"]) as said:
        yield int(said.readline())


# --- the command ------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--rounds", type=int, default=3, help="of every measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="of every round")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument("--only", default="", help="names, or parts of them, with commas between")


def run(options: argparse.Namespace) -> int:
    """Measure and report; the exit status is 1 if an answer was wrong."""
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    results = Results()
    entrants = [
        entrant
        for entrant in field(contenders.transports())
        if any(part in entrant.name for part in options.only.split(","))
    ]
    processes.stay_off_its_core()
    with _provider() as provider:
        Competition(provider, results, options.seconds).run(entrants, options.rounds)
    return 1 if results.errors else 0
