"""The ``oneai`` command: a file a noun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import OneAIError
from . import check, demo, secret


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 done, 1 refused, 2 misused."""
    parser = argparse.ArgumentParser(
        prog="oneai", description="An OpenAI-compatible API inside your own WSGI application."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, secret, check):
        module.add_to(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except OneAIError as error:
        print(f"oneai: {error}", file=sys.stderr)
        return 1
    return status
