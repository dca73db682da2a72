"""What the Manager lets through, the task agent reads: the same order, checked by both."""

from typing import Any

import pytest
from flask import Flask

from agent.contents import parse_task
from app.kernel.errors import BadParameter
from app.tasks.contents import check_content
from protocol.errors import ProtocolError

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("script", {"script": "true"}),
    ("script", {"script": "x", "interpreter": "/usr/bin/perl", "args": ["", "a b"], "env": {"A": "1"}, "cwd": "/tmp"}),
    ("script", {"script": "x", "user": "www-data"}),
    ("file", {"op": "download", "path": "/etc/hosts"}),
    ("file", {"op": "copy", "path": "/a", "dest": "/b", "mode": "0644", "owner": "root:adm", "recursive": True}),
    ("file", {"op": "delete", "path": "/tmp/x"}),
    ("config", {"op": "set", "path": "/a", "format": "json", "key": "a.b", "value": {"c": [1]}}),
    ("config", {"op": "unset", "path": "/a", "format": "ini", "key": "a.b"}),
    ("config", {"op": "replace_line", "path": "/a", "key": "^x", "value": "y"}),
    ("config", {"op": "backup", "path": "/a"}),
    ("service", {"op": "restart", "name": "getty@tty1.service"}),
    ("custom", {"plugin": "my_plugin", "arguments": {"a": 1}}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("script", {"script": "x", "user": "a b"}),
    ("script", {"script": "x", "interpreter": "bash"}),
    ("script", {"script": "a\0b"}),
    ("script", {"script": "x", "args": ["a"] * 201}),
    ("file", {"op": "copy", "path": "/a"}),
    ("file", {"op": "copy", "path": "/a", "dest": "/b", "mode": "rwx"}),
    ("file", {"op": "copy", "path": "/a", "dest": "/b", "owner": "a:b:c"}),
    ("config", {"op": "replace_line", "path": "/a", "key": "^x", "value": 5}),
    ("service", {"op": "restart", "name": "-H evil"}),
    ("custom", {"plugin": "../x"}),
]


@pytest.mark.parametrize(("type_", "content"), GOOD)
def test_both_read_it(sqlite_app: Flask, type_: str, content: dict[str, Any]) -> None:
    with sqlite_app.test_request_context():
        checked = check_content(type_, content)
    body = {"id": "x-1", "type": type_, "content": checked, "timeout": 5, "parameters": {"A": 1, "B": True}}
    assert parse_task(body).kind == type_


@pytest.mark.parametrize(("type_", "content"), BAD)
def test_both_refuse_it(sqlite_app: Flask, type_: str, content: dict[str, Any]) -> None:
    with sqlite_app.test_request_context(), pytest.raises(BadParameter):
        check_content(type_, content)
    with pytest.raises(ProtocolError):
        parse_task({"id": "x-1", "type": type_, "content": content})
