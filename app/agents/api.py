"""Agents for programs: of one node, of the fleet, their orders, logs and configurations."""

from typing import Any

from flask_babel import gettext as _

from app.agents import actions, asking, configuring, logs, queries, ready
from app.agents.errors import AgentNotFound, NothingToRollBackTo, NotOurs
from app.agents.models import AgentConfig, NodeAgent
from app.agents.schemas import (
    AgentDetailOut,
    AgentOut,
    AgentQuery,
    AgentsOut,
    BatchOut,
    Bulk,
    CatalogueOut,
    CommandIdOut,
    ConfigIn,
    ConfigOut,
    ConfigVersionOut,
    ConfigVersionsQuery,
    FleetAgentOut,
    HostConfigOut,
    LogsOut,
    LogsQuery,
    ManifestIn,
    PreviewIn,
    PreviewOut,
    PushedOut,
    RollbackIn,
    Verb,
)
from app.kernel.access import authorize, current_actor
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.kernel.paging import Page
from app.nodes.errors import NodeNotFound, NodeOffline

api = ApiRoom("agents", "Agents")
MISSING = (NodeNotFound, AgentNotFound)


@api.get("/agents", permission="agents.read", summary="Agents", query=AgentQuery, returns=Listing[FleetAgentOut])
def list_agents(query: AgentQuery) -> Page[queries.AgentNow]:
    return queries.agents(db.session(), query)


@api.get("/agents/catalogue", permission="agents.read", summary="Ready manifests", returns=CatalogueOut)
def list_catalogue() -> dict[str, Any]:
    return {"items": list(ready.catalogue().values())}


@api.post(
    "/agents/bulk",
    permission="agents.control",
    summary="Start, stop, restart, reload or configure many agents, a few at a time if wanted",
    body=Bulk,
    returns=BatchOut,
    status=202,
    errors=(NodeNotFound, Conflict, NotOurs),
    is_idempotent=True,
)
def change_agents(body: Bulk) -> dict[str, Any]:
    session, actor = db.session(), current_actor()
    chosen = actions.chosen_for_bulk(session, body.selector, body.node_ids, body.name, body.type)
    said = body.model_dump(mode="json", include={"selector", "name", "type"}, exclude_none=True)
    if body.action == "configure":
        authorize(actor, "agents.configure")
        if body.files is None:
            raise BadParameter(errors=[FieldError("files", _("This is needed."))])
        values = ConfigIn(files=body.files, secrets=body.secrets, apply=body.apply, note=body.note)
        given = {name: getattr(body, name) for name in ("max_parallel", "max_errors") if name in body.model_fields_set}
        fanout = configuring.configure_many(session, actor, chosen, values, target=said, **given)
    else:
        fanout = actions.control_agents(
            session, actor, body.action, chosen, body.max_parallel, body.max_errors, target=said
        )
    nodes = {agent.node_id for agent in chosen}
    return {"batch_id": fanout.uuid, "total": len(chosen), "total_nodes": len(nodes)}


@api.get(
    "/nodes/<id:node_id>/agents",
    permission="agents.read",
    summary="Agents of a node",
    returns=AgentsOut,
    errors=(NodeNotFound,),
)
def list_node_agents(node_id: int) -> dict[str, Any]:
    return {"items": queries.node_agents(db.session(), node_id)}


@api.get(
    "/nodes/<id:node_id>/agent",
    permission="agents.read",
    summary="The agent that executes tasks",
    returns=AgentOut,
    errors=MISSING,
)
def show_task_agent(node_id: int) -> queries.AgentNow:
    return queries.task_agent(db.session(), node_id)


@api.post(
    "/nodes/<id:node_id>/agents",
    permission="agents.configure",
    summary="Have a node supervise a program",
    body=ManifestIn,
    returns=AgentDetailOut,
    status=201,
    errors=(NodeNotFound, Conflict),
    is_idempotent=True,
)
def create_agent(node_id: int, body: ManifestIn) -> queries.AgentNow:
    session = db.session()
    agent = actions.create_agent(session, current_actor(), node_id, body.plain())
    return queries.agent_now(session, node_id, agent.name)


@api.get(
    "/nodes/<id:node_id>/agents/<name>",
    permission="agents.read",
    summary="One agent",
    returns=AgentDetailOut,
    errors=MISSING,
)
def show_agent(node_id: int, name: str) -> queries.AgentNow:
    return queries.agent_now(db.session(), node_id, name)


@api.put(
    "/nodes/<id:node_id>/agents/<name>",
    permission="agents.configure",
    summary="Another manifest; the whole of it",
    body=ManifestIn,
    returns=AgentDetailOut,
    errors=(*MISSING, NotOurs),
)
def update_agent(node_id: int, name: str, body: ManifestIn) -> queries.AgentNow:
    session = db.session()
    actions.update_agent(session, current_actor(), node_id, name, body.plain())
    return queries.agent_now(session, node_id, name)


@api.delete(
    "/nodes/<id:node_id>/agents/<name>",
    permission="agents.configure",
    summary="The node stops it and forgets it",
    errors=(*MISSING, NotOurs),
)
def delete_agent(node_id: int, name: str) -> None:
    actions.delete_agent(db.session(), current_actor(), node_id, name)


def _control(node_id: int, name: str, verb: Verb) -> dict[str, Any]:
    return {"command_id": actions.control_agent(db.session(), current_actor(), node_id, name, verb).id}


CONTROL: dict[str, Any] = {
    "permission": "agents.control",
    "returns": CommandIdOut,
    "status": 202,
    "errors": (*MISSING, Conflict),
    "is_idempotent": True,
}


@api.post("/nodes/<id:node_id>/agents/<name>/start", summary="Start it, and keep it running", **CONTROL)
def start_agent(node_id: int, name: str) -> dict[str, Any]:
    return _control(node_id, name, "start")


@api.post("/nodes/<id:node_id>/agents/<name>/stop", summary="Stop it, and keep it stopped", **CONTROL)
def stop_agent(node_id: int, name: str) -> dict[str, Any]:
    return _control(node_id, name, "stop")


@api.post("/nodes/<id:node_id>/agents/<name>/restart", summary="Stop it and start it again", **CONTROL)
def restart_agent(node_id: int, name: str) -> dict[str, Any]:
    return _control(node_id, name, "restart")


@api.post("/nodes/<id:node_id>/agents/<name>/reload", summary="Have it read its configuration again", **CONTROL)
def reload_agent(node_id: int, name: str) -> dict[str, Any]:
    return _control(node_id, name, "reload")


@api.get(
    "/nodes/<id:node_id>/agents/<name>/logs",
    permission="agents.read",
    summary="Its last lines, asked of the host now; `daemon` stands for the Daemon itself",
    query=LogsQuery,
    returns=LogsOut,
    errors=(*MISSING, NodeOffline, Conflict),
)
def show_logs(node_id: int, name: str, query: LogsQuery) -> Any:
    return logs.read(current_actor(), node_id, name, query)


@api.get(
    "/nodes/<id:node_id>/agents/<name>/config",
    permission="agents.read",
    summary="The newest version of its configuration",
    returns=ConfigOut,
    errors=MISSING,
)
def show_config(node_id: int, name: str) -> dict[str, Any]:
    session = db.session()
    agent = queries.agent_by_name(session, node_id, name)
    return _config(agent, queries.newest_config(session, agent.id))


@api.put(
    "/nodes/<id:node_id>/agents/<name>/config",
    permission="agents.configure",
    summary="A new version, brought to the host at once unless `push` is false",
    body=ConfigIn,
    returns=ConfigOut,
    errors=(*MISSING, NotOurs),
)
def save_config(node_id: int, name: str, body: ConfigIn) -> dict[str, Any]:
    session = db.session()
    config = configuring.save_config(session, current_actor(), node_id, name, body)
    return _config(queries.agent_by_name(session, node_id, name), config)


def _config(agent: NodeAgent, config: AgentConfig | None) -> dict[str, Any]:
    names = ("version", "state", "detail", "note", "created_by", "created_at", "command_id")
    return {
        **{name: getattr(config, name, None) for name in names},
        "healthy": None if config is None else config.is_healthy,
        "apply": "reload" if config is None else config.apply,
        "files": [] if config is None else config.files,
        "secrets": queries.secret_names(db.session(), agent.id),
        "host_version": agent.config_version,
        "drifted": agent.drifted,
    }


@api.get(
    "/nodes/<id:node_id>/agents/<name>/config/versions",
    permission="agents.read",
    summary="All versions of its configuration, newest first, and how they fared",
    query=ConfigVersionsQuery,
    returns=Listing[ConfigVersionOut],
    errors=MISSING,
)
def list_config_versions(node_id: int, name: str, query: ConfigVersionsQuery) -> Page[AgentConfig]:
    session = db.session()
    return queries.configs(session, queries.agent_by_name(session, node_id, name).id, query)


@api.post(
    "/nodes/<id:node_id>/agents/<name>/config/rollback",
    permission="agents.configure",
    summary="An earlier version again, as a new one",
    body=RollbackIn,
    returns=PushedOut,
    status=202,
    errors=(*MISSING, NotOurs, NothingToRollBackTo),
    is_idempotent=True,
)
def roll_back(node_id: int, name: str, body: RollbackIn) -> AgentConfig:
    return configuring.roll_back(db.session(), current_actor(), node_id, name, body.version)


@api.post(
    "/nodes/<id:node_id>/agents/<name>/config/push",
    permission="agents.configure",
    summary="A version to the host once more: undoes what was changed there",
    body=RollbackIn,
    returns=PushedOut,
    status=202,
    errors=(*MISSING, NotOurs),
    is_idempotent=True,
)
def push_config(node_id: int, name: str, body: RollbackIn) -> AgentConfig:
    return configuring.push_config(db.session(), current_actor(), node_id, name, body.version)


@api.post(
    "/nodes/<id:node_id>/agents/<name>/config/preview",
    permission="agents.configure",
    summary="What templates become for this host, and what would change; secrets are masked",
    body=PreviewIn,
    returns=PreviewOut,
    errors=(*MISSING, NotOurs),
)
def preview_config(node_id: int, name: str, body: PreviewIn) -> dict[str, Any]:
    session = db.session()
    agent = queries.agent_by_name(session, node_id, name)
    return {"files": configuring.preview(session, agent, body.files, body.secrets)}


@api.get(
    "/nodes/<id:node_id>/agents/<name>/config/host",
    permission="agents.configure",
    summary="What lies on the host, read now, and how it differs from what was put there; secrets are masked",
    returns=HostConfigOut,
    errors=(*MISSING, NodeOffline, Conflict),
)
def show_host_config(node_id: int, name: str) -> dict[str, Any]:
    session = db.session()
    queries.agent_by_name(session, node_id, name)
    asking.ask(current_actor(), node_id, configuring.READ_CONFIG, {"name": name})
    session = db.session()
    agent = queries.agent_by_name(session, node_id, name)
    return {"read_at": agent.host_files_at, "files": configuring.compare(session, agent)}


@api.post(
    "/nodes/<id:node_id>/agents/<name>/config/take",
    permission="agents.configure",
    summary="What was read from the host becomes the newest version",
    returns=PushedOut,
    status=202,
    errors=(*MISSING, NotOurs),
    is_idempotent=True,
)
def take_config(node_id: int, name: str) -> AgentConfig:
    return configuring.take_theirs(db.session(), current_actor(), node_id, name)
