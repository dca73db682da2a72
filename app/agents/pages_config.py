"""The configuration of one agent for people: versions, an editor with a preview, drift, and the same for many."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, render_template, request, url_for
from flask_babel import gettext as _
from werkzeug.wrappers import Response as AnyResponse

from app.agents import actions, asking, configuring, manifests, queries, ready
from app.agents.frame import frame_of
from app.agents.models import AgentConfig, NodeAgent
from app.agents.pages import EXAMPLE, SHOWN, TYPED_ABOVE, BulkForm, care_of
from app.agents.schemas import ConfigIn
from app.agents.templating import TemplateProblem, secrets_named
from app.kernel.access import current_actor
from app.kernel.db import db
from app.kernel.edges import page, see_other
from app.kernel.errors import BadParameter, FieldError, NotFound
from app.kernel.forms import Form
from app.kernel.paging import ListQuery, lenient_query
from app.nodes.errors import NodeOffline
from app.shell import tell

pages = Blueprint("agent_config", __name__)

ONE = "/nodes/<id:node_id>/agents/<name>/config"


class VersionsQuery(ListQuery):
    """Pages of the history."""


class SpreadForm(BulkForm):
    """To which hosts, and how carefully."""

    selector: str | None = None


@page(pages, ONE, permission="agents.read")
def show_config(node_id: int, name: str) -> str:
    session = db.session()
    frame = frame_of(session, node_id, name)
    agent: NodeAgent = frame["agent"].agent
    found = queries.configs(session, agent.id, lenient_query(VersionsQuery, request.args))
    newest = queries.newest_config(session, agent.id)
    return render_template(
        "agents/config.html",
        **frame,
        versions=found,
        newest=newest,
        on_host=queries.config_on_host(session, agent),
        secrets=queries.secret_names(session, agent.id),
        base=url_for("agent_config.show_config", node_id=node_id, name=name),
        may_roll_back=len(queries.healthy_configs(session, agent.id, 2)) > 1,
    )


@page(pages, f"{ONE}/edit", permission="agents.configure")
def edit_config(node_id: int, name: str) -> str:
    """The newest version, or an example of the catalogue, or nothing, to be changed."""
    session = db.session()
    frame = frame_of(session, node_id, name)
    agent: NodeAgent = frame["agent"].agent
    newest = queries.newest_config(session, agent.id)
    known = {file["path"]: file["content"] for file in newest.files} if newest else {}
    starter = {} if newest else ready.starter_for(agent.manifest or {})
    values: dict[str, Any] = {"apply": newest.apply if newest else _usual_apply(agent)}
    for number, path in enumerate(manifests.config_paths(agent.manifest)):
        values[f"content-{number}"] = known.get(path, starter.get(path, ""))
        values[f"with-{number}"] = path in known or not newest
    return _edit_page(frame, Form(values), is_example=bool(starter))


def _usual_apply(agent: NodeAgent) -> str:
    return "reload" if (agent.manifest or {}).get("reload") else "restart"


@page(pages, f"{ONE}/edit", permission="agents.configure", methods=("POST",))
def save_config(node_id: int, name: str) -> Any:
    """Three buttons: look first, save and push, only save."""
    session = db.session()
    frame = frame_of(session, node_id, name)
    agent: NodeAgent = frame["agent"].agent
    form, step = _received(agent), request.form.get("step", "preview")
    if step == "preview":
        shown = form.submit(lambda values: configuring.preview(session, agent, values.files, values.secrets))
        form = _by_file(form)
        return _edit_page(frame_of(db.session(), node_id, name), form, preview=shown), 200 if shown else 422
    saved = form.submit(
        lambda values: configuring.save_config(
            session, current_actor(), node_id, name, values.model_copy(update={"push": step == "push"})
        )
    )
    if saved is None:
        return _edit_page(frame_of(db.session(), node_id, name), _by_file(form)), 422
    version = saved.version
    tell(_("Version %(version)s was saved.", version=version))
    if step == "spread":
        return see_other(url_for("agent_config.spread_config", node_id=node_id, name=name))
    return see_other(url_for("agent_config.show_config", node_id=node_id, name=name))


def _received(agent: NodeAgent) -> Form[ConfigIn]:
    """The form's fields as the API would have them. Browsers end lines in their own way; files do not."""
    given = request.form
    files = [
        {"path": path, "content": given.get(f"content-{number}", "").replace("\r\n", "\n")}
        for number, path in enumerate(manifests.config_paths(agent.manifest))
        if given.get(f"with-{number}")
    ]
    secrets: dict[str, str | None] = {
        key.removeprefix("secret-"): value for key, value in given.items() if key.startswith("secret-") and value
    }
    secrets |= dict.fromkeys(given.getlist("forget"))
    fixed = {
        "files": files,
        "secrets": secrets,
        "apply": given.get("apply", "reload"),
        "note": given.get("note") or None,
    }
    form = Form.received(ConfigIn, given, **fixed)
    form.values |= {key: value.replace("\r\n", "\n") for key, value in given.items() if key.startswith("content-")}
    form.values |= {key: value for key, value in given.items() if key.startswith("with-")}
    if not files:
        form.value = None
        form.errors = {"": [_("Choose at least one file.")]}
    return form


def _by_file(form: Form[ConfigIn]) -> Form[ConfigIn]:
    """Errors stand at the file that they are about."""
    numbers = [key.removeprefix("with-") for key in sorted(form.values) if key.startswith("with-") and form.values[key]]
    errors: dict[str, list[str]] = {}
    for name, messages in form.errors.items():
        parts = name.split(".")
        field = name
        if parts[0] == "files" and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) < len(numbers):
            field = f"content-{numbers[int(parts[1])]}"
        elif parts[0] == "secrets":
            field = f"secret-{parts[1]}" if len(parts) > 1 else ""
        errors.setdefault(field, []).extend(messages)
    form.errors = errors
    return form


def _edit_page(
    frame: Mapping[str, Any], form: Form[Any], preview: Sequence[Any] | None = None, *, is_example: bool = False
) -> str:
    session, agent = db.session(), frame["agent"]
    known = queries.secret_names(session, agent.id)
    return render_template(
        "agents/config_edit.html",
        **frame,
        form=form,
        paths=manifests.config_paths(agent.manifest),
        known_secrets=known,
        named_secrets=[name for name in _named(form) if name not in known],
        preview=preview,
        is_example=is_example,
    )


def _named(form: Form[Any]) -> list[str]:
    """Secrets that the templates ask for, as far as they can be read."""
    found: set[str] = set()
    for key, text in form.values.items():
        if key.startswith("content-") and isinstance(text, str):
            try:
                found.update(secrets_named(text))
            except TemplateProblem:
                continue
    return sorted(found)


@page(pages, f"{ONE}/versions/<id:version>", permission="agents.read")
def show_version(node_id: int, name: str, version: int) -> str:
    """One version, and how it differs from the one before it."""
    session = db.session()
    frame = frame_of(session, node_id, name)
    config = queries.config_by_version(session, frame["agent"].id, version)
    if config is None:
        raise NotFound
    before = queries.config_by_version(session, frame["agent"].id, version - 1)
    return render_template(
        "agents/config_version.html", **frame, config=config, before=before, differences=_differences(before, config)
    )


def _differences(before: AgentConfig | None, config: AgentConfig) -> list[tuple[str, str, str]]:
    """Path, content and difference of each file."""
    old = {file["path"]: file["content"] for file in before.files} if before else {}
    return [
        (file["path"], file["content"], configuring.difference(old.get(file["path"]), file["content"], file["path"]))
        for file in config.files
    ]


def _back(node_id: int, name: str) -> AnyResponse:
    return see_other(url_for("agent_config.show_config", node_id=node_id, name=name))


@page(pages, f"{ONE}/rollback", permission="agents.configure", methods=("POST",))
def roll_back(node_id: int, name: str) -> AnyResponse:
    wanted = request.form.get("version", type=int)
    config = configuring.roll_back(db.session(), current_actor(), node_id, name, wanted)
    tell(_("Version %(version)s is on its way: %(note)s.", version=config.version, note=config.note))
    return _back(node_id, name)


@page(pages, f"{ONE}/push", permission="agents.configure", methods=("POST",))
def push_config(node_id: int, name: str) -> AnyResponse:
    wanted = request.form.get("version", type=int)
    config = configuring.push_config(db.session(), current_actor(), node_id, name, wanted)
    tell(_("Version %(version)s is on its way.", version=config.version))
    return _back(node_id, name)


@page(pages, f"{ONE}/take", permission="agents.configure", methods=("POST",))
def take_config(node_id: int, name: str) -> AnyResponse:
    config = configuring.take_theirs(db.session(), current_actor(), node_id, name)
    tell(_("What was on the host is now version %(version)s.", version=config.version))
    return _back(node_id, name)


@page(pages, f"{ONE}/host", permission="agents.configure")
def compare_config(node_id: int, name: str) -> str:
    """Asks the host while the page is made."""
    frame_of(db.session(), node_id, name)
    problem: tuple[Any, Any] | None = None
    try:
        asking.ask(current_actor(), node_id, configuring.READ_CONFIG, {"name": name})
    except NodeOffline as error:
        problem = (error.message, None)
    except asking.Refused as error:
        problem = (_("The host did not show its files."), error.message)
    session = db.session()
    frame = frame_of(session, node_id, name)
    agent: NodeAgent = frame["agent"].agent
    return render_template(
        "agents/config_host.html",
        **frame,
        problem=problem,
        files=configuring.compare(session, agent),
        read_at=agent.host_files_at,
        on_host=queries.config_on_host(session, agent),
    )


@page(pages, f"{ONE}/spread", permission="agents.configure")
def spread_config(node_id: int, name: str) -> str:
    """The newest version to other hosts that have an agent of this name."""
    selector = request.args.get("selector", "").strip()
    values = {"selector": selector, "max_parallel": configuring.USUAL_PARALLEL, "max_errors": configuring.USUAL_ERRORS}
    return _spread_page(node_id, name, Form(values), selector)


def _spread_page(node_id: int, name: str, form: Form[Any], selector: str) -> str:
    session = db.session()
    frame = frame_of(session, node_id, name)
    chosen: list[NodeAgent] = []
    if selector:
        try:
            chosen = actions.chosen_for_bulk(session, selector, None, name, None)
        except BadParameter as error:
            form.add_errors(error.errors)
    return render_template(
        "agents/config_spread.html",
        **frame,
        form=form,
        selector=selector,
        chosen=chosen,
        shown=chosen[:SHOWN],
        selector_example=EXAMPLE,
        typed=str(len(chosen)) if len(chosen) > TYPED_ABOVE else None,
        newest=queries.newest_config(session, frame["agent"].id),
        secrets=queries.secret_names(session, frame["agent"].id),
    )


@page(pages, f"{ONE}/spread", permission="agents.configure", methods=("POST",))
def push_to_many(node_id: int, name: str) -> Any:
    form = Form.received(SpreadForm, request.form)
    selector = (form.values.get("selector") or "").strip()
    started = form.submit(lambda values: _spread(node_id, name, selector, values))
    if started is None:
        return _spread_page(node_id, name, form, selector), 422
    return see_other(url_for("agents.show_batch", batch_id=started.uuid))


def _spread(node_id: int, name: str, selector: str, values: BulkForm) -> Any:
    """With the secrets of the agent that it comes from, for those who have none of their own."""
    session = db.session()
    source = queries.agent_by_name(session, node_id, name)
    newest = queries.newest_config(session, source.id)
    if newest is None:
        raise BadParameter(_("There is no version yet."))
    if not selector:
        raise BadParameter(errors=[FieldError("selector", _("This is needed."))])
    chosen = actions.chosen_for_bulk(session, selector, None, name, None)
    if len(chosen) > TYPED_ABOVE and request.form.get("confirm", "").strip() != str(len(chosen)):
        raise BadParameter(errors=[FieldError("confirm", _("Please type %(name)s.", name=len(chosen)))])
    care = care_of(values)
    files = [{"path": file["path"], "content": file["content"]} for file in newest.files]
    configuring.share_secrets(session, current_actor(), source, chosen)
    given = ConfigIn.model_validate({"files": files, "apply": newest.apply, "note": newest.note})
    parallel, errors = care.max_parallel, care.max_errors
    said = {"selector": selector, "from": {"node_id": node_id, "version": newest.version}}
    return configuring.configure_many(session, current_actor(), chosen, given, parallel, errors, target=said)
