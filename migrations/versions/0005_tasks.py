"""Tasks: definitions, templates, runs and what hosts wrote.

Revision: 0005, after 0004.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import app.kernel.types

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
TABLE_OPTIONS = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mysql_engine": "InnoDB",
    "sqlite_autoincrement": True,
}


def upgrade() -> None:
    op.create_table(
        "task_templates",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("description", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("type", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("content", app.kernel.types.Json(), nullable=False),
        sa.Column("parameters", app.kernel.types.Json(), nullable=False),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_templates")),
        sa.UniqueConstraint("name", name=op.f("uq_task_templates_name")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "tasks",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("description", LONG_TEXT, nullable=True),
        sa.Column("type", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("content", app.kernel.types.Json(), nullable=False),
        sa.Column("parameters", app.kernel.types.Json(), nullable=False),
        sa.Column("template_id", BIG_ID, nullable=True),
        sa.Column("target_type", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("target_value", app.kernel.types.Json(), nullable=False),
        sa.Column("cron_expr", app.kernel.types.Name(length=128), nullable=True),
        sa.Column("timezone", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("catch_up_s", sa.Integer(), nullable=False),
        sa.Column("timeout", sa.Integer(), nullable=False),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("retry_interval", sa.Integer(), nullable=False),
        sa.Column("max_parallel", app.kernel.types.Json(), nullable=True),
        sa.Column("max_errors", app.kernel.types.Json(), nullable=True),
        sa.Column("not_after_s", sa.Integer(), nullable=False),
        sa.Column("status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("next_run_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_by_id", BIG_ID, nullable=True),
        sa.Column("responsible", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("responsible_id", BIG_ID, nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["task_templates.id"],
            name=op.f("fk_tasks_template_id_task_templates"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        **TABLE_OPTIONS,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tasks_name"), ["name"], unique=False)
        batch_op.create_index("ix_tasks_status_next_run_at", ["status", "next_run_at"], unique=False)

    op.create_table(
        "task_runs",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("fanout_id", BIG_ID, nullable=False),
        sa.Column("task_id", BIG_ID, nullable=True),
        sa.Column("task_name", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("triggered_by", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("scheduled_for", app.kernel.types.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["fanout_id"], ["fanouts.id"], name=op.f("fk_task_runs_fanout_id_fanouts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("fk_task_runs_task_id_tasks"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_runs")),
        sa.UniqueConstraint("fanout_id", name=op.f("uq_task_runs_fanout_id")),
        sa.UniqueConstraint("task_id", "scheduled_for", name=op.f("uq_task_runs_task_id_scheduled_for")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "task_outputs",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("command_id", BIG_ID, nullable=False),
        sa.Column("seq", BIG_ID, nullable=False),
        sa.Column("stream", app.kernel.types.Name(length=8), nullable=False),
        sa.Column("offset", BIG_ID, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql"), nullable=False),
        sa.Column("is_cut", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["command_id"], ["commands.id"], name=op.f("fk_task_outputs_command_id_commands"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task_outputs")),
        sa.UniqueConstraint("command_id", "seq", name=op.f("uq_task_outputs_command_id_seq")),
        **TABLE_OPTIONS,
    )
    with op.batch_alter_table("task_outputs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_task_outputs_command_id_stream_offset", ["command_id", "stream", "offset"], unique=False
        )


def downgrade() -> None:
    op.drop_table("task_outputs")
    op.drop_table("task_runs")
    op.drop_table("tasks")
    op.drop_table("task_templates")
