"""Files on their way between hosts and us: what an order of this very host names, and what it was told to bring."""

from collections import Counter
from functools import partial
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from app.kernel import storage
from app.kernel.db import db, in_transaction, reading
from app.kernel.errors import NotFound, TooLarge
from app.link.edges import TooFastError, answer, raw_body
from app.link.gateway import caller, rates, server_time
from app.link.identity import Peer, refusal
from app.tasks import files, serving
from app.tasks.file_queries import Stored, file_for_command
from app.tasks.files import Progress
from app.tasks.models import FetchedFile
from protocol import errors as wire
from protocol import limits
from protocol.errors import ProtocolError
from protocol.fields import HEX_64

files_gateway = Blueprint("files", __name__, url_prefix="/daemon/v1")
AT_ONCE = 64
"""Files that one process sends at the same time; other hosts come back a little later."""
OF_ONE_HOST = 4
"""Of them. One that reads slowly, or never, does not keep all others waiting."""
COME_BACK_S = 2
_places, _taken = BoundedSemaphore(AT_ONCE), Counter[int]()


@files_gateway.get("/files/<id:file_id>")
def send_file(file_id: int) -> Response:
    """Only while an order of this host names the file and has not ended. `Range` is honoured."""
    found = caller()
    rates().take(found.node_id, "files", 2, 20)
    command = _uuid(request.args.get("command", ""))
    with reading():
        stored = file_for_command(db.session(), found.node_id, file_id, command)
        db.session.remove()
    if stored is None:
        raise refusal(wire.NOT_FOUND, wire.UNKNOWN_FILE, "no open command of this node names this file")
    _take_place(found.node_id)
    leave = partial(_leave_place, found.node_id)
    try:
        response = _sent(stored)
    except BaseException:
        leave()
        raise
    response.direct_passthrough = False  # else the server closes the file only, and nobody hears of it
    response.call_on_close(leave)
    return response


def _take_place(node_id: int) -> None:
    if _taken[node_id] >= OF_ONE_HOST or not _places.acquire(blocking=False):
        raise TooFastError(COME_BACK_S)
    _taken[node_id] += 1


def _leave_place(node_id: int) -> None:
    _places.release()
    _taken[node_id] -= 1
    if not _taken[node_id]:
        del _taken[node_id]


def _sent(stored: Stored) -> Response:
    try:
        return serving.stored_response(stored)
    except NotFound:
        raise refusal(wire.NOT_FOUND, wire.UNKNOWN_FILE, "the file is gone") from None


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise ProtocolError("command", "must be the id of a command") from None


@files_gateway.post("/commands/<uuid:command>/file")
def take_file(command: Any) -> Response:
    """A piece of what a `download` brings, of a command of this very host. The last one checks the whole."""
    found = caller()
    rates().take(found.node_id, "files", 50, 200)
    offset, total, promised = _number("offset"), _number("total"), request.args.get("sha256")
    if promised is not None and not HEX_64.fullmatch(promised):
        raise ProtocolError("sha256", "must be 64 hexadecimal digits")
    if "Content-Encoding" in request.headers:
        raise ProtocolError("Content-Encoding", "is not allowed here")
    data = raw_body(limits.FILE_PIECE_BYTES)
    try:
        file = in_transaction(db.session(), partial(_begun, found, str(command), total))
    except TooLarge as error:
        raise refusal(wire.TOO_LARGE, wire.BODY_TOO_LARGE, str(error.message)) from None
    progress = files.take_piece(file, offset, data)
    if progress.next == file.size and not progress.is_complete:
        progress = _finish(file, promised)
    return answer({"next": progress.next, "complete": progress.is_complete, "server_time": server_time()})


def _begun(found: Peer, uuid: str, total: int) -> FetchedFile:
    session = db.session()
    command = files.download_of(session, found.node_id, uuid)
    if command is None:
        raise refusal(wire.CONFLICT, wire.ILLEGAL_STEP, "this is no open command of this node that brings a file")
    file = files.begin_fetched(session, command, total)
    session.expunge(file)
    return file


def _finish(file: FetchedFile, promised: str | None) -> Progress:
    path = storage.path_of(files.files_root(), file.place)
    if not file.size:
        storage.write_at(path, 0, b"")
    digest = storage.finished_digest(path)
    session = db.session()
    if not in_transaction(session, lambda: files.finish_fetched(session, file.id, digest, promised)):
        raise ProtocolError("sha256", "is not that of what came; it has to be sent anew")
    return Progress(file.size, True)


def _number(name: str) -> int:
    value = request.args.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise ProtocolError(name, "must be a number of bytes")
    return int(value)
