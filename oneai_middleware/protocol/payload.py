"""The bytes of a request's body: bounded, and never waited for in vain.

Servers differ in what they do with a missing, a wrong or a doubled length, so
nothing here trusts the server to have refused it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from ..errors import InvalidRequest, LengthRequired, RequestTooLarge, UnsupportedMediaType

PIECE = 64 * 1024
DEADLINE = 60.0
"""Seconds a whole body may take. Looked at between two pieces: most servers wait
until a piece is full, so a caller who drips less than one is the server's to end."""

_LENGTH = re.compile(r"[0-9]{1,12}", re.ASCII)


def read_body(
    environ: dict[str, Any], limit: int, clock: Callable[[], float] = time.monotonic
) -> bytes:
    """The request's body, up to ``limit`` bytes.

    :raises UnsupportedMediaType: it is compressed.
    :raises LengthRequired: it is chunked and this server does not say where it ends.
    :raises RequestTooLarge: it is over ``limit``; the rest is not read.
    :raises InvalidRequest: its length is malformed or a lie, or it comes too slowly.
    """
    encoding = environ.get("HTTP_CONTENT_ENCODING")
    if encoding and encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Send the body without a Content-Encoding.")
    length = _length(environ)
    if length is None and not environ.get("wsgi.input_terminated"):
        if environ.get("HTTP_TRANSFER_ENCODING"):
            raise LengthRequired("This server needs a Content-Length header.")
        return b""
    if length is not None and length > limit:
        raise _too_large(limit)
    body = _read(environ["wsgi.input"], limit + 1 if length is None else length, clock)
    if len(body) > limit:
        raise _too_large(limit)
    if length is not None and len(body) < length:
        raise InvalidRequest("The body ended before its Content-Length.", code="invalid_body")
    return body


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is over the limit of {limit} bytes.")


def _length(environ: dict[str, Any]) -> int | None:
    declared = environ.get("CONTENT_LENGTH") or ""
    encoding = environ.get("HTTP_TRANSFER_ENCODING") or ""
    if declared and encoding:
        raise InvalidRequest(
            "Send Content-Length or Transfer-Encoding, not both.", code="invalid_body"
        )
    if encoding and encoding.strip().lower() != "chunked":
        raise InvalidRequest("Unknown Transfer-Encoding.", code="invalid_body")
    if not declared:
        return None
    if not _LENGTH.fullmatch(declared):
        raise InvalidRequest("Malformed Content-Length.", code="invalid_body")
    return int(declared)


def _read(stream: Any, wanted: int, clock: Callable[[], float]) -> bytes:
    deadline = clock() + DEADLINE
    pieces = []
    while wanted > 0:
        try:
            piece = stream.read(min(wanted, PIECE))
        except Exception as error:  # each server has its own for a caller who left
            raise InvalidRequest("The body could not be read.", code="invalid_body") from error
        if not piece:
            break
        pieces.append(piece)
        wanted -= len(piece)
        if clock() > deadline:
            raise InvalidRequest("The body came too slowly.", code="invalid_body")
    return b"".join(pieces)
