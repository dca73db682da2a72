"""One full example of every message of the wire, as a body."""

from typing import Any

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
NODE = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
TIME = "2026-01-31T08:15:00.250Z"
HASH = "a" * 64

MACHINE = {"machine_id": HASH, "hardware_id": None, "boot_id": "4d84792a"}

INVENTORY = {
    "hostname": "web-1",
    "ips": ["192.0.2.7", "2001:db8::7"],
    "macs": ["02:00:00:00:00:01"],
    "os": "linux",
    "os_name": "Debian GNU/Linux",
    "os_version": "12",
    "kernel_version": "6.1.0",
    "arch": "amd64",
    "cpu_model": "Some CPU",
    "cpu_cores": 4,
    "memory_total": 8 << 30,
    "swap_total": 0,
    "disk_total": 1 << 40,
    "disks": [{"device": "vda", "size": 1 << 40, "model": None, "rotational": False}],
    "python_version": "3.11.7",
    "daemon_version": "0.1.0",
    "boot_time": TIME,
    "virtualization": "kvm",
    "cloud": None,
    "timezone": "Asia/Shanghai",
}

POINT = {
    "timestamp": TIME,
    "uptime_s": 100.5,
    "cpu_usage": 12.5,
    "memory_usage": 50.0,
    "memory_total": 100,
    "memory_used": 50,
    "memory_available": 50,
    "memory_cached": 10,
    "swap_total": 0,
    "swap_used": 0,
    "disk_usage": 10.0,
    "disk_total": 1000,
    "disk_used": 100,
    "network_rx": 1.5,
    "network_tx": 2.5,
    "load_avg_1": 0.1,
    "load_avg_5": 0.2,
    "load_avg_15": 0.3,
    "process_count": 100,
    "tcp_connections": 10,
    "detail": {
        "cores": [1.0, 2.0],
        "mounts": [{"mount": "/", "device": "/dev/vda", "fstype": "ext4", "total": 1000, "used": 100, "usage": 10.0}],
        "interfaces": [
            {
                "name": "eth0",
                "rx_bytes": 1,
                "tx_bytes": 2,
                "rx_packets": 3,
                "tx_packets": 4,
                "rx_errors": 5,
                "tx_errors": 6,
                "rx_dropped": 7,
                "tx_dropped": 8,
                "rx_rate": 1.5,
                "tx_rate": 2.5,
            }
        ],
        "disk_io": [
            {
                "device": "vda",
                "read_bytes": 1,
                "write_bytes": 2,
                "reads": 3,
                "writes": 4,
                "read_rate": 1.0,
                "write_rate": None,
                "busy": 5.0,
            }
        ],
        "gpu": [
            {
                "card": 0,
                "name": "A100",
                "usage": 5.0,
                "memory_used": 1,
                "memory_total": 2,
                "temperature": 40.0,
                "power": 50.0,
            }
        ],
        "missing": ["tcp"],
    },
}

AGENT = {
    "name": "task",
    "type": "task",
    "version": "0.1.0",
    "status": "running",
    "desired": "running",
    "pid": 77,
    "cpu_usage": 0.5,
    "memory_usage": 1 << 20,
    "start_time": TIME,
    "restart_count": 0,
    "last_error": None,
    "health": [{"kind": "process", "ok": True, "detail": "", "checked_at": TIME}],
    "config_version": 3,
    "drifted": False,
    "source": "builtin",
}

CAPABILITIES = {
    "state": "file",
    "scripts": True,
    "terminal": False,
    "packages": True,
    "config": True,
    "run_as": ["*"],
    "files": ["/**"],
}

SETTINGS = {
    "version": 3,
    "heartbeat_interval_s": 60,
    "metrics_interval_s": 60,
    "poll_wait_s": 50,
    "live_max_s": 600,
    "renew_before_s": 86400,
    "log_level": "info",
    "spool": {"max_bytes": 1 << 20, "max_age_s": 3600},
    "agents": [{"name": "task", "type": "task"}],
}

CHECKIN = {
    "instance_id": "b" * 32,
    "generation": 4,
    "sequence": 9,
    "lease": "lease-1234",
    "challenge": None,
    "machine": MACHINE,
    "sent_at": TIME,
    "uptime_s": 100.5,
    "daemon_version": "0.1.0",
    "settings_version": 3,
    "settings_error": None,
    "inventory_hash": HASH,
    "inventory": INVENTORY,
    "metrics": [{"id": "run-1", "points": [POINT]}],
    "pending_points": 0,
    "dropped": {"epoch": "e1", "points": 0, "since": None},
    "events": [
        {
            "id": "run-2",
            "timestamp": TIME,
            "kind": "daemon.started",
            "severity": "info",
            "message": "started",
            "data": {"python": "3.11"},
        }
    ],
    "agents_hash": HASH,
    "agents": [AGENT],
    "capabilities": CAPABILITIES,
    "clock": {"offset_ms": -5, "round_trip_ms": 20},
    "audit_head": {"sequence": 5, "hash": HASH},
}

CHECKIN_ANSWER = {
    "ack": ["run-1"],
    "refused": [{"id": "run-2", "reason": "too old"}],
    "lease": "lease-1235",
    "want_inventory": True,
    "want_agents": False,
    "settings": SETTINGS,
    "next_checkin_s": 60.0,
    "commands_pending": False,
    "reenrol": False,
    "audit_head": {"sequence": 5, "hash": HASH},
    "server_time": TIME,
}

COMMAND = {
    "id": UUID,
    "node_uuid": NODE,
    "kind": "ping",
    "payload": '{"echo":"hi"}',
    "issued_at": TIME,
    "not_after": TIME,
    "sig": HASH,
}

RESULT = {
    "command": UUID,
    "type": "result",
    "status": "succeeded",
    "exit_code": 0,
    "signal": None,
    "user": "root",
    "started_at": TIME,
    "finished_at": TIME,
    "duration_ms": 5,
    "error_code": None,
    "error": None,
    "stdout_bytes": 1,
    "stderr_bytes": 0,
    "truncated": False,
    "data": {"echo": "hi"},
}

REPORTS = {
    "reports": [
        {"command": UUID, "type": "accept", "at": TIME},
        {"command": UUID, "type": "start", "at": TIME, "pid": 5},
        {
            "command": UUID,
            "type": "output",
            "seq": 0,
            "stream": "stdout",
            "offset": 0,
            "data": "aGk=",
            "cut": False,
        },
        RESULT,
    ]
}

APPROVED = {
    "status": "approved",
    "node_id": 7,
    "node_uuid": NODE,
    "certificate_pem": "pem",
    "certificate_not_after": TIME,
    "ca_pem": "pem",
    "command_key": "a2" * 21 + "s=",
    "settings": SETTINGS,
    "server_time": TIME,
}

PENDING = {"status": "pending", "ticket": "ticket-12", "poll_after_s": 5, "server_time": TIME}

SAMPLE = {
    "timestamp": TIME,
    "cpu_usage": 1.0,
    "memory_usage": 2.0,
    "memory_used": 3,
    "disk_read": 4.0,
    "disk_write": 5.0,
    "network_rx": 6.0,
    "network_tx": None,
}

MESSAGES: dict[str, Any] = {
    "enroll": {
        "request_id": UUID,
        "token": "join-me",
        "ticket": None,
        "csr_pem": "pem",
        "machine": MACHINE,
        "facts": INVENTORY,
    },
    "enroll_answer": APPROVED,
    "enroll_pending": PENDING,
    "renew": {"csr_pem": "pem"},
    "recover": {"certificate_pem": "pem", "csr_pem": "pem", "timestamp": TIME, "signature": "c2lnbmF0dXJl"},
    "certificate_answer": {
        "status": "approved",
        "certificate_pem": "pem",
        "certificate_not_after": TIME,
        "ca_pem": "pem",
        "server_time": TIME,
    },
    "checkin": CHECKIN,
    "checkin_answer": CHECKIN_ANSWER,
    "poll": {"wait_s": 50, "have": [UUID]},
    "poll_answer": {
        "commands": [COMMAND],
        "revoked": False,
        "drain": False,
        "checkin": True,
        "live": {"until": TIME},
        "server_time": TIME,
    },
    "reports": REPORTS,
    "reports_answer": {
        "results": [{"command": UUID, "type": "accept", "ok": False, "reason": "illegal_step"}],
        "server_time": TIME,
    },
    "live": {"samples": [SAMPLE]},
    "live_answer": {"until": None},
    "settings": SETTINGS,
}
