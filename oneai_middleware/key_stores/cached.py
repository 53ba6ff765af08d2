"""Lookups remembered for seconds, so that a warm call asks no store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from cachetools import TTLCache

from ..accounts import Account, ApiKey
from ..announcements import Announcements
from ..per_process import PerProcess
from .base import KeyStore

V = TypeVar("V")

log = logging.getLogger("oneai_middleware.key_stores")

# What is announced: a key or account that was made, by the digest or name that others may
# have looked up in vain; or that some have changed.
_MADE, _CHANGED = "made", "changed"


class CachedKeyStore(KeyStore):
    """A key store that remembers what another one answered.

    Hits and misses are kept for ``ttl`` seconds, at most ``size`` of each and in
    caches of their own: a flood of bad keys cannot push out good ones. A write
    takes effect at once in this process, and within ``ttl`` in every other, or at once
    there too if it has ``announcements``. ``clock`` answers seconds and never goes back.
    ``aside`` runs what no call waits for: writing down once a minute that a key was used.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        ttl: float = 5.0,
        size: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
        aside: Callable[[Callable[[], None]], None] = lambda job: job(),
        announcements: Announcements | None = None,
    ) -> None:
        self.store = store
        """The one that is asked."""
        self._found: PerProcess[_Answers[ApiKey]] = PerProcess(
            lambda: _Answers(store.find, ttl, size, clock)
        )
        self._accounts: PerProcess[_Answers[Account]] = PerProcess(
            lambda: _Answers(store.account, ttl, size, clock)
        )

        self.one_process = store.one_process
        self._aside = aside
        self._announcements = announcements
        self._used: PerProcess[_Recent] = PerProcess(lambda: _Recent(size, clock))

    def digest(self, secret: str) -> str | None:
        return self.store.digest(secret)

    def find(self, digest: str) -> ApiKey | None:
        self._listen()
        return self._found().get(digest)

    def account(self, name: str) -> Account | None:
        self._listen()
        return self._accounts().get(name)

    def create(self, account: str, **fields: Any) -> tuple[ApiKey, str]:
        key, secret = self.store.create(account, **fields)
        self._tell(_MADE, self.store.digest(secret) or "")
        return key, secret

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        key = self.store.update(key_id, **fields)
        self._tell(_CHANGED)
        return key

    def rotate(self, key_id: str, *, overlap: float = 0.0) -> tuple[ApiKey, str]:
        key, secret = self.store.rotate(key_id, overlap=overlap)
        self._tell(_CHANGED)
        self._tell(_MADE, self.store.digest(secret) or "")
        return key, secret

    def upgrade(self) -> str | None:
        return self.store.upgrade()

    def used(self, key: ApiKey, at: float) -> None:
        if self._used().is_new(key.id):
            self._aside(lambda: self._note_use(key, at))

    def _note_use(self, key: ApiKey, at: float) -> None:
        try:
            self.store.used(key, at)
        except Exception as error:
            # Nobody's call depends on it, and its words may hold a password.
            log.warning("the key store cannot note that a key was used: %s", type(error).__name__)

    def keys(self, account: str | None = None) -> Iterable[ApiKey]:
        return self.store.keys(account)

    def accounts(self) -> Iterable[Account]:
        return self.store.accounts()

    def save_account(self, account: Account) -> None:
        self.store.save_account(account)
        self._tell(_CHANGED)  # keys carry their account
        self._tell(_MADE, account.name)

    def _listen(self) -> None:
        if self._announcements is not None:
            self._announcements.attend(self._hear)

    def _tell(self, what: str, name: str = "") -> None:
        """Let this process know of a write, and all others once it is committed: until
        then whoever asks may find again what was before."""
        message = f"{what} {name}"
        self._hear(message)
        self.store.committed(lambda: self._announce(message))

    def _announce(self, message: str) -> None:
        self._hear(message)
        if self._announcements is not None:
            self._announcements.say(message)

    def _hear(self, message: str | None) -> None:
        """Forget what a write may have made wrong; after ``None``, everything."""
        what, _, name = (message or "").partition(" ")
        for answers in (self._found(), self._accounts()):
            if message is None:
                answers.forget_misses()
            if what == _MADE:
                answers.forget_miss(name)
            else:
                answers.forget_hits()


class _Recent:
    """The names that came up within the last minute."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._names: TTLCache[str, bool] = TTLCache(size, 60.0, timer=clock)

    def is_new(self, name: str) -> bool:
        """Whether it had not come up; from now on it has."""
        with self._lock:
            if name in self._names:
                return False
            self._names[name] = True
            return True


class _Answers(Generic[V]):
    """What ``ask`` answered lately. The lock is never held while it is asked."""

    def __init__(
        self,
        ask: Callable[[str], V | None],
        ttl: float,
        size: int,
        clock: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._hits: TTLCache[str, V] = TTLCache(size, ttl, timer=clock)
        self._misses: TTLCache[str, bool] = TTLCache(size, ttl, timer=clock)
        self._writes = 0

    def get(self, name: str) -> V | None:
        with self._lock:
            hit = self._hits.get(name)
            if hit is not None or name in self._misses:
                return hit
            writes = self._writes
        answer = self._ask(name)
        with self._lock:
            # An answer from before a write must not outlive the write.
            if writes == self._writes:
                self._keep(name, answer)
        return answer

    def forget_miss(self, name: str) -> None:
        """``name`` has been created."""
        with self._lock:
            self._writes += 1
            self._misses.pop(name, None)

    def forget_misses(self) -> None:
        """Any may have been created."""
        with self._lock:
            self._writes += 1
            self._misses.clear()

    def forget_hits(self) -> None:
        """Something has changed. All go: each would be gone in seconds anyway."""
        with self._lock:
            self._writes += 1
            self._hits.clear()

    def _keep(self, name: str, answer: V | None) -> None:
        if answer is None:
            self._misses[name] = True
        else:
            self._hits[name] = answer
