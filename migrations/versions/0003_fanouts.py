"""Fan-outs: one command for many hosts, a target for each of them.

Revision: 0003, after 0002.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import app.kernel.types

revision = "0003"
down_revision = "0002"
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
AUTOINCREMENT = {"sqlite_autoincrement": True}
"""Said again wherever SQLite builds a table anew: it is not among the things that are read from the old one."""


def upgrade() -> None:
    op.create_table(
        "fanouts",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uuid", app.kernel.types.Name(length=36), nullable=False),
        sa.Column("purpose", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("title", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("kind", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("payload", LONG_TEXT, nullable=False),
        sa.Column("state", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("stopped_by", app.kernel.types.Name(length=16), nullable=True),
        sa.Column("max_in_flight", sa.Integer(), nullable=False),
        sa.Column("error_limit", sa.Integer(), nullable=True),
        sa.Column("deliver_within_s", sa.Integer(), nullable=False),
        sa.Column("run_within_s", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("retry_interval_s", sa.Integer(), nullable=False),
        sa.Column("waits_for_maintenance", sa.Boolean(), nullable=False),
        sa.Column("deadline_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("success", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Integer(), nullable=False),
        sa.Column("repeats_id", BIG_ID, nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_by_id", BIG_ID, nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("finished_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["repeats_id"], ["fanouts.id"], name=op.f("fk_fanouts_repeats_id_fanouts"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fanouts")),
        sa.UniqueConstraint("uuid", name=op.f("uq_fanouts_uuid")),
        **TABLE_OPTIONS,
    )
    with op.batch_alter_table("fanouts", schema=None) as batch_op:
        batch_op.create_index("ix_fanouts_purpose_id", ["purpose", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_fanouts_state"), ["state"], unique=False)

    op.create_table(
        "fanout_targets",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("fanout_id", BIG_ID, nullable=False),
        sa.Column("node_id", BIG_ID, nullable=False),
        sa.Column("hostname", app.kernel.types.Name(length=253), nullable=False),
        sa.Column("subject", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("payload", LONG_TEXT, nullable=True),
        sa.Column("state", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("not_after", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("due_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("finished_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("error_code", app.kernel.types.Name(length=32), nullable=True),
        sa.Column("error", LONG_TEXT, nullable=True),
        sa.Column("is_presumed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["fanout_id"], ["fanouts.id"], name=op.f("fk_fanout_targets_fanout_id_fanouts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fanout_targets")),
        sa.UniqueConstraint(
            "fanout_id", "node_id", "subject", name=op.f("uq_fanout_targets_fanout_id_node_id_subject")
        ),
        **TABLE_OPTIONS,
    )
    with op.batch_alter_table("fanout_targets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_fanout_targets_due_at"), ["due_at"], unique=False)
        batch_op.create_index("ix_fanout_targets_fanout_id_state_id", ["fanout_id", "state", "id"], unique=False)
        batch_op.create_index("ix_fanout_targets_node_id_id", ["node_id", "id"], unique=False)

    with op.batch_alter_table("commands", schema=None, table_kwargs=AUTOINCREMENT) as batch_op:
        batch_op.alter_column("payload", existing_type=LONG_TEXT, nullable=True)
        batch_op.add_column(sa.Column("target_id", BIG_ID, nullable=True))
        batch_op.add_column(sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("run_as", app.kernel.types.Name(length=64), nullable=True))
        batch_op.add_column(sa.Column("stdout_bytes", BIG_ID, nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("stderr_bytes", BIG_ID, nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("is_truncated", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_foreign_key(
            batch_op.f("fk_commands_target_id_fanout_targets"),
            "fanout_targets",
            ["target_id"],
            ["id"],
            ondelete="CASCADE",
        )
        batch_op.create_unique_constraint(batch_op.f("uq_commands_target_id_attempt"), ["target_id", "attempt"])
    # Only rows that were there needed them; from now on the Manager says what it means.
    with op.batch_alter_table("commands", schema=None, table_kwargs=AUTOINCREMENT) as batch_op:
        for name, kind in (("attempt", sa.Integer()), ("is_truncated", sa.Boolean())):
            batch_op.alter_column(name, existing_type=kind, existing_nullable=False, server_default=None)
        for name in ("stdout_bytes", "stderr_bytes"):
            batch_op.alter_column(name, existing_type=BIG_ID, existing_nullable=False, server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("commands", schema=None, table_kwargs=AUTOINCREMENT) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_commands_target_id_fanout_targets"), type_="foreignkey")
        batch_op.drop_constraint(batch_op.f("uq_commands_target_id_attempt"), type_="unique")
        for name in ("target_id", "attempt", "run_as", "stdout_bytes", "stderr_bytes", "is_truncated"):
            batch_op.drop_column(name)
    op.drop_table("fanout_targets")
    op.drop_table("fanouts")
