"""A new agent on a node for people: from the catalogue, or from a manifest of one's own."""

from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _

from app.agents import actions, manifests, ready
from app.agents.pages_agent import ManifestForm, as_one, read_manifest
from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.forms import Form
from app.nodes.queries import node_by_id
from app.shell import tell

pages = Blueprint("agent_new", __name__)

EXAMPLE = """\
name: my-program
type: custom
start: [/usr/local/bin/my-program, --verbose]
user: nobody
health:
- {kind: process}
- {kind: http, url: http://127.0.0.1:8000/health}
limits: {cpu_percent: 80, cpu_for_s: 60, memory_bytes: 268435456, action: restart}
"""


@page(pages, "/nodes/<id:node_id>/agent-new", permission="agents.configure")
def choose_agent(node_id: int) -> str:
    node = node_by_id(db.session(), node_id)
    return render_template("agents/new.html", node=node, entries=list(ready.catalogue().values()))


@page(pages, "/nodes/<id:node_id>/agent-new/manifest", permission="agents.configure")
def write_manifest(node_id: int) -> str:
    given = request.args.get("from", "")
    text = manifests.written(ready.entry_by_key(given).manifest) if given in ready.catalogue() else EXAMPLE
    node = node_by_id(db.session(), node_id)
    return render_template("agents/new_manifest.html", node=node, form=Form({"manifest": text}))


@page(pages, "/nodes/<id:node_id>/agent-new/manifest", permission="agents.configure", methods=("POST",))
def add_manifest(node_id: int) -> Any:
    form = Form.received(ManifestForm, request.form)
    made = form.submit(
        lambda values: actions.create_agent(db.session(), current_actor(), node_id, read_manifest(values.manifest))
    )
    if made is None:
        node = node_by_id(db.session(), node_id)
        return render_template("agents/new_manifest.html", node=node, form=as_one(form)), 422
    return _added(node_id, made.name)


@page(pages, "/nodes/<id:node_id>/agent-new/<key>", permission="agents.configure")
def fill_in(node_id: int, key: str) -> str:
    entry = ready.entry_by_key(key)
    form = Form[Any]({parameter.name: parameter.default for parameter in entry.parameters})
    return render_template("agents/new_entry.html", node=node_by_id(db.session(), node_id), entry=entry, form=form)


@page(pages, "/nodes/<id:node_id>/agent-new/<key>", permission="agents.configure", methods=("POST",))
def add_entry(node_id: int, key: str) -> Any:
    entry = ready.entry_by_key(key)
    form = Form[Any]({parameter.name: request.form.get(parameter.name, "").strip() for parameter in entry.parameters})
    form.value = form.values
    made = form.submit(
        lambda values: actions.create_agent(db.session(), current_actor(), node_id, entry.filled(values))
    )
    if made is None:
        node = node_by_id(db.session(), node_id)
        return render_template("agents/new_entry.html", node=node, entry=entry, form=form), 422
    return _added(node_id, made.name)


def _added(node_id: int, name: str) -> Any:
    tell(_("%(name)s was added. The host hears of it at once if it is online.", name=name))
    return see_other(url_for("agent.show_agent", node_id=node_id, name=name))
