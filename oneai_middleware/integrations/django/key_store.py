"""API keys and accounts in the project's own database: ``KEY_STORE = "django"``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections, router, transaction
from django.db.models import Q, QuerySet

from ... import secret as secrets
from ...accounts import Account, ApiKey, Limits, check_key_fields, check_name, is_name
from ...key_stores.base import KeyStore, end_of, new_key, rights_of
from . import models
from .database import insert, run_on, transaction_on

UPGRADE = "its tables are made and upgraded by `manage.py migrate`"

_LAST = datetime(9999, 12, 30, tzinfo=UTC).timestamp()
"""The last day that has a date in every time zone; what comes later is as late."""


class DjangoKeyStore(KeyStore):
    """Keys and accounts in the app's tables, wherever the project's routers put them."""

    def upgrade(self) -> str:
        return UPGRADE

    def find(self, digest: str) -> ApiKey | None:
        # What is no digest was never written; some databases refuse to look for it.
        if not secrets.is_digest(digest):
            return None
        keys = self._select(digest=digest)
        return keys[0] if keys else None

    def account(self, name: str) -> Account | None:
        if not is_name(name):
            return None
        with transaction_on(_alias(), reading=True):
            row = _accounts().filter(name=name).first()
        return None if row is None else account_of(row)

    def create(self, account: str, **fields: Any) -> tuple[ApiKey, str]:
        check_key_fields(fields)

        def create() -> tuple[ApiKey, str]:
            owner = _accounts().filter(name=account).first() if is_name(account) else None
            if owner is None:
                raise KeyError(account)
            return _insert(owner, fields)

        return run_on(_alias(), create)

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        check_key_fields(fields)
        if not is_name(key_id):
            raise KeyError(key_id)
        its = _keys().filter(id=key_id)
        if fields:
            run_on(_alias(), lambda: its.update(**_columns(fields)))
        keys = self._select(id=key_id)
        if not keys:
            raise KeyError(key_id)
        return keys[0]

    def rotate(self, key_id: str, *, overlap: float = 0.0) -> tuple[ApiKey, str]:
        if not is_name(key_id):
            raise KeyError(key_id)
        its, now = _keys().filter(id=key_id), time.time()

        def rotate() -> tuple[ApiKey, str]:
            row = its.select_related("account").select_for_update().first()
            if row is None or not key_of(row).is_valid(now):
                raise KeyError(key_id)
            old = key_of(row)
            its.update(**_columns(end_of(old, now, overlap)))
            return _insert(row.account, rights_of(old))

        return run_on(_alias(), rotate)

    def used(self, key: ApiKey, at: float) -> None:
        connection: Any = connections[_alias()]
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            return  # a test's: a second thread that writes would lock the tables for the first
        moment = _moment(at)
        long_ago = Q(last_used=None) | Q(last_used__lte=moment - timedelta(minutes=1))
        its = _keys().filter(long_ago, id=key.id)
        run_on(_alias(), lambda: its.update(last_used=moment))

    def keys(self, account: str | None = None) -> list[ApiKey]:
        return self._select() if account is None else self._select(account=account)

    def accounts(self) -> list[Account]:
        with transaction_on(_alias(), reading=True):
            return [account_of(row) for row in _accounts().order_by("name")]

    def save_account(self, account: Account) -> None:
        check_name("account", account.name)
        values = _columns(account._asdict())
        its = _accounts().filter(name=account.name)

        def save() -> None:
            if not its.update(**values) and not insert(its, values):
                its.update(**values)  # somebody was faster to make it

        run_on(_alias(), save)

    def committed(self, then: Callable[[], None]) -> None:
        if connections[_alias()].in_atomic_block:
            transaction.on_commit(then, using=_alias())
        else:
            then()

    def _select(self, **conditions: str) -> list[ApiKey]:
        rows = _keys().select_related("account").order_by("created_at", "id")
        with transaction_on(_alias(), reading=True):
            return [key_of(row) for row in rows.filter(**conditions)]


def _insert(owner: models.Account, fields: Mapping[str, Any]) -> tuple[ApiKey, str]:
    """A new key of ``owner``, and its secret."""
    key, secret = new_key(account_of(owner), fields)
    named = {"account": owner, "digest": secrets.digest(secret)}
    return key_of(_keys().create(**{**_columns(key._asdict()), **named})), secret


def key_of(row: models.APIKey) -> ApiKey:
    """The record that a row holds."""
    return ApiKey(
        row.id,
        account_of(row.account),
        row.label,
        row.hint,
        *_lists(row),
        budget=row.budget,
        period=row.period,  # type: ignore[arg-type]
        expires=_seconds(row.expires),
        revoked=row.revoked,
        last_used=_seconds(row.last_used),
    )


def account_of(row: models.Account) -> Account:
    """The record that a row holds."""
    return Account(row.name, row.tier, row.prepaid, *_lists(row))


def _lists(row: models.Account | models.APIKey) -> tuple[frozenset[str] | None, Limits | None]:
    return (
        None if row.models is None else frozenset(row.models),
        None if row.limits is None else Limits(**row.limits),
    )


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record as columns of its table."""
    columns = dict(fields)
    if columns.get("models") is not None:
        columns["models"] = sorted(columns["models"])
    if columns.get("limits") is not None:
        columns["limits"] = columns["limits"]._asdict()
    for name in ("expires", "last_used"):
        if columns.get(name) is not None:
            columns[name] = _moment(columns[name])
    return columns


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(min(at, _LAST), UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _alias() -> str:
    # Also for reading: a replica may not know yet what was written.
    return router.db_for_write(models.APIKey)


def _accounts() -> QuerySet[models.Account]:
    return models.Account.objects.using(_alias())


def _keys() -> QuerySet[models.APIKey]:
    return models.APIKey.objects.using(_alias())
