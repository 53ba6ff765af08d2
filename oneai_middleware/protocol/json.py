"""JSON in and out; the one place that knows msgspec.

msgspec refuses what the standard ``json`` lets through (NaN and Infinity, numbers
out of range, lone surrogates, UTF-16) and reads several times as fast.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

STRUCTURAL_LIMIT = 200_000
"""The most brackets, braces and commas a caller's body may hold: a megabyte of
``[],[],`` costs a hundred times its size in memory, a megabyte of text does not."""

# Possessive, so that it takes linear time whatever it is given.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()

# Characters that some clients' line splitters take for the end of an SSE line.
# Inside JSON text they can only stand in strings, so escaping the bytes is safe.
_LINE_BREAKS = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)


class MalformedJSON(ValueError):
    """Not JSON, not UTF-8, or nested too deep. Says nothing of the content."""


def decode(data: bytes) -> Any:
    """The value that ``data`` holds.

    :raises MalformedJSON: whatever is wrong with it.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedJSON(type(error).__name__) from None


def encode(value: Any) -> bytes:
    """``value`` as JSON on one line, in UTF-8.

    :raises MalformedJSON: for a lone surrogate or a type JSON does not have.
    """
    try:
        data = _encoder.encode(value)
    except (UnicodeEncodeError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedJSON(type(error).__name__) from None
    if data.isascii():
        return data
    for raw, escaped in _LINE_BREAKS:
        if raw in data:
            data = data.replace(raw, escaped)
    return data


def is_too_complex(data: bytes, limit: int = STRUCTURAL_LIMIT) -> bool:
    """Whether ``data`` has more structure than ``limit`` allows.

    Commas in text are no structure; text is looked for only in what would be refused.
    """
    return _structure(data) > limit and _structure(_TEXT.sub(b"", data)) > limit


def _structure(data: bytes) -> int:
    return sum(map(data.count, (b"[", b"{", b",")))
