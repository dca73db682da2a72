"""How hosts come in, for people: join tokens, the line to paste, adding by hand, the queue of those who wait."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from flask_babel import ngettext
from werkzeug.wrappers import Response as AnyResponse

from app.kernel.access import current_actor
from app.kernel.clock import now
from app.kernel.db import db
from app.kernel.edges import bad_field, page, see_other
from app.kernel.forms import Form, row_numbers
from app.kernel.htmx import render_part
from app.kernel.live_settings import live_settings
from app.kernel.paging import Column, lenient_query
from app.nodes import actions, enrolment, group_queries, queries
from app.nodes.install import instructions
from app.nodes.schemas import NewNodeForm, NodeCreate, TokenForm, TokenIn, TokenQuery
from app.shell import tell

pages = Blueprint("enrolment", __name__)

COLUMNS = (
    Column("name", _l("Token"), sortable=True),
    Column("state", _l("State")),
    Column("uses", _l("Used"), sortable=True, numeric=True),
    Column("expires_at", _l("Expires"), sortable=True),
    Column("gives", _l("Gives"), klass="wide"),
    Column("created_at", _l("Created"), sortable=True, klass="wide"),
    Column("acts", ""),
)


@page(pages, "/enrollment", permission="enrollment.manage")
def list_tokens() -> str:
    session = db.session()
    return render_part(
        "tokens-table",
        "nodes/_tokens_table.html",
        "nodes/tokens.html",
        page=queries.enrollment_tokens(session, lenient_query(TokenQuery, request.args)),
        columns=COLUMNS,
        now=now(),
        group_paths={group.id: group.path for group in group_queries.groups(session)},
        waiting=queries.waiting_nodes(session),
    )


@page(pages, "/enrollment/new", permission="enrollment.manage")
def new_token() -> str:
    return _token_page(Form({"days": 7, "name": _("new hosts")}))


@page(pages, "/enrollment/new", permission="enrollment.manage", methods=("POST",))
def create_token() -> Any:
    form = Form.received(TokenForm, request.form)
    made = form.submit(lambda values: enrolment.create_token(db.session(), current_actor(), _token_values(values)))
    if made is None:
        return _token_page(form), 422
    token, secret = made
    return render_template("nodes/token_made.html", token=token, secret=secret, node=None, how=instructions(secret))


def _token_values(values: TokenForm) -> TokenIn:
    ends = now() + timedelta(days=values.days) if values.days else None
    return TokenIn(**values.model_dump(exclude={"days"}), expires_at=ends)


def _token_page(form: Form[Any]) -> str:
    return render_template("nodes/token_new.html", form=form, **_choices())


def _choices() -> dict[str, Any]:
    session = db.session()
    groups = [(group.id, group.path) for group in group_queries.groups(session)]
    return {"group_choices": groups, "known_tags": queries.all_tags(session)}


@page(pages, "/enrollment/tokens/<id:token_id>/revoke", permission="enrollment.manage", methods=("POST",))
def revoke_token(token_id: int) -> AnyResponse:
    enrolment.revoke_token(db.session(), current_actor(), token_id)
    tell(_("The token was revoked. Hosts that came in with it stay."))
    return see_other(url_for("enrolment.list_tokens"))


@page(pages, "/enrollment/node", permission="enrollment.manage")
def new_node() -> str:
    return render_template("nodes/node_new.html", form=Form(), **_choices())


@page(pages, "/enrollment/node", permission="enrollment.manage", methods=("POST",))
def create_node() -> Any:
    form = Form.received(NewNodeForm, request.form)
    made = form.submit(
        lambda values: actions.create_node(db.session(), current_actor(), NodeCreate(**values.model_dump()))
    )
    if made is None:
        return render_template("nodes/node_new.html", form=form, **_choices()), 422
    node, secret = made
    return render_template("nodes/token_made.html", token=None, secret=secret, node=node, how=instructions(secret))


@page(pages, "/enrollment/queue", permission="enrollment.manage")
def show_queue() -> str:
    waiting = queries.approval_queue(db.session())
    return render_part(
        "queue-table",
        "nodes/_queue_table.html",
        "nodes/queue.html",
        waiting=waiting,
        discovery=live_settings().node.discovery,
    )


@page(pages, "/enrollment/queue", permission="enrollment.manage", methods=("POST",))
def decide() -> AnyResponse:
    """Let in or turn away the ticked ones."""
    ids = row_numbers(request.form.getlist("ids"))
    wanted = request.form.get("action")
    if wanted not in ("approve", "reject"):
        raise bad_field("action", _("There is no such action."))
    if not ids:
        tell(_("Tick some hosts first."), "warn")
        return see_other(url_for("enrolment.show_queue"))
    act = actions.approve_nodes if wanted == "approve" else actions.reject_nodes
    count = len(act(db.session(), current_actor(), ids))
    if wanted == "approve":
        tell(ngettext("%(num)s host was let in.", "%(num)s hosts were let in.", count))
    else:
        tell(ngettext("%(num)s host was turned away.", "%(num)s hosts were turned away.", count))
    return see_other(url_for("enrolment.show_queue"))
