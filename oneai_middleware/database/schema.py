"""The version of a database's tables, and the way to the newest one."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from ..per_process import PerProcess

VERSION_TABLE = "oneai_schema"

_LOCK = 0x6F6E656169  # "oneai" in ASCII: names our advisory lock in PostgreSQL

# Alembic has one context for all of a process.
_alembic = PerProcess(threading.Lock)


@functools.cache
def versions() -> tuple[str, ...]:
    """All versions that this package knows, the newest first."""
    script = ScriptDirectory.from_config(_config())
    return tuple(revision.revision for revision in script.walk_revisions())


def newest() -> str:
    """The version that this package works with."""
    return versions()[0]


def version(engine: sa.Engine) -> str | None:
    """The version of the tables that are there; ``None`` where there are none."""
    with engine.connect().execution_options(oneai_reading=True) as connection:
        options = {"version_table": VERSION_TABLE}
        return MigrationContext.configure(connection, opts=options).get_current_revision()


def upgrade(engine: sa.Engine, patience: float) -> bool:
    """Make the tables, or change them to the newest version. Two at once do it once; false
    if somebody else was at it for ``patience`` seconds."""
    if not _alembic().acquire(timeout=patience):
        return False
    try:
        with engine.begin() as connection, _alone(connection, patience) as is_alone:
            if is_alone:
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            return is_alone
    finally:
        _alembic().release()


@contextmanager
def _alone(connection: sa.Connection, patience: float) -> Iterator[bool]:
    """Keep others from upgrading the same database meanwhile; whether that is so. SQLite's
    transaction does so by itself."""
    kind = connection.dialect.name
    if kind == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    if kind not in ("mysql", "mariadb"):
        yield True
        return
    # Its locks are the whole server's, and their names at most 64 characters long.
    name = "oneai_schema_" + hashlib.md5(str(connection.engine.url.database).encode()).hexdigest()
    got = connection.execute(sa.select(sa.func.get_lock(name, patience))).scalar()
    try:
        yield bool(got)
    finally:
        with suppress(SQLAlchemyError):  # a connection that broke has no locks
            connection.execute(sa.select(sa.func.release_lock(name)))


def _config() -> Config:
    config = Config()
    folder = Path(__file__).with_name("migrations")
    # A percent sign in the path would be taken for an interpolation.
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config
