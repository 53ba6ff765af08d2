"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # MariaDB commits each statement by itself: one that was killed half-way goes on here.
    op.create_table(
        "oneai_accounts",
        sa.Column("name", sa.String(length=190), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("prepaid", sa.Boolean(), nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("limits", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("oneai_accounts_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_table(
        "oneai_balances",
        sa.Column("account", sa.String(length=190), nullable=False),
        sa.Column("available", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("topped_up", sa.BigInteger(), nullable=False),
        sa.Column("invoiced", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("available >= 0", name=op.f("oneai_balances_available")),
        sa.CheckConstraint("held >= 0", name=op.f("oneai_balances_held")),
        sa.CheckConstraint("spent >= 0", name=op.f("oneai_balances_spent")),
        sa.PrimaryKeyConstraint("account", name=op.f("oneai_balances_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_table(
        "oneai_entries",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=190), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("input_price", sa.BigInteger(), nullable=False),
        sa.Column("output_price", sa.BigInteger(), nullable=False),
        sa.Column("cached_price", sa.BigInteger(), nullable=False),
        sa.Column("prepaid", sa.Boolean(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=False),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("duration", sa.Double(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("budget_window", sa.String(length=10), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("oneai_entries_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_index(
        op.f("oneai_entries_account_settled_at"),
        "oneai_entries",
        ["account", "settled_at"],
        unique=False,
        if_not_exists=True,
    )
    op.create_table(
        "oneai_holds",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=190), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("budget_window", sa.String(length=10), nullable=False),
        sa.Column("budget", sa.BigInteger(), nullable=True),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.Column("draft", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("oneai_holds_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_index(
        op.f("oneai_holds_expires"), "oneai_holds", ["expires"], unique=False, if_not_exists=True
    )
    op.create_table(
        "oneai_key_spending",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("budget_window", sa.String(length=10), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", "budget_window", name=op.f("oneai_key_spending_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_table(
        "oneai_top_ups",
        sa.Column("reference", sa.String(length=190), nullable=False),
        sa.Column("account", sa.String(length=190), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("reference", name=op.f("oneai_top_ups_pkey")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_table(
        "oneai_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("account", sa.String(length=190), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("hint", sa.String(length=100), nullable=False),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("limits", sa.Text(), nullable=True),
        sa.Column("budget", sa.BigInteger(), nullable=True),
        sa.Column("period", sa.String(length=10), nullable=True),
        sa.Column("expires", sa.Double(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account"], ["oneai_accounts.name"], name=op.f("oneai_keys_account")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("oneai_keys_pkey")),
        sa.UniqueConstraint("digest", name=op.f("oneai_keys_digest_unique")),
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
        mariadb_engine="InnoDB",
        if_not_exists=True,
    )
    op.create_index(
        op.f("oneai_keys_account"), "oneai_keys", ["account"], unique=False, if_not_exists=True
    )
