"""One answer of HTTP/1.1, read as its bytes come: strict, and bounded in every part.

The standard library's client spends most of a call in its parser of headers, which is
that of e-mail, forgives what may hide a second answer, and takes an answer that was cut
short for a whole one. What is malformed here is an
:class:`~http.client.HTTPException`, and names nothing of what was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from http.client import (
    BadStatusLine,
    HTTPException,
    IncompleteRead,
    LineTooLong,
    RemoteDisconnected,
)

MAX_HEAD = 64 * 1024
"""Bytes of a status line and headers, or of what follows the last chunk."""
MAX_HEADERS = 100
MAX_INTERIM = 100
"""Replies such as 103 Early Hints before the one that counts."""
MAX_SIZE_LINE = 4 * 1024
"""Bytes of the line before a chunk."""
WAITING = 1024
"""Bytes that are asked for while little comes at a time: they are set aside for
each stream that waits for its next event."""

_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: .*)?")
_FIELD = re.compile(rb"([\w!#$%&'*+.^`|~-]+):[ \t]*([^\0\r]*)", re.ASCII)
_NEXT_SIZE = re.compile(rb"\r?\n([0-9A-Fa-f]{1,15})\r?\n")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r?\n")
_LENGTH = re.compile(r"([0-9]{1,15})(?:, *\1)*")  # some say it twice


class Inlet:
    """Bytes of a connection, some of which have come before they are asked for.

    :param receive: up to so many bytes, waiting for the first; none at the end.
    :param piece: how many are asked for at a time, at an answer's begin and while much comes.
    """

    def __init__(self, receive: Callable[[int], bytes], piece: int) -> None:
        self._receive = receive
        self._most = self._size = piece
        self._data = b""
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of what has come."""
        return self._at == len(self._data)

    def head(self) -> bytes:
        """Everything up to an empty line.

        :raises RemoteDisconnected: there is nothing at all.
        """
        self._size = self._most
        while not (end := _END.search(self._data, self._at)):
            if self._data.startswith((b"\n", b"\r\n"), self._at):  # no header at all
                raise BadStatusLine("")
            if len(self._data) - self._at > MAX_HEAD:
                raise LineTooLong("head")
            if not self._fill():
                raise RemoteDisconnected("") if self.is_empty else IncompleteRead(b"")
        if end.start() - self._at > MAX_HEAD:
            raise LineTooLong("head")
        head = self._take(end.start())
        self._at = end.end()
        return head

    def line(self, most: int) -> bytes:
        """The next line and its end, which is missing at the end of all."""
        while (end := self._data.find(b"\n", self._at) + 1) == 0:
            if len(self._data) - self._at > most:
                raise LineTooLong("line")
            if not self._fill():
                end = len(self._data)
                break
        return self._take(end)

    def some(self, most: int) -> bytes:
        """At least one byte, at most so many; none at the end."""
        if self.is_empty:
            self._fill()
        return self._take(min(self._at + most, len(self._data)))

    def chunks(self, most: int) -> list[bytes]:
        """The next chunks that have come whole already, after the one that has just been
        read: up to so many bytes. The last chunk, which is empty, is not among them."""
        found = []
        while (size := _NEXT_SIZE.match(self._data, self._at)) is not None:
            start, length = size.end(), int(size[1], 16)
            if not 0 < length <= min(most, len(self._data) - start):
                break
            most -= length
            self._at = start + length
            found.append(self._data[start : self._at])
        return found

    def _take(self, end: int) -> bytes:
        start, self._at = self._at, end
        return self._data[start:end]

    def _fill(self) -> bool:
        data = self._receive(self._size)
        # Where that was full, the rest has come as well; within TLS 16 KB are much already.
        self._size = self._most if len(data) >= WAITING else WAITING
        self._data = self._data[self._at :] + data
        self._at = 0
        return bool(data)


class Headers(Mapping[str, str]):
    """Headers by name, in any case. What comes several times is joined by commas."""

    def __init__(self, lines: list[bytes]) -> None:
        if len(lines) > MAX_HEADERS:
            raise HTTPException("too many headers")
        self._values: dict[str, str] = {}
        for line in lines:
            field = _FIELD.fullmatch(line)
            if field is None:
                raise HTTPException("a header that is none")
            name = field[1].decode().lower()
            value = field[2].rstrip(b" \t").decode("latin-1")
            before = self._values.get(name)
            self._values[name] = value if before is None else f"{before}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Answer:
    """The answer to a request that has been sent: its status and headers, and its body
    as it comes. Replies before it, such as 103 Early Hints, are passed over.

    :raises HTTPException: it is none.
    """

    def __init__(self, inlet: Inlet) -> None:
        self._inlet = inlet
        for _ in range(MAX_INTERIM):
            is_old = self._read_head()
            if self.status >= 200 or self.status == 101:
                break
        else:
            raise HTTPException("no end of interim replies")
        self.is_over = False
        """Whether it has been read whole."""
        self.is_last = self._closes(is_old)
        """Whether no other can follow it."""
        self._left: int | None = None  # of the body, or of a chunk; None: until it closes
        self._is_chunked = False
        self._has_begun = False
        self._frame()

    def read1(self, size: int) -> bytes:
        """The next bytes of the body that have come, waiting for the first; empty at the
        end."""
        if self.is_over:
            return b""
        if self._is_chunked and not self._left and not self._next_chunk():
            return b""
        data = self._inlet.some(size if self._left is None else min(size, self._left))
        if self._left is None:
            self.is_over = not data
        elif not data:
            raise IncompleteRead(b"")
        else:
            self._left -= len(data)
            self.is_over = not self._left and not self._is_chunked
        if self._is_chunked and not self._left:
            data += b"".join(self._inlet.chunks(size - len(data)))
        return data

    def _read_head(self) -> bool:
        """Read status and headers: whether they are of HTTP/1.0."""
        line, *lines = self._inlet.head().replace(b"\r\n", b"\n").split(b"\n")
        status = _STATUS.fullmatch(line)
        if status is None:
            raise BadStatusLine("")
        self.status = int(status[2])
        self.headers = Headers(lines)
        return status[1] == b"0"

    def _closes(self, is_old: bool) -> bool:
        said = self.headers.get("connection", "").lower()
        return self.status == 101 or "close" in said or (is_old and "keep-alive" not in said)

    def _frame(self) -> None:
        """How the end of the body is known."""
        coding = self.headers.get("transfer-encoding", "identity").lower()
        length = self.headers.get("content-length")
        if self.status in (101, 204, 304):
            self.is_over = True
        elif coding == "chunked":
            self._is_chunked, self._left = True, 0
            self.is_last = self.is_last or length is not None  # two minds about its end
        elif coding != "identity":
            raise HTTPException("an unknown transfer coding")
        elif length is None:
            self.is_last = True
        elif known := _LENGTH.fullmatch(length):
            self._left = int(known[1])
            self.is_over = not self._left
        else:
            raise HTTPException("a length that is none")

    def _next_chunk(self) -> bool:
        """Go on to the next chunk, if there is one."""
        if self._has_begun and self._inlet.line(2) not in (b"\r\n", b"\n"):
            raise HTTPException("a chunk without an end")
        self._has_begun = True
        size = _SIZE.fullmatch(self._inlet.line(MAX_SIZE_LINE))
        if size is None:
            raise IncompleteRead(b"")
        self._left = int(size[1], 16)
        if not self._left:
            self._skip_trailers()
            self.is_over = True
        return not self.is_over

    def _skip_trailers(self) -> None:
        read = 0
        while (line := self._inlet.line(MAX_HEAD)) not in (b"\r\n", b"\n"):
            read += len(line)
            if not line or read > MAX_HEAD:
                raise IncompleteRead(b"")
