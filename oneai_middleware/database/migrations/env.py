"""Run by Alembic: migrate over the connection that :mod:`..schema` gives."""

from alembic import context

from oneai_middleware.database.schema import VERSION_TABLE
from oneai_middleware.database.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transaction_per_migration=False,
)
context.run_migrations()
