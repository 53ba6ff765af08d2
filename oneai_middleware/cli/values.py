"""What is written on a command line: money, times, names, limits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from .. import secret as secrets
from ..accounts import LONGEST_LABEL, Limits, check_name, read_dollars
from ..errors import ConfigurationError, unknown_name

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def money(text: str) -> int:
    """Dollars, exactly, in nano-dollars."""
    try:
        return read_dollars(text, "amount")
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("amount: ")) from None


def payment(text: str) -> int:
    """The same, above zero."""
    amount = money(text)
    if not amount:
        raise argparse.ArgumentTypeError("a payment is above zero")
    return amount


def duration(text: str) -> float:
    """``90s``, ``15m``, ``24h`` or ``30d`` in seconds."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 15m, 24h or 30d")
    return int(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """A day or a time in ISO 8601, of UTC where it does not say."""
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no day or time such as 2026-11-01 or 2026-11-01T12:00:00Z"
        ) from None


def future(text: str) -> datetime:
    """The same, yet to come."""
    at = moment(text)
    if at <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text!r} has passed already")
    return at


def identifier(text: str) -> str:
    """The name of an account, a key or a payment."""
    try:
        check_name("name", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("name: ")) from None
    return text


def key_or_secret(text: str) -> str:
    """The id of a key, or its secret."""
    return text if text.startswith(secrets.PREFIX) else identifier(text)


def label(text: str) -> str:
    """What somebody calls a key."""
    if not text.isprintable() or len(text) > LONGEST_LABEL:
        raise argparse.ArgumentTypeError(f"at most {LONGEST_LABEL} printable characters")
    return text


def names(text: str) -> frozenset[str]:
    """Names with commas between them."""
    found = frozenset(filter(None, map(str.strip, text.split(","))))
    if not found:
        raise argparse.ArgumentTypeError("one name or more, with commas between them")
    return found


def check_known(option: str, given: Iterable[str] | None, known: Iterable[str]) -> None:
    """Refuse names that the settings do not have.

    :raises ConfigurationError: with what may have been meant.
    """
    for each in sorted(set(given or ()).difference(known)):
        kind = option.strip("-").removesuffix("s")
        raise ConfigurationError(f"{option}: {unknown_name(kind, each, known)}")


def add_limits(parser: Any) -> None:
    """Let ``parser`` take limits of its own."""
    for name, what in (("rpm", "requests a minute"), ("tpm", "tokens a minute")):
        parser.add_argument(f"--{name}", type=_count, metavar="N", help=what)
    parser.add_argument("--concurrent", type=_count, metavar="N", help="calls at once")


def limits_of(arguments: argparse.Namespace, base: Limits) -> Limits | None:
    """The limits given on the command line, laid over ``base``; ``None`` if none is given."""
    given = {name: getattr(arguments, name) for name in Limits._fields}
    changes = {name: most for name, most in given.items() if most is not None}
    return base._replace(**changes) if changes else None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 10**12:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)
