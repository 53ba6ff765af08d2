"""The form of an API key's secret: make one, check one, digest one.

``oneai-sk-`` + 40 random base62 characters (238 bits) + 6 characters of base62
that are the CRC-32 of those 40. The checksum turns typing mistakes and random
guesses away without asking any store; it is no protection against an attacker,
who can compute it. The prefix lets secret scanners recognise a leaked key.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
import string
import zlib

PREFIX = "oneai-sk-"
DIGEST_PREFIX = "sha256:"

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_LENGTH, CHECKSUM_LENGTH = 40, 6

_FORM = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{RANDOM_LENGTH}}})([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})", re.ASCII
)
_DIGEST = re.compile("[0-9a-f]{64}")


def new_secret() -> str:
    """A fresh secret, from the operating system's random source."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return PREFIX + body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether ``secret`` has our prefix, our length and a right checksum."""
    match = _FORM.fullmatch(secret)
    return match is not None and _checksum(match[1]) == match[2]


def digest(secret: str) -> str:
    """The SHA-256 of ``secret`` in lower-case hex: the only form that is stored.

    One fast hash is right for a random secret of 238 bits: there is nothing to
    guess, so there is nothing to slow down.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def is_digest(text: str) -> bool:
    """Whether ``text`` looks like what :func:`digest` gives."""
    return _DIGEST.fullmatch(text) is not None


def hint(secret: str) -> str:
    """What may be shown of a secret: its prefix and its last four characters."""
    return f"{PREFIX}…{secret[-4:]}"


def _checksum(body: str) -> str:
    number, pairs = zlib.crc32(body.encode("ascii")), _pairs()
    rest, last = divmod(number, len(pairs))
    first, middle = divmod(rest, len(pairs))
    return pairs[first] + pairs[middle] + pairs[last]


@functools.cache
def _pairs() -> list[str]:
    """All pairs of digits, in the order of the numbers that they are."""
    return [first + second for first in ALPHABET for second in ALPHABET]
