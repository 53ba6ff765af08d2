"""The key store family: what a plug-in author implements."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from .. import secret as secrets
from ..accounts import Account, ApiKey
from ..errors import ConfigurationError


class KeyStore:
    """Where API keys live, and the accounts behind them.

    A store keeps the digest of a secret, never the secret. Only :meth:`find` is
    required. A store that can be written to also implements the second half; one
    that cannot inherits methods that say so.
    """

    cacheable = True
    """Whether look-ups cost enough to be kept for some seconds in every process."""
    one_process = False
    """Whether what is written here is known to this process alone."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        """A store as the settings describe it.

        ``settings`` are the gateway's own, by option name. ``url`` is what the
        ``key_store`` setting holds when it is spelled as a URL.

        :raises ConfigurationError: naming the setting and the fix.
        """
        if url is not None:
            raise ConfigurationError(f"key_store: {cls.__name__} is not configured by a URL")
        return cls()

    def digest(self, secret: str) -> str | None:
        """The form of ``secret`` to look up, or ``None`` if it is malformed.

        ``None`` is refused before any lookup. The default knows the form of our
        own secrets and answers their SHA-256; override it for keys you already
        have.
        """
        return secrets.digest(secret) if secrets.is_well_formed(secret) else None

    def find(self, digest: str) -> ApiKey | None:
        """The key with this digest, carrying its account; ``None`` if there is none.

        Revoked and expired keys may be returned: the gateway refuses them.

        :raises StoreUnavailable: when the store cannot answer.
        """
        raise NotImplementedError

    def account(self, name: str) -> Account | None:
        """The account of this name: asked for callers the host vouches for."""
        return None

    def upgrade(self) -> str | None:
        """Make or change tables to the version this package wants; what was done, in
        words. ``None`` where there are none to see to."""
        return None

    # --- stores that can be written to --------------------------------------

    def create(self, account: str, **fields: Any) -> tuple[ApiKey, str]:
        """A new key for ``account`` and its secret, which is shown this once.

        ``fields`` are fields of :class:`ApiKey`, other than its id and account.

        :raises KeyError: for an unknown account.
        :raises TypeError: for a field that cannot be chosen.
        :raises ValueError: for a value that a field cannot have.
        """
        raise self._read_only()

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        """Change fields of a key; ``revoked=True`` closes it.

        :raises KeyError: for an unknown key.
        :raises TypeError: for a field that cannot be chosen.
        :raises ValueError: for a value that a field cannot have.
        """
        raise self._read_only()

    def rotate(self, key_id: str, *, overlap: float = 0.0) -> tuple[ApiKey, str]:
        """A new key with the rights of an old one, which works on for ``overlap``
        seconds, and without any is revoked; the new key and its secret, which is shown
        this once. Its budget is whole.

        The default is two writes after a look at all keys: a store with many keys, or
        whose writes can fail, does better.

        :raises KeyError: for a key that is unknown, revoked or expired.
        """
        now = time.time()
        old = next((key for key in self.keys() if key.id == key_id and key.is_valid(now)), None)
        if old is None:
            raise KeyError(key_id)
        created = self.create(old.account.name, **rights_of(old))
        self.update(key_id, **end_of(old, now, overlap))
        return created

    def used(self, key: ApiKey, at: float) -> None:
        """``key`` has opened its account at Unix time ``at``. Whoever keeps
        ``last_used`` writes it down at most once a minute; the default forgets it."""

    def keys(self, account: str | None = None) -> Iterable[ApiKey]:
        """All keys, or those of one account."""
        raise self._read_only()

    def accounts(self) -> Iterable[Account]:
        """All accounts."""
        raise self._read_only()

    def save_account(self, account: Account) -> None:
        """Create the account, or change it."""
        raise self._read_only()

    def committed(self, then: Callable[[], None]) -> None:
        """Call ``then`` as soon as others see what this thread has written: at once,
        unless the store writes inside transactions of the host's."""
        then()

    def _read_only(self) -> ConfigurationError:
        return ConfigurationError(f"{type(self).__name__} cannot be written to")


def new_key(account: Account, fields: Mapping[str, Any]) -> tuple[ApiKey, str]:
    """A key that no store knows yet, and its secret."""
    secret = secrets.new_secret()
    named = {"id": f"key_{uuid.uuid4().hex}", "hint": secrets.hint(secret)}
    return ApiKey(account=account, **{**named, **fields}), secret


def rights_of(old: ApiKey) -> dict[str, Any]:
    """The fields that a key in place of ``old`` has from it."""
    names = ("label", "models", "limits", "budget", "period", "expires")
    return {name: getattr(old, name) for name in names}


def end_of(old: ApiKey, now: float, overlap: float) -> dict[str, Any]:
    """The fields that let ``old`` work on for ``overlap`` seconds and no longer."""
    if overlap <= 0:
        return {"revoked": True}
    end = now + overlap
    return {"expires": end if old.expires is None else min(end, old.expires)}
