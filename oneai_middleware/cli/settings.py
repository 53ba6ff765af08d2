"""``oneai settings``: every option, as the table of the documentation."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..settings import Settings


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "settings",
        help="every option with its default",
        description="Print the options as a table in Markdown: name, default and what it is.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    print(settings_table())
    return 0


def settings_table() -> str:
    """A row an option, in the order in which they are declared."""
    rows = ["| setting | default | |", "|---|---|---|"]
    for option in dataclasses.fields(Settings):
        default = "{}" if option.default is dataclasses.MISSING else repr(option.default)
        rows.append(f"| `{option.name}` | `{default}` | {option.metadata['help']} |")
    return "\n".join(rows)
