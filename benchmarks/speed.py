"""How fast the gateway is, beside a bare relay on the same server and other gateways."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from . import contenders, processes, steps
from .about import about
from .competition import Competition, say
from .report import picture, put_into, report
from .results import Results
from .servers import ROOT, started
from .size import size

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "benchmarks" / "README.md"
PICTURE = ROOT / "docs" / "speed.svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--rounds", type=int, default=3, help="of every measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="of every round")
    parser.add_argument("--quick", action="store_true", help="short and rough; not kept")
    parser.add_argument("--only", help="names, or parts of them, with commas between; not kept")
    parser.add_argument("--size", action="store_true", help="install the package and weigh it, too")
    parser.add_argument("--million", action="store_true", help="with a million keys, too")
    parser.add_argument("--again", action="store_true", help="report what was kept, and no more")


def run(options: argparse.Namespace) -> int:
    """Measure, report and keep; the exit status is 1 if an answer was wrong or missing."""
    results = Results.load(RESULTS) if options.again else _measured(options)
    text = report(results)
    print(text)
    if not (options.quick or options.only):
        results.save(RESULTS)
        put_into(PAGE, text)
        PICTURE.write_text(picture(results), encoding="utf-8")
    if results.errors:
        say(f"{results.errors} answers were wrong or missing")
    return 1 if results.errors else 0


def _measured(options: argparse.Namespace) -> Results:
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    transports = contenders.transports()
    results = Results(about(rounds=options.rounds, seconds=options.seconds, transports=transports))
    processes.stay_off_its_core()
    if options.size:
        results.add("size", "gateway", size())
    with _provider() as provider:
        competition = Competition(
            provider,
            results,
            rounds=options.rounds,
            seconds=options.seconds,
            names=(options.only or "").split(","),
        )
        competition.run(transports)
        competition.start(transports)
        if options.quick:
            competition.hold(transports[:1], seconds=2.0, names=["gateway"])
        else:
            competition.hold(transports, seconds=5 * options.seconds)
        if options.million:
            competition.crowd(transports[0])
    for name, cost in steps.costs(calls=500 if options.quick else 2_000).items():
        results.add("steps", name, {"us": cost})
    return results


@contextlib.contextmanager
def _provider() -> Iterator[int]:
    with started(["benchmarks.fast_provider"]) as said:
        yield int(said.readline())
