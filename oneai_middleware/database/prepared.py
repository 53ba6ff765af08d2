"""Statements that are put into words once, and not at every use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._rendered: tuple[str, Sequence[str] | None] | None = None

    def count(self, connection: sa.Connection, values: Mapping[str, Any]) -> int:
        """How many rows it has changed."""
        count: int = self._run(connection, values).rowcount
        return count

    def row(self, connection: sa.Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The row that it gives, if there is one."""
        row: Sequence[Any] | None = self._run(connection, values).fetchone()
        return row

    def _run(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        text, order = self._rendered or self._render(connection.dialect)
        given: Any = values if order is None else tuple([values[name] for name in order])
        if connection.dialect.name == "sqlite":
            # No server is far away or gets lost: what SQLAlchemy sees to would take longest.
            return connection.connection.driver_connection.execute(text, given)  # type: ignore[union-attr]
        return connection.exec_driver_sql(text, given, _COUNTED)

    def _render(self, dialect: sa.Dialect) -> tuple[str, Sequence[str] | None]:
        """Its text, and the names in their order where the driver wants them in a row."""
        names = list(self._names) or None
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=names)
        self._rendered = compiled.string, compiled.positiontup
        return self._rendered
