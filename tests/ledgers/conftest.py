"""What the tests of ledgers have in common."""

from __future__ import annotations

from typing import Any

import pytest

from oneai_middleware.database import engine, kinds, postgresql
from oneai_middleware.database.engine import Database


@pytest.fixture
def empty_database(
    empty_database: Database, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """The same, which is given its time: these tests are not about patience, and many of
    their threads want the same row on a machine that may be busy."""
    for module, name in ((engine, "PATIENCE"), (kinds, "PATIENCE"), (kinds, "BUSY")):
        monkeypatch.setattr(module, name, 30.0)
    for module in (kinds, postgresql):
        monkeypatch.setattr(module, "SILENCE", 30.0)
    unhurried: Database = connect(empty_database.url)
    return unhurried
