"""An iterator run in a thread of its own: bounded, and stopped from outside.

A thread that blocks on a provider can neither send keep-alive comments nor notice
that its caller has left. So the provider is read here, and the request's own
thread takes what has come.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from .threads import Threads

T = TypeVar("T")

AHEAD = 64
"""Items read ahead of the caller: enough to smooth, too few to bill undelivered text."""


def pump_threads() -> Threads:
    """The threads for pumps to run in."""
    return Threads("oneai-pump")


class Signal(enum.Enum):
    """What a pump hands over when there is no item."""

    SILENCE = enum.auto()
    END = enum.auto()


class Pump(Generic[T]):
    """Runs ``items`` in one of ``threads`` and hands them over.

    The queue between the two threads is a deque, which needs no lock: who finds it empty,
    or full, says so and waits, and only then has the other a condition to notify. One
    says so before it looks again and the other looks after it has put something in:
    that nobody is missed rests on Python's global lock, which lets both see one order.
    """

    def __init__(
        self, items: Iterator[T], ahead: int = AHEAD, threads: Threads | None = None
    ) -> None:
        self._items = items
        self._threads = threads or pump_threads()
        self._ahead = ahead
        self._room = max(1, ahead // 2)
        self._come: deque[Any] = deque()
        self._changed = threading.Condition()
        self._is_awaited = False
        self._is_full = False
        self._stopped = False

    def start(self) -> None:
        """Begin to read."""
        self._threads.run(self._run)

    def take(self, timeout: float) -> T | Signal:
        """The next item, ``END`` after the last, ``SILENCE`` after ``timeout`` seconds.

        :raises Exception: what the iterator raised.
        """
        if not self._come:
            self._await_item(timeout)
        if self._stopped:
            return Signal.END
        if not self._come:
            return Signal.SILENCE
        item = self._come.popleft()
        self._make_room()
        if isinstance(item, _Failure):
            raise item.error
        return item  # type: ignore[no-any-return]

    def take_waiting(self) -> list[T]:
        """The items that have come already, often none; the end is not among them."""
        come = [self._come.popleft() for _ in range(len(self._come))]
        if come and isinstance(come[-1], _LAST):  # nothing comes after it
            self._come.append(come.pop())
        self._make_room()
        return [] if self._stopped else come

    def stop(self) -> None:
        """Hand over nothing more, and let whoever waits go. From any thread.

        The iterator is closed by its own thread as soon as it comes back from
        whatever it waits for.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _await_item(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(self._has_come, max(0.0, timeout))
            self._is_awaited = False

    def _has_come(self) -> bool:
        # Said before each look: what it is woken up for may be an item it has already.
        self._is_awaited = True
        return bool(self._come) or self._stopped

    def _make_room(self) -> None:
        """Let the thread go on that waits for room, once it has some work to do."""
        if self._is_full and self._ahead - len(self._come) >= self._room:
            with self._changed:
                self._changed.notify_all()

    def _run(self) -> None:
        last: Any = Signal.END
        try:
            self._read()
        except Exception as error:
            last = _Failure(error)
        except BaseException as error:  # a SystemExit would end this thread and nothing else
            last = _Failure(RuntimeError(f"the iterator raised {type(error).__name__}"))
        self._hand(last)

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._hand(item):
                    return
        finally:
            if hasattr(self._items, "close"):
                self._items.close()

    def _hand(self, item: Any) -> bool:
        """Put ``item`` in line once there is room; false if nobody wants it any more."""
        if len(self._come) >= self._ahead:
            with self._changed:
                self._is_full = True
                self._changed.wait_for(lambda: len(self._come) < self._ahead or self._stopped)
                self._is_full = False
        self._come.append(item)
        if self._is_awaited:
            with self._changed:
                self._is_awaited = False  # told once: it may be some time until it comes
                self._changed.notify_all()
        return not self._stopped


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


_LAST = (_Failure, Signal)
