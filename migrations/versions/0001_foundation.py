"""The foundation: people, audit, settings, remembered answers.

Revision: 0001, after .
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import app.kernel.types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_checkpoints",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("signature", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_checkpoints")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("audit_checkpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_checkpoints_sequence"), ["sequence"], unique=False)

    op.create_table(
        "audit_head",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("seal", app.kernel.types.Name(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit_logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("username", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("action", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("resource_type", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("resource_id", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("detail", app.kernel.types.Json(), nullable=True),
        sa.Column("ip", app.kernel.types.Name(length=45), nullable=False),
        sa.Column("user_agent", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("request_id", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("error_message", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("canonical", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("seal", app.kernel.types.Name(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_logs")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("audit_logs", schema=None) as batch_op:
        batch_op.create_index("ix_audit_logs_action_id", ["action", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_audit_logs_created_at"), ["created_at"], unique=False)
        batch_op.create_index("ix_audit_logs_resource", ["resource_type", "resource_id", "id"], unique=False)
        batch_op.create_index("ix_audit_logs_status_id", ["status", "id"], unique=False)
        batch_op.create_index("ix_audit_logs_user_id_id", ["user_id", "id"], unique=False)
        batch_op.create_index("ix_audit_logs_username_id", ["username", "id"], unique=False)

    op.create_table(
        "changed_settings",
        sa.Column("key", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("value", app.kernel.types.Json(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_changed_settings")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "idempotent_answers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("request_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotent_answers")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_idempotent_answers_key_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("idempotent_answers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotent_answers_created_at"), ["created_at"], unique=False)

    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("username", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("password_hash", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("email", app.kernel.types.Name(length=128), nullable=True),
        sa.Column("phone", app.kernel.types.Name(length=20), nullable=True),
        sa.Column("role", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("must_change_password", sa.Boolean(), nullable=False),
        sa.Column("locale", app.kernel.types.Name(length=8), nullable=True),
        sa.Column("timezone", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("last_login_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("last_login_ip", app.kernel.types.Name(length=45), nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("users", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_users_role"), ["role"], unique=False)
        batch_op.create_index(batch_op.f("ix_users_status"), ["status"], unique=False)

    op.create_table(
        "access_tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("prefix", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("token_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("scopes", app.kernel.types.Json(), nullable=False),
        sa.Column("expires_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("last_used_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("last_used_ip", app.kernel.types.Name(length=45), nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_access_tokens_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_access_tokens_token_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("access_tokens", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_access_tokens_user_id"), ["user_id"], unique=False)

    op.create_table(
        "user_sessions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", app.kernel.types.Name(length=8), nullable=False),
        sa.Column("token_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("refresh_hash", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("spent_refresh_hash", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("ip", app.kernel.types.Name(length=45), nullable=False),
        sa.Column("user_agent", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("expires_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_user_sessions_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_sessions")),
        sa.UniqueConstraint("refresh_hash", name=op.f("uq_user_sessions_refresh_hash")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_user_sessions_token_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("user_sessions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_user_sessions_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_sessions_spent_refresh_hash"), ["spent_refresh_hash"], unique=False)
        batch_op.create_index(batch_op.f("ix_user_sessions_user_id"), ["user_id"], unique=False)

    head = sa.table("audit_head", sa.column("id"), sa.column("sequence"), sa.column("hash"), sa.column("seal"))
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64, "seal": ""}])


def downgrade() -> None:
    op.drop_table("user_sessions")
    op.drop_table("access_tokens")
    op.drop_table("users")
    op.drop_table("idempotent_answers")
    op.drop_table("changed_settings")
    op.drop_table("audit_logs")
    op.drop_table("audit_head")
    op.drop_table("audit_checkpoints")
