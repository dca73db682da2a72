"""Logs as they grow, and whole files: what is asked of the host, and what a page gets of what it sends."""

import threading
import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.agents.following import _whole_characters
from app.kernel import streams
from app.kernel.db import db
from app.nodes.models import Node
from tests.agents.builders import check_in, fetch, make_host, told
from tests.factories import Api, submit
from tests.visitors import visit


@pytest.fixture
def node_id(app: Flask) -> int:
    with app.app_context():
        found = make_host(app)
        check_in(found, [told()])
        return found


@pytest.fixture
def vera(app: Flask, cast: dict[str, Api]) -> FlaskClient:
    return visit(app, "vera")


def begun(app: Flask, vera: FlaskClient, node_id: int, query: str = "") -> str:
    home = f"/nodes/{node_id}/agents/nginx"
    answered = submit(vera, f"{home}/logs/follow{query}", {}, page="/profile")
    assert answered.status_code == 200, answered.text
    return str(answered.json["stream"])


def test_following_reads_what_the_host_sends(app: Flask, vera: FlaskClient, node_id: int) -> None:
    stream = begun(app, vera, node_id, "?query=warn&file=/var/log/x")
    with app.app_context():
        (order,) = fetch(node_id)
        wanted = {"kind": "agent.stream_logs", "name": "nginx", "stream": stream, "follow": True}
        assert order == order | wanted | {"query": "warn", "file": "/var/log/x"}
        streams.write(stream, node_id, 0, "half a ✓".encode()[:-1])
    read = f"/nodes/{node_id}/agents/nginx/logs/stream?stream={stream}&after="
    first = vera.get(f"{read}0").json
    assert (first["text"], first["next"], first["over"]) == ("half a ", 7, False)
    with app.app_context():
        streams.write(stream, node_id, 9, "✓".encode()[-1:] + b"\n", is_end=True)
    rest = vera.get(f"{read}7").json
    assert rest["text"] == "✓\n"
    assert vera.get(f"{read}{rest['next']}").json["over"] is True
    assert submit(vera, read.partition("stream?")[0] + "end", {"stream": stream}, page="/profile").status_code == 204


def test_a_stream_is_read_only_where_it_belongs(app: Flask, vera: FlaskClient, node_id: int) -> None:
    stream = begun(app, vera, node_id)
    for path in (f"/nodes/{node_id}/agents/redis", f"/nodes/{node_id + 1}/agents/nginx"):
        assert vera.get(f"{path}/logs/stream?stream={stream}").status_code == 404
    assert vera.get(f"/nodes/{node_id}/agents/nginx/logs/stream?stream=nothing").status_code == 404


def test_a_host_that_is_away_has_nothing_to_follow(app: Flask, vera: FlaskClient, node_id: int) -> None:
    with app.app_context():
        db.session.get_one(Node, node_id).status = "offline"
        db.session.commit()
    home = f"/nodes/{node_id}/agents/nginx/logs"
    assert submit(vera, f"{home}/follow", {}, page="/profile").status_code == 409
    assert vera.get(f"{home}/download?file=/var/log/x").status_code == 409


def test_a_whole_file_is_downloaded(app: Flask, vera: FlaskClient, node_id: int) -> None:
    content = b"line\n" * 200_000

    def host() -> None:
        with app.app_context():
            orders: list[dict[str, Any]] = []
            for _ in range(500):
                if orders := fetch(node_id):
                    break
                db.session.remove()
                time.sleep(0.02)
            sent = 0
            while sent < len(content):
                piece = content[sent : sent + 60_000]
                is_end = sent + len(piece) == len(content)
                taken = streams.write(orders[0]["stream"], node_id, sent, piece, is_end=is_end)
                assert taken is not None
                sent = taken.next

    thread = threading.Thread(target=host)
    thread.start()
    answered = vera.get(f"/nodes/{node_id}/agents/nginx/logs/download?file=/var/log/nginx/a%20b.log")
    got = answered.data
    thread.join()
    assert got == content
    assert answered.headers["Content-Disposition"] == 'attachment; filename="a_b.log"'
    assert vera.get(f"/nodes/{node_id}/agents/nginx/logs/download").status_code == 400


@pytest.mark.parametrize("text", ["plain", "ü", "✓", "🚀", "a✓b"])
def test_no_character_is_torn(text: str) -> None:
    raw = text.encode()
    for cut in range(len(raw) + 1):
        kept = _whole_characters(raw[:cut], is_last=False)
        assert text.startswith(kept.decode())
        assert cut - len(kept) < 4
    assert _whole_characters(raw, is_last=False) == raw
