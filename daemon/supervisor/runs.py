"""One run of an agent on the disk: the `/bin/sh` shim that is its parent, and the records by which it is found again.

The shim holds a lock as long as it lives, tells pid and start time of itself and of the agent, and writes how the agent
ended. So nothing depends on the Daemon being there, and no agent is ever started twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.supervisor.processes import Identity
from daemon.system import SHIM_LOCK_FD, System
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.manifests import END, Manifest, parse_manifest

OUTPUT = "output.log"
GIVEN = "environ"
RUN_VARIABLE = "OPS_RUN"
DIRECTORY_VARIABLE = "OPS_SHIM"
MAX_RECORD = 256 * 1024

NOT_STARTED = 125
"""The exit code of a shim that could not even try, as of `env` and `timeout`."""

_LAUNCH = __file__.rpartition("/")[0] + "/launch.py"
_SHIM = f'cd "${DIRECTORY_VARIABLE}" && . ./run'
_STAT = "p " + "x " * 20 + "t x </proc/self/stat"

# The shim outlives every signal that is meant for the agent's group, and gives the agent the usual ones back. It is
# nowhere asked to do what a shell starts another program for, but to rename one file.
_SCRIPT = f"""\
unset {DIRECTORY_VARIABLE}
trap '' HUP INT QUIT TERM USR1 USR2
exec 3>&2 2>/dev/null
read -r {_STAT}
echo "%(run)s $p $t" >shim
(
exec 2>&3 3>&-
trap - HUP INT QUIT TERM USR1 USR2
read -r {_STAT}
echo "%(run)s $p $t" >pid
umask 022
exec {SHIM_LOCK_FD}>&-
exec <%(given)s
cd %(cwd)s || exit {NOT_STARTED}
exec %(argv)s
)
c=$?
read -r u x </proc/uptime
echo "%(run)s $c $u" >exit.new
/bin/mv -f exit.new exit || echo "%(run)s $c $u" >exit
"""


class Ended(NamedTuple):
    """How the agent ended, by its parent's word. `at`: seconds of the boot clock, to a hundredth."""

    code: int | None
    signal: int | None
    at: float


class Note(NamedTuple):
    """What the Daemon writes down before it starts an agent, for the Daemon that comes after it."""

    run: str
    boot_id: str
    source: str
    manifest: dict[str, Any]
    config_version: int | None
    restarts: int
    handled_at: float | None
    """When its end was dealt with (boot clock); null: it runs, or nobody has looked yet."""


class RunFiles:
    """The files of one agent. Nothing here needs to survive a power cut: another boot makes all of it meaningless."""

    def __init__(self, system: System, directory: str) -> None:
        self._system = system
        self.directory = directory
        self.output = f"{directory}/{OUTPUT}"

    def take_lock(self) -> int | None:
        """The descriptor that the shim will hold; None while an earlier one still does."""
        return self._system.hold_lock(f"{self.directory}/lock")

    def is_locked(self) -> bool:
        """Whether a shim is alive."""
        fd = self.take_lock()
        if fd is None:
            return True
        self._system.close(fd)
        return False

    def launch(self, note: Note, manifest: Manifest, environ: Mapping[str, str], lock: int) -> int:
        """Start the shim; its pid. The lock is the shim's from now on. `environ` is what the shim itself may know."""
        self.write_note(note)
        command = command_of(manifest, manifest.start)
        script = _SCRIPT % {
            "run": note.run, "cwd": quoted(manifest.cwd or "/"), "argv": " ".join(quoted(word) for word in command),
            "given": GIVEN if manifest.env else "/dev/null",
        }  # fmt: skip
        self._write("run", script.encode("utf-8", "surrogateescape"))
        if manifest.env:
            self._write(GIVEN, given(manifest))
        else:
            self._system.remove(f"{self.directory}/{GIVEN}")
        output = self._system.open_append(self.output)
        try:
            own = {**environ, RUN_VARIABLE: note.run, DIRECTORY_VARIABLE: self.directory}
            kind = "shim" if manifest.stop.detached == END else "bare-shim"
            shim = [*_python(), _LAUNCH, kind, "/bin/sh", "-c", _SHIM]
            return self._system.start_apart(shim, own, output, lock)
        finally:
            self._system.close(output)

    def write_note(self, note: Note) -> None:
        """Keep it for the next Daemon."""
        self._write("run.json", json.dumps(note._asdict(), separators=(",", ":")).encode("utf-8"))

    def read_note(self) -> Note | None:
        """What the last Daemon wrote; None if there is nothing, or nothing that makes sense."""
        try:
            found = json.loads(self._system.read(f"{self.directory}/run.json", MAX_RECORD))
            # A newer or older Daemon may know other fields; its agents must be found all the same.
            return Note(
                str(found["run"]), str(found["boot_id"]), str(found.get("source")), dict(found.get("manifest") or {}),
                found.get("config_version"), int(found.get("restarts") or 0), found.get("handled_at"),
            )  # fmt: skip
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def run_under_way(self) -> str | None:
        """The run of the shim that lives, by its own word; None if there is none."""
        words = self._system.read_proc(f"{self.directory}/shim", 200).decode("ascii", "replace").split()
        return words[0] if len(words) == 3 and self.is_locked() else None

    def shim(self, run: str) -> Identity | None:
        """Pid and start time of this run's shim."""
        return self._identity("shim", run)

    def agent(self, run: str) -> Identity | None:
        """Pid and start time of this run's agent."""
        return self._identity("pid", run)

    def ended(self, run: str) -> Ended | None:
        """How this run ended; None if it has not, or if the shim was killed too."""
        words = self._words("exit", run)
        if words is None:
            return None
        status, at = int(words[1]), float(words[2])
        # A shell says 128 + n for a signal. A program that exits with such a code itself looks the same.
        if 128 < status < 193:
            return Ended(None, status - 128, at)
        return Ended(status, None, at)

    def _identity(self, name: str, run: str) -> Identity | None:
        words = self._words(name, run)
        return None if words is None else Identity(int(words[1]), int(words[2]))

    def _words(self, name: str, run: str) -> list[str] | None:
        raw = self._system.read_proc(f"{self.directory}/{name}", 200)
        words = raw.decode("ascii", "replace").split()
        is_whole = raw.endswith(b"\n") and len(words) == 3 and words[0] == run
        return words if is_whole and words[1].isdigit() and words[2].replace(".", "", 1).isdigit() else None

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self.directory}/{name}"
        fd = self._system.open_new(f"{path}.new")
        try:
            self._system.write(fd, data)
        finally:
            self._system.close(fd)
        self._system.replace(f"{path}.new", path)


def stored_manifest(note: Note) -> Manifest | None:
    """The manifest that a run was started with."""
    try:
        return parse_manifest(Fields(note.manifest))
    except ProtocolError:
        return None


def quoted(word: str) -> str:
    """A word as the shell reads it back."""
    return "'" + word.replace("'", "'\\''") + "'"


def command_of(manifest: Manifest, argv: tuple[str, ...]) -> list[str]:
    """A command line that runs `argv` as the agent's user; with `given` as its stdin also in his environment."""
    if manifest.user is not None:
        return [*_python(), _LAUNCH, "user", manifest.user, *argv]
    return [*_python(), _LAUNCH, "self", *argv] if manifest.env else list(argv)


def given(manifest: Manifest) -> bytes:
    """The manifest's variables for `launch`. What may still run as root on the way must not see them."""
    # By the run's variable its processes are found again.
    pairs = [f"{name}={value}" for name, value in manifest.env.items() if name != RUN_VARIABLE]
    return "\0".join(pairs).encode("utf-8", "surrogateescape")


def _python() -> tuple[str, str, str]:
    """The interpreter without anything that a site or a user could put into it."""
    return (sys.executable, "-I", "-S")
