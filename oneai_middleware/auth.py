"""Who is calling: from the credential in the environ to a :class:`Caller`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from . import secret as secrets
from .accounts import Account, Caller
from .errors import AuthenticationFailed, store_errors
from .key_stores.base import KeyStore

Authenticate = Callable[[dict[str, Any]], "Account | str | None"]

MAX_CREDENTIAL = 256


class Authentication:
    """Finds the caller of a request.

    What begins like one of our secrets is a key and only a key. Otherwise, if no key
    is found, the host's own ``authenticate`` is asked, where it is set.
    """

    def __init__(
        self,
        key_store: KeyStore,
        authenticate: Authenticate | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._key_store = key_store
        self._authenticate = authenticate
        self._wall_clock = wall_clock

    def caller(self, environ: dict[str, Any]) -> Caller:
        """The caller of this request.

        :raises AuthenticationFailed: no credential, or none that is valid. All
            wrong ones look the same: malformed, unknown, revoked, expired.
        :raises StoreUnavailable: the key store cannot answer.
        """
        secret = credential(environ)
        caller = self._by_key(secret) if secret else None
        if caller is None and not (secret or "").startswith(secrets.PREFIX):
            caller = self._by_host(environ)
        if caller is None:
            raise _wrong_key() if secret else _no_key()
        return caller

    def _by_key(self, secret: str) -> Caller | None:
        with store_errors("key store"):
            digest = self._key_store.digest(secret)
            key = self._key_store.find(digest) if digest is not None else None
            now = self._wall_clock()
            if key is None or not key.is_valid(now):
                return None
            self._key_store.used(key, now)
        return Caller(key.account, key)

    def _by_host(self, environ: dict[str, Any]) -> Caller | None:
        if self._authenticate is None:
            return None
        with store_errors("authenticate hook"):
            account = self._authenticate(environ)
            if isinstance(account, str):
                account = self._key_store.account(account)
            if not isinstance(account, Account | None):
                raise TypeError("authenticate answers an account, its name, or None")
        return None if account is None else Caller(account)


def credential(environ: dict[str, Any]) -> str | None:
    """The secret a caller sent, from ``Authorization: Bearer``, ``x-api-key`` or
    ``api-key``; ``None`` without one.

    :raises AuthenticationFailed: two that differ, or one that cannot be a secret.
    """
    found = {environ.get("HTTP_X_API_KEY", "").strip(), environ.get("HTTP_API_KEY", "").strip()}
    scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        found.add(value.strip())
    found.discard("")
    if not found:
        return None
    secret: str = found.pop()
    # Servers join doubled headers with a comma; no secret holds one.
    if found or len(secret) > MAX_CREDENTIAL or "," in secret or not _is_plain(secret):
        raise _wrong_key()
    return secret


def _is_plain(secret: str) -> bool:
    return secret.isascii() and secret.isprintable() and " " not in secret


def _no_key() -> AuthenticationFailed:
    return AuthenticationFailed(
        "You didn't provide an API key. Send it in the header 'Authorization: Bearer "
        f"{secrets.PREFIX}…'. If you did, the web server in front may be dropping that header "
        "(Apache needs 'WSGIPassAuthorization On'); 'x-api-key' works as well."
    )


def _wrong_key() -> AuthenticationFailed:
    return AuthenticationFailed("Incorrect API key provided.")
