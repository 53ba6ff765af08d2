"""A million keys, each with an account and its balance, written straight into the tables."""

from __future__ import annotations

import sqlalchemy as sa

MANY = 10**6

NUMBERS = {
    "sqlite": (
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {0})"
    ),
    "postgresql": "WITH numbers AS (SELECT n FROM generate_series(1, {0}) AS n)",
}

DIGEST = {"sqlite": "printf('%064x', n)", "postgresql": "lpad(to_hex(n), 64, '0')"}

ROWS = {
    "oneai_accounts (name, tier, prepaid, created_at)": "'other' || n, 'pro', true, 0",
    "oneai_balances (account, available, held, spent, topped_up, invoiced)": (
        "'other' || n, 1000000000, 0, 0, 1000000000, 0"
    ),
    "oneai_keys (id, digest, account, label, hint, revoked, created_at)": (
        "'key_' || n, {digest}, 'other' || n, '', '', false, 0"
    ),
}


def fill(url: str, keys: int = MANY) -> None:
    """Add so many keys of others to a database of ours."""
    place = sa.make_url(url)
    kind = place.get_backend_name()
    driver = "postgresql+psycopg" if kind == "postgresql" else "sqlite"
    engine = sa.create_engine(place.set(drivername=driver), poolclass=sa.NullPool)
    numbers = NUMBERS[kind].format(keys)
    with engine.begin() as connection:
        for table, values in ROWS.items():
            row = values.format(digest=DIGEST[kind])
            connection.exec_driver_sql(f"{numbers} INSERT INTO {table} SELECT {row} FROM numbers")
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
