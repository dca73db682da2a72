"""Where requests come in and answers go out: identity, limits, transactions, errors, headers and the request log."""

import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterable
from functools import wraps
from http import HTTPStatus
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, g, redirect, render_template, request, session, url_for
from flask_babel import gettext as _
from flask_wtf.csrf import CSRFError
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as HTTPMethodNotAllowed
from werkzeug.wrappers import Response as AnyResponse

from app.kernel import telemetry
from app.kernel.access import PUBLIC, SIGNED_IN, Actor, authorize, current_actor
from app.kernel.context import ops
from app.kernel.db import db, in_transaction, is_away, is_deadlock, set_reads_only
from app.kernel.envelope import failure
from app.kernel.errors import (
    AppError,
    BadParameter,
    Conflict,
    DatabaseAway,
    FieldError,
    Forbidden,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    QueueAway,
    Refusal,
    TooLarge,
    TooManyRequests,
)
from app.kernel.htmx import page_around_fragment, vary_by_htmx, wants_fragment
from app.kernel.live_settings import live_settings
from app.kernel.logs import log_context
from app.kernel.ratelimit import count, neighbourhood

log = logging.getLogger(__name__)
View = TypeVar("View", bound=Callable[..., Any])
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
ASKED_BY_MACHINES = ("/health", "/health/live")
"""They must answer while there is nobody to ask who is asking."""
PAGE_TO_CHANGE_PASSWORD = "people.change_password"  # noqa: S105  the name of a page
ALLOWED_BEFORE_CHANGE = frozenset({PUBLIC, SIGNED_IN, "self.manage"})
MESSAGES = "_flashes"
"""Where Flask keeps what the next page is to say."""
LOCAL = "local"
"""The address of whoever comes through a Unix socket."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

Identify = Callable[[Any, Actor], Actor]
NoteRefusal = Callable[[Actor, Refusal], None]


def page(
    blueprint: Blueprint, rule: str, *, permission: str, methods: Iterable[str] = ("GET",)
) -> Callable[[View], View]:
    """A page: checks the permission, and commits what a changing request did. Refusals become pages, not traces."""

    def register(view: View) -> View:
        blueprint.add_url_rule(rule, view.__name__, guarded(view, permission), methods=list(methods))
        return view

    return register


def guarded(view: Callable[..., Any], permission: str) -> Callable[..., Any]:
    @wraps(view)
    def run(**path: Any) -> Any:
        actor = current_actor()
        authorize(actor, permission)
        if actor.must_change_password and permission not in ALLOWED_BEFORE_CHANGE:
            return redirect(url_for(PAGE_TO_CHANGE_PASSWORD))
        if request.method in SAFE:
            return view(**path)
        told = session.get(MESSAGES)

        def attempt() -> Any:
            # What an attempt said that the database undid was never true.
            if session.get(MESSAGES) != told:
                session[MESSAGES] = told or []
            return view(**path)

        return in_transaction(db.session(), attempt)

    run.permission = permission  # type: ignore[attr-defined]
    return run


def see_other(address: str) -> AnyResponse:
    """After a change: go there. htmx is told so in its own way, so that the address bar follows."""
    if wants_fragment():
        return Response(status=HTTPStatus.NO_CONTENT, headers={"HX-Redirect": address})
    return redirect(address, HTTPStatus.SEE_OTHER)


def local_address(given: str | None, fallback: str) -> str:
    """An address to go on to that somebody sent us: only a path of ours, never another host."""
    if (
        not given
        or not given.startswith("/")
        or given.startswith(("//", "/\\"))
        or any(ord(char) < 33 for char in given)
    ):
        return fallback
    parts = urlsplit(given)
    return fallback if parts.netloc or parts.scheme else given


def install_before(app: Flask, identify: Identify) -> None:
    """What happens before a view, in this order: number, size, who, how often."""

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        g.request_id = _request_id(request.headers.get("X-Request-ID"))
        set_reads_only(request.method in SAFE)
        log_context.set({"request_id": g.request_id, "ip": client_address()})

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        set_reads_only(False)

    @app.before_request
    def find_out_who() -> None:
        if request.endpoint == "static" or request.path in ASKED_BY_MACHINES:
            return
        agent = request.headers.get("User-Agent", "")[:255]
        visitor = Actor(ip=client_address(), user_agent=agent, request_id=g.request_id)
        g.actor = visitor
        g.actor = identify(db.session(), visitor)

    @app.before_request
    def limit() -> None:
        if request.path.startswith("/api/"):
            _count_request(current_actor())
            if current_actor().must_change_password and not request.path.startswith("/api/v1/auth/"):
                raise Forbidden(message=_("Change your password first."))


def install_after(app: Flask, note_refusal: NoteRefusal) -> None:
    """What happens after a view: headers, numbers and the log line; and how errors are shown."""

    @app.after_request
    def finish(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers["X-Request-ID"] = g.get("request_id", "")
        if request.endpoint != "static":
            response.headers.setdefault("Cache-Control", "no-store")
            vary_by_htmx(response)
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = "max-age=31536000"
        _allow_origin(response)
        _note_request(response)
        return response

    @app.errorhandler(Exception)
    def translate(error: Exception) -> Any:
        shown = as_app_error(error)
        if shown.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("unexpected error", exc_info=error)
        db.session.rollback()
        if shown.refusal is not None:
            _note(note_refusal, shown.refusal)
        response = shown.response or _shown(shown)
        if shown.retry_after_s is not None:
            response.headers["Retry-After"] = str(shown.retry_after_s)
        if isinstance(error, HTTPMethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response


def as_app_error(error: BaseException) -> AppError:
    """What an exception means to whoever asked."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, CSRFError):
        return BadParameter(_("This form is too old. Please load the page again."))
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, IntegrityError):
        return Conflict()
    if is_away(error) or is_deadlock(error):
        return DatabaseAway(retry_after_s=5)
    if isinstance(error, RedisError):
        return QueueAway(retry_after_s=5)
    if isinstance(error, DataError) or (isinstance(error, OverflowError) and "SQLite" in str(error)):
        return BadParameter()  # more than a column holds
    return AppError()


def _from_http(error: HTTPException) -> AppError:
    kinds: dict[int, type[AppError]] = {
        404: NotFound,
        405: MethodNotAllowed,
        413: TooLarge,
        401: NotAuthenticated,
        403: Forbidden,
        429: TooManyRequests,
    }
    if error.code in kinds:
        return kinds[error.code]()
    if error.code is not None and 400 <= error.code < 500:
        return BadParameter()
    return AppError()


def _note(note_refusal: NoteRefusal, refusal: Refusal) -> None:
    """A refusal that cannot be written down is still a refusal."""
    set_reads_only(False)
    try:
        note_refusal(current_actor(), refusal)
    except (AppError, SQLAlchemyError, RedisError) as error:
        db.session.rollback()
        log.warning("a refusal could not be audited: %s", error)


def is_for_programs(path: str) -> bool:
    """Paths where identity is a bearer token and errors are envelopes; everywhere else it is cookies and pages."""
    return path.startswith(("/api/", "/metrics"))


def _shown(error: AppError) -> AnyResponse:
    if is_for_programs(request.path):
        return failure(error)
    if isinstance(error, NotAuthenticated) and not wants_fragment():
        return redirect(_sign_in_address(request.full_path.rstrip("?") if request.method in SAFE else "/"))
    context = {
        "code": int(error.status),
        "title": _title(error.status),
        "message": error.message,
        "request_id": g.get("request_id", ""),
        "retry_after": error.retry_after_s,
    }
    response = Response(render_template("errors/error.html", **context), error.status)
    if isinstance(error, NotAuthenticated):
        response.headers["HX-Redirect"] = _sign_in_address(page_around_fragment())
    return response


def _sign_in_address(then: str) -> str:
    return url_for("people.sign_in", next=then) if then != "/" else url_for("people.sign_in")


def _title(status: HTTPStatus) -> str:
    titles = {
        HTTPStatus.BAD_REQUEST: _("That did not work"),
        HTTPStatus.FORBIDDEN: _("Not allowed"),
        HTTPStatus.NOT_FOUND: _("Not found"),
        HTTPStatus.METHOD_NOT_ALLOWED: _("Not here"),
        HTTPStatus.CONFLICT: _("That contradicts something"),
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _("Too large"),
        HTTPStatus.TOO_MANY_REQUESTS: _("Too many requests"),
        HTTPStatus.SERVICE_UNAVAILABLE: _("Not available right now"),
    }
    return str(titles.get(status, _("Something went wrong")))


def client_address() -> str:
    """Who is on the other end; what proxies say counts only if we were told to trust them (see the factory)."""
    return request.remote_addr or LOCAL


def is_within(address: str, networks: Iterable[str]) -> bool:
    """Whether an address is one of these addresses or in one of these networks. `local` is only itself."""
    if address in networks:
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A listener on [::] sees IPv4 callers in the clothes of IPv6.
    found = getattr(found, "ipv4_mapped", None) or found
    return any(found in ipaddress.ip_network(network, strict=False) for network in networks if network != LOCAL)


def _request_id(given: str | None) -> str:
    return given if given and REQUEST_ID.fullmatch(given) else token_hex(8)


def _count_request(actor: Actor) -> None:
    limits = live_settings().server.rate_limit
    address = neighbourhood(actor.ip)
    checks = [(f"anonymous:{address}", limits.anonymous)]
    if actor.is_signed_in:
        checks = [(f"address:{address}", limits.per_address), (f"user:{actor.user_id}", limits.per_user)]
    for key, most in checks:
        usage = count(key, 60)
        if usage.count > most:
            raise TooManyRequests(retry_after_s=usage.resets_in_s)


def _allow_origin(response: Response) -> None:
    allowed = ops().settings.server.cors_origins
    if not allowed or not request.path.startswith("/api/"):
        return
    response.vary.add("Origin")
    origin = request.headers.get("Origin", "")
    if origin.lower() in allowed:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, Idempotency-Key, X-Request-ID"
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, DELETE"
        response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, Retry-After, Idempotency-Replayed"
        response.headers["Access-Control-Max-Age"] = "600"


def _note_request(response: Response) -> None:
    duration_s = time.perf_counter() - g.get("started", time.perf_counter())
    pattern = request.url_rule.rule if request.url_rule else "unknown"
    telemetry.note_request(request.method, pattern, response.status_code, duration_s)
    level = (
        logging.DEBUG
        if request.endpoint == "static" or request.path.startswith(("/health", "/metrics"))
        else logging.INFO
    )
    extra = {"duration_ms": round(duration_s * 1000, 1)}
    log.log(level, "%s %s %s", request.method, request.path, response.status_code, extra=extra)


def bad_field(field: str, message: str) -> BadParameter:
    return BadParameter(errors=[FieldError(field, message)])
