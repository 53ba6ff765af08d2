"""Limits counted in Redis: one law for all workers and hosts."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from ..accounts import Limits
from ..announcements import Announcements
from ..errors import ConfigurationError, StoreUnavailable
from ..per_process import PerProcess
from ..redis_announcements import RedisAnnouncements
from ..redis_server import RedisServer
from .base import Claim, Grant, LimitStatus, RateLimiter, limited
from .subject import Subject, figures, refuse_if_short

MOST = 150_000_000
"""The highest limit a minute that Redis, which calculates in floating point, can count
exactly; a higher one counts as this."""

AT_ONCE = 10
"""How many grants in doubt are given back at a call, at most."""
IN_DOUBT = 1_000
"""How many grants in doubt a process keeps in mind; of more, the oldest end with their lease."""

_MICRO = 10**6
_PREFIX = re.compile(r"(?<=[?&])prefix=([\w.:-]+)(?:&|$)", re.ASCII)
_SCRIPT = Path(__file__).with_name("redis.lua").read_text()


class RedisRateLimiter(RateLimiter):
    """Token buckets and slots in the Redis at ``url``, on its clock.

    The addresses are those of :class:`~oneai_middleware.redis_server.RedisServer`.
    ``lease`` is in seconds; all keys begin with ``prefix``. ``clock`` answers
    microseconds since 1970 and replaces the server's own in tests.

    A call takes one round trip to begin and one to end; an account without limits takes
    none. Keys that differ no more from new ones expire by themselves.

    :raises ConfigurationError: ``url`` is no address of Redis.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float = 30.0,
        prefix: str = "oneai",
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._server = RedisServer(url)
        self._script = PerProcess(lambda: self._server.client().register_script(_SCRIPT))
        # What was asked for in vain: Redis may have granted it, or be about to.
        self._in_doubt: PerProcess[deque[Grant]] = PerProcess(lambda: deque(maxlen=IN_DOUBT))
        # A channel is of no database.
        channel = f"{prefix}:{self._server.database}:announcements"
        self._announcements = RedisAnnouncements(self._server, channel)
        self._lease = round(lease * _MICRO)
        self._prefix = prefix
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is None:
            raise ConfigurationError("rate_limiter: an address, such as 'redis://localhost:6379/0'")
        prefix = _PREFIX.search(url)
        if prefix is None:
            return cls(url, lease=settings["lease"])
        url = (url[: prefix.start()] + url[prefix.end() :]).rstrip("?&")
        return cls(url, lease=settings["lease"], prefix=prefix[1])

    def announcements(self) -> Announcements:
        return self._announcements

    def acquire(self, account: str, claims: Sequence[Claim], tokens: int) -> Grant:
        claims = _counted(claims)
        grant = Grant(os.urandom(16).hex(), account, claims, tokens)
        try:
            done, subjects = self._ask("acquire", grant, requests=1, tokens=tokens)
            self._take_back()
        except BaseException:
            self._in_doubt().append(grant)
            raise
        if not done:
            refuse_if_short(subjects, tokens)
            raise StoreUnavailable(
                "Try again shortly.", detail="Redis: refused without reason", retry_after=1
            )
        return grant._replace(status=figures([subject.buckets() for subject in subjects]))

    def renew(self, grant: Grant) -> None:
        self._ask("renew", grant)

    def settle(self, grant: Grant, tokens: int) -> None:
        self._ask("close", grant, tokens=grant.tokens - tokens)

    def cancel(self, grant: Grant) -> None:
        self._ask("close", grant, requests=1, tokens=grant.tokens)

    def status(self, account: str, claims: Sequence[Claim]) -> LimitStatus:
        _, subjects = self._ask("status", Grant("", account, _counted(claims), 0))
        return figures([subject.buckets() for subject in subjects])

    def _take_back(self) -> None:
        """Cancel grants in doubt, now that Redis has answered: what was asked before it has
        read before, and of what it never heard a cancel does nothing. It is tried once: one
        node of a cluster may be gone for long, and nobody is to wait for it again and again."""
        in_doubt = self._in_doubt()
        with contextlib.suppress(IndexError, StoreUnavailable):  # others take them, too
            for _ in range(min(len(in_doubt), AT_ONCE)):
                self.cancel(in_doubt.popleft())

    def _ask(
        self, act: str, grant: Grant, *, requests: int = 0, tokens: int = 0
    ) -> tuple[bool, list[Subject]]:
        """Whether it was done, and how the subjects stand."""
        if not grant.claims:
            return True, []
        now = self._clock() if self._clock is not None else ""
        arguments = [act, now, self._lease, grant.id, requests, tokens]
        for claim in grant.claims:
            arguments += ["" if limit is None else limit for limit in claim.limits]
        with self._server.errors():
            done, *left = self._script()(self._keys(grant), arguments)
        return bool(done), [
            _subject(claim, *left[3 * number : 3 * number + 3])
            for number, claim in enumerate(grant.claims)
        ]

    def _keys(self, grant: Grant) -> list[str]:
        # What is in braces decides on the node of a cluster, unless it is nothing: no name
        # may bring braces of its own, or be empty.
        its = f"{self._prefix}:{{@{_plain(grant.account)}}}"
        return [
            f"{its}:{kind}:{_plain(claim.subject)}"
            for claim in grant.claims
            for kind in ("buckets", "slots")
        ]


def _plain(name: str) -> str:
    return quote(name, safe=":", errors="surrogatepass")


def _counted(claims: Sequence[Claim]) -> tuple[Claim, ...]:
    """The claims that have a limit, none of which is higher than Redis can count."""
    return tuple([claim._replace(limits=_bounded(claim.limits)) for claim in limited(claims)])


def _bounded(limits: Limits) -> Limits:
    rpm, tpm, _ = limits
    if max(rpm or 0, tpm or 0) <= MOST:
        return limits
    return limits._replace(rpm=rpm and min(rpm, MOST), tpm=tpm and min(tpm, MOST))


def _subject(claim: Claim, requests: int, tokens: int, running: int) -> Subject:
    # Redis counts in microseconds, and so in thousandths of our units.
    return Subject(claim.subject, claim.limits, 0, requests * 1000, tokens * 1000, running)
