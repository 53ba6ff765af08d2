"""Stopping one call from any thread, at any moment of its life."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("oneai_middleware.protocol")


class Flag:
    """Set, or not. Nobody can wait for it, which makes it cheaper than an event."""

    __slots__ = ("_is_set",)

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """From now on it is set."""
        self._is_set = True

    def clear(self) -> None:
        """From now on it is not."""
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set


class Cancellation:
    """A switch that is thrown once, and what to do when it is.

    The gateway throws it when the caller has left or a deadline has passed. A
    backend that blocks hangs its own way out on it (``on_cancel(reply.cancel)``);
    one that waits, waits on it (``wait(seconds)``).
    """

    __slots__ = ("_callbacks", "_lock", "_thrown", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        """Whether the switch has been thrown."""
        self._lock = threading.Lock()
        self._thrown: threading.Event | None = None  # made for whoever waits
        self._callbacks: list[Callable[[], object]] = []

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the switch is thrown, or now if it has been.

        It runs on the thread that cancels, so it must not block. What it raises is
        logged: the call ends all the same.
        """
        with self._lock:
            if not self.cancelled:
                self._callbacks.append(callback)
                return
        _call(callback)

    def cancel(self) -> None:
        """Throw the switch. The second time does nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
            self.cancelled = True
            if self._thrown is not None:
                self._thrown.set()
        for callback in callbacks:
            _call(callback)

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; true as soon as the call is cancelled."""
        with self._lock:
            if self.cancelled:
                return True
            self._thrown = thrown = self._thrown or threading.Event()
        return thrown.wait(seconds)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        log.exception("what should stop a call failed")
