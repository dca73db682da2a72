"""Configuration files: one key or line read or changed, the rest left as it was; copies kept and brought back."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from typing import Any

from agent import places
from agent.executors.file import settle
from agent.executors.inner import Given, WorkFailed, run
from agent.formats import FORMATS, FormatProblem, lines
from agent.places import Place

MOST_BYTES = 8 * 1024 * 1024
BACKUPS = 20


def work(given: Given) -> str:
    """Do what `content.op` says. `read` prints the value; the others say what changed."""
    content = given.content
    is_read = content["op"] in ("read", "backup")
    with places.find(content["path"], given.files, is_read=is_read) as place:
        if content["op"] == "backup":
            return _line({"backup": _back_up(place, given)})
        if content["op"] == "restore":
            return _line({"restored": _restore(place, given)})
        text = _read(place)
        try:
            if content["op"] == "read":
                return _read_key(text, content)
            changed = _change(text, content)
        except FormatProblem as error:
            raise WorkFailed(f"{content['path']}: {error}") from None
        if changed != text:
            _write(place, changed.encode("utf-8"))
        return _line({"path": place.path, "changed": changed != text})


def _read_key(text: str, content: dict[str, Any]) -> str:
    if content["key"] is None:
        return text
    value = FORMATS[content["format"]].read(text, content["key"])
    if value is None:
        raise WorkFailed(f"{content['key']} is not there")
    return value if value.endswith("\n") else value + "\n"


def _change(text: str, content: dict[str, Any]) -> str:
    if content["op"] == "replace_line":
        return lines.replace_line(text, content["key"], content["value"])
    if content["op"] == "unset":
        return FORMATS[content["format"]].unset(text, content["key"])
    return FORMATS[content["format"]].set(text, content["key"], content["value"])


def _read(place: Place) -> str:
    fd = place.open_regular()
    with open(fd, "rb") as file:  # noqa: PTH123
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise WorkFailed(f"{place.path} exceeds {MOST_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WorkFailed(f"{place.path} is not UTF-8") from None


def _write(place: Place, data: bytes) -> None:
    """In one step; owner and mode stay."""
    with place.beside(f".ops-{os.getpid()}-{os.urandom(6).hex()}.part") as part:
        fd = part.open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            settle(fd, part, place, {}, None)
        except BaseException:
            os.unlink(part.name, dir_fd=part.folder)
            raise
        finally:
            os.close(fd)


def _back_up(place: Place, given: Given) -> str:
    """Into the agent's own directory: a second file beside the first would be read by many programs."""
    directory = _directory(place, given)
    fd = place.open_regular()
    with open(fd, "rb") as file:  # noqa: PTH123
        data = file.read()
    os.makedirs(directory, 0o700, exist_ok=True)  # noqa: PTH103
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{hashlib.sha256(data).hexdigest()[:12]}"
    target = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
        os.fsync(target)
    finally:
        os.close(target)
    for old in _names(directory)[:-BACKUPS]:
        os.unlink(f"{directory}/{old}")  # noqa: PTH108
    return name


def _restore(place: Place, given: Given) -> str:
    """The copy named in `value`, or the newest."""
    directory, wanted = _directory(place, given), given.content["value"]
    names = _names(directory)
    name = wanted if wanted is not None else (names[-1] if names else None)
    if name not in names:
        raise WorkFailed("there is no backup" if wanted is None else f"there is no backup {wanted}")
    with open(f"{directory}/{name}", "rb") as file:  # noqa: PTH123
        _write(place, file.read())
    return str(name)


def _directory(place: Place, given: Given) -> str:
    return f"{given.state_dir}/backups/{hashlib.sha256(place.path.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}"


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _line(told: dict[str, Any]) -> str:
    return json.dumps(told, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(run(work))
