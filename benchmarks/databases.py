"""Databases of a benchmark's own, gone with it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from .servers import Absent

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/test"
"""Where it is looked for; ``ONEAI_BENCH_POSTGRESQL`` names another place."""


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """A file."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder, 'oneai.db')}"


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A database on the server, as it is set.

    :raises Absent: there is no server.
    """
    place = sa.make_url(os.environ.get("ONEAI_BENCH_POSTGRESQL", POSTGRESQL))
    server = place.set(drivername="postgresql+psycopg")
    name = f"oneai_benchmark_{os.getpid()}_{os.urandom(3).hex()}"
    try:
        _run(server, f"CREATE DATABASE {name}")
    except sa.exc.OperationalError as error:
        raise Absent(f"no PostgreSQL: {type(error.orig).__name__}") from None
    try:
        yield place.set(database=name).render_as_string(hide_password=False)
    finally:
        _run(server, f"DROP DATABASE {name} WITH (FORCE)")


def _run(server: sa.URL, statement: str) -> None:
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
