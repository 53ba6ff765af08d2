"""Server-sent events: bytes in to events, events to bytes out."""

from __future__ import annotations

from typing import NamedTuple

MAX_EVENT = 1 << 20
"""The most bytes one line, or the data lines of one event, may have."""

SHORT = 4096
"""Bytes of a line's beginning that may well be copied for its end to be seen."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

_BOM = b"\xef\xbb\xbf"
_LINE_ENDS = (b"\n", b"\r")


class EventTooLong(ValueError):
    """A line or an event is longer than :data:`MAX_EVENT`."""


class Event(NamedTuple):
    """One event. ``data`` is ``None`` for a mere sign of life: a comment, or an
    event that has a name and no data."""

    data: bytes | None
    name: str = ""


def event(data: bytes) -> bytes:
    """``data``, which must be one line, as an event to send."""
    return b"data: %b\n\n" % data


class EventSplitter:
    """Finds the events in a stream of bytes that is cut anywhere.

    Lines end in LF, CR or CRLF; ``id:`` and ``retry:`` are ignored. Data stays
    bytes: whether it is UTF-8 is for whoever decodes it.
    """

    def __init__(self) -> None:
        self._tail = bytearray()
        self._after_cr = False
        self._first_line = True
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""

    @property
    def pending(self) -> bool:
        """Whether something has begun that has not ended: at the end of the stream
        that means it was cut off."""
        return bool(self._tail or self._data or self._name)

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes, often none.

        :raises EventTooLong: there is no going on after it.
        """
        if not data:
            return []
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        events, data = self._whole(data)
        return events + self._read(self._lines(data)) if data else events

    def close(self) -> list[Event]:
        """The event that lacks nothing but its blank line when the stream ends.

        What breaks off within a line is not delivered and stays ``pending``.
        """
        return [] if self._tail else self._read([b""])

    def _whole(self, data: bytes) -> tuple[list[Event], bytes]:
        """The events at the beginning of ``data``, if all are one line of data as almost
        everyone sends it, and what follows them. There is no quicker way to read those."""
        if self._data or self._name or self._first_line or b"\r" in data:
            return [], data
        if 0 < len(self._tail) < SHORT:
            data = bytes(self._tail) + data
            self._tail.clear()
        elif self._tail:
            return [], data
        *blocks, rest = data.split(b"\n\n")
        for block in blocks:
            if not block.startswith(b"data: ") or b"\n" in block or len(block) > MAX_EVENT:
                return [], data
        return [Event(block[6:]) for block in blocks], rest

    def _lines(self, data: bytes) -> list[bytes]:
        lines = data.splitlines()  # of bytes: at LF, CR and CRLF, and nowhere else
        rest = lines.pop() if lines and not data.endswith(_LINE_ENDS) else b""
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        self._tail += rest
        if len(self._tail) > MAX_EVENT:
            raise EventTooLong
        if lines and self._first_line:
            self._first_line = False
            lines[0] = lines[0].removeprefix(_BOM)
        return lines

    def _read(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if len(line) > MAX_EVENT:
                raise EventTooLong
            if not line:
                self._dispatch(events)
            elif line.startswith(b":"):
                events.append(Event(None))
            else:
                self._field(line)
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(line)
            if self._size > MAX_EVENT:
                raise EventTooLong
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(b"\n".join(self._data), self._name))
        elif self._name:
            events.append(Event(None, self._name))
        self._data, self._size, self._name = [], 0, ""
