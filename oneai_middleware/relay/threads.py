"""Threads that are kept for a moment for whoever needs one next: to start one takes longer
than most streams take to their first event."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable

from ..per_process import PerProcess

IDLE = 5.0
"""Seconds that a thread waits for something else to do."""

Job = Callable[[], object]


class Threads:
    """Runs each job in a daemon thread that it has to itself.

    Those at work are called ``name``. One object serves all threads and survives a fork.
    """

    def __init__(self, name: str, idle: float = IDLE) -> None:
        self._name = name
        self._patience = idle
        self._idle: PerProcess[deque[_Idle]] = PerProcess(deque)

    def run(self, job: Job) -> None:
        """Begin ``job``, which raises nothing.

        :raises RuntimeError: there are no more threads to be had.
        """
        try:
            waiting = self._idle().pop()  # the one that has waited for the shortest time
        except IndexError:
            waiting = _Idle()
            threading.Thread(
                target=self._work, args=(waiting,), name=self._name, daemon=True
            ).start()
        waiting.give(job)

    def _work(self, waiting: _Idle) -> None:
        thread = threading.current_thread()
        while waiting.wait(self._patience) or not self._has_left(waiting):
            thread.name = self._name
            waiting.do()
            thread.name = f"{self._name}-idle"
            waiting = _Idle()
            self._idle().append(waiting)

    def _has_left(self, waiting: _Idle) -> bool:
        try:
            self._idle().remove(waiting)
        except ValueError:  # it is just being given something to do
            return not waiting.wait(-1)
        return True


class _Idle:
    """A thread that waits for its next job."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._given = threading.Lock()
        self._given.acquire()

    def give(self, job: Job) -> None:
        """Here it is."""
        self._jobs.append(job)
        self._given.release()

    def wait(self, seconds: float) -> bool:
        """Whether it came in time; below zero there is no end of it."""
        return self._given.acquire(timeout=seconds)

    def do(self) -> None:
        """Do it, in a context of its own: it finds nothing there that an earlier job has
        left. What it holds is free when it is done."""
        contextvars.Context().run(self._jobs.pop())
