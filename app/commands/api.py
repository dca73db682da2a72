"""Commands and batches (fan-outs) for programs: what became of an order, how far many have come, and their control."""

from typing import Any
from uuid import UUID

from app.commands import fanouts, queries
from app.commands.schemas import BatchOut, BatchQuery, BatchStarted, CommandOut, TargetOut, TargetQuery
from app.kernel.access import current_actor
from app.kernel.api import ApiRoom, Listing
from app.kernel.db import db
from app.kernel.errors import Conflict, NotFound
from app.kernel.paging import Page

api = ApiRoom("commands", "Commands and batches")


@api.get(
    "/commands/<id:command_id>",
    permission="commands.read",
    summary="One command: an order for one host, and what became of it",
    returns=CommandOut,
    errors=(NotFound,),
)
def show_command(command_id: int) -> dict[str, Any]:
    session = db.session()
    return queries.shown_command(session, queries.command_by_id(session, command_id))


@api.get(
    "/batches",
    permission="commands.read",
    summary="Batches, newest first: the same command for many hosts",
    query=BatchQuery,
    returns=Listing[BatchOut],
)
def list_batches(query: BatchQuery) -> dict[str, Any]:
    found = queries.fanouts(db.session(), query)
    items = queries.shown_fanouts(db.session(), found.items)
    return {"total": found.total, "items": items, "page": found.page, "page_size": found.page_size}


@api.get(
    "/batches/<uuid:batch_id>",
    permission="commands.read",
    summary="How far a batch has come",
    returns=BatchOut,
    errors=(NotFound,),
)
def show_batch(batch_id: UUID) -> dict[str, Any]:
    return _shown(batch_id)


@api.get(
    "/batches/<uuid:batch_id>/targets",
    permission="commands.read",
    summary="A batch's hosts, in the order of their turns, and what each waits for",
    query=TargetQuery,
    returns=Listing[TargetOut],
    errors=(NotFound,),
)
def list_targets(batch_id: UUID, query: TargetQuery) -> Page[queries.TargetView]:
    return queries.targets(db.session(), queries.fanout_by_uuid(db.session(), str(batch_id)), query)


@api.post(
    "/batches/<uuid:batch_id>/pause",
    permission="commands.control",
    summary="Hand out nothing more for now; what hosts have goes on",
    returns=BatchOut,
    errors=(NotFound, Conflict),
)
def pause_batch(batch_id: UUID) -> dict[str, Any]:
    fanouts.pause_fanout(db.session(), current_actor(), _id(batch_id))
    return _shown(batch_id)


@api.post(
    "/batches/<uuid:batch_id>/resume",
    permission="commands.control",
    summary="Go on with a paused batch",
    returns=BatchOut,
    errors=(NotFound, Conflict),
)
def resume_batch(batch_id: UUID) -> dict[str, Any]:
    fanouts.resume_fanout(db.session(), current_actor(), _id(batch_id))
    return _shown(batch_id)


@api.post(
    "/batches/<uuid:batch_id>/cancel",
    permission="commands.control",
    summary="End a batch: what no host has yet is cancelled, what hosts have is ended where that is possible",
    returns=BatchOut,
    errors=(NotFound, Conflict),
)
def cancel_batch(batch_id: UUID) -> dict[str, Any]:
    fanouts.cancel_fanout(db.session(), current_actor(), _id(batch_id))
    return _shown(batch_id)


@api.post(
    "/batches/<uuid:batch_id>/retry",
    permission="commands.control",
    summary="The same again for the hosts on which it failed, as a batch of its own",
    returns=BatchStarted,
    status=202,
    errors=(NotFound, Conflict),
    is_idempotent=True,
)
def retry_batch(batch_id: UUID) -> dict[str, Any]:
    again = fanouts.retry_failed(db.session(), current_actor(), _id(batch_id))
    return {"batch_id": again.uuid, "total_nodes": again.total}


def _id(batch_id: UUID) -> int:
    return queries.fanout_by_uuid(db.session(), str(batch_id)).id


def _shown(batch_id: UUID) -> dict[str, Any]:
    return queries.shown_fanouts(db.session(), [queries.fanout_by_uuid(db.session(), str(batch_id))])[0]
