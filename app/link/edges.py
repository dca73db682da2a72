"""How requests of Daemons are read and answered: wire version, bounded bodies, rates, refusals, the log line."""

import logging
import time
from typing import Any

from flask import Flask, Response, g, request
from redis.exceptions import RedisError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from app.kernel import telemetry
from app.kernel.clock import now
from app.kernel.db import db, is_away, set_reads_only
from app.kernel.errors import AppError
from app.kernel.logs import log_context
from protocol import errors as wire
from protocol.codec import decode, decompress, encode
from protocol.errors import HTTP_STATUS, ProtocolError, refusal_body
from protocol.fields import Fields
from protocol.times import to_text
from protocol.version import HEADER, negotiate

log = logging.getLogger(__name__)
BUSY_S = 5
MOST_BUCKETS = 50_000


class TooFastError(ProtocolError):
    """A node asks more often than it may."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("", "too many requests", wire.TOO_MANY_REQUESTS, wire.BUSY)
        self.retry_after_s = retry_after_s


class Rates:
    """Token buckets, one for each node and kind of request, counted by each process for itself."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[object, str], tuple[float, float]] = {}

    def take(self, who: object, kind: str, per_s: float, burst: int) -> None:
        at = time.monotonic()
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.clear()
        tokens, since = self._buckets.get((who, kind), (float(burst), at))
        tokens = min(float(burst), tokens + (at - since) * per_s)
        if tokens < 1:
            raise TooFastError(max(1, round((1 - tokens) / per_s)))
        self._buckets[who, kind] = (tokens - 1, at)


def raw_body(max_bytes: int) -> bytes:
    """The bytes of a request as they came, within bounds."""
    if request.content_length is None:
        raise LengthRequiredError
    if request.content_length > max_bytes:
        raise ProtocolError("body", f"must not exceed {max_bytes} bytes", wire.TOO_LARGE, wire.BODY_TOO_LARGE)
    return request.get_data(cache=False)


def body(max_bytes: int, *, may_be_gzip: bool = False) -> Fields:
    """The JSON object of a request, within bounds before and after decompression."""
    raw = raw_body(max_bytes)
    encoding = request.headers.get("Content-Encoding", "")
    if encoding == "gzip" and may_be_gzip:
        raw = decompress(raw, max_bytes)
    elif encoding:
        raise ProtocolError("Content-Encoding", "is not allowed here")
    return Fields(decode(raw, max_bytes))


class LengthRequiredError(HTTPException):
    code = 411
    description = "Content-Length is needed."


def answer(message: Any, status: int = 200) -> Response:
    return Response(encode(message), status, mimetype="application/json")


def refused(error: ProtocolError, data: dict[str, Any] | None = None) -> Response:
    """A refusal as the wire has it."""
    told = dict(data or {})
    if error.field:
        told["errors"] = [{"field": error.field, "message": error.message}]
    shown = f"{error.field}: {error.message}" if error.field else error.message
    content = refusal_body(error.code, shown, error.reason, to_text(now().timestamp()), told)
    response = Response(encode(content), HTTP_STATUS[error.code], mimetype="application/json")
    if response.status_code in (429, 503):
        response.headers["Retry-After"] = str(getattr(error, "retry_after_s", BUSY_S))
    return response


def install(app: Flask) -> None:
    """What happens around every request of the daemon plane."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        set_reads_only(False)
        log_context.set({"ip": request.remote_addr or "proxy"})
        if request.path.startswith("/daemon/v1/") and request.method == "POST":
            g.wire = negotiate(request.headers.get(HEADER))

    @app.after_request
    def finish(response: Response) -> Response:
        if "wire" in g:
            response.headers[HEADER] = str(g.wire)
        response.headers.setdefault("Cache-Control", "no-store")
        _note(response)
        return response

    @app.errorhandler(Exception)
    def translate(error: Exception) -> Response:
        db.session.rollback()
        return _translated(error)


def _translated(error: Exception) -> Response:
    if isinstance(error, ProtocolError):
        level = logging.INFO if error.reason in (wire.BUSY, wire.CHECKIN_FIRST, wire.CHALLENGE) else logging.WARNING
        log.log(level, "refused %s: %s %s", request.path, error.reason, error.message or error.field)
        return refused(error)
    if isinstance(error, HTTPException):
        codes = {404: wire.NOT_FOUND, 405: wire.METHOD_NOT_ALLOWED, 413: wire.TOO_LARGE}
        code = codes.get(error.code or 0, wire.BAD_PARAMETER)
        response = refused(ProtocolError("", error.name, code, ""))
        response.status_code = error.code or 400
        return response
    if isinstance(error, PoolTimeout) or is_away(error) or (isinstance(error, AppError) and error.code == 5001):
        log.warning("refused %s: the database is away", request.path)
        return refused(ProtocolError("", "the database is away", wire.DATABASE_AWAY, wire.BUSY))
    if isinstance(error, RedisError):
        log.warning("refused %s: Redis is away", request.path)
        return refused(ProtocolError("", "the queue is away", wire.QUEUE_AWAY, wire.BUSY))
    if isinstance(error, AppError) and error.code in HTTP_STATUS:
        return refused(ProtocolError("", str(error.message), error.code, ""))
    log.error("unexpected error", exc_info=error)
    return refused(ProtocolError("", "something went wrong", wire.INTERNAL, ""))


def _note(response: Response) -> None:
    duration_s = time.perf_counter() - g.get("started", time.perf_counter())
    name = request.endpoint.rpartition(".")[2] if request.endpoint else "unknown"
    telemetry.DAEMON_REQUESTS.labels(name, str(response.status_code)).inc()
    held = name == "poll"
    log.debug(
        "%s %s", request.path, response.status_code, extra={} if held else {"duration_ms": round(duration_s * 1000, 1)}
    )
