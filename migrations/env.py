"""How Alembic reaches the database: through the application that asks for it, whatever its settings say."""

from alembic import context
from flask import current_app
from sqlalchemy import Connection

from app.kernel.context import ops
from app.kernel.db import Base, migration_engine


def run_migrations_offline() -> None:
    url = str(current_app.extensions["migrate"].db.engine.url)
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    options = current_app.extensions["migrate"].configure_args
    with migration_engine(ops().settings).connect() as connection:
        context.configure(
            connection=connection, target_metadata=Base.metadata, transaction_per_migration=True, **options
        )
        with context.begin_transaction():
            context.run_migrations()
        if connection.dialect.name == "sqlite":
            check_references(connection)


def check_references(connection: Connection) -> None:
    """SQLite was told not to mind references while tables were rebuilt, so they are looked at afterwards."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise RuntimeError(f"{len(broken)} rows refer to what is not there, the first in table {broken[0][0]}")


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
