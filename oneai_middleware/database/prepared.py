"""Statements that are put into words once, and not at every use."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.expression import ClauseElement

_COUNTED = {"preserve_rowcount": True}


class Prepared:
    """A statement for one kind of database, whose values have names.

    To build and to render one anew takes longer than the database does. The values go to
    the driver as they are: these are for our tables, which hold integers, floats, truth
    and text. ``names`` are the columns that an insertion without values of its own writes.
    """

    def __init__(self, statement: ClauseElement, *names: str) -> None:
        self._statement = statement
        self._names = names

    def run(self, connection: sa.Connection, **values: Any) -> sa.CursorResult[Any]:
        """Execute it with the values of all its names."""
        text, order = self._rendered(connection.dialect)
        given: Any = tuple([values[name] for name in order]) if order is not None else values
        return connection.exec_driver_sql(text, given, _COUNTED)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a handful of them live as long as the process
    def _rendered(self, dialect: sa.Dialect) -> tuple[str, Sequence[str] | None]:
        """Its text, and the names in their order where the driver wants them in a row."""
        compiled: Any = self._statement.compile(
            dialect=dialect, column_keys=list(self._names) or None
        )
        return compiled.string, compiled.positiontup
