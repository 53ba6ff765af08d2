"""The tables, the same as those of the SQL stores. Money is whole nano-dollars.

The books (:class:`Balance` and what follows it) speak of accounts and keys by name:
they outlive both. Write them through the ledger alone, which keeps their sums right.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db.models import (
    PROTECT,
    BigAutoField,
    BigIntegerField,
    BooleanField,
    Field,
    FloatField,
    ForeignKey,
    Index,
    IntegerField,
    JSONField,
    Model,
    TextField,
    UniqueConstraint,
)

from ...errors import ConfigurationError
from .fields import MomentField, NameField, never_below_zero, now, protect

APP = "oneai_middleware.integrations.django"

if not apps.is_installed(APP):
    raise ConfigurationError(f"add {APP!r} to INSTALLED_APPS and run `manage.py migrate`")


class Account(Model):
    """Who pays and is limited; ``owner`` is the user whose account it is, if anybody's.

    ``models`` is a list of model ids or ``None`` for all; ``limits`` are
    ``{"rpm", "tpm", "concurrent"}`` or ``None`` for those of the tier. A user who
    owns an account cannot be deleted: its keys would go on working.
    """

    name: Field[str, str] = NameField(max_length=190, primary_key=True)
    owner: Field[Any, Any] = ForeignKey(
        settings.AUTH_USER_MODEL,
        protect,
        null=True,
        blank=True,
        related_name="oneai_accounts",
        db_constraint=False,  # users may be in another database
    )
    tier: Field[str, str] = NameField(max_length=100, default="free")
    prepaid: Field[bool, bool] = BooleanField(default=True)
    models: Field[Any, Any] = JSONField(null=True, blank=True)
    limits: Field[Any, Any] = JSONField(null=True, blank=True)
    created_at: Field[datetime, datetime] = MomentField(default=now, editable=False)

    class Meta:
        default_permissions = ("add", "change", "view")
        permissions = (("top_up_account", "Can top up account"),)

    def __str__(self) -> str:
        return self.name


class APIKey(Model):
    """A key. Its secret is kept nowhere, and :attr:`digest` is what calls look it up by.

    ``budget`` is in nano-dollars, in all or in each ``period``.
    """

    id: Field[str, str] = NameField(max_length=64, primary_key=True)
    digest: Field[str, str] = NameField(max_length=64, unique=True, editable=False)
    account: Field[Any, Any] = ForeignKey(Account, PROTECT, related_name="keys")
    label: Field[str, str] = NameField(max_length=200, blank=True)
    hint: Field[str, str] = NameField(max_length=100, editable=False)
    models: Field[Any, Any] = JSONField(null=True, blank=True)
    limits: Field[Any, Any] = JSONField(null=True, blank=True)
    budget: Field[int | None, int | None] = BigIntegerField(null=True, blank=True)
    period: Field[str | None, str | None] = NameField(
        max_length=10, null=True, blank=True, choices=[("day", "day"), ("month", "month")]
    )
    expires: Field[datetime | None, datetime | None] = MomentField(null=True, blank=True)
    revoked: Field[bool, bool] = BooleanField(default=False)
    created_at: Field[datetime, datetime] = MomentField(default=now, editable=False)
    last_used: Field[datetime | None, datetime | None] = MomentField(null=True, editable=False)

    class Meta:
        default_permissions = ("add", "change", "view")
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.label} ({self.hint})" if self.label else self.hint


class Balance(Model):
    """An account's money: available, held and spent are together what was topped up."""

    account: Field[str, str] = NameField(max_length=190, primary_key=True)
    available: Field[int, int] = BigIntegerField(default=0)
    held: Field[int, int] = BigIntegerField(default=0)
    spent: Field[int, int] = BigIntegerField(default=0)
    topped_up: Field[int, int] = BigIntegerField(default=0)
    invoiced: Field[int, int] = BigIntegerField(default=0)

    class Meta:
        default_permissions = ("view",)
        constraints = [
            never_below_zero("available", "oneai_balance_available"),
            never_below_zero("held", "oneai_balance_held"),
            never_below_zero("spent", "oneai_balance_spent"),
        ]

    def __str__(self) -> str:
        return self.account


class KeySpending(Model):
    """What a key has spent and holds in one day, month, or in all."""

    id: Field[int, int] = BigAutoField(primary_key=True)
    key: Field[str, str] = NameField(max_length=64)
    budget_window: Field[str, str] = NameField(max_length=10)
    spent: Field[int, int] = BigIntegerField(default=0)
    held: Field[int, int] = BigIntegerField(default=0)

    class Meta:
        default_permissions = ("view",)
        verbose_name_plural = "key spending"
        constraints = [UniqueConstraint(fields=["key", "budget_window"], name="oneai_spending_key")]

    def __str__(self) -> str:
        return f"{self.key} {self.budget_window}".rstrip()


class Hold(Model):
    """Money set aside for a call that runs; ``draft`` is its row if its worker dies.

    ``amount`` is of the account's, ``counted`` against the key's ``budget``.
    """

    request_id: Field[str, str] = NameField(max_length=64, primary_key=True)
    account: Field[str, str] = NameField(max_length=190)
    key: Field[str | None, str | None] = NameField(max_length=64, null=True)
    amount: Field[int, int] = BigIntegerField()
    counted: Field[int, int] = BigIntegerField()
    budget_window: Field[str, str] = NameField(max_length=10)
    budget: Field[int | None, int | None] = BigIntegerField(null=True)
    expires: Field[datetime, datetime] = MomentField()
    draft: Field[str, str] = TextField()

    class Meta:
        default_permissions = ("view",)
        indexes = [Index(fields=["expires"], name="oneai_hold_expires")]

    def __str__(self) -> str:
        return self.request_id


class Entry(Model):
    """A call, and what it cost at the prices of its time."""

    request_id: Field[str, str] = NameField(max_length=64, primary_key=True)
    account: Field[str, str] = NameField(max_length=190)
    key: Field[str | None, str | None] = NameField(max_length=64, null=True)
    model: Field[str, str] = NameField(max_length=200)
    provider: Field[str, str] = NameField(max_length=200)
    input_price: Field[int, int] = BigIntegerField()
    output_price: Field[int, int] = BigIntegerField()
    cached_price: Field[int, int] = BigIntegerField()
    prepaid: Field[bool, bool] = BooleanField()
    prompt_tokens: Field[int, int] = IntegerField()
    completion_tokens: Field[int, int] = IntegerField()
    cached_tokens: Field[int, int] = IntegerField()
    reasoning_tokens: Field[int, int] = IntegerField()
    estimated: Field[bool, bool] = BooleanField()
    outcome: Field[str, str] = NameField(max_length=64)
    cost: Field[int, int] = BigIntegerField()
    duration: Field[float, float] = FloatField()
    settled_at: Field[datetime, datetime] = MomentField()
    day: Field[str, str] = NameField(max_length=10)
    budget_window: Field[str, str] = NameField(max_length=10)

    class Meta:
        default_permissions = ("view",)
        verbose_name_plural = "entries"
        indexes = [
            Index(fields=["account", "settled_at"], name="oneai_entry_account"),
            Index(fields=["settled_at"], name="oneai_entry_settled_at"),
        ]

    def __str__(self) -> str:
        return self.request_id


class TopUp(Model):
    """Money that was added, once for every reference."""

    reference: Field[str, str] = NameField(max_length=190, primary_key=True)
    account: Field[str, str] = NameField(max_length=190)
    amount: Field[int, int] = BigIntegerField()
    booked_at: Field[datetime, datetime] = MomentField()

    class Meta:
        default_permissions = ("view",)
        verbose_name = "top-up"

    def __str__(self) -> str:
        return self.reference
