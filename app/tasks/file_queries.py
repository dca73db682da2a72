"""Reading files of tasks: the uploads, who uses them, what may be fetched by which host, what hosts brought."""

from collections.abc import Sequence
from datetime import datetime
from json import loads
from typing import Any, NamedTuple

from pydantic import Field
from sqlalchemy import ColumnElement, exists, func, not_, select
from sqlalchemy.orm import Session

from app.commands.models import UNFINISHED, Command, Fanout
from app.commands.payloads import stored_payloads
from app.commands.queries import TargetView
from app.kernel.errors import NotFound
from app.kernel.paging import ListQuery, Page, paginate
from app.nodes.selecting import matches
from app.tasks.models import FetchedFile, Task, TaskFile, TaskRun, TaskTemplate
from protocol import states

SORTABLE = {
    "id": TaskFile.id,
    "name": TaskFile.name,
    "size": TaskFile.size,
    "created_at": TaskFile.created_at,
    "last_used_at": TaskFile.last_used_at,
}
WITH_HOST = (states.DELIVERED, states.ACCEPTED, states.STARTED)


class FileQuery(ListQuery):
    keyword: str | None = Field(None, min_length=1, max_length=100, description="In the name.")


class Stored(NamedTuple):
    """Where a file's bytes are, and what they must be."""

    place: str
    size: int
    sha256: str


def file_id_of(type_: str, content: dict[str, Any]) -> int | None:
    """The upload that a content names."""
    is_upload = type_ == "file" and content.get("op") == "upload"
    return content.get("file_id") if is_upload else None


def file_by_id(session: Session, file_id: int) -> TaskFile:
    found = session.get(TaskFile, file_id)
    if found is None:
        raise NotFound
    return found


def files(session: Session, query: FileQuery) -> Page[TaskFile]:
    """Newest first."""
    found = select(TaskFile)
    if query.keyword is not None:
        found = found.where(matches(TaskFile.name, f"*{query.keyword.strip('*')}*"))
    return paginate(session, found, query, SORTABLE, "-id")


def shown_files(session: Session, found: Sequence[TaskFile]) -> list[dict[str, Any]]:
    ids = [file.id for file in found]
    users: dict[int, list[dict[str, Any]]] = {}
    asked = select(TaskFile.id, Task.id, Task.name).join(Task, Task.file_id == TaskFile.id)
    for file_id, task_id, name in session.execute(asked.where(TaskFile.id.in_(ids)).order_by(Task.id)):
        users.setdefault(file_id, []).append({"id": task_id, "name": name})
    names = ("id", "name", "size", "sha256", "created_by", "created_at", "last_used_at")
    return [{name: getattr(file, name) for name in names} | {"used_by": users.get(file.id, [])} for file in found]


def used_bytes(session: Session) -> int:
    """By all uploads and by all that hosts brought or are bringing."""
    sums = [session.scalar(select(func.sum(column))) or 0 for column in (TaskFile.size, FetchedFile.size)]
    return int(sum(sums))


def is_needed(file_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a task names it, or a run that has not ended."""
    open_run = select(TaskRun.id).join(Fanout, Fanout.id == TaskRun.fanout_id)
    open_run = open_run.where(TaskRun.file_id == file_id, Fanout.state.in_(UNFINISHED))
    return exists().where(Task.file_id == file_id) | exists(open_run)


def templates_with_files(session: Session) -> set[int]:
    asked = select(TaskTemplate.type, TaskTemplate.content).where(TaskTemplate.type == "file")
    named = {file_id_of(row.type, row.content) for row in session.execute(asked)}
    return {file_id for file_id in named if file_id is not None}


def unneeded_files(session: Session, before: datetime, most: int = 200) -> list[TaskFile]:
    """That were not used since then, and that nothing names."""
    old = select(TaskFile).where(TaskFile.last_used_at < before, not_(is_needed(TaskFile.id)))  # type: ignore[arg-type]
    old = old.where(TaskFile.id.not_in(templates_with_files(session)))
    return list(session.scalars(old.order_by(TaskFile.last_used_at).limit(most)))


def places(session: Session, among: Sequence[str]) -> set[str]:
    """Those of them that a row knows."""
    known = set(session.scalars(select(TaskFile.place).where(TaskFile.place.in_(among))))
    return known | set(session.scalars(select(FetchedFile.place).where(FetchedFile.place.in_(among))))


def file_for_command(session: Session, node_id: int, file_id: int, uuid: str) -> Stored | None:
    """What this host may fetch: the file that an order names which it has and has not ended."""
    mine = (Command.uuid == uuid, Command.node_id == node_id, Command.state.in_(WITH_HOST))
    command = session.scalar(select(Command).where(*mine))
    if command is None:
        return None
    file = loads(stored_payloads(session, [command])[command.id]).get("file")
    if not isinstance(file, dict) or file.get("id") != file_id:
        return None
    found = session.get(TaskFile, file_id)
    return None if found is None else Stored(found.place, found.size, found.sha256)


def fetched_file(session: Session, view: TargetView) -> FetchedFile | None:
    """The file that a record's present attempt brought, once all of it is here."""
    complete = (FetchedFile.command_id == (view.command_id or 0), FetchedFile.sha256.is_not(None))
    return session.scalar(select(FetchedFile).where(*complete))
