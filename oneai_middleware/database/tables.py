"""The tables. Money is whole nano-dollars, times are microseconds since 1970 in UTC.

Integers everywhere: they are exact, sort, and mean the same in every database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_name)s_unique",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s",
        "pk": "%(table_name)s_pkey",
    }
)

# Two names are the same only if every byte is, and what is begun can be undone: also in
# MariaDB, whatever it is set to.
_EXACT: dict[str, Any] = {
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
    "mariadb_engine": "InnoDB",
}
_NAME = String(190)  # the longest that MariaDB indexes in every character set

ACCOUNTS = Table(
    "oneai_accounts",
    METADATA,
    Column("name", _NAME, primary_key=True),
    Column("tier", Text, nullable=False),
    Column("prepaid", Boolean, nullable=False),
    Column("models", Text),
    Column("limits", Text),
    Column("created_at", BigInteger, nullable=False),
    **_EXACT,
)

KEYS = Table(
    "oneai_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("account", _NAME, ForeignKey("oneai_accounts.name"), nullable=False, index=True),
    Column("label", Text, nullable=False),
    Column("hint", String(100), nullable=False),
    Column("models", Text),
    Column("limits", Text),
    Column("budget", BigInteger),
    Column("period", String(10)),
    Column("expires", Double()),
    Column("revoked", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used", BigInteger),
    **_EXACT,
)

BALANCES = Table(
    "oneai_balances",
    METADATA,
    Column("account", _NAME, primary_key=True),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("topped_up", BigInteger, nullable=False),
    Column("invoiced", BigInteger, nullable=False),
    CheckConstraint("available >= 0", name="available"),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("spent >= 0", name="spent"),
    **_EXACT,
)

SPENDING = Table(
    "oneai_key_spending",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("budget_window", String(10), primary_key=True),
    Column("spent", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    **_EXACT,
)

HOLDS = Table(
    "oneai_holds",
    METADATA,
    Column("request_id", String(64), primary_key=True),
    Column("account", _NAME, nullable=False),
    Column("key", String(64)),
    Column("amount", BigInteger, nullable=False),
    Column("counted", BigInteger, nullable=False),
    Column("budget_window", String(10), nullable=False),
    Column("budget", BigInteger),
    Column("expires", BigInteger, nullable=False, index=True),
    Column("draft", Text, nullable=False),
    **_EXACT,
)

ENTRIES = Table(
    "oneai_entries",
    METADATA,
    Column("request_id", String(64), primary_key=True),
    Column("account", _NAME, nullable=False),
    Column("key", String(64)),
    Column("model", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("input_price", BigInteger, nullable=False),
    Column("output_price", BigInteger, nullable=False),
    Column("cached_price", BigInteger, nullable=False),
    Column("prepaid", Boolean, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("reasoning_tokens", Integer, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("duration", Double(), nullable=False),
    Column("settled_at", BigInteger, nullable=False),
    Column("day", String(10), nullable=False),
    Column("budget_window", String(10), nullable=False),
    Index(None, "account", "settled_at"),
    **_EXACT,
)

TOP_UPS = Table(
    "oneai_top_ups",
    METADATA,
    Column("reference", String(190), primary_key=True),
    Column("account", _NAME, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("booked_at", BigInteger, nullable=False),
    **_EXACT,
)
