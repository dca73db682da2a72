"""Migrates an empty SQLite database to head and fails if the models would still ask for a change."""

import logging
import sys
import tempfile
from pathlib import Path

import flask_migrate
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.factory import create_app
from app.kernel.db import db
from config import load_settings

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    heads = ScriptDirectory(str(ROOT / "migrations")).get_heads()
    if len(heads) != 1:
        print(f"one head expected, found {len(heads)}: {', '.join(heads)}")
        return 1
    with tempfile.TemporaryDirectory(prefix="ops-migrations-") as directory:
        settings = load_settings([], {"OPS_DATA_DIR": directory, "OPS_DATABASE_URL": f"sqlite:///{directory}/empty.db"})
        app = create_app(settings, plane="web")
        logging.disable(logging.INFO)
        with app.app_context():
            flask_migrate.upgrade(directory=str(ROOT / "migrations"))
            with db.engine.connect() as connection:
                context = MigrationContext.configure(
                    connection, opts={"compare_type": True, "render_as_batch": True, "target_metadata": db.metadata}
                )
                differences = compare_metadata(context, db.metadata)
            db.engine.dispose()
    for difference in differences:
        print(f"the models are ahead of the migrations: {difference}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
