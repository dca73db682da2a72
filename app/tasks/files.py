"""Files for tasks: brought by people, put into tasks, brought back by hosts, forgotten. Names are only ever shown."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from flask_babel import gettext as _
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.audit.actions import record
from app.commands.models import Command
from app.commands.payloads import stored_payloads
from app.kernel import storage
from app.kernel.access import Actor, authorize
from app.kernel.clock import now
from app.kernel.context import ops
from app.kernel.errors import BadParameter, Conflict, FieldError, TooLarge
from app.kernel.live_settings import live_settings
from app.kernel.storage import Incoming
from app.tasks import file_queries
from app.tasks.file_queries import file_by_id, file_id_of, used_bytes
from app.tasks.models import FetchedFile, TaskFile
from app.tasks.taking import LATE, is_late
from protocol import states

NAME_CHARS = 255
ORPHANED = timedelta(hours=1)
"""Bytes that no row knows are on their way in, or were forgotten so long ago."""


class Progress(NamedTuple):
    """The byte of a file that is wanted next, and whether all of it is here and right."""

    next: int
    is_complete: bool


class WrongBytesError(Exception):
    """What came is not what the host promised; all of it is thrown away."""


def files_root() -> Path:
    return ops().settings.files_path


def largest_file() -> int:
    return ops().settings.tasks.files_max_size


def shown_name(given: str) -> str:
    """The last part of a path of any system, without what a terminal or a header would make something of."""
    last = given.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in last if char.isprintable()).strip()[:NAME_CHARS] or "file"


def check_room(session: Session, size: int) -> None:
    """Raises TooLarge if no file of this size may come."""
    if size > largest_file():
        raise TooLarge(_("A file may have at most %(count)s bytes.", count=largest_file()))
    if used_bytes(session) + size > ops().settings.tasks.files_quota:
        raise TooLarge(_("There is no room left for files. Delete some first."))


def add_file(session: Session, actor: Actor, name: str, incoming: Incoming) -> TaskFile:
    """Its bytes are on the disk already. Raises TooLarge when there is no room for it."""
    authorize(actor, "tasks.edit")
    check_room(session, incoming.size)
    file = TaskFile(name=shown_name(name), size=incoming.size, sha256=incoming.sha256, place=incoming.place)
    file.created_by, file.created_by_id = actor.username, actor.user_id
    session.add(file)
    session.flush()
    record(session, actor, "task_file.create", "task_file", file.id, after=_audited(file))
    return file


def delete_file(session: Session, actor: Actor, file_id: int) -> None:
    """Its bytes go within hours. Raises Conflict while a task, a template or a run needs it."""
    authorize(actor, "tasks.edit")
    file = file_by_id(session, file_id)
    is_needed = session.scalar(select(file_queries.is_needed(TaskFile.id)).where(TaskFile.id == file_id))  # type: ignore[arg-type]
    if is_needed or file_id in file_queries.templates_with_files(session):
        raise Conflict(_("A task, a template or a run needs this file."))
    record(session, actor, "task_file.delete", "task_file", file.id, before=_audited(file))
    session.delete(file)
    session.flush()


def _audited(file: TaskFile) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}


def with_file(session: Session, type_: str, content: dict[str, Any]) -> dict[str, Any]:
    """The content with the hash of the upload that it names, if it names one. Raises BadParameter for a wrong one."""
    file_id = file_id_of(type_, content)
    if file_id is None:
        return content
    file = session.get(TaskFile, file_id)
    if file is None:
        raise BadParameter(errors=[FieldError("content.file_id", _("There is no such file."))])
    if content.get("sha256") not in (None, file.sha256):
        raise BadParameter(errors=[FieldError("content.sha256", _("This is not the file's hash."))])
    file.last_used_at = now()
    return content | {"sha256": file.sha256}


def order_file(session: Session, type_: str, content: dict[str, Any]) -> dict[str, Any]:
    """What an order says to the Daemon of the file that it has to fetch beforehand."""
    file_id = file_id_of(type_, content)
    file = None if file_id is None else session.get(TaskFile, file_id)
    if file_id is not None and file is None:
        raise BadParameter(errors=[FieldError("content.file_id", _("There is no such file."))])
    if file is None:
        return {}
    file.last_used_at = now()
    return {"file": {"id": file.id, "size": file.size, "sha256": file.sha256}}


def download_of(session: Session, node_id: int, uuid: str) -> Command | None:
    """The order of this host to bring a file, if it runs or has only just ended."""
    command = session.scalar(select(Command).where(Command.uuid == uuid, Command.node_id == node_id))
    if command is None or command.state in (states.QUEUED, states.DELIVERED) or is_late(command):
        return None
    content = json.loads(stored_payloads(session, [command])[command.id]).get("content", {})
    return command if content.get("op") == "download" and "path" in content else None


def begin_fetched(session: Session, command: Command, total: int) -> FetchedFile:
    """The row of the file that this order brings; another size begins it anew. Raises TooLarge."""
    mine = select(FetchedFile).where(FetchedFile.command_id == command.id).with_for_update()
    found = session.scalar(mine.execution_options(populate_existing=True))
    if found is not None and (found.size == total or found.sha256 is not None):
        return found
    if found is not None:
        _throw_away(session, found)
    check_room(session, total)
    path = json.loads(stored_payloads(session, [command])[command.id])["content"]["path"]
    name = shown_name(str(path))
    file = FetchedFile(command_id=command.id, name=name, size=total, place=storage.new_place())
    session.add(file)
    session.flush()
    return file


def _throw_away(session: Session, file: FetchedFile) -> None:
    """With its bytes, at once: whoever begins anew again and again would fill the disk before the orphans go."""
    session.delete(file)
    session.flush()
    storage.remove(files_root(), file.place)


def take_piece(file: FetchedFile, offset: int, data: bytes) -> Progress:
    """Write a piece where it belongs. One that leaves a gap is not taken."""
    path = storage.path_of(files_root(), file.place)
    here = storage.size_of(path)
    if file.sha256 is not None or offset > here or offset + len(data) > file.size:
        return Progress(file.size if file.sha256 else here, file.sha256 is not None)
    storage.write_at(path, offset, data)
    return Progress(max(here, offset + len(data)), False)


def finish_fetched(session: Session, file_id: int, digest: str, promised: str | None) -> bool:
    """All of it is here, and this is its hash. False: it is not what was promised, and is forgotten."""
    if promised not in (None, digest):
        if (file := session.get(FetchedFile, file_id)) is not None and file.sha256 is None:
            _throw_away(session, file)
        return False
    mine = update(FetchedFile).where(FetchedFile.id == file_id, FetchedFile.sha256.is_(None))
    session.execute(mine.values(sha256=digest).execution_options(synchronize_session=False))
    return True


def forget_unneeded(session: Session) -> int:
    """Uploads that no task has named for long. Answers how many went."""
    before = now() - timedelta(days=live_settings().tasks.files_keep_days)
    old = file_queries.unneeded_files(session, before)
    for file in old:
        record(session, Actor.system(), "task_file.expire", "task_file", file.id, before=_audited(file))
        session.delete(file)
    session.flush()
    return len(old)


def forget_unfinished(session: Session) -> int:
    """What hosts began to bring and do not any more: it would take room from the others. Answers how many went."""
    over = select(Command.id).where(Command.finished_at < now() - LATE)
    mine = (FetchedFile.sha256.is_(None), FetchedFile.command_id.in_(over))
    gone = session.execute(delete(FetchedFile).where(*mine).execution_options(synchronize_session=False))
    return int(gone.rowcount)  # type: ignore[attr-defined]


def remove_orphans(session: Session) -> int:
    """Bytes that no row knows (any more), a slice at a time. Answers how many files went."""
    found, count = list(storage.old_places(files_root(), ORPHANED)), 0
    for first in range(0, len(found), 500):
        some = found[first : first + 500]
        known = file_queries.places(session, some)
        for place in some:
            if place not in known:
                storage.remove(files_root(), place)
                count += 1
    return count
