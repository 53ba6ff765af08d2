"""What one process tells all others that serve the same accounts."""

from __future__ import annotations

from collections.abc import Callable

Hear = Callable[[str | None], None]
"""Takes a message, or ``None`` when some may have been missed."""


class Announcements:
    """Messages that reach every process soon, and some of them perhaps never: they make
    known at once what everybody finds out in time."""

    def say(self, message: str) -> None:
        """Tell everybody, this process too. Nothing is raised."""
        raise NotImplementedError

    def attend(self, hear: Hear) -> None:
        """From now on call ``hear``, a method, on a thread of this process: one for each
        object in each process, however often it is asked for. When the object is gone, so
        is the thread."""
        raise NotImplementedError
