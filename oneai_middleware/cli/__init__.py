"""The ``oneai`` command: a file a noun.

``flask oneai …`` and ``manage.py oneai …`` hand their arguments to the same parser
and say where the gateway is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import OneAIError
from . import accounts, books, check, db, demo, keys, models, plugins, secret, settings
from .source import FindGateway


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "oneai",
    find_gateway: FindGateway | None = None,
) -> int:
    """Run one command; its exit status: 0 done, 1 refused, 2 misused.

    ``find_gateway`` gives the host's gateway; without it the commands take
    ``--config`` or ``--app``.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="An OpenAI-compatible API inside your own WSGI application."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (demo, secret, settings):
        module.add_to(commands)
    for module in (check, models, plugins, keys, accounts, books, db):
        module.add_to(commands, find_gateway)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except OneAIError as error:
        # What no caller may see is meant for who runs this.
        print(f"oneai: {getattr(error, 'detail', None) or error}", file=sys.stderr)
        return 1
    return status
