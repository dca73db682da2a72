"""Uploads on their way from a browser or program to the disk: parsed as they come, never whole in memory."""

from collections.abc import Callable
from http import HTTPStatus
from typing import IO, cast

from flask import Response, after_this_request, request
from flask_babel import gettext as _
from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser

from app.kernel.db import db, reading
from app.kernel.errors import BadParameter, FieldError, TooLarge
from app.kernel.storage import Incoming
from app.tasks.files import check_room, files_root, largest_file

FIELD = "file"
FORM_BYTES = 64 * 1024
"""Beside the file: other fields, and what separates them."""
MEMORY_BYTES = 1024 * 1024
"""What the parser may hold at a time; it reads in pieces of 64 KiB."""
MOST_PARTS = 10


class Received:
    """A file that has come, and the form's other fields. If the request is refused, it is thrown away."""

    def __init__(self, incoming: Incoming, name: str, form: MultiDict[str, str]) -> None:
        self.incoming, self.name, self.form = incoming, name, form

    @property
    def fingerprint(self) -> str:
        return f"{self.incoming.sha256} {self.name}"

    def discard_if_refused(self, response: Response) -> Response:
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            self.incoming.discard()
        return response


def receive(check: Callable[[MultiDict[str, str]], None] | None = None) -> Received:
    """The file of this request, on the disk. Called before any transaction begins: this may take as long as it takes.

    `check` is shown the other fields. Raises BadParameter for a form without a file, TooLarge.
    """
    with reading():
        check_room(db.session(), min(request.content_length or 0, largest_file()))
        db.session.rollback()  # the session stays: whoever called may commit this very one
    request.max_content_length = largest_file() + FORM_BYTES
    if (request.content_length or 0) > request.max_content_length:
        raise TooLarge(_("A file may have at most %(count)s bytes.", count=largest_file()))
    opened: list[Incoming] = []
    try:
        parser = FormDataParser(
            _opener(opened),
            max_form_memory_size=MEMORY_BYTES,
            max_content_length=request.max_content_length,
            max_form_parts=MOST_PARTS,
        )
        options = request.mimetype_params
        _stream, form, files = parser.parse(request.stream, request.mimetype, request.content_length, options)
        if check is not None:
            check(form)
        sent = files.getlist(FIELD)
        if len(opened) != 1 or len(sent) != 1 or not sent[0].filename:
            raise BadParameter(errors=[FieldError(FIELD, _("One file is needed."))])
        opened[0].keep()
        received = Received(opened[0], sent[0].filename, form)
        after_this_request(received.discard_if_refused)
        return received
    except BaseException:
        for incoming in opened:
            incoming.discard()
        raise


def _opener(opened: list[Incoming]) -> Callable[..., IO[bytes]]:
    def open_next(*_given: object, **_named: object) -> IO[bytes]:
        opened.append(Incoming(files_root(), largest_file()))
        return cast(IO[bytes], opened[-1])

    return open_next
