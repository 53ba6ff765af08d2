"""What a call costs in statements: one transaction to hold and one to settle, and few in each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from oneai_middleware.database.engine import Database
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger
from oneai_middleware.testing import draft, hold

Counted = Callable[[], "contextlib.AbstractContextManager[list[str]]"]


@pytest.fixture
def counted(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Listen to what is said to the database, also past SQLAlchemy."""
    said: list[str] = []
    if empty_database.kind == "sqlite":
        sa.event.listen(
            empty_database.engine,
            "checkout",
            lambda connection, *_: connection.set_trace_callback(said.append),
        )
    elif empty_database.kind == "postgresql":
        from oneai_middleware.database.postgresql import ImpatientConnection

        at_once = ImpatientConnection.at_once

        def heard(self: Any, text: str, values: Any) -> Any:
            said.append(text)
            return at_once(self, text, values)

        monkeypatch.setattr(ImpatientConnection, "at_once", heard)
    if empty_database.kind != "sqlite":
        sa.event.listen(
            empty_database.engine,
            "before_cursor_execute",
            lambda _c, _cursor, text, *_: said.append(text),
        )

    @contextlib.contextmanager
    def listening() -> Iterator[list[str]]:
        heard: list[str] = []
        said.clear()
        yield heard
        heard += [text for text in said if not text.startswith(("PRAGMA", "BEGIN", "COMMIT"))]
        said.clear()

    return listening


MOST = {"sqlite": (3, 4), "mariadb": (3, 4), "postgresql": (1, 1)}
"""Statements of a hold and of a settlement, whose key has been used before."""


@pytest.mark.parametrize("key", ["k1", None])
@pytest.mark.parametrize("prepaid", [True, False])
def test_a_usual_call_holds_and_settles_in_few_statements(
    empty_database: Database, counted: Counted, key: str | None, prepaid: bool
) -> None:
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 1_000, "r1")
    first, second = (draft(name, key=key, prepaid=prepaid) for name in ("a", "b"))
    hold(ledger, first, 10, 60)
    ledger.settle(first._replace(cost=25))
    with counted() as held:
        hold(ledger, second, 10, 60, budget=100 if key else None)
    with counted() as settled:
        ledger.settle(second._replace(cost=25))
    most = MOST[empty_database.kind]
    assert 0 < len(held) <= most[0], held
    assert 0 < len(settled) <= most[1], settled
    assert ledger.audit() == []


def test_a_budget_for_a_day_asks_for_the_time_once(
    empty_database: Database, counted: Counted
) -> None:
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 1_000, "r1")
    for name in ("a", "b"):
        with counted() as held:
            hold(ledger, draft(name, key="k1"), 10, 60, 200, "day")
    assert len(held) <= MOST[empty_database.kind][0] + (empty_database.kind != "sqlite")
    assert ledger.balance("alice") == Balance(available=880, held=120, topped_up=1_000)


def test_looking_is_one_statement(empty_database: Database, counted: Counted) -> None:
    ledger = SQLLedger(empty_database)
    ledger.top_up("alice", 1_000, "r1")
    with counted() as said:
        ledger.balance("alice")
    assert len([text for text in said if text != "ROLLBACK"]) == 1
