"""``oneai models``: what is offered, at what price, by whom."""

from __future__ import annotations

import argparse
from typing import Any

from .source import FindGateway, add_source, gateway_of
from .table import print_table


def add_to(commands: Any, find_gateway: FindGateway | None) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "models",
        help="the models, their prices and routes",
        description="List the models that callers can use, with prices in dollars per million "
        "tokens and the routes that are tried in order.",
    )
    add_source(parser, find_gateway)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a row a model."""
    rows = []
    for model in gateway_of(arguments).catalog.values():
        price = model.price.as_dict()
        routes = ", ".join(str(route) for route in model.routes)
        rows.append((model.id, price["input"], price["output"], str(model.context or "-"), routes))
    print_table(("model", "input", "output", "context", "routes"), rows)
    return 0
