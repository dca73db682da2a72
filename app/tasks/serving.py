"""Bytes of stored files on their way out: to hosts that were told to fetch them, to people who asked for them."""

import logging

from flask import Response, send_file

from app.kernel import storage
from app.kernel.access import Actor, Role, authorize, may
from app.kernel.db import db
from app.kernel.errors import NotFound
from app.tasks.file_queries import Stored, fetched_file
from app.tasks.files import files_root, shown_name
from app.tasks.policy import check_root, is_for_admins
from app.tasks.queries import record_view, run_by_uuid

log = logging.getLogger(__name__)
OCTETS = "application/octet-stream"


def stored_response(stored: Stored, download_name: str | None = None) -> Response:
    """The bytes, by range if that is asked for; never shown by a browser. Ends the transaction that is open."""
    path = storage.path_of(files_root(), stored.place)
    db.session.remove()
    if not path.is_file():
        log.error("the bytes of a file are not in %s: do all Managers share this directory?", files_root())
        raise NotFound
    as_file = {"as_attachment": download_name is not None, "download_name": download_name}
    response = send_file(path, OCTETS, conditional=True, etag=stored.sha256, **as_file)  # type: ignore[arg-type]
    response.headers["X-Ops-Sha256"] = stored.sha256
    return response


def may_fetch(actor: Actor) -> bool:
    """What a host brought may be any file of it: only for those who may have it brought."""
    return may(actor, "tasks.run") and (actor.role is Role.ADMIN or not is_for_admins("file", {}))


def fetched_response(actor: Actor, uuid: str, record_id: int) -> Response:
    """What a record's host brought. Raises Forbidden for whoever `may_fetch` nothing."""
    authorize(actor, "tasks.run")
    check_root(actor, "file", {})
    session = db.session()
    view = record_view(session, run_by_uuid(session, uuid), record_id)
    file = fetched_file(session, view)
    if file is None or file.sha256 is None:
        raise NotFound
    name = shown_name(f"{view.hostname}-{file.name}")
    return stored_response(Stored(file.place, file.size, file.sha256), name)
