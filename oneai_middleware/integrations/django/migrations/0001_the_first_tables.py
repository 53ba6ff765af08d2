"""The first tables."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import migrations, models

from oneai_middleware.integrations.django.fields import (
    MomentField,
    NameField,
    never_below_zero,
    now,
    protect,
)


class Migration(migrations.Migration):
    """Accounts and keys, and the books about them."""

    initial = True
    dependencies: ClassVar = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations: ClassVar = [
        migrations.CreateModel(
            name="Account",
            fields=[
                ("name", NameField(max_length=190, primary_key=True, serialize=False)),
                (
                    "owner",
                    models.ForeignKey(
                        to=settings.AUTH_USER_MODEL,
                        on_delete=protect,
                        null=True,
                        blank=True,
                        related_name="oneai_accounts",
                        db_constraint=False,
                    ),
                ),
                ("tier", NameField(default="free", max_length=100)),
                ("prepaid", models.BooleanField(default=True)),
                ("models", models.JSONField(blank=True, null=True)),
                ("limits", models.JSONField(blank=True, null=True)),
                ("created_at", MomentField(default=now, editable=False)),
            ],
            options={
                "default_permissions": ("add", "change", "view"),
                "permissions": (("top_up_account", "Can top up account"),),
            },
        ),
        migrations.CreateModel(
            name="APIKey",
            fields=[
                ("id", NameField(max_length=64, primary_key=True, serialize=False)),
                ("digest", NameField(editable=False, max_length=64, unique=True)),
                (
                    "account",
                    models.ForeignKey(
                        to="oneai.account", on_delete=models.PROTECT, related_name="keys"
                    ),
                ),
                ("label", NameField(blank=True, max_length=200)),
                ("hint", NameField(editable=False, max_length=100)),
                ("models", models.JSONField(blank=True, null=True)),
                ("limits", models.JSONField(blank=True, null=True)),
                ("budget", models.BigIntegerField(blank=True, null=True)),
                (
                    "period",
                    NameField(
                        blank=True,
                        choices=[("day", "day"), ("month", "month")],
                        max_length=10,
                        null=True,
                    ),
                ),
                ("expires", MomentField(blank=True, null=True)),
                ("revoked", models.BooleanField(default=False)),
                ("created_at", MomentField(default=now, editable=False)),
                ("last_used", MomentField(editable=False, null=True)),
            ],
            options={
                "default_permissions": ("add", "change", "view"),
                "verbose_name": "API key",
            },
        ),
        migrations.CreateModel(
            name="Balance",
            fields=[
                ("account", NameField(max_length=190, primary_key=True, serialize=False)),
                ("available", models.BigIntegerField(default=0)),
                ("held", models.BigIntegerField(default=0)),
                ("spent", models.BigIntegerField(default=0)),
                ("topped_up", models.BigIntegerField(default=0)),
                ("invoiced", models.BigIntegerField(default=0)),
            ],
            options={
                "default_permissions": ("view",),
                "constraints": [
                    never_below_zero("available", "oneai_balance_available"),
                    never_below_zero("held", "oneai_balance_held"),
                    never_below_zero("spent", "oneai_balance_spent"),
                ],
            },
        ),
        migrations.CreateModel(
            name="KeySpending",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("key", NameField(max_length=64)),
                ("budget_window", NameField(max_length=10)),
                ("spent", models.BigIntegerField(default=0)),
                ("held", models.BigIntegerField(default=0)),
            ],
            options={
                "default_permissions": ("view",),
                "verbose_name_plural": "key spending",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("key", "budget_window"), name="oneai_spending_key"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Hold",
            fields=[
                ("request_id", NameField(max_length=64, primary_key=True, serialize=False)),
                ("account", NameField(max_length=190)),
                ("key", NameField(max_length=64, null=True)),
                ("amount", models.BigIntegerField()),
                ("counted", models.BigIntegerField()),
                ("budget_window", NameField(max_length=10)),
                ("budget", models.BigIntegerField(null=True)),
                ("expires", MomentField()),
                ("draft", models.TextField()),
            ],
            options={
                "default_permissions": ("view",),
                "indexes": [models.Index(fields=["expires"], name="oneai_hold_expires")],
            },
        ),
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("request_id", NameField(max_length=64, primary_key=True, serialize=False)),
                ("account", NameField(max_length=190)),
                ("key", NameField(max_length=64, null=True)),
                ("model", NameField(max_length=200)),
                ("provider", NameField(max_length=200)),
                ("input_price", models.BigIntegerField()),
                ("output_price", models.BigIntegerField()),
                ("cached_price", models.BigIntegerField()),
                ("prepaid", models.BooleanField()),
                ("prompt_tokens", models.IntegerField()),
                ("completion_tokens", models.IntegerField()),
                ("cached_tokens", models.IntegerField()),
                ("reasoning_tokens", models.IntegerField()),
                ("estimated", models.BooleanField()),
                ("outcome", NameField(max_length=64)),
                ("cost", models.BigIntegerField()),
                ("duration", models.FloatField()),
                ("settled_at", MomentField()),
                ("day", NameField(max_length=10)),
                ("budget_window", NameField(max_length=10)),
            ],
            options={
                "default_permissions": ("view",),
                "verbose_name_plural": "entries",
                "indexes": [
                    models.Index(fields=["account", "settled_at"], name="oneai_entry_account"),
                    models.Index(fields=["settled_at"], name="oneai_entry_settled_at"),
                ],
            },
        ),
        migrations.CreateModel(
            name="TopUp",
            fields=[
                ("reference", NameField(max_length=190, primary_key=True, serialize=False)),
                ("account", NameField(max_length=190)),
                ("amount", models.BigIntegerField()),
                ("booked_at", MomentField()),
            ],
            options={"default_permissions": ("view",), "verbose_name": "top-up"},
        ),
    ]
