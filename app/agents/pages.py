"""Agents of the fleet and of one node for people; one action on many; how far a batch has come."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from flask import Blueprint, Response, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from pydantic import Field
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response as AnyResponse

from app.agents import actions, queries
from app.agents.configuring import PURPOSE_CONFIGURE
from app.agents.schemas import AgentQuery, FleetAgentOut, Verb
from app.agents.shown import install
from app.agents.words import VERB_ICONS, VERB_NAMES
from app.commands import fanouts
from app.commands import queries as batches
from app.commands.hooks import purpose_of
from app.commands.models import Fanout
from app.commands.schemas import TargetQuery
from app.commands.shares import ErrorLimit, Window
from app.kernel.access import current_actor, may
from app.kernel.api import In
from app.kernel.db import db
from app.kernel.edges import bad_field, page, see_other
from app.kernel.errors import BadParameter, FieldError, NotFound
from app.kernel.exports import csv_response, json_response
from app.kernel.forms import Form, row_numbers
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, Page, lenient_query
from app.nodes.queries import node_by_id
from app.shell import tell

pages = Blueprint("agents", __name__)
pages.record_once(lambda state: install(state.app))

COLUMNS = (
    Column("name", _l("Agent"), sortable=True),
    Column("hostname", _l("Host"), sortable=True),
    Column("status", _l("Status"), sortable=True),
    Column("version", _l("Version"), sortable=True),
    Column("cpu_usage", _l("CPU"), numeric=True),
    Column("memory_usage", _l("Memory"), numeric=True),
    Column("restart_count", _l("Restarts"), sortable=True, numeric=True),
    Column("start_time", _l("Started"), sortable=True, numeric=True),
    Column("config_version", _l("Configuration"), klass="wide"),
)
TARGET_COLUMNS = (
    Column("hostname", _l("Host"), sortable=True),
    Column("subject", _l("Agent")),
    Column("status", _l("Status")),
    Column("error", _l("What happened")),
    Column("finished_at", _l("Ended"), sortable=True, numeric=True),
)
FIELDS = tuple(FleetAgentOut.model_fields)
VERBS: tuple[Verb, ...] = ("start", "stop", "restart", "reload")
MOST_AT_ONCE = 10_000
TYPED_ABOVE = 20
"""More agents than this are only touched by somebody who types how many they are."""
SHOWN = 12
EXAMPLE = "env=prod role in (web,db)"
UNFINISHED = ("pending", "running", "paused")


class BulkForm(In):
    """How carefully. A number, or a share as `10%`."""

    max_parallel: str | None = Field(None, max_length=8)
    max_errors: str | None = Field(None, max_length=8)


class Care(In):
    """The same, checked."""

    max_parallel: Window | None = None
    max_errors: ErrorLimit | None = None


@page(pages, "/agents", permission="agents.read")
def list_agents() -> Any:
    session, query = db.session(), lenient_query(AgentQuery, request.args)
    if request.args.get("format") in ("csv", "json"):
        return _export(query)
    found, wrong = _agents(query)
    names, types = queries.names_and_types(session)
    return render_part(
        "agents-table",
        "agents/_agents_table.html",
        "agents/agents.html",
        page=found,
        wrong=wrong,
        columns=COLUMNS,
        base="/agents",
        of_node=False,
        list_query=urlencode(found.query, doseq=True),
        counts=queries.status_counts(session),
        agent_names=names,
        agent_types=types,
        bulk=_bulk_buttons(),
        selector_example=EXAMPLE,
        refresh_s=int(live_settings().ui.refresh_interval),
    )


def _agents(query: AgentQuery) -> tuple[Page[queries.AgentNow], dict[str, Any] | None]:
    """A page of the list. With a selector that cannot be read: an empty one, and what is wrong with it."""
    try:
        return queries.agents(db.session(), query), None
    except BadParameter as error:
        if "column" not in (error.data or {}) and not any(one["field"] == "selector" for one in error.errors):
            return queries.agents(db.session(), query.model_copy(update={"sort": None})), None
        shown = query.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
        column = (error.data or {}).get("column")
        wrong = {"text": query.selector, "column": column, "message": error.errors[0]["message"]}
        return Page([], 0, 1, query.page_size, "name", shown), wrong


def _export(query: AgentQuery) -> Response:
    rows = (
        FleetAgentOut.model_validate(agent).model_dump(mode="json")
        for agent in queries.exported_agents(db.session(), query)
    )
    if request.args["format"] == "json":
        return json_response("agents", rows)
    return csv_response("agents", FIELDS, rows)


def _bulk_buttons() -> list[dict[str, Any]] | None:
    if not may(current_actor(), "agents.control"):
        return None
    return [{"name": verb, "label": VERB_NAMES[verb], "icon": VERB_ICONS[verb]} for verb in VERBS]


@page(pages, "/nodes/<id:node_id>/agents", permission="agents.read")
def list_node_agents(node_id: int) -> str:
    session = db.session()
    node = node_by_id(session, node_id)
    found = queries.node_agents(session, node_id)
    return render_part(
        "agents-table",
        "agents/_agents_table.html",
        "agents/node_agents.html",
        node=node,
        page=Page(found, len(found), 1, max(len(found), 1), "name"),
        wrong=None,
        columns=[
            Column(column.key, column.label, numeric=column.numeric, klass=column.klass)
            for column in COLUMNS
            if column.key != "hostname"
        ],
        base=url_for("agents.list_node_agents", node_id=node_id),
        of_node=True,
        list_query=urlencode({"node_id": node_id}),
        bulk=_bulk_buttons() if len(found) > 1 else None,
        refresh_s=min(10, int(live_settings().ui.refresh_interval)),
    )


@page(pages, "/agents/bulk", permission="agents.control", methods=("POST",))
def choose_action() -> AnyResponse:
    """From the list's ticked rows to the page of the action. Nothing is done yet."""
    ids = ",".join(map(str, row_numbers(request.form.getlist("ids"), MOST_AT_ONCE)))
    action, listed = request.form.get("action", ""), request.form.get("query", "")
    if not ids:
        tell(_("Tick some agents first."), "warn")
        return see_other(_list_address(listed))
    return see_other(url_for("agents.prepare_change", action=verb_of(action), ids=ids, query=listed))


def verb_of(text: str) -> Verb:
    for verb in VERBS:
        if text == verb:
            return verb
    raise bad_field("action", _("There is no such action."))


def _list_query(text: str) -> AgentQuery:
    return lenient_query(AgentQuery, MultiDict(parse_qsl(text)))


def _list_address(text: str) -> str:
    asked = _list_query(text).model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude={"page"})
    node_id = asked.pop("node_id", None)
    if node_id and not asked:
        return url_for("agents.list_node_agents", node_id=node_id)
    return url_for("agents.list_agents", **asked, **({"node_id": node_id} if node_id else {}))


class Chosen:
    """What a bulk page is about: the ticked agents, or everything that a list's filters leave."""

    def __init__(self, given: MultiDict[str, str]) -> None:
        self.query, self.is_everything = given.get("query", ""), bool(given.get("everything"))
        session = db.session()
        if self.is_everything:
            self.agents = list(queries.chosen_agents(session, _list_query(self.query)))
        else:
            self.agents = queries.agents_by_ids(session, row_numbers(given.get("ids", "").split(","), MOST_AT_ONCE))
        if not 0 < len(self.agents) <= MOST_AT_ONCE:
            raise BadParameter(_("Between 1 and %(most)s agents can be changed at once.", most=MOST_AT_ONCE))

    @property
    def ids(self) -> list[int]:
        return [agent.id for agent in self.agents]

    @property
    def offline(self) -> int:
        return sum(agent.node.status != "online" for agent in self.agents)

    @property
    def maintenance(self) -> int:
        return sum(agent.node.maintenance for agent in self.agents)

    @property
    def typed(self) -> str | None:
        """What has to be typed before so many are touched."""
        return str(len(self.agents)) if len(self.agents) > TYPED_ABOVE else None

    def said(self) -> Mapping[str, Any]:
        return {"filter": self.query} if self.is_everything else {}


@page(pages, "/agents/bulk/<action>", permission="agents.control")
def prepare_change(action: str) -> str:
    return _change_page(verb_of(action), Form({}), Chosen(request.args))


@page(pages, "/agents/bulk/<action>", permission="agents.control", methods=("POST",))
def change_agents(action: str) -> Any:
    verb, chosen = verb_of(action), Chosen(request.form)
    form = Form.received(BulkForm, request.form)
    if chosen.typed is not None and request.form.get("confirm", "").strip() != chosen.typed:
        form.add_errors([FieldError("confirm", _("Please type %(name)s.", name=chosen.typed))])
        form.value = None
    started = form.submit(lambda values: _start(verb, chosen, care_of(values)))
    if started is None:
        return _change_page(verb, form, chosen), 422
    return see_other(url_for("agents.show_batch", batch_id=started.uuid))


def _start(verb: Verb, chosen: Chosen, care: Care) -> Any:
    session, actor = db.session(), current_actor()
    parallel, errors = care.max_parallel, care.max_errors
    return actions.control_agents(session, actor, verb, chosen.agents, parallel, errors, target=chosen.said())


def care_of(values: BulkForm) -> Care:
    """Fields of a form hold text, where a number and a share look alike."""
    said = values.model_dump(include={"max_parallel", "max_errors"}, exclude_none=True)
    given = {name: int(text) if text.isascii() and text.isdigit() else text for name, text in said.items()}
    found = Form.received(Care, MultiDict(), **given)
    if found.value is None:
        errors = [FieldError(name, message) for name, messages in found.errors.items() for message in messages]
        raise BadParameter(errors=errors)
    return found.value


def _change_page(verb: Verb, form: Form[Any], chosen: Chosen) -> str:
    listed = 0 if chosen.is_everything else len(queries.chosen_agents(db.session(), _list_query(chosen.query)))
    return render_template(
        "agents/change.html",
        verb=verb,
        form=form,
        chosen=chosen,
        shown=chosen.agents[:SHOWN],
        listed=listed if listed > len(chosen.agents) else 0,
        back=_list_address(chosen.query),
    )


def _batch(batch_id: UUID) -> Fanout:
    """One of ours; other rooms show theirs."""
    fanout = batches.fanout_by_uuid(db.session(), str(batch_id))
    if fanout.purpose not in (actions.PURPOSE_CONTROL, PURPOSE_CONFIGURE):
        raise NotFound
    return fanout


@page(pages, "/agents/batches/<uuid:batch_id>", permission="agents.read")
def show_batch(batch_id: UUID) -> Any:
    session = db.session()
    fanout = _batch(batch_id)
    batch = batches.shown_fanouts(session, [fanout])[0]
    found = batches.targets(session, fanout, lenient_query(TargetQuery, request.args))
    return render_part(
        "batch",
        "agents/_batch.html",
        "agents/batch.html",
        batch=batch,
        batch_id=fanout.uuid,
        page=found,
        columns=TARGET_COLUMNS,
        may_control=may(current_actor(), purpose_of(fanout).permission),
        is_open=batch["status"] in UNFINISHED,
        base=url_for("agents.show_batch", batch_id=batch_id),
    )


@page(
    pages,
    "/agents/batches/<uuid:batch_id>/<step>",
    permission="agents.control",
    methods=("POST",),
)
def step_batch(batch_id: UUID, step: str) -> AnyResponse:
    session, actor = db.session(), current_actor()
    fanout = _batch(batch_id)
    if step == "retry":
        again = fanouts.retry_failed(session, actor, fanout.id)
        tell(ngettext("Tried again on %(num)s host.", "Tried again on %(num)s hosts.", again.total))
        return see_other(url_for("agents.show_batch", batch_id=again.uuid))
    steps = {"pause": fanouts.pause_fanout, "resume": fanouts.resume_fanout, "cancel": fanouts.cancel_fanout}
    if step not in steps:
        raise NotFound
    steps[step](session, actor, fanout.id)
    return see_other(url_for("agents.show_batch", batch_id=batch_id))
