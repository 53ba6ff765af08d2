"""What a WSGI server is given: a status, headers that are safe, a body."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from . import json

Headers = list[tuple[str, str]]

_UNSAFE = re.compile(r"[\r\n\0]|[^\x00-\xff]")


@dataclass(slots=True)
class Response:
    """A reply before it is handed to the server."""

    status: int
    headers: Headers
    body: Iterable[bytes] = field(repr=False)

    @classmethod
    def of_json(
        cls, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """``value`` as a JSON reply."""
        return cls.of_encoded(json.encode(value), status, headers)

    @classmethod
    def of_encoded(
        cls, data: bytes, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        """JSON that is encoded already, as a reply. Nothing of ours is cached on the way."""
        return cls(
            status,
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(data))),
                ("Cache-Control", "no-store"),
                *headers,
            ],
            (data,),
        )

    def status_line(self) -> str:
        """``"200 OK"``, as PEP 3333 wants it."""
        return _status_line(self.status)

    def safe_headers(self) -> Headers:
        """The headers, less any whose value could split the response.

        Four WSGI servers send a CR or LF in a header value as it stands.
        """
        if not _UNSAFE.search("".join([value for _, value in self.headers])):
            return self.headers
        return [(name, value) for name, value in self.headers if not _UNSAFE.search(value)]


@functools.cache
def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
