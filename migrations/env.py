"""How Alembic reaches the database: through the application that asks for it, whatever its settings say."""

from alembic import context
from flask import current_app

from app.kernel.db import Base


def run_migrations_offline() -> None:
    url = str(current_app.extensions["migrate"].db.engine.url)
    context.configure(url=url, target_metadata=Base.metadata, literal_binds=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    options = current_app.extensions["migrate"].configure_args
    with current_app.extensions["migrate"].db.engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, **options)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
