"""Files between hosts and us, over real TLS: only what an open order of this very host names, by range."""

import hashlib
import io
import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from app.link.files import AT_ONCE, OF_ONE_HOST
from protocol.limits import FILE_PIECE_BYTES
from tests.factories import Api
from tests.link.hosts import Host, Reply
from tests.link.test_poll import result
from tests.services import wait_for
from tests.tasks.test_files import brought, bytes_on_disk
from tests.tasks.test_tasks_api import given, started


def get(host: Host, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = host.connect()
    told = {"X-Ops-Wire": "1.0", "X-Ops-Instance": host.instance} | headers
    connection.request("GET", f"/daemon/v1/{path}", headers=told)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def ordered(api: Api, host: Host, content: dict[str, Any]) -> tuple[str, str]:
    """A run of a file task on this host: its id, and that of the command that the host has fetched."""
    values = given(type="file", content=content, target_type="node", target_value=[host.node_id])
    task = api.post("/tasks", values)
    assert task.status_code == 201, task.text
    run = started(api, task.json["data"]["id"])
    return run, str(host.poll().body["commands"][0]["id"])


@pytest.fixture
def uploaded(app: Flask, cast: dict[str, Api]) -> tuple[dict[str, Any], bytes]:
    content = os.urandom(1_500_000)
    answer = app.test_client().post(
        "/api/v1/files",
        data={"file": (io.BytesIO(content), "release.bin")},
        headers={"Authorization": f"Bearer {cast['oscar'].token}"},
        content_type="multipart/form-data",
    )
    assert answer.status_code == 201, answer.text
    return answer.json["data"], content


def test_a_host_fetches_what_its_order_names(
    cast: dict[str, Api], new_host: Callable[..., Host], uploaded: tuple[dict[str, Any], bytes]
) -> None:
    file, content = uploaded
    host, other = new_host("one"), new_host("two")
    order = {"op": "upload", "path": "/tmp/x", "file_id": file["id"]}
    _run, command = ordered(cast["oscar"], host, order)
    path = f"files/{file['id']}?command={command}"
    status, body, headers = get(host, path)
    assert (status, body == content) == (200, True)
    assert (headers["X-Ops-Sha256"], headers["ETag"]) == (file["sha256"], f'"{file["sha256"]}"')
    status, body, headers = get(host, path, Range="bytes=1400000-")
    assert (status, body == content[1_400_000:]) == (206, True)
    assert headers["Content-Range"] == "bytes 1400000-1499999/1500000"
    assert get(host, path, Range="bytes=1500000-")[0] == 416
    assert get(host, path, **{"Range": "bytes=5-", "If-Range": '"another"'})[0] == 200
    for who, wrong in (
        (other, path),
        (host, f"files/{file['id'] + 1}?command={command}"),
        (host, f"files/{file['id']}?command={uuid4()}"),
    ):
        status, body, _ = get(who, wrong)
        assert (status, b"unknown_file" in body) == (404, True)
    assert get(host, f"files/{file['id']}")[0] == 400
    assert host.send(f"commands/{command}/result", result()).status == 200
    assert get(host, path)[0] == 404, "the order has ended"


def test_places_are_given_back(
    cast: dict[str, Api], new_host: Callable[..., Host], uploaded: tuple[dict[str, Any], bytes]
) -> None:
    """More files than are sent at the same time: else everybody would be told to come back later for ever."""
    file, content = uploaded
    for number in range(4):
        host = new_host(f"host-{number}")
        _run, command = ordered(cast["oscar"], host, {"op": "upload", "path": "/tmp/x", "file_id": file["id"]})
        path = f"files/{file['id']}?command={command}"
        assert get(host, path, **{"If-None-Match": f'"{file["sha256"]}"'})[0] == 304
        for _ in range(AT_ONCE // 4 + 1):
            assert get(host, path, Range="bytes=0-9")[:2] == (206, content[:10])


def test_a_host_that_reads_slowly_keeps_nobody_waiting(
    app: Flask, cast: dict[str, Api], new_host: Callable[..., Host]
) -> None:
    content = bytes(24_000_000)  # more than the kernel takes in for somebody who does not read
    file = brought(cast["oscar"], "large", content)
    slow, other = new_host("slow"), new_host("other")
    order = {"op": "upload", "path": "/tmp/x", "file_id": file["id"]}
    path, others = (f"files/{file['id']}?command={ordered(cast['oscar'], one, order)[1]}" for one in (slow, other))
    held = [slow.connect() for _ in range(OF_ONE_HOST)]
    for connection in held:
        connection.request("GET", f"/daemon/v1/{path}")
        assert connection.getresponse().status == 200
    assert get(slow, path)[0] == 429
    assert get(other, others)[:2] == (200, content)
    for connection in held:
        connection.close()
    wait_for(lambda: get(slow, path, Range="bytes=0-1")[0] == 206, 20, "a place of its own again")


def piece(host: Host, command: str, data: bytes, offset: int, total: int, sha256: str = "") -> Reply:
    promised = f"&sha256={sha256}" if sha256 else ""
    path = f"commands/{command}/file?offset={offset}&total={total}{promised}"
    return host.send(path, data, headers={"Content-Type": "application/octet-stream"})


def test_a_host_brings_a_file_in_pieces(app: Flask, cast: dict[str, Api], new_host: Callable[..., Host]) -> None:
    host, other, content = new_host("one"), new_host("two"), os.urandom(2_300_000)
    run, command = ordered(cast["oscar"], host, {"op": "download", "path": "/var/log/a\tb.log"})
    digest, total, offset = hashlib.sha256(content).hexdigest(), len(content), 0
    assert piece(host, command, content[:10], 0, total).reason == "illegal_step", "it was not accepted yet"
    at = result()["finished_at"]
    assert host.send(f"commands/{command}/accept", {"at": at}).status == 200
    assert piece(other, command, content[:10], 0, total).reason == "illegal_step"
    assert piece(host, command, content[100:200], 100, total).body["next"] == 0, "a gap"
    while offset < total:
        data = content[offset : offset + FILE_PIECE_BYTES]
        told = piece(host, command, data, offset, total, digest).body
        again = piece(host, command, data, offset, total, digest).body
        assert told["next"] == again["next"] == offset + len(data)
        offset = told["next"]
    assert told["complete"]
    assert again["complete"]
    assert host.send(f"commands/{command}/result", result()).status == 200
    record = cast["vera"].get(f"/executions/{run}").json["data"]["records"][0]["id"]
    path = f"/executions/{run}/records/{record}/file"
    answer = cast["oscar"].get(path)
    assert (answer.status_code, answer.data == content) == (200, True)
    assert answer.headers["Content-Disposition"] == "attachment; filename=one-ab.log"
    assert (answer.headers["Content-Type"], answer.headers["X-Content-Type-Options"]) == (
        "application/octet-stream", "nosniff",
    )  # fmt: skip
    assert cast["vera"].get(path).json["code"] == 1003, "it may be any file of the host"
    assert cast["oscar"].get(f"/executions/{run}/records/999999/file").json["code"] == 1004


def test_what_a_host_may_not_bring(app: Flask, cast: dict[str, Api], new_host: Callable[..., Host]) -> None:
    host = new_host()
    run, command = ordered(cast["oscar"], host, {"op": "download", "path": "/tmp/x"})
    host.send(f"commands/{command}/accept", {"at": result()["finished_at"]})
    refused = piece(host, command, b"x", 0, 10**12)
    assert (refused.status, refused.reason) == (413, "body_too_large")
    assert piece(host, command, b"wrong", 0, 5, "0" * 64).status == 400
    record = cast["vera"].get(f"/executions/{run}").json["data"]["records"][0]["id"]
    assert cast["oscar"].get(f"/executions/{run}/records/{record}/file").json["code"] == 1004
    assert piece(host, command, b"12", 0, 4).body["next"] == 2
    assert piece(host, command, b"123", 0, 3).body["complete"], "another size begins anew"
    assert cast["oscar"].get(f"/executions/{run}/records/{record}/file").data == b"123"
    assert piece(host, command, b"456", 0, 3).body["complete"], "what is complete stays"
    assert cast["oscar"].get(f"/executions/{run}/records/{record}/file").data == b"123"
    for query in ("offset=x&total=1", "offset=0", f"offset=0&total={'9' * 16}", "offset=0&total=1&sha256=x"):
        headers = {"Content-Type": "application/octet-stream"}
        assert host.send(f"commands/{command}/file?{query}", b"x", headers=headers).status == 400
    _run, script = ordered(cast["oscar"], host, {"op": "delete", "path": "/tmp/x"})
    host.send(f"commands/{script}/accept", {"at": result()["finished_at"]})
    assert piece(host, script, b"x", 0, 1).reason == "illegal_step"


def test_an_empty_file(cast: dict[str, Api], new_host: Callable[..., Host]) -> None:
    host = new_host()
    run, command = ordered(cast["oscar"], host, {"op": "download", "path": "/tmp/x"})
    host.send(f"commands/{command}/accept", {"at": result()["finished_at"]})
    assert piece(host, command, b"", 0, 0).body["complete"]
    record = cast["vera"].get(f"/executions/{run}").json["data"]["records"][0]["id"]
    answer = cast["oscar"].get(f"/executions/{run}/records/{record}/file")
    assert (answer.status_code, answer.data) == (200, b"")


def test_a_file_that_is_begun_anew_leaves_nothing_behind(
    app: Flask, cast: dict[str, Api], new_host: Callable[..., Host]
) -> None:
    """Else a host could fill the disk with what no quota counts."""
    host = new_host()
    _run, command = ordered(cast["oscar"], host, {"op": "download", "path": "/tmp/x"})
    host.send(f"commands/{command}/accept", {"at": result()["finished_at"]})
    before = bytes_on_disk(app)
    for total in (10, 11, 12, 13):
        assert piece(host, command, b"12", 0, total).body["next"] == 2
    assert len(bytes_on_disk(app)) == len(before) + 1
    assert piece(host, command, b"wrong", 0, 5, "0" * 64).status == 400
    assert bytes_on_disk(app) == before


def test_where_root_is_for_administrators_so_is_what_it_brought(
    cast: dict[str, Api], new_host: Callable[..., Host]
) -> None:
    host, alice, oscar = new_host(), cast["alice"], cast["oscar"]
    assert alice.put("/system/settings", {"values": {"tasks.root_requires_admin": True}}).status_code == 200
    run, command = ordered(alice, host, {"op": "download", "path": "/etc/shadow"})
    host.send(f"commands/{command}/accept", {"at": result()["finished_at"]})
    assert piece(host, command, b"123", 0, 3).body["complete"]
    record = cast["vera"].get(f"/executions/{run}").json["data"]["records"][0]["id"]
    assert alice.get(f"/executions/{run}/records/{record}/file").data == b"123"
    assert oscar.get(f"/executions/{run}/records/{record}/file").json["code"] == 1003
