"""Nodes, groups, selectors and enrolment for programs."""

from typing import Any

from app.events.models import Event
from app.events.queries import events
from app.events.schemas import EventOut, NodeEventQuery
from app.kernel.access import current_actor
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.errors import Conflict, NotFound
from app.kernel.paging import Page
from app.nodes import actions, enrolment, group_queries, grouping, queries
from app.nodes.errors import NodeExists, NodeNotFound
from app.nodes.install import install_command
from app.nodes.models import EnrollmentToken, Node
from app.nodes.schemas import (
    BulkOut,
    EnrollmentTokenOut,
    GroupIn,
    GroupOut,
    GroupQuery,
    GroupUpdate,
    Maintenance,
    NewEnrollmentTokenOut,
    NewNodeOut,
    NodeBulk,
    NodeCreate,
    NodeDetailOut,
    NodeIds,
    NodeOut,
    NodeQuery,
    NodeUpdate,
    PreviewOut,
    SelectorIn,
    TokenIn,
    TokenQuery,
)

api = ApiRoom("nodes", "Nodes, groups and enrolment")


@api.get("/nodes", permission="nodes.read", summary="Nodes", query=NodeQuery, returns=Listing[NodeOut])
def list_nodes(query: NodeQuery) -> Page[Node]:
    return queries.nodes(db.session(), query)


@api.post(
    "/nodes",
    permission="enrollment.manage",
    summary="A node before its host comes; the answer holds a token for this one node",
    body=NodeCreate,
    returns=NewNodeOut,
    status=201,
    errors=(NodeExists,),
    is_idempotent=True,
)
def create_node(body: NodeCreate) -> dict[str, Any]:
    node, secret = actions.create_node(db.session(), current_actor(), body)
    shown = NodeOut.model_validate(node).model_dump()
    return shown | {"token": secret, "install_command": install_command(secret)}


@api.get(
    "/nodes/<id:node_id>",
    permission="nodes.read",
    summary="One node",
    returns=NodeDetailOut,
    errors=(NodeNotFound,),
)
def show_node(node_id: int) -> Node:
    return queries.node_by_id(db.session(), node_id)


@api.put(
    "/nodes/<id:node_id>",
    permission="nodes.edit",
    summary="Change group, tags, labels or description; what is left out stays",
    body=NodeUpdate,
    returns=NodeDetailOut,
    errors=(NodeNotFound,),
)
def update_node(node_id: int, body: NodeUpdate) -> Node:
    return actions.update_node(db.session(), current_actor(), node_id, body)


@api.delete(
    "/nodes/<id:node_id>",
    permission="nodes.delete",
    summary="Delete a node; its Daemon is turned away from now on",
    errors=(NodeNotFound,),
)
def delete_node(node_id: int) -> None:
    actions.delete_node(db.session(), current_actor(), node_id)


@api.post(
    "/nodes/bulk",
    permission="nodes.edit",
    summary="One action on many nodes, all or none",
    body=NodeBulk,
    returns=BulkOut,
    errors=(NodeNotFound,),
    is_idempotent=True,
)
def change_nodes(body: NodeBulk) -> dict[str, Any]:
    return _touched(actions.change_nodes(db.session(), current_actor(), body))


@api.post(
    "/nodes/approve",
    permission="enrollment.manage",
    summary="Let waiting hosts in",
    body=NodeIds,
    returns=BulkOut,
    errors=(NodeNotFound,),
)
def approve_nodes(body: NodeIds) -> dict[str, Any]:
    return _touched(actions.approve_nodes(db.session(), current_actor(), body.node_ids))


@api.post(
    "/nodes/reject",
    permission="enrollment.manage",
    summary="Turn waiting hosts away",
    body=NodeIds,
    returns=BulkOut,
    errors=(NodeNotFound,),
)
def reject_nodes(body: NodeIds) -> dict[str, Any]:
    return _touched(actions.reject_nodes(db.session(), current_actor(), body.node_ids))


def _touched(node_ids: list[int]) -> dict[str, Any]:
    return {"changed": len(node_ids), "node_ids": node_ids}


@api.post(
    "/nodes/<id:node_id>/revoke",
    permission="enrollment.manage",
    summary="Turn a host away for good, at once",
    returns=NodeOut,
    errors=(NodeNotFound, Conflict),
)
def revoke_node(node_id: int) -> Node:
    return actions.revoke_node(db.session(), current_actor(), node_id)


@api.post(
    "/nodes/<id:node_id>/maintenance",
    permission="nodes.edit",
    summary="Begin maintenance, or move its end",
    body=Maintenance,
    returns=NodeOut,
    errors=(NodeNotFound,),
)
def begin_maintenance(node_id: int, body: Maintenance) -> Node:
    return actions.begin_maintenance(db.session(), current_actor(), node_id, body.until, body.reason)


@api.delete(
    "/nodes/<id:node_id>/maintenance", permission="nodes.edit", summary="End maintenance", errors=(NodeNotFound,)
)
def end_maintenance(node_id: int) -> None:
    actions.end_maintenance(db.session(), current_actor(), node_id)


@api.get(
    "/nodes/<id:node_id>/events",
    permission="events.read",
    summary="What happened to a node, newest first",
    query=NodeEventQuery,
    returns=Listing[EventOut],
    errors=(NodeNotFound,),
)
def list_node_events(node_id: int, query: NodeEventQuery) -> Page[Event]:
    queries.node_by_id(db.session(), node_id)
    return events(db.session(), query.of_node(node_id))


@api.get(
    "/groups",
    permission="nodes.read",
    summary="The tree of groups, parents first",
    query=GroupQuery,
    returns=Listing[GroupOut],
)
def list_groups(query: GroupQuery) -> dict[str, Any]:
    found = group_queries.groups_page(db.session(), query)
    return {
        "total": found.total,
        "items": [_group(branch) for branch in found.items],
        "page": found.page,
        "page_size": found.page_size,
    }


@api.post(
    "/groups",
    permission="groups.edit",
    summary="A new group",
    body=GroupIn,
    returns=GroupOut,
    status=201,
    errors=(Conflict,),
    is_idempotent=True,
)
def create_group(body: GroupIn) -> dict[str, Any]:
    return _group_by_id(grouping.create_group(db.session(), current_actor(), body).id)


@api.get("/groups/<id:group_id>", permission="nodes.read", summary="One group", returns=GroupOut, errors=(NotFound,))
def show_group(group_id: int) -> dict[str, Any]:
    return _group_by_id(group_id)


@api.put(
    "/groups/<id:group_id>",
    permission="groups.edit",
    summary="Rename, move or describe a group; what is left out stays",
    body=GroupUpdate,
    returns=GroupOut,
    errors=(NotFound, Conflict),
)
def update_group(group_id: int, body: GroupUpdate) -> dict[str, Any]:
    return _group_by_id(grouping.update_group(db.session(), current_actor(), group_id, body).id)


@api.delete(
    "/groups/<id:group_id>",
    permission="groups.delete",
    summary="Delete a group without nodes and without groups below it",
    errors=(NotFound, Conflict),
)
def delete_group(group_id: int) -> None:
    grouping.delete_group(db.session(), current_actor(), group_id)


def _group_by_id(group_id: int) -> dict[str, Any]:
    group_queries.group_by_id(db.session(), group_id)
    return next(_group(branch) for branch in group_queries.group_tree(db.session()) if branch.group.id == group_id)


def _group(branch: group_queries.Branch) -> dict[str, Any]:
    shown = {name: getattr(branch.group, name) for name in GroupOut.model_fields if name != "node_count"}
    return shown | {"node_count": branch.total}


@api.post(
    "/selectors/preview",
    permission="nodes.read",
    summary="The very hosts that a selector names now",
    body=SelectorIn,
    returns=PreviewOut,
)
def preview_selector(body: SelectorIn) -> queries.Preview:
    return queries.preview(db.session(), body.selector)


@api.get(
    "/enrollment/tokens",
    permission="enrollment.manage",
    summary="Join tokens, newest first",
    query=TokenQuery,
    returns=Listing[EnrollmentTokenOut],
)
def list_tokens(query: TokenQuery) -> Page[EnrollmentToken]:
    return queries.enrollment_tokens(db.session(), query)


@api.post(
    "/enrollment/tokens",
    permission="enrollment.manage",
    summary="A new join token; its secret is in this answer only",
    body=TokenIn,
    returns=NewEnrollmentTokenOut,
    status=201,
    is_idempotent=True,
)
def create_token(body: TokenIn) -> dict[str, Any]:
    token, secret = enrolment.create_token(db.session(), current_actor(), body)
    shown = EnrollmentTokenOut.model_validate(token).model_dump()
    return shown | {"token": secret, "install_command": install_command(secret)}


@api.delete(
    "/enrollment/tokens/<id:token_id>",
    permission="enrollment.manage",
    summary="Revoke a join token; hosts that came in with it stay",
    errors=(NotFound,),
)
def revoke_token(token_id: int) -> None:
    enrolment.revoke_token(db.session(), current_actor(), token_id)
