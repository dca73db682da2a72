"""The OpenAPI document: made of the very lines that are enforced, complete in both directions."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.kernel.access import MATRIX, PUBLIC
from app.kernel.api import Operation

OUTSIDE = {"/api/v1/openapi.json"}
"""Routes under /api/v1 that are no operations."""
FILES = {"application/octet-stream", "application/x-ndjson", "text/csv"}
"""What is answered without an envelope."""


def document(app: Flask) -> dict[str, Any]:
    answer = app.test_client().get("/api/v1/openapi.json")
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    found: dict[str, Any] = answer.json
    return found


def documented(app: Flask) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document(app)["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def declared(app: Flask) -> dict[str, Operation]:
    return {f"{room.name}_{item.name}": item for room in app.extensions["api_rooms"] for item in room.operations}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_is_documented_and_every_document_is_a_route(sqlite_app: Flask) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in sqlite_app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1") and rule.rule not in OUTSIDE
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    assert {(method, path) for method, path, _operation in documented(sqlite_app)} == routes


def test_every_reference_leads_somewhere(sqlite_app: Flask) -> None:
    found = document(sqlite_app)
    known = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    used = set(references(found))
    assert used <= known
    assert used


def test_operations_have_names_of_their_own_and_a_summary(sqlite_app: Flask) -> None:
    operations = list(documented(sqlite_app))
    names = [operation["operationId"] for _method, _path, operation in operations]
    assert len(names) == len(set(names))
    assert all(operation["summary"] for _method, _path, operation in operations)


def test_it_says_which_right_is_needed(sqlite_app: Flask) -> None:
    rights = declared(sqlite_app)
    for _method, path, operation in documented(sqlite_app):
        permission = rights[operation["operationId"]].permission
        if permission == PUBLIC:
            assert operation["security"] == [], path
        else:
            assert "security" not in operation, path
            assert operation["x-permission"] == permission
            assert permission in MATRIX
    assert document(sqlite_app)["security"] == [{"bearer": []}]


def test_it_tells_every_refusal_that_the_frame_can_answer(sqlite_app: Flask) -> None:
    for _method, path, operation in documented(sqlite_app):
        statuses = set(operation["responses"])
        assert {"400", "401", "429", "503"} <= statuses, path
        assert ("403" in statuses) == ("security" not in operation), path
        assert ("404" in statuses) or "{" not in path, path
        assert ("413" in statuses) == ("requestBody" in operation), path
        success = [status for status in statuses if status < "300"]
        assert len(success) == 1, path
        for status, answer in operation["responses"].items():
            if set(answer["content"]) <= FILES:
                continue
            schema = answer["content"]["application/json"]["schema"]
            if status >= "400":
                assert schema == {"$ref": "#/components/schemas/Failure"}
            else:
                assert schema["properties"]["code"] == {"const": 0}


def test_the_statuses_of_the_contract_are_the_ones_declared(sqlite_app: Flask) -> None:
    """Making answers 201, starting 202, everything else 200; what is deleted leaves nothing."""
    for operation in declared(sqlite_app).values():
        assert operation.status in (200, 201, 202), operation.name
        if operation.method != "POST":
            assert operation.status == 200, operation.name
        if operation.method == "DELETE":
            assert operation.returns is None, operation.name


def test_parameters_are_told_with_their_bounds(client: FlaskClient) -> None:
    paths = document(client.application)["paths"]
    listed = {parameter["name"]: parameter for parameter in paths["/api/v1/lab/things"]["get"]["parameters"]}
    assert listed["page"]["schema"] == {"maximum": 10**9, "minimum": 1, "type": "integer", "default": 1}
    assert listed["page_size"]["schema"]["maximum"] == 100
    assert listed["keyword"]["schema"] == {"maxLength": 20, "type": "string"}
    assert listed["tags"]["schema"] == {"items": {"type": "string"}, "maxItems": 3, "type": "array"}
    assert not any(parameter["required"] for parameter in listed.values())
    (shown,) = paths["/api/v1/lab/things/{thing_id}"]["get"]["parameters"]
    assert (shown["in"], shown["required"], shown["schema"]) == (
        "path",
        True,
        {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
    )
    (key,) = paths["/api/v1/lab/things"]["post"]["parameters"]
    assert (key["name"], key["in"], key["required"]) == ("Idempotency-Key", "header", False)


def test_bodies_refuse_unknown_fields_in_the_document_as_well(client: FlaskClient) -> None:
    found = document(client.application)
    body = found["paths"]["/api/v1/lab/things"]["post"]["requestBody"]
    assert body["required"] is True
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert found["components"]["schemas"][name]["additionalProperties"] is False
    assert found["components"]["schemas"][name]["required"] == ["name"]


def test_it_is_made_once_and_answered_quickly(sqlite_app: Flask) -> None:
    first = document(sqlite_app)
    started = time.process_time()
    for _time in range(20):
        assert document(sqlite_app) == first
    assert (time.process_time() - started) / 20 < 0.05


def test_it_holds_nothing_of_this_installation(sqlite_app: Flask) -> None:
    text = json.dumps(document(sqlite_app))
    assert sqlite_app.extensions["ops"].settings.data_dir not in text
    assert not re.search(r"https?://(?!json-schema)", text)


@pytest.mark.parametrize("room", ["lab"])
def test_a_room_that_is_added_documents_itself(client: FlaskClient, room: str) -> None:
    found = document(client.application)
    assert {"name": room, "description": "Laboratory"} in found["tags"]
    assert any(path.startswith(f"/api/v1/{room}/") for path in found["paths"])
