"""The manifest: defaults, bounds, names of wrong fields, and that what is read can be sent and read again."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.manifests import (
    HEALTH_KINDS,
    Limits,
    count_repeats,
    parse_entry,
    parse_manifest,
    problem_of,
)

FULL: dict[str, Any] = {
    "name": "web.front-1",
    "type": "custom",
    "description": "Front",
    "start": ["/usr/sbin/nginx", "-g", "daemon off;", ""],
    "cwd": "/srv",
    "user": "www-data",
    "env": {"LANG": "C.UTF-8", "EMPTY": ""},
    "stop": {"signal": "QUIT", "timeout_s": 3, "command": ["/usr/sbin/nginx", "-s", "quit"], "detached": "leave"},
    "reload": {"signal": "HUP"},
    "validate": ["/usr/sbin/nginx", "-t", "-c", "{config}"],
    "version": ["/usr/sbin/nginx", "-v"],
    "config": [{"path": "/etc/nginx/nginx.conf", "mode": "0644", "owner": "root", "group": "root"}],
    "health": [
        {"kind": "process"},
        {"kind": "http", "url": "http://127.0.0.1:8080/ok", "status": 204, "contains": "ok"},
        {"kind": "tcp", "port": 80},
        {"kind": "heartbeat", "interval_s": 10},
        {"kind": "command", "command": ["/bin/true"], "timeout_s": 0.5},
    ],
    "logs": ["/var/log/nginx/error.log"],
    "limits": {"cpu_percent": 80, "cpu_for_s": 10, "memory_bytes": 1 << 30, "action": "alert"},
    "adopt": {"pid_file": "/run/nginx.pid", "process": "nginx", "command_line": "nginx.*master", "control": True},
    "autostart": False,
}
SMALL: dict[str, Any] = {"name": "a", "type": "custom", "start": ["/bin/true"]}


def changed(path: str, value: Any) -> dict[str, Any]:
    """FULL with another value at `a.0.b`."""
    found = json.loads(json.dumps(FULL))
    inner: Any = found
    *steps, last = path.split(".")
    for step in steps:
        inner = inner[int(step)] if isinstance(inner, list) else inner[step]
    inner[int(last) if isinstance(inner, list) else last] = value
    return dict(found)


def test_a_full_one_is_read_whole() -> None:
    manifest = parse_manifest(Fields(FULL), is_strict=True)
    assert manifest.start == ("/usr/sbin/nginx", "-g", "daemon off;", "")
    assert manifest.stop == ("QUIT", 3.0, ("/usr/sbin/nginx", "-s", "quit"), "leave")
    assert manifest.health[2].host == "127.0.0.1"
    assert [check.kind for check in manifest.health] == list(HEALTH_KINDS)
    assert manifest.limits == Limits(80.0, 10.0, 1 << 30, "alert")
    assert manifest.adopt is not None
    assert manifest.adopt.control
    assert not manifest.autostart


def test_the_smallest_one_has_the_defaults() -> None:
    manifest = parse_manifest(Fields(SMALL), is_strict=True)
    assert manifest.stop == ("TERM", 10.0, (), "end")
    assert manifest.reload is None
    assert manifest.autostart
    assert manifest.limits == Limits(50.0, 60.0, None, "restart")
    assert [(check.kind, check.interval_s) for check in manifest.health] == [("process", 30.0)]
    http = parse_manifest(Fields({**SMALL, "health": [{"kind": "http", "url": "http://localhost"}]})).health[0]
    assert (http.interval_s, http.timeout_s, http.failures, http.status) == (30.0, 5.0, 3, None)


def test_null_means_no_cpu_limit_and_absence_the_default() -> None:
    assert parse_manifest(Fields({**SMALL, "limits": {}})).limits.cpu_percent == 50.0
    assert parse_manifest(Fields({**SMALL, "limits": {"cpu_percent": None}})).limits.cpu_percent is None


def test_an_empty_list_of_checks_stays_empty() -> None:
    assert parse_manifest(Fields({**SMALL, "health": []})).health == ()


@pytest.mark.parametrize("values", [FULL, SMALL, {"name": "x", "type": "task", "adopt": {"process": "cron"}}])
def test_what_was_read_can_be_sent_and_read_again(values: dict[str, Any]) -> None:
    manifest = parse_manifest(Fields(values))
    again = json.loads(encode(manifest))
    assert parse_manifest(Fields(again), is_strict=True) == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Web"), ("name", "-a"), ("name", "a" * 65), ("name", "a/b"), ("name", ".."), ("name", None),
        ("type", "docker"), ("start.0", ""), ("start.1", "a\0b"), ("cwd", "srv"), ("user", "a b"), ("user", "-x"),
        ("env.1A", "x"), ("env.LANG", 5), ("stop.signal", "SIGTERM"), ("stop.timeout_s", -1), ("stop.timeout_s", True),
        ("stop.command.0", 5), ("stop.detached", "kill"), ("config.0.path", "etc/x"),
        ("config.0.path", "/etc/../x"), ("config.0.mode", "999"),
        ("config.0.mode", "4755"), ("health.1.url", "ftp://x"), ("health.1.url", "http://h:99999/"),
        ("health.1.url", "http://u@h/"), ("health.1.status", 99), ("health.2.port", 0), ("health.2.port", None),
        ("health.0.kind", "magic"), ("health.4.timeout_s", 0), ("health.3.interval_s", 0), ("health.1.failures", 0),
        ("logs.0", "error.log"), ("limits.cpu_percent", 0), ("limits.memory_bytes", 1), ("limits.action", "kill"),
        ("adopt.command_line", "("), ("adopt.command_line", "(a+)+b"), ("adopt.command_line", "a*b*c*"),
        ("adopt.command_line", "(?=a)"), ("adopt.command_line", r"(a)\1"), ("adopt.control", "yes"),
        ("autostart", "no"), ("reload.signal", "BREAK"), ("health.0.url", "http://x/"), ("limits.cpu", 5),
        ("colour", "red"), ("stop.after", 1), ("config.0.sha", "x"), ("adopt.pid", 5), ("reload.to", "x"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(path: str, value: Any) -> None:
    problem = problem_of(changed(path, value))
    assert problem is not None
    assert problem.field == path


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"name": "a", "type": "custom"}, "start"),
        ({**SMALL, "start": "/bin/true -x"}, "start"),
        ({**SMALL, "start": ["x"] * 101}, "start"),
        ({**SMALL, "reload": {}}, "reload.signal"),
        ({**SMALL, "reload": {"signal": "HUP", "command": ["x"]}}, "reload.signal"),
        ({**SMALL, "adopt": {}}, "adopt.pid_file"),
        ({**SMALL, "health": [{"kind": "command"}]}, "health.0.command"),
        ({**SMALL, "health": [{"kind": "http"}]}, "health.0.url"),
        ({**SMALL, "health": [{"kind": "process"}] * 17}, "health"),
        ({**SMALL, "config": [{"path": "/a/b"}, {"path": "/a/b"}]}, "config"),
        ({**SMALL, "config": [{"path": f"/a/{n}"} for n in range(9)]}, "config"),
        ({**SMALL, "env": {f"N{n}": "" for n in range(101)}}, "env"),
        ([], "body"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: Any, field: str) -> None:
    problem = problem_of(values)
    assert problem is not None
    assert problem.field == field


def test_the_path_of_the_outer_object_stands_before_the_name() -> None:
    problem = problem_of(changed("health.1.url", "x"), "agents.3")
    assert problem is not None
    assert problem.field == "agents.3.health.1.url"


def test_the_wire_ignores_what_it_does_not_know() -> None:
    assert parse_manifest(Fields({**SMALL, "colour": "red", "limits": {"disk": 1}})).name == "a"


def test_an_entry_has_the_manifest_s_name() -> None:
    entry = {"name": "a", "desired": "running", "seq": 7, "source": "manager", "manifest": SMALL}
    assert parse_entry(Fields(entry)).seq == 7
    with pytest.raises(ProtocolError, match="name"):
        parse_entry(Fields({**entry, "name": "b"}))
    with pytest.raises(ProtocolError, match="source"):
        parse_entry(Fields({**entry, "source": "host"}))
    with pytest.raises(ProtocolError, match=r"manifest\.start"):
        parse_entry(Fields({**entry, "manifest": {"name": "a", "type": "custom"}}))


def test_repetitions_are_counted() -> None:
    assert [count_repeats(text) for text in ("abc", "a.*b", r"a\*b", "a+b{2,}")] == [0, 1, 0, 2]


@settings(max_examples=200)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
                    max_leaves=8), st.sampled_from(sorted(FULL)))  # fmt: skip
def test_whatever_stands_in_a_field_it_is_read_or_refused(value: Any, name: str) -> None:
    problem_of({**FULL, name: value})
