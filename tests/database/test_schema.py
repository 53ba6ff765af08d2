"""The tables: made, upgraded and checked, by one process or several, on each kind of server."""

from __future__ import annotations

import configparser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from oneai_middleware.database import schema
from oneai_middleware.database.engine import Database, database_at
from oneai_middleware.database.tables import METADATA
from oneai_middleware.errors import ConfigurationError, StoreUnavailable
from oneai_middleware.key_stores.sql import SQLKeyStore
from oneai_middleware.ledgers.base import Balance
from oneai_middleware.ledgers.sql import SQLLedger

ROOT = Path(__file__).parents[2]
KINDS = ["sqlite", "postgresql", "mariadb"]

Make = Callable[[str], Database]


def described(database: Database) -> dict[str, Any]:
    """All that the server knows about our tables."""
    seen = sa.inspect(database.engine)

    def ordered(items: Any) -> list[str]:
        return sorted(map(repr, items))

    return {
        table: {
            "columns": [
                {**column, "type": repr(column["type"])} for column in seen.get_columns(table)
            ],
            "primary": seen.get_pk_constraint(table),
            "foreign": ordered(seen.get_foreign_keys(table)),
            "unique": ordered(seen.get_unique_constraints(table)),
            "indexes": ordered(seen.get_indexes(table)),
            "checks": ordered(seen.get_check_constraints(table)),
            "options": seen.get_table_options(table),
        }
        for table in METADATA.tables
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_migrations_make_the_tables_that_the_code_works_with(
    make_database: Make, kind: str
) -> None:
    migrated, made = make_database(kind), make_database(kind)
    migrated.upgrade()
    with made.engine.begin() as connection:
        METADATA.create_all(connection)
    assert described(migrated) == described(made)
    with migrated.engine.connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        assert (
            compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []
        )


@pytest.mark.parametrize("kind", KINDS)
def test_upgrading_says_what_it_did_and_does_it_once(make_database: Make, kind: str) -> None:
    database = make_database(kind)
    newest = schema.newest()
    assert database.upgrade() == f"{kind}: upgraded from nothing to version {newest}"
    assert database.upgrade() == f"{kind}: is at version {newest}"


UPGRADE = """
import contextlib, sys
from oneai_middleware.database.engine import Database
from oneai_middleware.errors import StoreUnavailable
from oneai_middleware.ledgers.sql import SQLLedger
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
if database.kind != "sqlite":
    database.upgrade()
for tries in range(20):
    with contextlib.suppress(StoreUnavailable):  # nobody waits for the other for long
        print(SQLLedger(database).top_up("alice", 1, sys.argv[2]))
        break
"""


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_upgrade_at_once_do_it_once(
    make_database: Make, warm: Any, kind: str
) -> None:
    database = make_database(kind)
    url = database.url.render_as_string(hide_password=False)
    processes = [warm.talk(["-c", UPGRADE, url, f"r{number}"]) for number in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        with process.stdin:
            process.stdin.write("go\n")
    for process in processes:
        with process.stdout:
            assert (process.stdout.read(), process.wait(60)) == ("True\n", 0)
    ledger = SQLLedger(database)
    assert ledger.balance("alice") == Balance(available=2, topped_up=2)
    assert ledger.audit() == []


# --- another version ----------------------------------------------------------------


def set_version(database: Database, version: str) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{version}'")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_tables_that_are_missing_or_behind_are_refused_until_somebody_upgrades_them(
    make_database: Make, connect: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database(kind)
    for store in (SQLKeyStore(database).accounts, lambda: SQLLedger(database).balance("alice")):
        with pytest.raises(StoreUnavailable) as refused:
            store()
        assert refused.value.detail == (
            f"{kind}: the tables are missing, and not of version {schema.newest()}: "
            "run `oneai db upgrade`"
        )
    database.upgrade()
    assert SQLLedger(database).balance("alice") == Balance()
    with monkeypatch.context() as newer:
        newer.setattr(schema, "newest", lambda: "9999")
        with pytest.raises(StoreUnavailable) as refused:
            SQLLedger(connect(database.url)).audit()
    assert "version 0001, and not of version 9999: run `oneai db upgrade`" in refused.value.detail


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_a_newer_package_are_neither_used_nor_touched(
    make_database: Make, connect: Any, kind: str
) -> None:
    database = make_database(kind)
    database.upgrade()
    set_version(database, "9999")
    for use in (database.upgrade, SQLLedger(connect(database.url)).audit):
        with pytest.raises(StoreUnavailable) as refused:
            use()
        assert "9999" in refused.value.detail
        assert "upgrade" in refused.value.detail
    assert schema.version(database.engine) == "9999"


# --- where it is -------------------------------------------------------------------


def test_a_file_is_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = database_at("sqlite:///oneai.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    SQLLedger(database).top_up("alice", 1, "r1")
    assert (tmp_path / "oneai.db").exists()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert database_at(f"sqlite:///{tmp_path}/oneai.db") is database
    database.engine.dispose()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "oracle://host/name", "postgresql", "sqlite:oneai.db"],
)
def test_an_address_that_is_none_is_a_mistake_in_the_settings(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///oneai.db"):
        Database(url)


def test_a_search_path_of_the_shops_own_is_kept(make_database: Make, connect: Any) -> None:
    url = make_database("postgresql").url
    own = connect(url.update_query_dict({"options": "-c search_path=shop"}))
    with own.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "shop"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "700ms"


def test_the_wheel_has_the_migrations() -> None:
    setup = configparser.ConfigParser(delimiters=("=",))
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["oneai_middleware.database"].split(",")
    package = ROOT / "oneai_middleware" / "database"
    packed = {file for pattern in patterns for file in package.glob(pattern.strip())}
    assert packed == set((package / "migrations").rglob("*.py"))
