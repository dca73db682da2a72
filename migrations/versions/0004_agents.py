"""Agents: what hosts say of their programs, their configurations, secrets, measurements and crashes.

Revision: 0004, after 0003.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import app.kernel.types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql")
TABLE_OPTIONS = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}


def upgrade() -> None:
    op.create_table(
        "agent_config_texts",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("files", app.kernel.types.Json(), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_config_texts")),
        sa.UniqueConstraint("digest", name=op.f("uq_agent_config_texts_digest")),
        **TABLE_OPTIONS,
        sqlite_autoincrement=True,
    )
    op.create_table(
        "agent_points",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", app.kernel.types.Json(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "ts", name=op.f("pk_agent_points")),
        **TABLE_OPTIONS,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "agent_crashes",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("node_id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("host_event_id", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("message", LONG_TEXT, nullable=False),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("signal", sa.BigInteger(), nullable=True),
        sa.Column("dossier", app.kernel.types.Json(), nullable=False),
        sa.Column("occurred_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_agent_crashes_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_crashes")),
        sa.UniqueConstraint("node_id", "host_event_id", name=op.f("uq_agent_crashes_node_id_host_event_id")),
        **TABLE_OPTIONS,
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("agent_crashes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agent_crashes_created_at"), ["created_at"], unique=False)
        batch_op.create_index("ix_agent_crashes_node_id_name_id", ["node_id", "name", "id"], unique=False)

    op.create_table(
        "node_agents",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("node_id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("type", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("source", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("manifest", app.kernel.types.Json(), nullable=True),
        sa.Column("digest", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("desired", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("is_reported", sa.Boolean(), nullable=False),
        sa.Column("fingerprint", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("status_changed_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("version", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("start_time", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("restart_count", sa.BigInteger(), nullable=False),
        sa.Column("last_error", LONG_TEXT, nullable=True),
        sa.Column("health", app.kernel.types.Json(), nullable=False),
        sa.Column("config_version", sa.BigInteger(), nullable=True),
        sa.Column("drifted", sa.Boolean(), nullable=False),
        sa.Column("host_files", LONG_TEXT, nullable=True),
        sa.Column("host_files_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_agents_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_agents")),
        sa.UniqueConstraint("node_id", "name", name=op.f("uq_node_agents_node_id_name")),
        **TABLE_OPTIONS,
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_agents", schema=None) as batch_op:
        batch_op.create_index("ix_node_agents_name_node_id", ["name", "node_id"], unique=False)
        batch_op.create_index("ix_node_agents_status_name", ["status", "name"], unique=False)
        batch_op.create_index("ix_node_agents_type_name", ["type", "name"], unique=False)

    op.create_table(
        "agent_configs",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("agent_id", BIG_ID, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("text_id", BIG_ID, nullable=False),
        sa.Column("apply", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("note", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("state", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("detail", LONG_TEXT, nullable=True),
        sa.Column("command_id", sa.BigInteger(), nullable=True),
        sa.Column("fanout_id", sa.BigInteger(), nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("pushed_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("finished_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["node_agents.id"], name=op.f("fk_agent_configs_agent_id_node_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["text_id"], ["agent_config_texts.id"], name=op.f("fk_agent_configs_text_id_agent_config_texts")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_configs")),
        sa.UniqueConstraint("agent_id", "version", name=op.f("uq_agent_configs_agent_id_version")),
        **TABLE_OPTIONS,
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("agent_configs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agent_configs_fanout_id"), ["fanout_id"], unique=False)
        batch_op.create_index("ix_agent_configs_state_command_id", ["state", "command_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agent_configs_text_id"), ["text_id"], unique=False)

    op.create_table(
        "agent_secrets",
        sa.Column("agent_id", BIG_ID, nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("value", LONG_TEXT, nullable=False),
        sa.Column("updated_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["node_agents.id"], name=op.f("fk_agent_secrets_agent_id_node_agents"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "name", name=op.f("pk_agent_secrets")),
        **TABLE_OPTIONS,
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    for table in (
        "agent_secrets",
        "agent_configs",
        "node_agents",
        "agent_crashes",
        "agent_points",
        "agent_config_texts",
    ):
        op.drop_table(table)
