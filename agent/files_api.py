"""Files over the API: pieces in, with a hash over the whole and resume; pieces out, by range."""

# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any, Callable

from agent import places
from agent.answers import SIGNATURE_INVALID, Refused, bad, enveloped, refusal
from agent.capabilities import CapabilityFile
from agent.contents import ID
from agent.executors import inner
from agent.executors.forbidden import FORBIDDEN_EXIT, Forbidden
from agent.executors.inner import Given
from agent.jobs import Done, Jobs
from agent.processes import SCRIPT
from agent.server import Answer, Exchange, Request
from agent.settings import Settings
from protocol import errors

HASH_EXIT = 94
STAGED_S = 86400

_HEX = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{3,4}")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*\$?)?")
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


class FilesApi:
    """What the capability file does not allow is refused here as it is in a task."""

    def __init__(self, settings: Settings, capabilities: CapabilityFile, jobs: Jobs) -> None:
        self._settings = settings
        self._capabilities = capabilities
        self._jobs = jobs

    def upload(self, request: Request, query: dict[str, str], exchange: Exchange) -> None:
        """`POST file/upload`: one piece of a file. The last one checks the hash and puts the file in its place."""
        _only(query, "path offset total sha256 mode owner")
        self._take_piece(request, query, exchange, {"path": _path(query)})

    def stage(self, request: Request, query: dict[str, str], exchange: Exchange) -> None:
        """`POST file/stage`: as upload, into the agent's own store, for a later task with this hash."""
        _only(query, "offset total sha256")
        self._take_piece(request, query, exchange, {"path": None})

    def progress(self, request: Request, query: dict[str, str], exchange: Exchange) -> None:
        """`GET file/upload`: how much of a file with this hash is here already."""
        _only(query, "path sha256")
        path = _path(query) if "path" in query else None
        content = {"op": "progress", "path": path, "sha256": _text(query, "sha256", _HEX)}
        self._ask(content, None, exchange, _answer_of)

    def download(self, request: Request, query: dict[str, str], exchange: Exchange) -> None:
        """`GET file/download`: the file or a range of it. `sha256=1` reads it once more beforehand, for its hash."""
        _only(query, "path sha256")
        path = _path(query)
        if query.get("sha256") == "1":
            content = {"op": "hash", "path": path}
            self._ask(content, None, exchange, lambda told: self._send(request, path, told["sha256"]))
            return
        exchange.answer(self._send(request, path, None))

    def outbox(self, request: Request, execution_id: str, exchange: Exchange) -> None:
        """`GET task/{id}/file`: what a download task has laid ready."""
        try:
            fd = os.open(
                f"{self._settings.state_dir}/outbox/{execution_id}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
        except OSError:
            raise Refused(errors.NOT_FOUND, "this execution has laid no file ready") from None
        exchange.answer(_file_answer(request, fd, None))

    def tidy(self) -> None:
        """Staged files that no task has asked for in a day go."""
        directory = f"{self._settings.state_dir}/staging"
        for name in os.listdir(directory):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if os.stat(f"{directory}/{name}").st_mtime < time.time() - STAGED_S:
                    os.unlink(f"{directory}/{name}")  # noqa: PTH108

    def _take_piece(self, request: Request, query: dict[str, str], exchange: Exchange, where: dict[str, Any]) -> None:
        total, offset = _number(query, "total"), _number(query, "offset")
        if total > self._settings.files_max_bytes:
            raise Refused(errors.TOO_LARGE, f"a file must not exceed {self._settings.files_max_bytes} bytes")
        if offset + len(request.body) > total:
            raise bad("offset", "with this body goes beyond total")
        content = {
            "op": "piece",
            **where,
            "offset": offset,
            "total": total,
            "sha256": _text(query, "sha256", _HEX),
            "mode": _text(query, "mode", _MODE) if "mode" in query else None,
            "owner": _text(query, "owner", _OWNER) if "owner" in query else None,
        }
        self._ask(content, request.body, exchange, _answer_of)

    def _ask(
        self, content: dict[str, Any], body: bytes | None, exchange: Exchange, make: Callable[[dict[str, Any]], Answer]
    ) -> None:
        given = Given("job", content, self._capabilities.now().files, self._settings.state_dir)
        launch = inner.launch("file", given, "job")
        if body is not None:
            launch = launch._replace(argv=(*launch.argv, SCRIPT), script=body, script_at=len(launch.argv))

        def on_done(done: Done) -> None:
            try:
                exchange.answer(make(_told(done)))
            except Refused as error:
                exchange.answer(refusal(error))

        if not self._jobs.run(launch, on_done):
            raise Refused(errors.TOO_MANY_REQUESTS, "too many files are on their way", None, 1)

    def _send(self, request: Request, path: str, sha256: str | None) -> Answer:
        try:
            with places.find(path, self._capabilities.now().files, is_read=True) as place:
                fd = place.open_regular()
        except Forbidden as error:
            raise Refused(errors.FORBIDDEN, str(error), {"error_code": errors.FORBIDDEN_BY_HOST}) from None
        except OSError as error:
            code = errors.FORBIDDEN if isinstance(error, PermissionError) else errors.NOT_FOUND
            raise Refused(code, f"{path}: {error.strerror}") from None
        return _file_answer(request, fd, sha256)


def _told(done: Done) -> dict[str, Any]:
    """What a child found out. Raises Refused for what it says went wrong."""
    words = done.err.decode("utf-8", "replace").strip()[-1000:] or "it failed"
    if done.code == 0:
        found: dict[str, Any] = json.loads(done.out)
        return found
    if done.code == FORBIDDEN_EXIT:
        raise Refused(errors.FORBIDDEN, words, {"error_code": errors.FORBIDDEN_BY_HOST})
    if done.code == HASH_EXIT:
        raise Refused(SIGNATURE_INVALID, words)
    raise Refused(errors.CONFLICT, words)


def _answer_of(told: dict[str, Any]) -> Answer:
    if "next" in told and told.get("is_gap"):
        raise Refused(errors.CONFLICT, f"the next byte wanted is {told['next']}", {"next": told["next"]})
    return enveloped(told)


def _file_answer(request: Request, fd: int, sha256: str | None) -> Answer:
    found = os.fstat(fd)
    tag = f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'
    headers = [("ETag", tag), ("Accept-Ranges", "bytes")]
    if sha256 is not None:
        headers.append(("X-Ops-Sha256", sha256))
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or request.headers.get("if-range", tag) != tag:
        return Answer(200, b"", tuple(headers), "application/octet-stream", fd, 0, found.st_size)
    start = int(wanted.group(1))
    end = min(int(wanted.group(2)) + 1 if wanted.group(2) else found.st_size, found.st_size)
    if start >= found.st_size or end <= start:
        os.close(fd)
        return Answer(416, b"", (("Content-Range", f"bytes */{found.st_size}"),), "application/octet-stream")
    headers.append(("Content-Range", f"bytes {start}-{end - 1}/{found.st_size}"))
    return Answer(206, b"", tuple(headers), "application/octet-stream", fd, start, end - start)


def _only(query: dict[str, str], names: str) -> None:
    for name in query:
        if name not in names.split():
            raise bad(name, "is not a parameter of this")


def _path(query: dict[str, str]) -> str:
    path = query.get("path", "")
    if not path.startswith("/") or len(path) > 4096 or "\0" in path:
        raise bad("path", "must be an absolute path")
    return path


def _text(query: dict[str, str], name: str, pattern: re.Pattern[str]) -> str:
    if pattern.fullmatch(query.get(name, "")) is None:
        raise bad(name, f"must match {pattern.pattern}")
    return query[name]


def _number(query: dict[str, str], name: str) -> int:
    value = query.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise bad(name, "must be a whole number")
    return int(value)


def is_id(text: str) -> bool:
    """Whether this could be the id of an execution."""
    return len(text) <= 64 and ID.fullmatch(text) is not None
