"""An upgrade that is killed half-way, or that finds somebody else at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from oneai_middleware.database import schema
from oneai_middleware.database.engine import Database
from oneai_middleware.database.kinds import make_engine
from oneai_middleware.database.tables import METADATA
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger

Make = Callable[[str], Database]


class Killed(Exception):
    """The process is gone."""


@contextmanager
def patient(database: Database) -> Iterator[sa.Engine]:
    engine = make_engine(database.url, patient=True)
    yield engine
    engine.dispose()


def upgrade_and_die(database: Database, changes: int) -> bool:
    """Upgrade, and die after so many statements that change something; whether it came
    to that."""
    left = [changes]

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(("CREATE", "INSERT")):
            if not left[0]:
                raise Killed
            left[0] -= 1

    with patient(database) as engine:
        sa.event.listen(engine, "before_cursor_execute", count)
        try:
            schema.upgrade(engine, 60.0)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_an_upgrade_that_was_killed_anywhere_is_finished_by_the_next(
    make_database: Make, kind: str
) -> None:
    database = make_database(kind)
    killed = 0
    while upgrade_and_die(database, killed):
        assert schema.version(database.engine) is None
        killed += 1
    assert killed > len(METADATA.tables)
    assert database.upgrade() == f"{kind}: is at version {schema.newest()}"
    ledger = SQLLedger(database)
    assert ledger.top_up("alice", 1, "r1")
    assert ledger.balance("alice") == Balance(available=1, topped_up=1)
    assert ledger.audit() == []


@contextmanager
def upgrading(database: Database) -> Iterator[None]:
    """Somebody is at it: another process, or of a SQLite file a thread of this one."""
    if database.kind == "sqlite":
        with schema._alembic():
            yield
        return
    with (
        patient(database) as engine,
        engine.begin() as connection,
        schema._alone(connection, 0.0) as is_alone,
    ):
        assert is_alone
        yield


def test_two_databases_of_one_server_do_not_wait_for_each_others_upgrade(
    make_database: Make,
) -> None:
    one, other = make_database("mariadb"), make_database("mariadb")
    with upgrading(one), patient(other) as engine:
        assert schema.upgrade(engine, 0.0)
    assert schema.version(one.engine) is None
    assert schema.version(other.engine) == schema.newest()


@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
def test_who_finds_somebody_else_upgrading_upgrades_nothing_and_says_so(
    make_database: Make, kind: str
) -> None:
    database = make_database(kind)
    with (
        upgrading(database),
        ThreadPoolExecutor(1) as pool,
        patient(database) as engine,
        pytest.raises(StoreUnavailable) as refused,
    ):
        pool.submit(database._upgrade, engine, 0.0).result()
    assert refused.value.detail == (
        "somebody else is upgrading the tables; try again when they have"
    )
    assert schema.version(database.engine) is None
    assert "upgraded from nothing" in database.upgrade()
