"""The last configuration of each agent that proved itself: copies of its files, and what the host changed since."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from daemon import config_files
from daemon.config_files import Placed, words_of
from daemon.disk import read_json, write_file
from daemon.measure import Logbook
from daemon.system import System
from protocol.codec import encode
from protocol.manifests import Manifest

ANSWER_BYTES = 180_000

_CURRENT, _NEXT, _TOLD = "healthy", "next", "told"

log = logging.getLogger("daemon.config_kept")


class Kept(NamedTuple):
    """A version, what its files are, and under which names copies of them lie beside."""

    version: int
    files: tuple[Placed, ...]
    blobs: tuple[str, ...]


class KeptConfigs:
    """One directory for each agent. Copies are made before a version is tried, so that keeping it needs no space."""

    def __init__(self, system: System, directory: str, logbook: Logbook) -> None:
        self._system = system
        self._directory = directory
        self._logbook = logbook
        self._kept: dict[str, Kept] = {}
        self._seen: dict[str, tuple[object, str | None]] = {}
        self._drifts: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, Any] = {}

    def load(self, name: str) -> None:
        """What an earlier Daemon left. ValueError and friends if it is damaged."""
        self._read(name)
        self._told[name] = read_json(self._system, f"{self._folder(name)}/{_TOLD}")

    def version(self, name: str) -> int | None:
        """The version in force; None if the Manager never configured this agent."""
        kept = self._kept.get(name)
        return None if kept is None else kept.version

    def is_drifted(self, name: str) -> bool:
        """What `look` found last."""
        return bool(self._drifts.get(name))

    def prepare(self, name: str, version: int, contents: list[tuple[Placed, bytes]]) -> None:
        """Copy what is going to be tried; files that it does not name stay those of the version before."""
        folder = self._folder(name)
        known = self._kept.get(name)
        merged = {} if known is None else {file.path: (file, blob) for file, blob in zip(known.files, known.blobs)}
        mark = self._system.random_bytes(4).hex()
        for index, (placed, content) in enumerate(contents):
            write_file(self._system, folder, f"{mark}-{index}", content)
            merged[placed.path] = (placed._replace(old_sha256=None), f"{mark}-{index}")
        files, blobs = zip(*merged.values())
        write_file(self._system, folder, _NEXT, encode(Kept(version, files, blobs)))

    def keep(self, name: str) -> None:
        """What was prepared has proved itself. Twice is once."""
        folder = self._folder(name)
        if self._system.exists(f"{folder}/{_NEXT}"):
            self._system.replace(f"{folder}/{_NEXT}", f"{folder}/{_CURRENT}")
            self._system.sync_dir(folder)
        self._read(name)
        self._drifts.pop(name, None)

    def overwrite(self, name: str) -> int | None:
        """Put the kept files in their places, unless they are there; the version, or None if nothing had to be done."""
        kept = self._kept.get(name)
        if kept is None or all(self._is_as(placed) for placed in kept.files):
            return None
        for placed, blob in zip(kept.files, kept.blobs):
            content = self._system.read(f"{self._folder(name)}/{blob}")
            if config_files.digest(content) != placed.sha256:
                raise ValueError(f"the copy of {placed.path} is damaged")
            config_files.overwrite(self._system, placed, content)
        return kept.version

    def sweep(self, name: str, others: Collection[str]) -> None:
        """Remove what neither the kept version nor `others` needs."""
        kept = self._kept.get(name)
        needed = {_CURRENT, _TOLD, *others, *(() if kept is None else kept.blobs)}
        for entry in self._system.names(self._folder(name)):
            if entry not in needed:
                self._system.remove(f"{self._folder(name)}/{entry}")

    def forget(self, name: str) -> None:
        """The agent is gone for good; its files stay where they are."""
        for memory in (self._kept, self._drifts, self._told):
            memory.pop(name, None)
        if self._system.exists(self._folder(name)):
            self.sweep(name, ())
            for entry in (_CURRENT, _TOLD):
                self._system.remove(f"{self._folder(name)}/{entry}")

    def look(self, manifest: Manifest) -> bool:
        """Compare an agent's files with the kept version; True if the outcome is another than the last time.

        Cheap while nobody touches the files.
        """
        name = manifest.name
        kept = self._kept.get(name)
        if kept is None:
            return False
        paths = {file.path for file in manifest.config}
        drifts = tuple(placed.path for placed in kept.files if placed.path in paths and not self._is_as(placed))
        if drifts == self._drifts.get(name, ()):
            return False
        self._drifts[name] = drifts
        self._tell(name, kept.version, drifts)
        return True

    def _tell(self, name: str, version: int, drifts: tuple[str, ...]) -> None:
        told = {path: self._seen[path][1] for path in drifts}
        if told and told != self._told.get(name):
            words = f"{name}: {', '.join(drifts)} was changed on the host since version {version} was applied"
            data = {"agent": name, "version": version, "files": list(drifts)}
            self._logbook.add_event("agent.drifted", "warning", words, data)
        self._told[name] = told
        try:
            write_file(self._system, self._folder(name), _TOLD, json.dumps(told).encode())
        except OSError as error:
            log.warning("cannot write down that drift of %s was told: %s", name, error)

    def _is_as(self, placed: Placed) -> bool:
        """Whether the file has the content it should. By time and size first; only what was touched is read."""
        try:
            stamp: object = self._system.stamp(placed.path)
        except OSError:
            stamp = None
        known = self._seen.get(placed.path)
        if known is None or known[0] != stamp:
            try:
                present = None if stamp is None else config_files.read_present(self._system, placed.path)
            except OSError:
                present = None
            known = (stamp, None if present is None else present.sha256)
            self._seen[placed.path] = known
        return known[1] == placed.sha256

    def _read(self, name: str) -> None:
        stored = read_json(self._system, f"{self._folder(name)}/{_CURRENT}")
        if stored is not None:
            files = tuple(Placed(**file) for file in stored["files"])
            self._kept[name] = Kept(stored["version"], files, tuple(stored["blobs"]))

    def _folder(self, name: str) -> str:
        return f"{self._directory}/{name}"


def files_now(system: System, manifest: Manifest) -> list[dict[str, Any]]:
    """An agent's files as they are, for `agent.read_config`; all contents together fit one answer."""
    left = ANSWER_BYTES
    found: list[dict[str, Any]] = []
    for file in manifest.config:
        told: dict[str, Any] = dict.fromkeys(("sha256", "content", "error"))
        told.update(path=file.path, size=0, truncated=False, missing=False, binary=False)
        found.append(told)
        try:
            present = config_files.read_present(system, file.path)
        except OSError as error:
            told["error"] = words_of(error)[:500]
            continue
        if present is None:
            told["missing"] = True
            continue
        text = _text(present.content)
        told.update(sha256=present.sha256, size=present.size, binary=text is None, truncated=present.sha256 is None)
        if text is not None:
            told["content"] = _cut(text, left)
            told["truncated"] = told["truncated"] or len(told["content"]) < len(text)
            left -= _weight(told["content"])
    return found


def _text(content: bytes) -> str | None:
    """None if it is not text. Half a character at the end of what was read is no reason to refuse."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(content) < config_files.FILE_BYTES or error.start < len(content) - 3:
            return None
        text = content[: error.start].decode("utf-8")
    return None if "\0" in text else text


def _weight(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8"))


def _cut(text: str, most_bytes: int) -> str:
    """The longest beginning whose JSON fits."""
    if _weight(text) <= most_bytes:
        return text
    low, high = 0, max(0, most_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        if _weight(text[:middle]) <= most_bytes:
            low = middle
        else:
            high = middle - 1
    return text[:low]
