"""How bytes travel to a provider and back; the seam other HTTP clients fit into.

Everything a client library raises becomes one of this package's errors here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ...protocol.chat import Timeouts


class Reply(Protocol):
    """One exchange with a provider, from before it connects to its end."""

    status: int
    headers: Mapping[str, str]
    """Names are looked up in any case."""

    def begin(self, sent: Callable[[], object] = bool) -> None:
        """Send the request, call ``sent``, and wait for status and headers.

        :raises BackendTimeout: no connection or no answer in time.
        :raises BackendDisconnected: no connection, or a broken one.
        :raises BackendUnavailable: what came is no answer; or cancelled.
        """

    def read1(self) -> bytes:
        """The bytes that have come, waiting for the first; empty at the end.

        :raises BackendTimeout: nothing came in time.
        :raises BackendUnavailable: the connection broke, or was cancelled.
        """

    def hurry(self) -> None:
        """Only the end of the answer is outstanding: wait some seconds for it, no more."""

    def finish(self) -> None:
        """The answer has been read as far as it matters: keep the connection."""

    def close(self) -> None:
        """Let go. A connection whose answer was not read whole is never used again."""

    def cancel(self) -> None:
        """Make whoever waits in this exchange come back: at once, but for one who still
        waits for a TCP connection, whom the connect timeout brings back.

        Valid from any thread and at any time, also before :meth:`begin` and after
        the end; never touches a connection that meanwhile serves another call.
        """


class Transport(Protocol):
    """Makes replies. One object serves many threads and survives a fork."""

    def open(
        self, url: str, headers: Mapping[str, str], body: bytes | None, timeouts: Timeouts
    ) -> Reply:
        """A reply that has not begun: a POST of ``body``, or a GET without one.

        Redirects are not followed, and neither the environment, ``.netrc`` nor
        cookies have a say.
        """

    def close(self) -> None:
        """Close idle connections; the next call opens new ones."""
