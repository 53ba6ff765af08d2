"""API keys and accounts in an SQL database: SQLite, PostgreSQL, MariaDB."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import sqlalchemy as sa

from .. import secret as secrets
from ..accounts import Account, ApiKey, Limits, check_key_fields, check_name, is_name
from ..database.engine import Database, database_at
from ..database.kinds import insert
from ..database.tables import ACCOUNTS, KEYS
from ..errors import ConfigurationError
from ..protocol import json
from .base import KeyStore, end_of, new_key, rights_of

_ACCOUNT = [column.label(f"account_{column.name}") for column in ACCOUNTS.c]


class SQLKeyStore(KeyStore):
    """Keys and accounts in the tables of ``database``. It can be written to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], url: str | None = None) -> Self:
        if url is None:
            raise ConfigurationError(
                "key_store: a database's address, such as 'sqlite:///oneai.db'"
            )
        return cls(database_at(url))

    def upgrade(self) -> str:
        return self._database.upgrade()

    def find(self, digest: str) -> ApiKey | None:
        # What is no digest was never written; some databases refuse to look for it.
        if not secrets.is_digest(digest):
            return None
        keys = self._select(KEYS.c.digest == digest)
        return keys[0] if keys else None

    def account(self, name: str) -> Account | None:
        if not is_name(name):
            return None
        with self._database.reading() as connection:
            row = connection.execute(sa.select(*_ACCOUNT).where(ACCOUNTS.c.name == name)).first()
        return None if row is None else _account(row)

    def create(self, account: str, **fields: Any) -> tuple[ApiKey, str]:
        check_key_fields(fields)
        owner = self.account(account)
        if owner is None:
            raise KeyError(account)
        key, secret = new_key(owner, fields)
        row = _row(key, secret)
        self._database.run(lambda connection: connection.execute(sa.insert(KEYS).values(row)))
        return key, secret

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        check_key_fields(fields)
        its = KEYS.c.id == key_id
        if not is_name(key_id):
            raise KeyError(key_id)
        if fields:
            changed = sa.update(KEYS).where(its).values(_columns(fields))
            self._database.run(lambda connection: connection.execute(changed))
        keys = self._select(its)
        if not keys:
            raise KeyError(key_id)
        return keys[0]

    def rotate(self, key_id: str, *, overlap: float = 0.0) -> tuple[ApiKey, str]:
        if not is_name(key_id):
            raise KeyError(key_id)
        its, now = KEYS.c.id == key_id, time.time()

        def act(connection: sa.Connection) -> tuple[ApiKey, str]:
            keys = [_key(row) for row in connection.execute(_chosen(its).with_for_update())]
            if not keys or not keys[0].is_valid(now):
                raise KeyError(key_id)
            (old,) = keys
            new, secret = new_key(old.account, rights_of(old))
            connection.execute(sa.insert(KEYS).values(_row(new, secret)))
            ending = _columns(end_of(old, now, overlap))
            connection.execute(sa.update(KEYS).where(its).values(ending))
            return new, secret

        return self._database.run(act)

    def used(self, key: ApiKey, at: float) -> None:
        micro = round(at * 1_000_000)
        long_ago = sa.or_(KEYS.c.last_used.is_(None), KEYS.c.last_used <= micro - 60_000_000)
        noted = sa.update(KEYS).where(KEYS.c.id == key.id, long_ago).values(last_used=micro)
        self._database.run(lambda connection: connection.execute(noted))

    def keys(self, account: str | None = None) -> list[ApiKey]:
        return self._select(*([] if account is None else [KEYS.c.account == account]))

    def accounts(self) -> list[Account]:
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(*_ACCOUNT).order_by(ACCOUNTS.c.name))
            return [_account(row) for row in rows]

    def save_account(self, account: Account) -> None:
        check_name("account", account.name)
        values = _columns(account._asdict())
        changed = sa.update(ACCOUNTS).where(ACCOUNTS.c.name == account.name).values(values)

        def save(connection: sa.Connection) -> None:
            if connection.execute(changed).rowcount:
                return
            if not insert(connection, ACCOUNTS, {**values, "created_at": _now()}):
                connection.execute(changed)  # somebody was faster to make it

        self._database.run(save)

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[ApiKey]:
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(_chosen(*conditions))]


def _chosen(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The keys that fulfil ``conditions``, oldest first, with their accounts."""
    return (
        sa.select(KEYS, *_ACCOUNT)
        .join(ACCOUNTS, ACCOUNTS.c.name == KEYS.c.account)
        .where(*conditions)
        .order_by(KEYS.c.created_at, KEYS.c.id)
    )


def _row(key: ApiKey, secret: str) -> dict[str, Any]:
    """The row of a new key."""
    return {
        **_columns(key._asdict()),
        "digest": secrets.digest(secret),
        "account": key.account.name,
        "created_at": _now(),
    }


def _key(row: Any) -> ApiKey:
    fields = {name: getattr(row, name) for name in ApiKey._fields if name != "account"}
    if row.last_used is not None:
        fields["last_used"] = row.last_used / 1_000_000
    return ApiKey(**{**fields, "account": _account(row), **_lists(row.models, row.limits)})


def _account(row: Any) -> Account:
    fields = {name: getattr(row, f"account_{name}") for name in Account._fields}
    return Account(**{**fields, **_lists(row.account_models, row.account_limits)})


def _lists(models: str | None, limits: str | None) -> dict[str, Any]:
    return {
        "models": None if models is None else frozenset(json.decode(models.encode())),
        "limits": None if limits is None else Limits(**json.decode(limits.encode())),
    }


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record as columns of its table."""
    columns = {name: value for name, value in fields.items() if name != "account"}
    if columns.get("models") is not None:
        columns["models"] = json.encode(sorted(columns["models"])).decode()
    if columns.get("limits") is not None:
        columns["limits"] = json.encode(columns["limits"]._asdict()).decode()
    if columns.get("last_used") is not None:
        columns["last_used"] = round(columns["last_used"] * 1_000_000)
    return columns


def _now() -> int:
    return time.time_ns() // 1000
