"""One agent for people: how it fares, its crashes, its logs, its manifest, what it is ordered to do, its end."""

import json
from typing import Any

from flask import Blueprint, Response, render_template, request, stream_with_context, url_for
from flask_babel import gettext as _
from werkzeug.wrappers import Response as AnyResponse

from app.agents import actions, asking, charts, following, logs, manifests, queries
from app.agents.frame import frame_of
from app.agents.pages import verb_of
from app.agents.schemas import LogsQuery
from app.agents.words import VERB_NAMES
from app.kernel.access import current_actor
from app.kernel.api import In
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import bad_field, page, see_other
from app.kernel.errors import BadParameter, FieldError
from app.kernel.forms import Form
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.nodes.errors import NodeOffline
from app.nodes.queries import node_by_id
from app.shell import tell

pages = Blueprint("agent", __name__)

EVENTS_SHOWN = 8
REFRESH_S = 10
LINES = (50, 200, 500, 2000)
RELOADED_S = 3
"""Without JavaScript, a page that follows a log loads itself anew so often."""
ONE = "/nodes/<id:node_id>/agents/<name>"


class ManifestForm(In):
    manifest: str = ""


@page(pages, ONE, permission="agents.read")
def show_agent(node_id: int, name: str) -> Any:
    session = db.session()
    frame = frame_of(session, node_id, name)
    agent, node = frame["agent"], frame["node"]
    span = request.args.get("range", "")
    span = span if span in charts.SPANS else charts.USUAL_SPAN
    end = now()
    start = end - charts.SPANS[span][0]
    points = queries.points(session, node_id, name, start, end)
    limits = (agent.manifest or {}).get("limits") or {}
    crashes = queries.crashes(session, node_id, name)
    return render_part(
        "agent-overview",
        "agents/_overview.html",
        "agents/agent.html",
        **frame,
        spans=[
            {
                "href": url_for("agent.show_agent", node_id=node_id, name=name, range=key),
                "label": label,
                "current": key == span,
            }
            for key, (_length, label) in charts.SPANS.items()
        ],
        address=url_for("agent.show_agent", node_id=node_id, name=name, range=span),
        charts=charts.resource_charts(points, start, end, node.heartbeat_interval_s, limits),
        has_points=bool(points),
        crashes=[(crash, charts.dossier_charts(crash.dossier, crash.occurred_at)) for crash in crashes],
        config=queries.newest_config(session, agent.id),
        events=queries.agent_events(session, node_id, name, EVENTS_SHOWN),
        refresh_s=min(REFRESH_S, int(live_settings().ui.refresh_interval)),
    )


@page(pages, f"{ONE}/control/<verb>", permission="agents.control", methods=("POST",))
def control(node_id: int, name: str, verb: str) -> AnyResponse:
    session, wanted = db.session(), verb_of(verb)
    actions.control_agent(session, current_actor(), node_id, name, wanted)
    is_online = node_by_id(session, node_id).status == "online"
    if is_online and wanted == "stop" and queries.agent_by_name(session, node_id, name).type == "task":
        tell(
            _("%(what)s: %(name)s has been told. Tasks wait until it runs.", what=VERB_NAMES[wanted], name=name), "warn"
        )
    elif is_online:
        tell(_("%(what)s: %(name)s has been told.", what=VERB_NAMES[wanted], name=name))
    else:
        tell(_("The host is offline. %(name)s will be as you want it when the host is back.", name=name), "warn")
    if request.form.get("back") == "node":
        return see_other(url_for("agents.list_node_agents", node_id=node_id))
    return see_other(url_for("agent.show_agent", node_id=node_id, name=name))


@page(pages, f"{ONE}/logs", permission="agents.read")
def show_logs(node_id: int, name: str) -> Any:
    """Asks the host while it is rendered; a script then follows. Without one the page loads itself anew."""
    query, problem = _asked_logs(), None
    found: dict[str, Any] = {"lines": [], "files": [], "truncated": False}
    context = _logs_frame(node_id, name)
    try:
        found = logs.read(current_actor(), node_id, name, query)
    except NodeOffline as error:
        problem = (error.message, None)
    except asking.Refused as error:
        problem = (_("The host did not give the log."), error.message)
    if problem is not None:
        db.session.rollback()
    context = _logs_frame(node_id, name) | context
    reload_s = RELOADED_S if request.args.get("reload") and problem is None else 0
    asked = {key: value for key, value in query.model_dump(mode="json", exclude_none=True).items() if key != "since"}
    address = url_for("agent.show_logs", node_id=node_id, name=name, **asked)
    html = render_template(
        "agents/logs.html",
        **context,
        name=name,
        asked=query,
        lines_choices=LINES,
        found=found,
        problem=problem,
        reload_s=reload_s,
        address=address,
        follow_href=url_for("agent.show_logs", node_id=node_id, name=name, **asked, reload=1),
        several=len({line["file"] for line in found["lines"]}) > 1,
    )
    response = Response(html)
    if reload_s:
        response.headers["Refresh"] = str(reload_s)
    return response


def _logs_frame(node_id: int, name: str) -> dict[str, Any]:
    session = db.session()
    if name in manifests.RESERVED:
        return {"node": node_by_id(session, node_id), "agent": None}
    return frame_of(session, node_id, name)


def _asked_logs() -> LogsQuery:
    """What the address asks for; what is wrong in it is left out."""
    given = {key: request.args[key] for key in ("lines", "query", "file") if request.args.get(key)}
    return Form.received(LogsQuery, request.args, **given).value or LogsQuery()


@page(pages, f"{ONE}/logs/follow", permission="agents.read", methods=("POST",))
def follow_logs(node_id: int, name: str) -> dict[str, Any]:
    asked = _asked_logs()
    stream = following.begin(current_actor(), node_id, name, follow=True, file=asked.file, query=asked.query)
    return {"stream": stream}


@page(pages, f"{ONE}/logs/stream", permission="agents.read")
def read_stream(node_id: int, name: str) -> dict[str, Any]:
    after = max(0, request.args.get("after", 0, type=int))
    return following.piece(node_id, name, request.args.get("stream", "")[:64], after)


@page(pages, f"{ONE}/logs/end", permission="agents.read", methods=("POST",))
def end_stream(node_id: int, name: str) -> AnyResponse:
    following.end(node_id, name, request.form.get("stream", "")[:64])
    return Response(status=204)


@page(pages, f"{ONE}/logs/download", permission="agents.read")
def download_log(node_id: int, name: str) -> Response:
    asked = _asked_logs()
    if asked.file is None:
        raise bad_field("file", _("This is needed."))
    stream = following.begin(current_actor(), node_id, name, follow=False, file=asked.file, query=asked.query)
    base = asked.file.rpartition("/")[2]
    safe = "".join(char if char.isalnum() or char in "._-" else "_" for char in base) or "log"
    response = Response(stream_with_context(following.whole(stream)), mimetype="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{safe}"'
    return response


@page(pages, f"{ONE}/manifest", permission="agents.read")
def show_manifest(node_id: int, name: str) -> str:
    frame = frame_of(db.session(), node_id, name)
    manifest = frame["agent"].manifest
    written = None if manifest is None else manifests.written(manifest)
    return render_template("agents/manifest.html", **frame, written=written)


@page(pages, f"{ONE}/edit", permission="agents.configure")
def edit_manifest(node_id: int, name: str) -> str:
    frame = frame_of(db.session(), node_id, name)
    written = manifests.written(frame["agent"].manifest or {})
    return render_template("agents/edit.html", **frame, form=Form({"manifest": written}))


@page(pages, f"{ONE}/edit", permission="agents.configure", methods=("POST",))
def save_manifest(node_id: int, name: str) -> Any:
    form = Form.received(ManifestForm, request.form)
    saved = form.submit(
        lambda values: actions.update_agent(
            db.session(), current_actor(), node_id, name, read_manifest(values.manifest)
        )
    )
    if saved is None:
        return render_template("agents/edit.html", **frame_of(db.session(), node_id, name), form=as_one(form)), 422
    tell(_("%(name)s was saved.", name=name))
    return see_other(url_for("agent.show_agent", node_id=node_id, name=name))


def read_manifest(text: str) -> dict[str, Any]:
    """What somebody typed, as plain values; checked here, so that each problem is told with the name of its field."""
    found: dict[str, Any] = json.loads(json.dumps(manifests.read_text(text), default=str))
    try:
        manifests.checked(found)
    except BadParameter as error:
        told = [FieldError("manifest", f"{one['field']}: {one['message']}") for one in error.errors]
        raise BadParameter(errors=told) from None
    return found


def as_one(form: Form[Any]) -> Form[Any]:
    """All that is wrong is wrong with the one text."""
    for name in [name for name in form.errors if name not in ("", "manifest")]:
        told = [f"{name}: {message}" for message in form.errors.pop(name)]
        form.errors.setdefault("manifest", []).extend(told)
    return form


@page(pages, f"{ONE}/delete", permission="agents.configure")
def confirm_delete(node_id: int, name: str) -> str:
    return render_template("agents/delete.html", **frame_of(db.session(), node_id, name), form=Form())


@page(pages, f"{ONE}/delete", permission="agents.configure", methods=("POST",))
def delete(node_id: int, name: str) -> Any:
    form = Form[Any]()
    if request.form.get("confirm", "").strip() != name:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=name))])
        return render_template("agents/delete.html", **frame_of(db.session(), node_id, name), form=form), 422
    actions.delete_agent(db.session(), current_actor(), node_id, name)
    tell(_("%(name)s was deleted.", name=name))
    return see_other(url_for("agents.list_node_agents", node_id=node_id))
