"""Pages and addresses outside any feature."""

import os
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, make_response, redirect, render_template, request, url_for
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.wrappers import Response as AnyResponse

from app import __version__
from app.kernel.access import PUBLIC, SIGNED_IN, authorize, current_actor
from app.kernel.context import ops
from app.kernel.db import db
from app.kernel.edges import is_within, local_address, page, see_other
from app.kernel.i18n import COOKIE as LANGUAGE_COOKIE
from app.kernel.i18n import LANGUAGES
from app.kernel.openapi import document
from app.kernel.styleguide import styleguide_context
from app.kernel.telemetry import gathered
from app.people import actions as people
from app.shell import THEME_COOKIE, THEMES, home_endpoint
from app.system import queries

pages = Blueprint("system", __name__)
styleguide_pages = Blueprint("system_development", __name__)
A_YEAR_S = 365 * 86400
DOCUMENT = "openapi_document"


@page(pages, "/", permission=SIGNED_IN)
def home() -> AnyResponse:
    return redirect(url_for(home_endpoint()))


@page(pages, "/health", permission=PUBLIC)
def health() -> Response:
    found = queries.health()
    return make_response(jsonify(found), 200 if found["status"] == "ok" else 503)


@page(pages, "/health/live", permission=PUBLIC)
def live() -> dict[str, str]:
    return {"status": "ok"}


@page(pages, "/metrics", permission=PUBLIC)
def metrics() -> Response:
    """For Prometheus: from allowed addresses, or with the token of somebody who may read it."""
    actor = current_actor()
    if not is_within(actor.ip, ops().settings.server.metrics_allow):
        authorize(actor, "metrics.read")
    registry = gathered(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
    registry.register(queries.PresentNumbers())
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


@page(pages, "/api/v1/openapi.json", permission=PUBLIC)
def openapi() -> Response:
    return jsonify(_document())


@page(pages, "/documentation", permission=SIGNED_IN)
def documentation() -> str:
    """The same document, readable, without anything from outside."""
    return render_template("system/documentation.html", document=_document())


def _document() -> dict[str, Any]:
    """Made once: it says the same to everybody, and making it takes a while."""
    known: dict[str, Any] | None = current_app.extensions.get(DOCUMENT)
    if known is None:
        known = current_app.extensions[DOCUMENT] = document(current_app.extensions["api_rooms"], __version__)
    return known


@page(pages, "/preferences/language", permission=PUBLIC, methods=("POST",))
def choose_language() -> AnyResponse:
    chosen, actor = request.form.get("value", ""), current_actor()
    if chosen not in LANGUAGES:
        return _back()
    if actor.is_signed_in and actor.locale != chosen:
        people.choose_language(db.session(), actor, chosen)
    return _remembered(_back(), LANGUAGE_COOKIE, chosen)


@page(pages, "/preferences/theme", permission=PUBLIC, methods=("POST",))
def choose_theme() -> AnyResponse:
    chosen = request.form.get("value", "")
    return _remembered(_back(), THEME_COOKIE, chosen) if chosen in THEMES else _back()


def _back() -> AnyResponse:
    return see_other(local_address(request.form.get("next"), "/"))


def _remembered(response: AnyResponse, name: str, value: str) -> AnyResponse:
    response.set_cookie(name, value, max_age=A_YEAR_S, httponly=True, secure=request.is_secure, samesite="Lax")
    return response


@page(styleguide_pages, "/styleguide", permission=PUBLIC)
def styleguide() -> str:
    """Every component in every state; registered in development only."""
    return render_template("styleguide/index.html", **styleguide_context())
