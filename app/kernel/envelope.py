"""The one shape of every answer under /api/v1: code, message, data, timestamp."""

import json
from http import HTTPStatus
from typing import Any

from flask import Response
from flask_babel import gettext as _

from app.kernel.clock import now, rfc3339
from app.kernel.errors import AppError


def success(data: Any, status: int = HTTPStatus.OK) -> Response:
    return _answer(0, _("success"), data, status)


def failure(error: AppError) -> Response:
    data: dict[str, Any] | None = dict(error.data) if error.data else None
    if error.errors:
        data = (data or {}) | {"errors": error.errors}
    response = _answer(error.code, str(error.message), data, error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _answer(code: int, message: str, data: Any, status: int) -> Response:
    body = {"code": code, "message": message, "data": data, "timestamp": rfc3339(now())}
    return Response(json.dumps(body, ensure_ascii=False), status, mimetype="application/json")
