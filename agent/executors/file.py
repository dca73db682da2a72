"""Files: copied, deleted, put in their place and laid ready, in a child of its own; pieces of uploads as well."""

# ruff: noqa: PTH118, PTH208

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
from typing import Any, Callable

from agent import places
from agent.executors.forbidden import Forbidden
from agent.executors.inner import Given, WorkFailed, run
from agent.files_api import HASH_EXIT
from agent.places import Place
from agent.processes import owner_ids
from protocol.capabilities import matches_file

CHUNK = 1024 * 1024
MODE = 0o644


class WrongHash(Exception):
    """What came is not what was promised."""


def work(given: Given) -> str:
    """Do what `content.op` says; the outcome as a line of JSON."""
    done = _OPERATIONS[given.content["op"]](given)
    return json.dumps(done, ensure_ascii=False) + "\n"


def _upload(given: Given) -> dict[str, Any]:
    """From the store to its place."""
    content = given.content
    path = content["dest"] or content["path"]
    staged = f"{given.state_dir}/staging/{content['sha256']}"
    try:
        source = os.open(staged, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise WorkFailed("the file with this hash was not brought to this host") from None
    try:
        with places.find(path, given.files) as place:
            size = _copy_in(source, place, content, None, content["sha256"])
    finally:
        os.close(source)
    return {"path": place.path, "size": size, "sha256": content["sha256"]}


def _download(given: Given) -> dict[str, Any]:
    """Lay a copy ready for whoever asked."""
    content = given.content
    with places.find(content["path"], given.files, is_read=True) as place:
        source = place.open_regular()
    target = f"{given.state_dir}/outbox/{given.id}"
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size, digest = _pour(source, fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        if content["sha256"] not in (None, digest):
            raise WorkFailed(f"the file's sha256 is {digest}")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)  # noqa: PTH108
        raise
    finally:
        os.close(source)
    return {"path": place.path, "size": size, "sha256": digest}


def _copy(given: Given) -> dict[str, Any]:
    content = given.content
    with places.find(content["path"], given.files, is_read=True) as place:
        found = place.facts()
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), content["path"])
    dest = content["dest"]
    if os.path.isdir(dest) and not (stat.S_ISDIR(found.st_mode) and content["recursive"]):  # noqa: PTH112
        dest = os.path.join(dest, place.name)
    if stat.S_ISDIR(found.st_mode):
        if not content["recursive"]:
            raise WorkFailed(f"{content['path']} is a directory; `recursive` copies it with all that is in it")
        if f"{os.path.realpath(dest)}/".startswith(f"{place.path}/"):
            raise WorkFailed("a directory cannot be copied into itself")
        count = _copy_tree(place.path, dest, given)
        return {"path": place.path, "dest": dest, "files": count}
    with places.find(content["path"], given.files, is_read=True) as place:
        source = place.open_regular()
    try:
        with places.find(dest, given.files) as target:
            size = _copy_in(source, target, content, stat.S_IMODE(os.fstat(source).st_mode) & 0o777, content["sha256"])
    finally:
        os.close(source)
    return {"path": place.path, "dest": target.path, "size": size}


def _copy_tree(path: str, dest: str, given: Given) -> int:
    with places.find(dest, given.files) as target, contextlib.suppress(FileExistsError):
        os.mkdir(target.name, 0o755, dir_fd=target.folder)
    count = 0
    with places.find(path, given.files, is_entry=True) as place:
        fd = place.open(os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = sorted(os.listdir(fd))
    finally:
        os.close(fd)
    for name in names:
        inner, outer = f"{path}/{name}", f"{dest}/{name}"
        with places.find(inner, given.files, is_entry=True) as place:
            found = place.facts()
            if found is None:
                continue
            if stat.S_ISDIR(found.st_mode):
                count += _copy_tree(place.path, outer, given)
            elif stat.S_ISREG(found.st_mode):
                source = place.open_regular()
                try:
                    with places.find(outer, given.files) as target:
                        _copy_in(source, target, given.content, stat.S_IMODE(found.st_mode) & 0o777, None)
                finally:
                    os.close(source)
                count += 1
            elif stat.S_ISLNK(found.st_mode):
                with places.find(outer, given.files, is_entry=True) as target:
                    _copy_link(place, target)
                count += 1
    return count


def _copy_link(place: Place, target: Place) -> None:
    """With its owner: a link of somebody's that became root's would be trusted."""
    fd = place.open_itself()
    try:
        owner, words = os.fstat(fd), os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)
    with target.beside(_temporary_name()) as part:
        os.symlink(words, part.name, dir_fd=part.folder)
        try:
            if owner.st_uid not in (0, os.geteuid()):
                os.chown(part.name, owner.st_uid, owner.st_gid, dir_fd=part.folder, follow_symlinks=False)
            os.rename(part.name, target.name, src_dir_fd=part.folder, dst_dir_fd=target.folder)
        except BaseException:
            os.unlink(part.name, dir_fd=part.folder)
            raise


def _delete(given: Given) -> dict[str, Any]:
    """The entry itself: of a link, the link."""
    path = given.content["path"]
    with places.find(path, given.files, is_entry=True) as place:
        found = place.facts()
        if found is None:
            return {"path": place.path, "deleted": 0}
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(place.name, dir_fd=place.folder)
            return {"path": place.path, "deleted": 1}
        if not given.content["recursive"]:
            os.rmdir(place.name, dir_fd=place.folder)
            return {"path": place.path, "deleted": 1}
        _check_tree(place, given.files)
        return {"path": place.path, "deleted": _delete_tree(place.folder, place.name)}


def _check_tree(place: Place, patterns: tuple[str, ...]) -> None:
    """All of it must be allowed before any of it goes."""
    parent = place.path[: -len(place.name)]
    for folder, directories, names, _ in os.fwalk(place.name, dir_fd=place.folder):
        for name in (*directories, *names):
            if not matches_file(f"{parent}{folder}/{name}", patterns):
                raise Forbidden(f"this host does not allow {parent}{folder}/{name}")


def _delete_tree(folder: int, name: str) -> int:
    """By descriptors: whoever swaps a directory for a link gets nothing else deleted."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    count = 1
    try:
        for inner in os.listdir(fd):
            if stat.S_ISDIR(os.stat(inner, dir_fd=fd, follow_symlinks=False).st_mode):
                count += _delete_tree(fd, inner)
            else:
                os.unlink(inner, dir_fd=fd)
                count += 1
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)
    return count


# ---- pieces


def _piece(given: Given) -> dict[str, Any]:
    """Write a piece at its place; the last one checks the whole. A repeated or overlapping piece is harmless."""
    content = given.content
    offset, total = content["offset"], content["total"]
    with open(sys.argv[1], "rb") as file:  # noqa: PTH123
        body = file.read()
    with _target(given) as place, place.beside(_part_name(content["sha256"])) as part:
        fd = _open_part(part)
        try:
            size = os.fstat(fd).st_size
            if offset > size:
                return {"next": size, "complete": False, "is_gap": True}
            view = memoryview(body)
            while view:
                done = os.pwrite(fd, view, offset)
                view, offset = view[done:], offset + done
            size = max(size, offset)
            if size < total:
                return {"next": size, "complete": False}
            if size > total:
                os.ftruncate(fd, total)
            os.lseek(fd, 0, os.SEEK_SET)
            if _digest(fd) != content["sha256"]:
                os.unlink(part.name, dir_fd=part.folder)
                raise WrongHash("what came does not have the sha256 that was promised; all pieces are needed again")
            settle(fd, part, place, content, None)
        finally:
            os.close(fd)
    return {"next": total, "complete": True, "sha256": content["sha256"]}


def _progress(given: Given) -> dict[str, Any]:
    """How much is here."""
    sha256 = given.content["sha256"]
    with _target(given) as place, place.beside(_part_name(sha256)) as part:
        found, whole = part.facts(), place.facts()
        if given.content["path"] is None and whole is not None:
            return {"next": whole.st_size, "complete": True}
        return {"next": found.st_size if found is not None else 0, "complete": False}


def _hash(given: Given) -> dict[str, Any]:
    with places.find(given.content["path"], given.files, is_read=True) as place:
        fd = place.open_regular()
    try:
        return {"sha256": _digest(fd)}
    finally:
        os.close(fd)


def _target(given: Given) -> Place:
    path = given.content["path"]
    if path is None:
        return places.find(f"{os.path.realpath(given.state_dir)}/staging/{given.content['sha256']}", ("/**",))
    return places.find(path, given.files)


def _part_name(sha256: str) -> str:
    return f".ops-{sha256[:32]}.part"


def _temporary_name() -> str:
    return f".ops-{os.getpid()}-{os.urandom(6).hex()}.part"


def _open_part(part: Place) -> int:
    """Our own unfinished file, or a new one in the place of somebody else's."""
    flags = os.O_RDWR
    with contextlib.suppress(OSError):
        fd = part.open(flags)
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1:
            return fd
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part.name, dir_fd=part.folder)
    return part.open(flags | os.O_CREAT | os.O_EXCL, 0o600)


def _copy_in(source: int, place: Place, content: dict[str, Any], mode: int | None, sha256: str | None) -> int:
    """Copy to a place in one step: whoever looks sees the old file or the new one."""
    with place.beside(_temporary_name()) as part:
        fd = _open_part(part)
        try:
            size, digest = _pour(source, fd)
            if sha256 not in (None, digest):
                raise WorkFailed(f"the file's sha256 is {digest}")
            settle(fd, part, place, content, mode)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part.name, dir_fd=part.folder)
            raise
        finally:
            os.close(fd)
    return size


def settle(fd: int, part: Place, place: Place, content: dict[str, Any], mode: int | None) -> None:
    """Owner and mode as asked, else as the file had that is replaced; then the one step."""
    found = place.facts()
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EISDIR, "is not a regular file", place.path)
    if content.get("owner"):
        os.fchown(fd, *owner_ids(content["owner"]))
    elif found is not None and (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(fd, found.st_uid, found.st_gid)
    wanted = content.get("mode")
    if wanted:
        os.fchmod(fd, int(wanted, 8))
    elif found is not None:
        os.fchmod(fd, stat.S_IMODE(found.st_mode))
    else:
        os.fchmod(fd, MODE if mode is None else mode)
    os.fsync(fd)
    os.rename(part.name, place.name, src_dir_fd=part.folder, dst_dir_fd=place.folder)
    place.sync()


def _pour(source: int, target: int) -> tuple[int, str]:
    """Size and sha256 of what was copied."""
    found, size = hashlib.sha256(), 0
    while True:
        data = os.read(source, CHUNK)
        if not data:
            return size, found.hexdigest()
        found.update(data)
        size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


def _digest(fd: int) -> str:
    found = hashlib.sha256()
    while True:
        data = os.read(fd, CHUNK)
        if not data:
            return found.hexdigest()
        found.update(data)


_OPERATIONS: dict[str, Callable[[Given], dict[str, Any]]] = {
    "upload": _upload,
    "download": _download,
    "copy": _copy,
    "delete": _delete,
    "piece": _piece,
    "progress": _progress,
    "hash": _hash,
}


def main() -> int:
    """The child."""
    try:
        return run(work)
    except WrongHash as error:
        sys.stderr.write(f"{error}\n")
        return HASH_EXIT


if __name__ == "__main__":
    sys.exit(main())
