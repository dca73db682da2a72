"""Puts configuration files where they belong, and back: durable, by one rename each. When, others decide."""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
from typing import NamedTuple

from daemon.places import Folder, PlaceError, open_folder
from daemon.system import System
from protocol.limits import MIB
from protocol.manifests import ConfigFile

FILE_BYTES = 4 * MIB

# Patterns such as *.conf take neither for a configuration file; the candidate keeps its extension for validators.
_CANDIDATE = ".ops-new."
_BACKUP = ".ops-old"


class Placed(NamedTuple):
    """One file of a transaction. `old_sha256` null: there was none before."""

    path: str
    mode: int
    uid: int
    gid: int
    sha256: str
    old_sha256: str | None


class Present(NamedTuple):
    """A file as it is: at most FILE_BYTES of it, and its digest unless it is larger."""

    content: bytes
    sha256: str | None
    size: int
    mode: int
    uid: int
    gid: int


def digest(content: bytes) -> str:
    """As the wire has it."""
    return hashlib.sha256(content).hexdigest()


def candidate_path(path: str) -> str:
    """Where the new content waits for its turn."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/{_CANDIDATE}{name}"


def read_present(system: System, path: str) -> Present | None:
    """What is there now; None if there is nothing. OSError for a link, a directory, a device."""
    folder_path, name = _split(path)
    try:
        with open_folder(folder_path) as folder:
            fd = folder.open(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _explained(error, path) from error
    try:
        found = os.fstat(fd)
        content = system.read_fd(fd, FILE_BYTES + 1)
    finally:
        os.close(fd)
    is_whole = len(content) <= FILE_BYTES
    return Present(
        content[:FILE_BYTES],
        digest(content) if is_whole else None,
        found.st_size if not is_whole else len(content),
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
    )


def plan_file(system: System, file: ConfigFile, agent_user: str | None, content: bytes) -> Placed:
    """What is going to be there. OSError or KeyError (no such user) if it cannot be."""
    present = read_present(system, file.path)
    if present is not None and present.sha256 is None:
        raise PlaceError(errno.EFBIG, f"is larger than {FILE_BYTES} bytes", file.path)
    uid, gid = (os.geteuid(), os.getegid()) if present is None else (present.uid, present.gid)
    if agent_user is not None:
        # The program must be able to read it, also with a mode that lets only its group do so.
        gid = _user(agent_user).pw_gid
    if file.owner is not None:
        uid = _user(file.owner).pw_uid
    if file.group is not None:
        gid = _group(file.group)
    old = None if present is None else present.sha256
    return Placed(file.path, int(file.mode, 8), uid, gid, digest(content), old)


def is_in_place(system: System, placed: Placed) -> bool:
    """Whether nothing would change."""
    present = read_present(system, placed.path)
    wanted = (placed.sha256, placed.mode, placed.uid, placed.gid)
    return present is not None and (present.sha256, present.mode, present.uid, present.gid) == wanted


def write_candidate(system: System, placed: Placed, content: bytes) -> None:
    """The new content, durable, beside the old."""
    folder_path, name = _split(placed.path)
    with open_folder(folder_path) as folder:
        _write(system, folder, _CANDIDATE + name, content, placed.mode, placed.uid, placed.gid)
        system.sync_dir(folder.path())


def place(system: System, placed: Placed) -> None:
    """Keep the old file under another name, then let the candidate take its own."""
    folder_path, name = _split(placed.path)
    with open_folder(folder_path) as folder:
        if folder.facts(name) is not None:
            _keep_old(system, folder, name)
            system.sync_dir(folder.path())
        system.replace(folder.path(_CANDIDATE + name), folder.path(name))
        system.sync_dir(folder.path())


def put_back(system: System, placed: Placed) -> None:
    """The old file again, or none if there was none. Needs no space on the disk; may be repeated."""
    folder_path, name = _split(placed.path)
    with open_folder(folder_path) as folder:
        if folder.facts(_backup(name)) is not None:
            system.replace(folder.path(_backup(name)), folder.path(name))
        elif placed.old_sha256 is None:
            system.remove(folder.path(name))
        else:
            # No backup: it was not placed yet, or is back already. Unless somebody took the backup away.
            present = read_present(system, placed.path)
            if present is not None and present.sha256 == placed.sha256 != placed.old_sha256:
                raise PlaceError(errno.ENOENT, "the old content is gone", placed.path)
            return
        system.sync_dir(folder.path())


def overwrite(system: System, placed: Placed, content: bytes) -> None:
    """Put content there without keeping what was."""
    write_candidate(system, placed, content)
    folder_path, name = _split(placed.path)
    with open_folder(folder_path) as folder:
        system.replace(folder.path(_CANDIDATE + name), folder.path(name))
        system.sync_dir(folder.path())


def clean(system: System, path: str) -> None:
    """Remove what a transaction leaves beside the file. A directory that is gone has nothing to clean."""
    folder_path, name = _split(path)
    try:
        with open_folder(folder_path) as folder:
            left = [extra for extra in (_CANDIDATE + name, _backup(name)) if folder.facts(extra) is not None]
            for extra in left:
                system.remove(folder.path(extra))
            if left:
                system.sync_dir(folder.path())
    except FileNotFoundError:
        return


def words_of(error: Exception) -> str:
    """For people."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if isinstance(error.filename, str) and "/proc/self" not in error.filename else ""
        return f"{name}{error.strerror}"
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _keep_old(system: System, folder: Folder, name: str) -> None:
    backup = _backup(name)
    system.remove(folder.path(backup))
    try:
        system.link(folder.path(name), folder.path(backup))
    except OSError:
        # Not every file system knows second names.
        fd = folder.open(name)
        try:
            found = os.fstat(fd)
            content = system.read_fd(fd, FILE_BYTES)
        finally:
            os.close(fd)
        _write(system, folder, backup, content, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def _write(system: System, folder: Folder, name: str, content: bytes, mode: int, uid: int, gid: int) -> None:
    fd = system.open_fresh(folder.path(name))
    try:
        system.dress(fd, mode, uid, gid)
        system.write(fd, content)
        system.sync(fd)
    finally:
        system.close(fd)


def _backup(name: str) -> str:
    return f".{name}{_BACKUP}"


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent or "/", name


def _explained(error: OSError, path: str) -> OSError:
    if error.errno == errno.ELOOP:
        return PlaceError(errno.ELOOP, "is a symbolic link; the manifest must name the file itself", path)
    return PlaceError(error.errno or errno.EIO, error.strerror or str(error), path)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise KeyError(f"there is no user {name} on this host") from None


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise KeyError(f"there is no group {name} on this host") from None
