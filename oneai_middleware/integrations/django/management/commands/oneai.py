"""``manage.py oneai …``: the ``oneai`` command on the project's own gateway."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from .....cli import main
from ...conf import gateway


class Command(BaseCommand):
    """Hands its arguments over as they are."""

    help = "Keys, models, plug-ins and checks of the OneAI gateway."
    requires_system_checks: list[str] = []

    def run_from_argv(self, argv: list[str]) -> None:
        """Run ``oneai`` with what follows the command's name."""
        prog = f"{Path(argv[0]).name} {argv[1]}"
        sys.exit(main(_without_djangos(argv[2:]), prog=prog, find_gateway=gateway))

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Take all of them, unread."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *_: Any, **options: Any) -> None:
        """For ``call_command("oneai", …)``.

        :raises CommandError: the command was refused; why is on ``stderr``.
        """
        with (
            contextlib.redirect_stdout(options.get("stdout") or sys.stdout),
            contextlib.redirect_stderr(options.get("stderr") or sys.stderr),
        ):
            status = main(options["arguments"], find_gateway=gateway)
        if status:
            raise CommandError(f"oneai exited with {status}", returncode=status)


def _without_djangos(arguments: list[str]) -> list[str]:
    """``arguments`` less the options that ``manage.py`` itself has obeyed already."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--settings", "--pythonpath"):
        parser.add_argument(option)
    return parser.parse_known_args(arguments)[1]
