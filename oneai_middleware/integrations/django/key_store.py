"""API keys and accounts in the project's own database: ``KEY_STORE = "django"``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connections, router
from django.db.models import Q, QuerySet

from ... import secret as secrets
from ...accounts import Account, ApiKey, Limits, check_name, is_name
from ...key_stores.base import KeyStore
from . import models
from .database import insert, run_on, transaction_on

UPGRADE = "its tables are made and upgraded by `manage.py migrate`"


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
        secret = secrets.new_secret()
        named = {"id": f"key_{uuid.uuid4().hex}", "hint": secrets.hint(secret)}
        values = {**named, **_columns(fields), "digest": secrets.digest(secret)}

        def create() -> models.APIKey:
            owner = _accounts().filter(name=account).first()
            if owner is None:
                raise KeyError(account)
            return _keys().create(account=owner, **values)

        return key_of(run_on(_alias(), create)), secret

    def update(self, key_id: str, **fields: Any) -> ApiKey:
        its = _keys().filter(id=key_id)
        if not run_on(_alias(), lambda: its.update(**_columns(fields))):
            raise KeyError(key_id)
        return self._select(id=key_id)[0]

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

    def _select(self, **conditions: str) -> list[ApiKey]:
        rows = _keys().select_related("account").order_by("created_at", "id")
        with transaction_on(_alias(), reading=True):
            return [key_of(row) for row in rows.filter(**conditions)]


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
    return datetime.fromtimestamp(at, UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _alias() -> str:
    # Also for reading: a replica may not know yet what was written.
    return router.db_for_write(models.APIKey)


def _accounts() -> QuerySet[models.Account]:
    return models.Account.objects.using(_alias())


def _keys() -> QuerySet[models.APIKey]:
    return models.APIKey.objects.using(_alias())
