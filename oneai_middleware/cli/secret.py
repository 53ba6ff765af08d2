"""``oneai secret``: a fresh API key and the digest to put into settings."""

from __future__ import annotations

import argparse
from typing import Any

from ..secret import DIGEST_PREFIX, digest, new_secret


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "secret",
        help="a fresh API key and its digest",
        description="Print a fresh API key, which goes to its user, and its digest, which goes "
        "into the settings. The key cannot be found out from the digest.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the pair."""
    secret = new_secret()
    print(f"secret  {secret}")
    print(f"digest  {DIGEST_PREFIX}{digest(secret)}")
    return 0
