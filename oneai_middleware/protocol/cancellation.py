"""Stopping one call from any thread, at any moment of its life."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("oneai_middleware.protocol")


class Cancellation:
    """A switch that is thrown once, and what to do when it is.

    The gateway throws it when the caller has left or a deadline has passed. A
    backend that blocks hangs its own way out on it (``on_cancel(reply.cancel)``);
    one that waits, waits on it (``wait(seconds)``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thrown = threading.Event()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether the switch has been thrown."""
        return self._thrown.is_set()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the switch is thrown, or now if it has been.

        It runs on the thread that cancels, so it must not block. What it raises is
        logged: the call ends all the same.
        """
        with self._lock:
            if not self._thrown.is_set():
                self._callbacks.append(callback)
                return
        _call(callback)

    def cancel(self) -> None:
        """Throw the switch. The second time does nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
            self._thrown.set()
        for callback in callbacks:
            _call(callback)

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; true as soon as the call is cancelled."""
        return self._thrown.wait(seconds)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        log.exception("what should stop a call failed")
