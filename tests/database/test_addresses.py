"""Addresses, drivers and libraries that are not there: known at start, with what to do."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from oneai_middleware import ConfigurationError
from oneai_middleware.database.engine import Database

NEEDED = {"postgresql": "psycopg", "mariadb": "pymysql", "mysql": "pymysql"}


@pytest.mark.parametrize("kind", NEEDED)
def test_a_driver_that_is_missing_is_named_by_what_to_install(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = "mariadb" if kind == "mysql" else kind
    monkeypatch.setitem(sys.modules, NEEDED[kind], None)
    with pytest.raises(ConfigurationError) as refused:
        Database(f"{kind}://shop:geheim@host/shop")
    assert str(refused.value).endswith(f"pip install 'oneai_middleware[{extra}]'")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("library", ["sqlalchemy", "alembic"])
@pytest.mark.parametrize("setting", ["key_store", "ledger"])
def test_a_library_that_is_missing_stops_the_start_and_is_named_by_its_extra(
    library: str, setting: str, make_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("key_stores.sql", "ledgers.sql", "database.engine"):
        monkeypatch.delitem(sys.modules, f"oneai_middleware.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    address = {setting: "sqlite:///oneai.db"}
    with pytest.raises(ConfigurationError) as refused:
        make_gateway(**{"accounts": {}, **address})
    assert str(refused.value).startswith(f"{setting}: ")
    assert str(refused.value).endswith("; pip install 'oneai_middleware[sql]'")


@pytest.mark.parametrize(
    ("driver", "kind"),
    [
        ("postgresql+psycopg2", "postgresql"),
        ("postgresql+asyncpg", "postgresql"),
        ("sqlite+aiosqlite", "sqlite"),
        ("mysql+mysqldb", "mysql"),
        ("mariadb+mysqlconnector", "mariadb"),
    ],
)
def test_a_driver_that_is_not_ours_is_refused(driver: str, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"write '{kind}://") as refused:
        Database(f"{driver}://shop:geheim@host/shop")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("kind", NEEDED)
@pytest.mark.parametrize("end", ["", "/"])
def test_an_address_without_a_database_is_refused(kind: str, end: str) -> None:
    with pytest.raises(ConfigurationError, match="names no database") as refused:
        Database(f"{kind}://shop:geheim@host{end}")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("postgresql+psycopg://host/shop", "postgresql"),
        ("mysql://host/shop", "mariadb"),
        ("mysql+pymysql://host/shop", "mariadb"),
        ("mariadb+pymysql://host/shop", "mariadb"),
    ],
)
def test_our_own_driver_may_be_named(given: str, kind: str) -> None:
    assert Database(given).kind == kind
