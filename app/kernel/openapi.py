"""OpenAPI 3.1 out of the operations that rooms declared: the schemas that check also document."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from app.kernel.access import PUBLIC
from app.kernel.api import ApiRoom, Operation
from app.kernel.errors import (
    AppError,
    BadParameter,
    Conflict,
    DatabaseAway,
    Forbidden,
    NotAuthenticated,
    NotFound,
    QueueAway,
    TooLarge,
    TooManyRequests,
)

PATH_PART = re.compile(r"<(?:(?P<kind>[a-z]+):)?(?P<name>\w+)>")
REFERENCE = "#/components/schemas/{model}"


def document(rooms: Iterable[ApiRoom], version: str) -> dict[str, Any]:
    rooms = list(rooms)
    models = {model for room in rooms for operation in room.operations for model in _models(operation)}
    modes = [(model, mode) for model in sorted(models, key=str) for mode in ("validation", "serialization")]
    references, definitions = models_json_schema(modes, ref_template=REFERENCE)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for room in rooms:
        for operation in room.operations:
            path = "/api/v1" + PATH_PART.sub(r"{\g<name>}", operation.rule)
            paths.setdefault(path, {})[operation.method.lower()] = _operation(room, operation, references)
    schemas = definitions.get("$defs", {}) | {"Failure": _failure_schema()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ops Scaffold", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": room.name, "description": room.title} for room in rooms],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Access token or personal access token"}
            },
        },
    }


def _models(operation: Operation) -> Iterable[Any]:
    yield from (model for model in (operation.body, operation.query, operation.returns) if model is not None)


def _operation(room: ApiRoom, operation: Operation, references: Mapping[Any, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{room.name}_{operation.name}",
        "tags": [room.name],
        "summary": operation.summary,
        "parameters": [
            *_path_parameters(operation.rule),
            *_query_parameters(operation),
            *_header_parameters(operation),
        ],
        "responses": _responses(operation, references),
    }
    if operation.permission == PUBLIC:
        described["security"] = []
    else:
        described["x-permission"] = operation.permission
    if operation.body is not None:
        schema = references[(operation.body, "validation")]
        is_needed = any(field.is_required() for field in operation.body.model_fields.values())
        described["requestBody"] = {"required": is_needed, "content": {"application/json": {"schema": schema}}}
    if operation.upload is not None:
        file = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
        form = {"type": "object", "required": ["file"], "properties": {"file": file}}
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if operation.deprecated:
        described["deprecated"] = True
    return described


def _path_parameters(rule: str) -> Iterable[dict[str, Any]]:
    for match in PATH_PART.finditer(rule):
        schema: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": "^[^/]+$"}
        if match["kind"] == "id":
            schema = {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}
        if match["kind"] == "uuid":
            schema = {"type": "string", "format": "uuid"}
        yield {"name": match["name"], "in": "path", "required": True, "schema": schema}


def _query_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    if operation.query is None:
        return
    schema = operation.query.model_json_schema(ref_template=REFERENCE)
    for name, property_schema in schema["properties"].items():
        shown = _without_null(property_schema)
        description = shown.pop("description", None)
        parameter = {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": shown}
        yield parameter | ({"description": description} if description else {})


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """In a query string nothing can be null; what may be left out is simply not required."""
    shown = {
        key: value for key, value in schema.items() if key not in ("title", "anyOf", "default") or value is not None
    }
    shown.pop("title", None)
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    if len(choices) == 1:
        shown.pop("anyOf")
        shown |= choices[0]
    return shown


def _header_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    if operation.is_idempotent:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "Sent again with the same body, the request is answered as before; nothing happens twice.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
        }


def _responses(operation: Operation, references: Mapping[Any, Any]) -> dict[str, Any]:
    data = {"type": "null"} if operation.returns is None else references[(operation.returns, "serialization")]
    answers = {str(int(operation.status)): _success(data)}
    if operation.media:
        content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.media}
        answers = {str(int(operation.status)): {"description": "Success", "content": content}}
    for status, kinds in sorted(_errors(operation).items()):
        codes = ", ".join(str(kind.code) for kind in sorted(kinds, key=lambda kind: kind.code))
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
        answers[str(status)] = {"description": f"Code {codes}", "content": content}
    return answers


def _success(data: Mapping[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["code", "message", "data", "timestamp"],
        "additionalProperties": False,
        "properties": {
            "code": {"const": 0},
            "message": {"type": "string"},
            "data": data,
            "timestamp": {"type": "string", "format": "date-time"},
        },
    }
    return {"description": "Success", "content": {"application/json": {"schema": schema}}}


def _errors(operation: Operation) -> dict[int, set[type[AppError]]]:
    """Every refusal that the frame itself can answer here, and those that the operation names."""
    kinds: set[type[AppError]] = {
        BadParameter,
        NotAuthenticated,
        TooManyRequests,
        DatabaseAway,
        QueueAway,
        *operation.errors,
    }
    if operation.permission != PUBLIC:
        kinds.add(Forbidden)
    if operation.body is not None or operation.upload is not None:
        kinds.add(TooLarge)
    if "<" in operation.rule:
        kinds.add(NotFound)
    if operation.is_idempotent or operation.method != "GET":
        kinds.add(Conflict)
    found: dict[int, set[type[AppError]]] = {}
    for kind in kinds:
        found.setdefault(int(kind.status), set()).add(kind)
    return found


def _failure_schema() -> dict[str, Any]:
    field_error = {
        "type": "object",
        "required": ["field", "message"],
        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
    }
    return {
        "type": "object",
        "required": ["code", "message", "data", "timestamp"],
        "additionalProperties": False,
        "properties": {
            "code": {"type": "integer", "minimum": 1001},
            "message": {"type": "string"},
            "data": {"type": ["object", "null"], "properties": {"errors": {"type": "array", "items": field_error}}},
            "timestamp": {"type": "string", "format": "date-time"},
        },
    }
