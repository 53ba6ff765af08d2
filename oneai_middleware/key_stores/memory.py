"""Keys declared in the settings, or made while the process runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self

from .. import secret as secrets
from ..accounts import (
    Account,
    ApiKey,
    DeclaredAccount,
    check_key_fields,
    check_name,
    read_accounts,
    read_tiers,
)
from ..errors import ConfigurationError
from ..per_process import PerProcess
from .base import KeyStore


class MemoryKeyStore(KeyStore):
    """Accounts and keys in this process's memory. It can be written to.

    What is created here is known to this process alone and gone with it; a forked
    child starts with what was there at the fork.
    """

    cacheable = False
    one_process = True

    def __init__(self, accounts: Iterable[DeclaredAccount] = ()) -> None:
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, ApiKey] = {}
        self._writing = PerProcess(threading.Lock)
        for declared in accounts:
            account = declared.account
            self._accounts[account.name] = account
            for digest, hint in declared.keys.items():
                self._keys[digest] = ApiKey(_key_id(digest), account, hint=hint)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is not None:
            raise ConfigurationError(f"key_store: {cls.__name__} is not configured by a URL")
        return cls(read_accounts(settings["accounts"], read_tiers(settings["tiers"])).values())

    def find(self, digest: str) -> ApiKey | None:
        return self._keys.get(digest)

    def account(self, name: str) -> Account | None:
        return self._accounts.get(name)

    def create(self, account: str, **fields: Any) -> tuple[ApiKey, str]:
        check_key_fields(fields)
        secret = secrets.new_secret()
        digest = secrets.digest(secret)
        given = {"id": _key_id(digest), "hint": secrets.hint(secret), **fields}
        with self._writing():
            key = ApiKey(account=self._accounts[account], **given)
            self._keys[digest] = key
        return key, secret

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        check_key_fields(fields)
        with self._writing():
            for digest, key in self._keys.items():
                if key.id == key_id:
                    self._keys[digest] = changed = ApiKey(**{**key._asdict(), **fields})
                    return changed
        raise KeyError(key_id)

    def used(self, key: ApiKey, at: float) -> None:
        if _was_used(key, at):
            return
        with self._writing():
            for digest, written in self._keys.items():
                if written.id == key.id and not _was_used(written, at):
                    self._keys[digest] = written._replace(last_used=at)

    def keys(self, account: str | None = None) -> list[ApiKey]:
        with self._writing():
            return [key for key in self._keys.values() if account in (None, key.account.name)]

    def accounts(self) -> list[Account]:
        with self._writing():
            return list(self._accounts.values())

    def save_account(self, account: Account) -> None:
        check_name("account", account.name)
        with self._writing():
            self._accounts[account.name] = account
            for digest, key in self._keys.items():
                if key.account.name == account.name:
                    self._keys[digest] = key._replace(account=account)


def _was_used(key: ApiKey, at: float) -> bool:
    """Whether it is written down that the key was used in the minute before ``at``."""
    return key.last_used is not None and at - key.last_used < 60


def _key_id(digest: str) -> str:
    return f"key_{digest[:12]}"
