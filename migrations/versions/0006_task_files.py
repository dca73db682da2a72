"""Files of tasks, and output that is read for a whole run in the order in which it came.

Revision: 0006, after 0005.
"""

import sqlalchemy as sa
from alembic import op

import app.kernel.types

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLE_OPTIONS = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mysql_engine": "InnoDB",
    "sqlite_autoincrement": True,
}
PLACED = (
    "UPDATE task_outputs SET"
    " fanout_id = COALESCE((SELECT fanout_targets.fanout_id FROM commands"
    " JOIN fanout_targets ON fanout_targets.id = commands.target_id WHERE commands.id = task_outputs.command_id), 0),"
    " arrived_at = (SELECT COALESCE(commands.finished_at, commands.started_at, commands.issued_at) FROM commands"
    " WHERE commands.id = task_outputs.command_id)"
)


def upgrade() -> None:
    op.create_table(
        "task_files",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("size", BIG_ID, nullable=False),
        sa.Column("sha256", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("place", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_by_id", BIG_ID, nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("last_used_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_files")),
        sa.UniqueConstraint("place", name=op.f("uq_task_files_place")),
        **TABLE_OPTIONS,
    )
    with op.batch_alter_table("task_files", schema=None) as batch_op:
        batch_op.create_index("ix_task_files_last_used_at", ["last_used_at"], unique=False)
        batch_op.create_index("ix_task_files_name", ["name"], unique=False)
        batch_op.create_index("ix_task_files_sha256", ["sha256"], unique=False)
    op.create_table(
        "task_fetched_files",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("command_id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("size", BIG_ID, nullable=False),
        sa.Column("sha256", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("place", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["command_id"], ["commands.id"], name=op.f("fk_task_fetched_files_command_id_commands"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_fetched_files")),
        sa.UniqueConstraint("command_id", name=op.f("uq_task_fetched_files_command_id")),
        sa.UniqueConstraint("place", name=op.f("uq_task_fetched_files_place")),
        **TABLE_OPTIONS,
    )
    for table in ("tasks", "task_runs"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("file_id", BIG_ID, nullable=True))
            batch_op.create_index(f"ix_{table}_file_id", ["file_id"], unique=False)
    moment = app.kernel.types.UtcDateTime()
    with op.batch_alter_table("task_outputs", schema=None) as batch_op:
        # With a default, so that no table full of output is written anew.
        batch_op.add_column(sa.Column("fanout_id", BIG_ID, nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("arrived_at", moment, nullable=False, server_default="1970-01-01 00:00:00"))
    op.execute(PLACED)
    with op.batch_alter_table("task_outputs", schema=None) as batch_op:
        batch_op.create_index("ix_task_outputs_fanout_id_id", ["fanout_id", "id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("task_outputs", schema=None, table_kwargs=TABLE_OPTIONS) as batch_op:
        batch_op.drop_index("ix_task_outputs_fanout_id_id")
        batch_op.drop_column("arrived_at")
        batch_op.drop_column("fanout_id")
    for table in ("task_runs", "tasks"):
        with op.batch_alter_table(table, schema=None, table_kwargs=TABLE_OPTIONS) as batch_op:
            batch_op.drop_index(f"ix_{table}_file_id")
            batch_op.drop_column("file_id")
    op.drop_table("task_fetched_files")
    op.drop_table("task_files")
