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

T = TypeVar("T")

AHEAD = 32
"""Items read ahead of the caller: enough to smooth, too few to bill undelivered text."""


class Signal(enum.Enum):
    """What a pump hands over when there is no item."""

    SILENCE = enum.auto()
    END = enum.auto()


class Pump(Generic[T]):
    """Runs ``items`` in a daemon thread and hands them over one by one."""

    def __init__(self, items: Iterator[T], ahead: int = AHEAD) -> None:
        self._items = items
        self._ahead = ahead
        self._come: deque[Any] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, name="oneai-pump", daemon=True).start()

    def take(self, timeout: float) -> T | Signal:
        """The next item, ``END`` after the last, ``SILENCE`` after ``timeout`` seconds.

        :raises Exception: what the iterator raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._come or self._stopped, max(0.0, timeout))
            if self._stopped:
                return Signal.END
            if not self._come:
                return Signal.SILENCE
            item = self._come.popleft()
            self._changed.notify_all()
        if isinstance(item, _Failure):
            raise item.error
        return item  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Hand over nothing more, and let whoever waits go. From any thread.

        The iterator is closed by its own thread as soon as it comes back from
        whatever it waits for.
        """
        with self._changed:
            self._stopped = True
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
        with self._changed:
            self._changed.wait_for(lambda: len(self._come) < self._ahead or self._stopped)
            if not self._stopped:
                self._come.append(item)
                self._changed.notify_all()
            return not self._stopped


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error
