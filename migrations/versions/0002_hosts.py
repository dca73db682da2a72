"""Hosts: nodes and how they come in, events, commands, measurements.

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

import app.kernel.types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("hostname", app.kernel.types.Name(length=253), nullable=False),
        sa.Column("kind", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("severity", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("message", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("data", app.kernel.types.Json(), nullable=True),
        sa.Column("source", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("host_event_id", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("occurred_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("node_id", "host_event_id", name=op.f("uq_events_node_id_host_event_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_created_at"), ["created_at"], unique=False)
        batch_op.create_index("ix_events_kind_id", ["kind", "id"], unique=False)
        batch_op.create_index("ix_events_node_id_id", ["node_id", "id"], unique=False)
        batch_op.create_index("ix_events_severity_id", ["severity", "id"], unique=False)

    op.create_table(
        "fleet_points",
        sa.Column("ts", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("cpu_usage", sa.Float(), nullable=True),
        sa.Column("memory_usage", sa.Float(), nullable=True),
        sa.Column("disk_usage", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("ts", name=op.f("pk_fleet_points")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
    )
    op.create_table(
        "gateway_presence",
        sa.Column("name", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("started_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("seen_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gateway_presence")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("gateway_presence", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_gateway_presence_seen_at"), ["seen_at"], unique=False)

    op.create_table(
        "late_buckets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_late_buckets")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "metric_1h",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("cpu_usage", sa.Float(), nullable=True),
        sa.Column("cpu_usage_max", sa.Float(), nullable=True),
        sa.Column("memory_usage", sa.Float(), nullable=True),
        sa.Column("memory_usage_max", sa.Float(), nullable=True),
        sa.Column("memory_used", sa.Double(), nullable=True),
        sa.Column("memory_used_max", sa.BigInteger(), nullable=True),
        sa.Column("memory_total", sa.Double(), nullable=True),
        sa.Column("memory_total_max", sa.BigInteger(), nullable=True),
        sa.Column("swap_used", sa.Double(), nullable=True),
        sa.Column("swap_used_max", sa.BigInteger(), nullable=True),
        sa.Column("disk_usage", sa.Float(), nullable=True),
        sa.Column("disk_usage_max", sa.Float(), nullable=True),
        sa.Column("disk_used", sa.Double(), nullable=True),
        sa.Column("disk_used_max", sa.BigInteger(), nullable=True),
        sa.Column("network_rx", sa.Double(), nullable=True),
        sa.Column("network_rx_max", sa.Double(), nullable=True),
        sa.Column("network_tx", sa.Double(), nullable=True),
        sa.Column("network_tx_max", sa.Double(), nullable=True),
        sa.Column("load_avg_1", sa.Float(), nullable=True),
        sa.Column("load_avg_1_max", sa.Float(), nullable=True),
        sa.Column("load_avg_5", sa.Float(), nullable=True),
        sa.Column("load_avg_5_max", sa.Float(), nullable=True),
        sa.Column("load_avg_15", sa.Float(), nullable=True),
        sa.Column("load_avg_15_max", sa.Float(), nullable=True),
        sa.Column("process_count", sa.Float(), nullable=True),
        sa.Column("process_count_max", sa.Integer(), nullable=True),
        sa.Column("tcp_connections", sa.Float(), nullable=True),
        sa.Column("tcp_connections_max", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("node_id", "ts", name=op.f("pk_metric_1h")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        mysql_partition_by="RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metric_5m",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("cpu_usage", sa.Float(), nullable=True),
        sa.Column("cpu_usage_max", sa.Float(), nullable=True),
        sa.Column("memory_usage", sa.Float(), nullable=True),
        sa.Column("memory_usage_max", sa.Float(), nullable=True),
        sa.Column("memory_used", sa.Double(), nullable=True),
        sa.Column("memory_used_max", sa.BigInteger(), nullable=True),
        sa.Column("memory_total", sa.Double(), nullable=True),
        sa.Column("memory_total_max", sa.BigInteger(), nullable=True),
        sa.Column("swap_used", sa.Double(), nullable=True),
        sa.Column("swap_used_max", sa.BigInteger(), nullable=True),
        sa.Column("disk_usage", sa.Float(), nullable=True),
        sa.Column("disk_usage_max", sa.Float(), nullable=True),
        sa.Column("disk_used", sa.Double(), nullable=True),
        sa.Column("disk_used_max", sa.BigInteger(), nullable=True),
        sa.Column("network_rx", sa.Double(), nullable=True),
        sa.Column("network_rx_max", sa.Double(), nullable=True),
        sa.Column("network_tx", sa.Double(), nullable=True),
        sa.Column("network_tx_max", sa.Double(), nullable=True),
        sa.Column("load_avg_1", sa.Float(), nullable=True),
        sa.Column("load_avg_1_max", sa.Float(), nullable=True),
        sa.Column("load_avg_5", sa.Float(), nullable=True),
        sa.Column("load_avg_5_max", sa.Float(), nullable=True),
        sa.Column("load_avg_15", sa.Float(), nullable=True),
        sa.Column("load_avg_15_max", sa.Float(), nullable=True),
        sa.Column("process_count", sa.Float(), nullable=True),
        sa.Column("process_count_max", sa.Integer(), nullable=True),
        sa.Column("tcp_connections", sa.Float(), nullable=True),
        sa.Column("tcp_connections_max", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("node_id", "ts", name=op.f("pk_metric_5m")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        mysql_partition_by="RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)",
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("metric_5m", schema=None) as batch_op:
        batch_op.create_index("ix_metric_5m_ts", ["ts", "cpu_usage", "memory_usage", "disk_usage"], unique=False)

    op.create_table(
        "metric_details",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql"), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "ts", name=op.f("pk_metric_details")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        mysql_partition_by="RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "metric_points",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ts", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cpu_usage", sa.Float(), nullable=True),
        sa.Column("memory_usage", sa.Float(), nullable=True),
        sa.Column("memory_used", sa.BigInteger(), nullable=True),
        sa.Column("memory_total", sa.BigInteger(), nullable=True),
        sa.Column("swap_used", sa.BigInteger(), nullable=True),
        sa.Column("disk_usage", sa.Float(), nullable=True),
        sa.Column("disk_used", sa.BigInteger(), nullable=True),
        sa.Column("network_rx", sa.Double(), nullable=True),
        sa.Column("network_tx", sa.Double(), nullable=True),
        sa.Column("load_avg_1", sa.Float(), nullable=True),
        sa.Column("load_avg_5", sa.Float(), nullable=True),
        sa.Column("load_avg_15", sa.Float(), nullable=True),
        sa.Column("process_count", sa.Integer(), nullable=True),
        sa.Column("tcp_connections", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("node_id", "ts", name=op.f("pk_metric_points")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        mysql_partition_by="RANGE (ts) (PARTITION rest VALUES LESS THAN MAXVALUE)",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "node_groups",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("path", app.kernel.types.Name(length=512), nullable=False),
        sa.Column("description", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("parent_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("sort_order", sa.Integer(), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["node_groups.id"], name=op.f("fk_node_groups_parent_id_node_groups")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_groups")),
        sa.UniqueConstraint("path", name=op.f("uq_node_groups_path")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_groups", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_groups_parent_id"), ["parent_id"], unique=False)

    op.create_table(
        "revocations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("fingerprint", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("revoked_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revocations")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("revocations", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_revocations_fingerprint"), ["fingerprint"], unique=False)
        batch_op.create_index(batch_op.f("ix_revocations_revoked_at"), ["revoked_at"], unique=False)

    op.create_table(
        "roll_up_progress",
        sa.Column("step_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("step_ms", name=op.f("pk_roll_up_progress")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "smart_groups",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("selector", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("description", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_smart_groups")),
        sa.UniqueConstraint("name", name=op.f("uq_smart_groups_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", app.kernel.types.Name(length=36), nullable=False),
        sa.Column("hostname", app.kernel.types.Name(length=253), nullable=False),
        sa.Column("ip", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("ips", app.kernel.types.Json(), nullable=False),
        sa.Column("macs", app.kernel.types.Json(), nullable=False),
        sa.Column("os", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("os_name", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("os_version", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("kernel_version", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("arch", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("cpu_model", app.kernel.types.Name(length=128), nullable=False),
        sa.Column("cpu_cores", sa.Integer(), nullable=False),
        sa.Column("memory_total", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("swap_total", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("disk_total", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("disks", app.kernel.types.Json(), nullable=False),
        sa.Column("python_version", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("daemon_version", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("daemon_version_key", app.kernel.types.Name(length=255), nullable=False),
        sa.Column("boot_time", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("virtualization", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("cloud", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("timezone", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("status_changed_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("last_heartbeat", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("heartbeat_interval_s", sa.Integer(), nullable=False),
        sa.Column("connection_lost_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("maintenance_until", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("maintenance_reason", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("description", app.kernel.types.Name(length=255), nullable=True),
        sa.Column("agent_status", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("agent_version", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("last_cpu_usage", sa.Double(), nullable=True),
        sa.Column("last_memory_usage", sa.Double(), nullable=True),
        sa.Column("last_disk_usage", sa.Double(), nullable=True),
        sa.Column("last_metrics_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("machine_id", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("hardware_id", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("boot_id", app.kernel.types.Name(length=64), nullable=True),
        sa.Column("instance_id", app.kernel.types.Name(length=32), nullable=True),
        sa.Column("generation", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lease", app.kernel.types.Name(length=128), nullable=True),
        sa.Column("previous_lease", app.kernel.types.Name(length=128), nullable=True),
        sa.Column("challenge", app.kernel.types.Name(length=128), nullable=True),
        sa.Column("lost_leases", sa.Integer(), nullable=False),
        sa.Column("lost_leases_day", app.kernel.types.Name(length=10), nullable=False),
        sa.Column("cloned_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("command_key", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("certificate_expires_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("inventory_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("agents_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("capabilities", app.kernel.types.Json(), nullable=True),
        sa.Column("clock_offset_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("settings_error", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=True),
        sa.Column("dropped_epoch", app.kernel.types.Name(length=32), nullable=False),
        sa.Column("dropped_points", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("pending_points", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("updated_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["node_groups.id"], name=op.f("fk_nodes_group_id_node_groups")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("uuid", name=op.f("uq_nodes_uuid")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nodes_daemon_version_key"), ["daemon_version_key"], unique=False)
        batch_op.create_index("ix_nodes_group_id_status", ["group_id", "status"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_hostname"), ["hostname"], unique=False)
        batch_op.create_index(batch_op.f("ix_nodes_ip"), ["ip"], unique=False)
        batch_op.create_index("ix_nodes_status_last_heartbeat", ["status", "last_heartbeat"], unique=False)

    op.create_table(
        "saved_views",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("user_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("query", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_saved_views_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_views")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("saved_views", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_saved_views_user_id"), ["user_id"], unique=False)

    op.create_table(
        "commands",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("uuid", app.kernel.types.Name(length=36), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("payload", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("state", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("issued_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("not_after", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("lease_until", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("delivered_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("accepted_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("started_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("finished_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("duration_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("exit_code", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("error_code", app.kernel.types.Name(length=32), nullable=True),
        sa.Column("error", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=True),
        sa.Column("result", app.kernel.types.Json(), nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_commands_node_id_nodes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
        sa.UniqueConstraint("uuid", name=op.f("uq_commands_uuid")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("commands", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_commands_issued_at"), ["issued_at"], unique=False)
        batch_op.create_index("ix_commands_node_id_state", ["node_id", "state"], unique=False)
        batch_op.create_index("ix_commands_state_not_after", ["state", "not_after"], unique=False)

    op.create_table(
        "enrollment_tokens",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("prefix", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("token_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("expires_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("max_uses", sa.Integer(), nullable=True),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("tags", app.kernel.types.Json(), nullable=False),
        sa.Column("labels", app.kernel.types.Json(), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("created_by", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("revoked_at", app.kernel.types.UtcDateTime(), nullable=True),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"],
            ["node_groups.id"],
            name=op.f("fk_enrollment_tokens_group_id_node_groups"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_enrollment_tokens_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollment_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_enrollment_tokens_token_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    op.create_table(
        "node_certificates",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("fingerprint", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("key_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("state", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("pem", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("not_after", app.kernel.types.UtcDateTime(), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_certificates_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_certificates")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_node_certificates_fingerprint")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_certificates_key_hash"), ["key_hash"], unique=False)
        batch_op.create_index(batch_op.f("ix_node_certificates_node_id"), ["node_id"], unique=False)

    op.create_table(
        "node_labels",
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("value", app.kernel.types.Name(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_labels_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("node_id", "key", name=op.f("pk_node_labels")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_labels", schema=None) as batch_op:
        batch_op.create_index("ix_node_labels_key_value", ["key", "value"], unique=False)

    op.create_table(
        "node_tags",
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("tag", app.kernel.types.Name(length=64), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_node_tags_node_id_nodes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node_id", "tag", name=op.f("pk_node_tags")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("node_tags", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_node_tags_tag"), ["tag"], unique=False)

    op.create_table(
        "enrolments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("ticket_hash", app.kernel.types.Name(length=64), nullable=False),
        sa.Column("kind", app.kernel.types.Name(length=16), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("token_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("origin_node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("csr_pem", sa.Text().with_variant(mysql.LONGTEXT(), "mysql"), nullable=False),
        sa.Column("ip", app.kernel.types.Name(length=45), nullable=False),
        sa.Column("created_at", app.kernel.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_enrolments_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["token_id"],
            ["enrollment_tokens.id"],
            name=op.f("fk_enrolments_token_id_enrollment_tokens"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolments")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_enrolments_key_hash")),
        sa.UniqueConstraint("ticket_hash", name=op.f("uq_enrolments_ticket_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
        mysql_engine="InnoDB",
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("enrolments", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_enrolments_node_id"), ["node_id"], unique=False)


def downgrade() -> None:
    op.drop_table("enrolments")
    op.drop_table("node_tags")
    op.drop_table("node_labels")
    op.drop_table("node_certificates")
    op.drop_table("enrollment_tokens")
    op.drop_table("commands")
    op.drop_table("saved_views")
    op.drop_table("nodes")
    op.drop_table("smart_groups")
    op.drop_table("roll_up_progress")
    op.drop_table("revocations")
    op.drop_table("node_groups")
    op.drop_table("metric_points")
    op.drop_table("metric_details")
    op.drop_table("metric_5m")
    op.drop_table("metric_1h")
    op.drop_table("late_buckets")
    op.drop_table("gateway_presence")
    op.drop_table("fleet_points")
    op.drop_table("events")
