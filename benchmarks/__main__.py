"""Run one benchmark: ``speed`` if none is named. Its table goes to standard output, all
else to standard error."""

from __future__ import annotations

import argparse
import sys

from . import disconnects, limits, speed, steps

BENCHMARKS = {"speed": speed, "steps": steps, "disconnects": disconnects, "limits": limits}


def main() -> int:
    """The exit status: 1 if what must hold does not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(metavar="NAME", required=True)
    for name, benchmark in BENCHMARKS.items():
        below = names.add_parser(name, help=benchmark.__doc__, description=benchmark.__doc__)
        benchmark.add_arguments(below)
        below.set_defaults(run=benchmark.run)
    options = parser.parse_args(sys.argv[1:] or ["speed"])
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
