"""Configurations of agents: versions, secrets, bringing them to hosts and back, and what the host did instead.

The text of a version lies here as a template; what a host gets is made when it fetches the order, so that no secret
ever lies in a table in the clear.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import SequenceMatcher, unified_diff
from typing import Any

from flask_babel import gettext as _
from sqlalchemy import delete, func, insert, inspect, select, update
from sqlalchemy.orm import Session

from app.agents import manifests
from app.agents.actions import payload_of
from app.agents.errors import NothingToRollBackTo, NotOurs
from app.agents.models import (
    FAILED,
    KEPT,
    PUSHING,
    REFUSED,
    REVERTED,
    SAVED,
    AgentConfig,
    AgentConfigText,
    AgentSecret,
    NodeAgent,
)
from app.agents.queries import agent_by_name, config_by_version, config_on_host, healthy_configs, newest_config
from app.agents.schemas import FILE_CHARS, ConfigIn, TemplateFileIn
from app.agents.templating import MASK, TemplateProblem, as_template, facts_of, masked, render, secrets_named
from app.audit.actions import record
from app.commands.actions import issue
from app.commands.fanouts import NewTarget, Plan, start_fanout
from app.commands.hooks import Settled
from app.commands.models import CANCELLED as TARGET_CANCELLED
from app.commands.models import SUCCESS, Command, Fanout
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.errors import BadParameter, Conflict, FieldError
from app.nodes.models import Node
from app.nodes.queries import nodes_by_ids
from protocol import states
from protocol.codec import canonical
from protocol.commands import Result
from protocol.limits import PAYLOAD_CHARS

CONFIGURE, READ_CONFIG = "agent.configure", "agent.read_config"
PURPOSE_CONFIGURE = "agents.configure"
DELIVERED_WITHIN = timedelta(days=1)
PROBATION_S = 10
RUN_WITHIN_S = 600
FRESH = timedelta(minutes=10)
"""So old may be what the host was read to have, before it has to be looked at again."""
TRIED_AT_ONCE = 50
"""Of so many hosts a push to many is tried before it begins."""
USUAL_PARALLEL, USUAL_ERRORS = "10%", 3
LOST_AT_ONCE = 500
LINES_COMPARED = 5000
OUTCOMES = {"kept": KEPT, "reverted": REVERTED, "refused": REFUSED}


@dataclass(frozen=True)
class Rendered:
    """A file as it is for one host, and the same without its secrets."""

    path: str
    content: str
    shown: str


def save_config(session: Session, actor: Actor, node_id: int, name: str, values: ConfigIn) -> AgentConfig:
    """A new version, and unless it is only to be kept, on its way to the host. Raises BadParameter by file and line."""
    authorize(actor, "agents.configure")
    agent = _ours(session, node_id, name)
    _check_paths(agent, values.files)
    _set_secrets(session, actor, [agent], values.secrets)
    check_files(session, agent, values.files)
    config = _new_version(session, actor, agent, values.files, values.apply, values.note)
    if values.push:
        _push(session, actor, agent, config)
    _record(session, actor, "agent.configure", agent, config, {"secrets": sorted(values.secrets or ())})
    return config


def push_config(session: Session, actor: Actor, node_id: int, name: str, version: int | None = None) -> AgentConfig:
    """Bring a version to the host (again): this one, or the one that should be there. Undoes what was changed there."""
    authorize(actor, "agents.configure")
    agent = _ours(session, node_id, name)
    config = config_by_version(session, agent.id, version) if version else config_on_host(session, agent)
    if config is None and version is None:
        config = newest_config(session, agent.id)
    if config is None:
        raise BadParameter(errors=[FieldError("version", _("There is no such version."))])
    check_files(session, agent, _as_files(config))
    _push(session, actor, agent, config)
    _record(session, actor, "agent.push_config", agent, config)
    return config


def roll_back(session: Session, actor: Actor, node_id: int, name: str, version: int | None = None) -> AgentConfig:
    """An earlier version as a new one, brought to the host. Raises NothingToRollBackTo."""
    authorize(actor, "agents.configure")
    agent = _ours(session, node_id, name)
    if version is None:
        healthy = healthy_configs(session, agent.id, 2)
        newest = newest_config(session, agent.id)
        # Where the newest did not prove itself, the last good one is meant; else the one before it.
        earlier = [config for config in healthy if newest is None or config.version < newest.version]
        if not earlier:
            raise NothingToRollBackTo
        old = earlier[0]
    else:
        found = config_by_version(session, agent.id, version)
        if found is None:
            raise BadParameter(errors=[FieldError("version", _("There is no such version."))])
        old = found
    files = _as_files(old)
    _check_paths(agent, files)
    check_files(session, agent, files)
    note = _("back to version %(version)s", version=old.version)
    config = _new_version(session, actor, agent, files, old.apply, note)
    _push(session, actor, agent, config)
    _record(session, actor, "agent.rollback", agent, config, {"to": old.version})
    return config


def take_theirs(session: Session, actor: Actor, node_id: int, name: str) -> AgentConfig:
    """What was changed on the host becomes the newest version. Raises Conflict unless it was read a moment ago."""
    authorize(actor, "agents.configure")
    agent = _ours(session, node_id, name)
    theirs = host_files(agent)
    if theirs is None or agent.host_files_at is None or agent.host_files_at < now() - FRESH:
        raise Conflict(_("Compare with the host first: what it has was not read lately."))
    secrets = secret_values(session, agent)
    ours = config_on_host(session, agent)
    mine = {file.path: file.content for file in rendered(session, agent, _as_files(ours))} if ours else {}
    kept = {file["path"]: file["content"] for file in ours.files} if ours else {}
    files = []
    for path in manifests.config_paths(agent.manifest):
        found = next((file for file in theirs if file["path"] == path), None)
        if found is None or found.get("missing"):
            continue
        if found.get("truncated") or not isinstance(found.get("content"), str):
            raise Conflict(_("%(path)s cannot be taken over: it is too long, or no text.", path=path))
        facts = facts_of(_node_with_names(session, node_id), name, secrets)
        content = _as_ours(kept.get(path, ""), mine.get(path, ""), found["content"], facts)
        files.append(TemplateFileIn(path=path, content=content))
    if not files:
        raise Conflict(_("The host has none of these files."))
    check_files(session, agent, files)
    config = _new_version(session, actor, agent, files, "none", _("as it was found on the host"))
    _push(session, actor, agent, config)
    _record(session, actor, "agent.take_config", agent, config)
    return config


def _as_ours(template: str, made: str, theirs: str, facts: Mapping[str, Any]) -> str:
    """A template that makes their file. Lines that are as we made them stay what they were, where that is sure."""
    ours, lines, new = (text.splitlines(keepends=True) for text in (template, made, theirs))
    if len(ours) == len(lines) and len(new) <= LINES_COMPARED:
        parts: list[str] = []
        for word, start, end, first, last in SequenceMatcher(None, lines, new, autojunk=False).get_opcodes():
            is_kept = word == "equal"
            parts.append(
                "".join(ours[start:end]) if is_kept else as_template("".join(new[first:last]), facts["secret"])
            )
        merged = "".join(parts)
        try:
            if render(merged, facts) == theirs:
                return merged
        except TemplateProblem:
            pass
    return as_template(theirs, facts["secret"])


def configure_many(
    session: Session,
    actor: Actor,
    chosen: Sequence[NodeAgent],
    values: ConfigIn,
    max_parallel: int | str | None = USUAL_PARALLEL,
    max_errors: int | str | None = USUAL_ERRORS,
    target: Mapping[str, Any] | None = None,
) -> Fanout:
    """The same templates for many agents, a few at a time; so many failures stop it. One audit row."""
    authorize(actor, "agents.configure")
    if not chosen:
        raise BadParameter(_("No agent fits."))
    for agent in chosen:
        if not agent.is_ours:
            raise NotOurs(_("%(name)s on %(host)s is declared on the host.", name=agent.name, host=agent.node.hostname))
        _check_paths(agent, values.files)
    _set_secrets(session, actor, chosen, values.secrets)
    nodes_by_ids(session, [agent.node_id for agent in chosen[:TRIED_AT_ONCE]])
    for agent in chosen[:TRIED_AT_ONCE]:
        check_files(session, agent, values.files)
    versions = _new_versions(session, actor, chosen, values)
    names = {agent.name for agent in chosen}
    plan = Plan(
        PURPOSE_CONFIGURE,
        CONFIGURE,
        {},
        title=", ".join(sorted(names)[:5]),
        max_parallel=max_parallel,
        max_errors=max_errors,
        deliver_within_s=int(DELIVERED_WITHIN.total_seconds()),
        run_within_s=RUN_WITHIN_S,
        waits_for_maintenance=False,
    )
    targets = [
        NewTarget(agent.node_id, agent.name, _order(agent.name, versions[agent.id], values.apply)) for agent in chosen
    ]
    mine = update(AgentConfig).where(AgentConfig.state == PUSHING, AgentConfig.fanout_id == 0)
    fanout = start_fanout(session, actor, plan, targets)
    session.execute(mine.values(fanout_id=fanout.id).execution_options(synchronize_session=False))
    said = {"batch": fanout.uuid, "total": len(chosen), "names": sorted(names)[:50], "note": values.note}
    said |= {"files": [file.path for file in values.files], "secrets": sorted(values.secrets or ())}
    said |= {"max_parallel": max_parallel, "max_errors": max_errors} | dict(target or {})
    record(session, actor, "agent.bulk_configure", "agent", None, after=said)
    return fanout


def preview(
    session: Session, agent: NodeAgent, files: Sequence[TemplateFileIn], secrets: Mapping[str, str | None] | None = None
) -> list[dict[str, str]]:
    """What these templates become for this host, with secrets masked, and how that differs from the newest version."""
    _check_paths(agent, files)
    given = {name: MASK for name, value in (secrets or {}).items() if value}
    known = dict.fromkeys(secret_values(session, agent), MASK) | given
    newest = newest_config(session, agent.id)
    before = {file.path: file.shown for file in _rendered_leniently(session, agent, newest)}
    made = _rendered(session, agent, files, known)
    return [
        {"path": file.path, "content": file.content, "diff": difference(before.get(file.path), file.content, file.path)}
        for file in made
    ]


def compare(session: Session, agent: NodeAgent) -> list[dict[str, Any]]:
    """What the host has in the place of what we put there, file by file; no secret can be read in it."""
    secrets = secret_values(session, agent)
    ours = {file.path: file for file in _rendered_leniently(session, agent, config_on_host(session, agent))}
    found = []
    for file in host_files(agent) or ():
        path, content = str(file.get("path")), file.get("content")
        text = masked(content, secrets.values()) if isinstance(content, str) else None
        mine = ours.get(path)
        found.append(
            {
                "path": path,
                "missing": bool(file.get("missing")),
                "truncated": bool(file.get("truncated")),
                "problem": _problem_of(file),
                "content": text,
                "diff": difference(mine.shown if mine else None, text or "", path),
            }
        )
    return found


def _problem_of(file: Mapping[str, Any]) -> str | None:
    """Why nothing of a file can be shown, as its host says."""
    if file.get("binary") is True:
        return str(_("This file is no text."))
    return str(file["error"])[:500] if file.get("error") else None


def difference(before: str | None, after: str, path: str) -> str:
    """As `diff -u` says it; empty if there is none."""
    lines = unified_diff((before or "").splitlines(), after.splitlines(), path, path, lineterm="", n=3)
    return "\n".join(lines)


def check_files(session: Session, agent: NodeAgent, files: Sequence[TemplateFileIn]) -> None:
    """Raises BadParameter, by file, if this cannot be made for this host, or is too long for it."""
    made = rendered(session, agent, files)
    total = len(canonical([[file.path, file.content] for file in made]))
    if total > PAYLOAD_CHARS - 4096:
        raise BadParameter(errors=[FieldError("files", _("All files together are too long."))])


def rendered(session: Session, agent: NodeAgent, files: Sequence[TemplateFileIn]) -> list[Rendered]:
    """With real secrets; `shown` is without them. Raises BadParameter by file."""
    return _rendered(session, agent, files, secret_values(session, agent))


def _rendered(
    session: Session, agent: NodeAgent, files: Sequence[TemplateFileIn], secrets: Mapping[str, str]
) -> list[Rendered]:
    node = _node_with_names(session, agent.node_id)
    facts, errors, made = facts_of(node, agent.name, secrets), [], []
    for number, file in enumerate(files):
        try:
            missing = [name for name in secrets_named(file.content) if name not in secrets]
            if missing:
                problem = _("These secrets have no value yet: %(names)s", names=", ".join(missing))
                raise TemplateProblem(problem)
            content = render(file.content, facts)
        except TemplateProblem as error:
            errors.append(FieldError(f"files.{number}.content", f"{node.hostname}: {error}"))
            continue
        made.append(Rendered(file.path, content, masked(content, secrets.values())))
    if errors:
        raise BadParameter(errors=errors)
    return made


def _node_with_names(session: Session, node_id: int) -> Node:
    """Also one that was read before without its tags and labels."""
    node = session.get(Node, node_id)
    if node is None or {"tag_rows", "label_rows", "group"} & inspect(node).unloaded:
        return nodes_by_ids(session, [node_id])[0]
    return node


def _rendered_leniently(session: Session, agent: NodeAgent, config: AgentConfig | None) -> list[Rendered]:
    """An older version may no longer fit today's labels; there is nothing to compare with then."""
    if config is None:
        return []
    try:
        return rendered(session, agent, _as_files(config))
    except BadParameter:
        return []


def _ours(session: Session, node_id: int, name: str) -> NodeAgent:
    agent = agent_by_name(session, node_id, name, is_locked=True)
    if not agent.is_ours:
        raise NotOurs
    return agent


def _as_files(config: AgentConfig) -> list[TemplateFileIn]:
    return [TemplateFileIn.model_validate(file) for file in config.files]


def _check_paths(agent: NodeAgent, files: Sequence[TemplateFileIn]) -> None:
    allowed = manifests.config_paths(agent.manifest)
    errors, seen = [], set()
    for number, file in enumerate(files):
        if file.path not in allowed:
            listed = ", ".join(allowed) or _("none")
            message = _("The manifest does not name this file. It names: %(paths)s", paths=listed)
            errors.append(FieldError(f"files.{number}.path", message))
        elif file.path in seen:
            errors.append(FieldError(f"files.{number}.path", _("The same path stands here twice.")))
        seen.add(file.path)
    if errors:
        raise BadParameter(errors=errors)


def secret_values(session: Session, agent: NodeAgent) -> dict[str, str]:
    """Opened. To be put into what goes to the host, or to be recognised in what comes from it; never to be shown."""
    mine = select(AgentSecret.name, AgentSecret.value).where(AgentSecret.agent_id == agent.id)
    box = ops().keys.box
    return {name: box.decrypt(value, _seal(agent.id, name)).decode() for name, value in session.execute(mine)}


def _set_secrets(
    session: Session, actor: Actor, agents: Sequence[NodeAgent], given: Mapping[str, str | None] | None
) -> None:
    if not given or not agents:
        return
    box, ids, at = ops().keys.box, [agent.id for agent in agents], now()
    for start in range(0, len(ids), 500):
        some = AgentSecret.agent_id.in_(ids[start : start + 500])
        session.execute(delete(AgentSecret).where(some, AgentSecret.name.in_(given)))
    rows = [
        {
            "agent_id": agent_id,
            "name": name,
            "value": box.encrypt(value.encode(), _seal(agent_id, name)),
            "updated_by": actor.username,
            "updated_at": at,
        }
        for agent_id in ids
        for name, value in given.items()
        if value is not None
    ]
    if rows:
        session.execute(insert(AgentSecret), rows)
    session.flush()


def share_secrets(session: Session, actor: Actor, source: NodeAgent, chosen: Sequence[NodeAgent]) -> None:
    """Give others the secrets of one agent, as far as they have none of the same name."""
    values = secret_values(session, source)
    for name, value in values.items():
        has = select(AgentSecret.agent_id).where(AgentSecret.name == name)
        owners = set(session.scalars(has))
        _set_secrets(session, actor, [agent for agent in chosen if agent.id not in owners], {name: value})


def _seal(agent_id: int, name: str) -> str:
    return f"agent_secrets:{agent_id}:{name}"


def _new_version(
    session: Session,
    actor: Actor,
    agent: NodeAgent,
    files: Sequence[TemplateFileIn],
    apply: str,
    note: str | None,
) -> AgentConfig:
    newest = session.scalar(select(func.max(AgentConfig.version)).where(AgentConfig.agent_id == agent.id)) or 0
    config = AgentConfig(
        agent_id=agent.id,
        version=max(newest, agent.config_version or 0) + 1,
        text=_text(session, files),
        apply=apply,
        note=note,
        created_by=actor.username,
    )
    session.add(config)
    session.flush()
    return config


def _new_versions(session: Session, actor: Actor, chosen: Sequence[NodeAgent], values: ConfigIn) -> dict[int, int]:
    """A version for each of many; `fanout_id` 0 stands for the fan-out that is about to be made."""
    text, at = _text(session, values.files), now()
    newest: dict[int, int] = {}
    for start in range(0, len(chosen), 500):
        ids = [agent.id for agent in chosen[start : start + 500]]
        highest = select(AgentConfig.agent_id, func.max(AgentConfig.version)).where(AgentConfig.agent_id.in_(ids))
        newest |= {row[0]: row[1] for row in session.execute(highest.group_by(AgentConfig.agent_id))}
    versions = {agent.id: max(newest.get(agent.id, 0), agent.config_version or 0) + 1 for agent in chosen}
    rows = [
        {
            "agent_id": agent_id,
            "version": version,
            "text_id": text.id,
            "apply": values.apply,
            "note": values.note,
            "state": PUSHING,
            "fanout_id": 0,
            "created_by": actor.username,
            "created_at": at,
            "pushed_at": at,
        }
        for agent_id, version in versions.items()
    ]
    session.execute(insert(AgentConfig), rows)
    return versions


def _text(session: Session, files: Sequence[TemplateFileIn]) -> AgentConfigText:
    plain = [{"path": file.path, "content": file.content} for file in files]
    digest = hashlib.sha256(canonical(plain).encode()).hexdigest()
    text = session.scalar(select(AgentConfigText).where(AgentConfigText.digest == digest))
    if text is None:
        text = AgentConfigText(digest=digest, files=plain)
        session.add(text)
        session.flush()
    return text


def _order(name: str, version: int, apply: str) -> dict[str, Any]:
    """What is stored of the order; `complete_order` puts in the rest when the host fetches it."""
    return {"name": name, "version": version, "apply": apply, "probation_s": PROBATION_S}


def _push(session: Session, actor: Actor, agent: NodeAgent, config: AgentConfig) -> None:
    _withdraw_waiting(session, agent)
    order = _order(agent.name, config.version, config.apply)
    command = issue(session, actor, agent.node_id, CONFIGURE, order, DELIVERED_WITHIN)
    config.state, config.detail, config.command_id = PUSHING, None, command.id
    config.pushed_at, config.finished_at, config.fanout_id = now(), None, None
    session.flush()


def _withdraw_waiting(session: Session, agent: NodeAgent) -> None:
    """Earlier versions that the host has not fetched yet: it is to get this one only."""
    waiting = select(AgentConfig).where(AgentConfig.agent_id == agent.id, AgentConfig.state == PUSHING)
    for config in session.scalars(waiting.where(AgentConfig.command_id.is_not(None))).all():
        queued = update(Command).where(Command.id == config.command_id, Command.state == states.QUEUED)
        changed = session.execute(queued.values(state=states.CANCELLED, finished_at=now()))
        if changed.rowcount:  # type: ignore[attr-defined]
            config.state, config.detail, config.command_id = SAVED, _("a later version was sent instead"), None


def complete_order(session: Session, command: Command, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The order as the host gets it, with the files made for it. Raises AppError if they cannot be made any more."""
    agent = agent_by_name(session, command.node_id, stored["name"])
    config = config_by_version(session, agent.id, stored["version"])
    if config is None:
        raise Conflict(_("There is no such version."))
    if _is_overtaken(session, config):
        raise Conflict(_("a later version was sent instead"))
    try:
        made = rendered(session, agent, _as_files(config))
    except BadParameter as error:
        raise Conflict("; ".join(one["message"] for one in error.errors)) from None
    return {**stored, "files": [{"path": file.path, "content": file.content} for file in made]}


def _is_overtaken(session: Session, config: AgentConfig) -> bool:
    """Whether a later version was sent after this one, while this one waited for its turn among many."""
    later = select(AgentConfig.id).where(
        AgentConfig.agent_id == config.agent_id,
        AgentConfig.version > config.version,
        AgentConfig.pushed_at > config.pushed_at,
        AgentConfig.state.in_((PUSHING, KEPT)),
    )
    return session.scalar(later.limit(1)) is not None


def take_configure_result(session: Session, command: Command, result: Result) -> None:
    """How a version fared on the host."""
    order, told = payload_of(session, command), result.data if isinstance(result.data, dict) else {}
    agent = session.query(NodeAgent).filter_by(node_id=command.node_id, name=order["name"]).one_or_none()
    config = None if agent is None else config_by_version(session, agent.id, order["version"])
    if agent is None or config is None:
        return
    state = OUTCOMES.get(str(told.get("outcome")), KEPT if result.status == states.SUCCEEDED else FAILED)
    detail = told.get("detail") if isinstance(told.get("detail"), str) else None
    secrets = secret_values(session, agent).values()
    said = masked(str(detail or result.error or ""), secrets)[:4000]
    config.state, config.detail, config.finished_at = state, said or None, now()
    config.command_id = command.id
    if state == KEPT:
        agent.config_version, agent.drifted, agent.fingerprint, agent.updated_at = config.version, False, "", now()
        agent.host_files = agent.host_files_at = None
    command.result = {"outcome": told.get("outcome"), "version": config.version}
    command.error = masked(command.error, secrets) if command.error else None
    session.flush()


def note_settled(session: Session, fanout: Fanout, settled: Sequence[Settled]) -> None:
    """Of a push to many: agents whose turn never came, or whose host said nothing."""
    states_of = {(one.node_id, one.subject): one.state for one in settled if one.state != SUCCESS}
    for (node_id, name), state in states_of.items():
        mine = select(NodeAgent.id).where(NodeAgent.node_id == node_id, NodeAgent.name == name).scalar_subquery()
        open_one = update(AgentConfig).where(
            AgentConfig.agent_id == mine, AgentConfig.fanout_id.in_((fanout.id, 0)), AgentConfig.state == PUSHING
        )
        ended = SAVED if state == TARGET_CANCELLED else FAILED
        detail = _("not begun") if ended == SAVED else _("the host has not said how it ended")
        values = {"state": ended, "detail": detail, "finished_at": now()}
        session.execute(open_one.values(values).execution_options(synchronize_session=False))


def settle_lost_pushes(session: Session) -> int:
    """Versions whose order came to an end without a word of the host: it was not fetched in time, or could not be made.

    Those of a push to many are told by their fan-out.
    """
    ended = (Command.state.in_(states.TERMINAL), AgentConfig.state == PUSHING)
    lost = select(AgentConfig, Command.error).join(Command, Command.id == AgentConfig.command_id).where(*ended)
    rows = session.execute(lost.limit(LOST_AT_ONCE)).all()
    for config, error in rows:
        config.state, config.finished_at = FAILED, now()
        config.detail = error or _("The host did not fetch it in time.")
    session.flush()
    return len(rows)


def take_read_config(session: Session, command: Command, result: Result) -> None:
    """Keep what the host has, encrypted: it may hold secrets. The command itself keeps nothing of it."""
    told = result.data if isinstance(result.data, dict) else {}
    command.result = None
    name = payload_of(session, command)["name"]
    agent = session.query(NodeAgent).filter_by(node_id=command.node_id, name=name).one_or_none()
    if agent is None or result.status != states.SUCCEEDED or not isinstance(told.get("files"), list):
        return
    files = [file for file in told["files"] if isinstance(file, dict) and _is_readable(file)]
    agent.host_files = ops().keys.box.encrypt(json.dumps(files).encode(), _files_seal(agent.id))
    agent.host_files_at = now()
    session.flush()


def _is_readable(file: Mapping[str, Any]) -> bool:
    content = file.get("content")
    return isinstance(file.get("path"), str) and (
        content is None or (isinstance(content, str) and len(content) <= FILE_CHARS)
    )


def host_files(agent: NodeAgent) -> list[dict[str, Any]] | None:
    """What the host had when it was read last."""
    if agent.host_files is None:
        return None
    files: list[dict[str, Any]] = json.loads(ops().keys.box.decrypt(agent.host_files, _files_seal(agent.id)))
    return files


def _files_seal(agent_id: int) -> str:
    return f"node_agents.host_files:{agent_id}"


def _record(
    session: Session,
    actor: Actor,
    action: str,
    agent: NodeAgent,
    config: AgentConfig,
    more: Mapping[str, Any] | None = None,
) -> None:
    node = session.get(Node, agent.node_id)
    said = {"node_id": agent.node_id, "hostname": node.hostname if node else "", "name": agent.name}
    said |= {"version": config.version, "note": config.note, "files": [file["path"] for file in config.files]}
    record(session, actor, action, "agent", agent.id, after=said | dict(more or {}))
