"""The process of one agent: started through its shim or found, seen to end, and taken down with all that belongs to it.

What should happen to it is decided elsewhere.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

from daemon.clock import Clock
from daemon.measure import Logbook
from daemon.supervisor import output
from daemon.supervisor.adoption import find_process
from daemon.supervisor.poller import READ, Poller
from daemon.supervisor.processes import TICKS_PER_S, Identity, Meter, Process, ProcessTable, members
from daemon.supervisor.runs import RUN_VARIABLE, Ended, Note, RunFiles
from daemon.system import System
from protocol.codec import to_plain
from protocol.manifests import LEAVE, Adopt, Manifest
from protocol.times import to_text

LAUNCH_S = 0.015
LOOK_S = 0.003
ALIVE_LOOK_S = 0.5
ENDING_S = 2.0
EARLY_S = 10.0

IDLE, LOCKED, SPAWNED, ALIVE, ENDING = "idle", "locked", "spawned", "alive", "ending"

NEVER = float("inf")

log = logging.getLogger("daemon.supervisor")


class Around(NamedTuple):
    """What all agents share."""

    system: System
    processes: ProcessTable
    poller: Poller
    clock: Clock
    logbook: Logbook
    boot_id: str
    environ: Mapping[str, str]
    on_change: Callable[[], None]
    forbids: Callable[[str | None], str | None]
    """Why the host does not let the Manager run a command as this user (null: the Daemon's own); null: it does."""
    forbids_file: Callable[[str], str | None]
    """Why it does not let the Manager read a file; null: it does."""


class Gone(NamedTuple):
    """There is no process any more, or there never was. `words` say why where no exit tells it."""

    ended: Ended | None
    words: str | None
    is_failure: bool


class Lifetime:
    """At most one process at a time. `on_up` hears whether it was found rather than started, `on_gone` how it went.

    Both are called from `look`, or from the poller.
    """

    def __init__(self, around: Around, directory: str, on_up: Callable[[bool], None], on_gone: Callable[[Gone], None]
                 ) -> None:  # fmt: skip
        self._system = around.system
        self._around = around
        self._processes = around.processes
        self._on_up = on_up
        self._on_gone = on_gone
        self.files = RunFiles(around.system, directory)
        self.stage = IDLE
        self.identity: Identity | None = None
        self.is_adopted = False
        self.note: Note | None = None
        self.config_version_before: int | None = None
        self.started_at: float | None = None
        self.start_text: str | None = None
        self.meter = Meter()
        self.due = NEVER
        self._start: Callable[[], None] = lambda: None
        self._run = ""
        self._shim: Identity | None = None
        self._pidfd: int | None = None
        self._children: set[int] = set()
        self._ending_until = 0.0
        self._is_doomed = False
        self._output_before: int | None = None

    # ---- orders

    def start(self, manifest: Manifest, source: str, environ: Mapping[str, str], config_version: int | None,
              restarts: int) -> None:  # fmt: skip
        """Start it, once whatever is left of the run before is gone. OSError, ValueError: it cannot be."""
        # Somebody may have cleared it away.
        self._system.make_dir(self.files.directory)
        lock = self.files.take_lock()
        if lock is None:
            self.stage, self.due = LOCKED, self._system.boottime() + LOOK_S
            self._start = lambda: self.start(manifest, source, environ, config_version, restarts)
            return
        self.clear()
        self.config_version_before = None if self.note is None else self.note.config_version
        self._run = self._system.random_bytes(8).hex()
        self._output_before = output.size(self._system, self.files.output)
        plain: dict[str, Any] = to_plain(manifest)
        self.note = Note(self._run, self._around.boot_id, source, plain, config_version, restarts, None)
        try:
            child = self.files.launch(self.note, manifest, environ, lock)
        finally:
            self._system.close(lock)
        self._children.add(child)
        self.stage, self.due = SPAWNED, self._system.boottime() + LAUNCH_S

    def adopt(self, adopt: Adopt, user: str | None) -> bool:
        """Look for the process that somebody else started; True if there is one, which is watched from now on."""
        found = find_process(self._system, self._processes, adopt, user, frozenset({os.getpid()}))
        if found is None:
            return False
        self.clear()
        self.is_adopted, self.note, self._run = True, None, ""
        self._take(found, None, is_found=True)
        return True

    def resume(self) -> bool:
        """After a start of the Daemon: pick up what the last one left; True if there is or was something unhandled."""
        note = self.files.read_note()
        run = self.files.run_under_way() if note is None else None
        if run is not None:
            # The note was lost, but the agent is there.
            note = Note(run, self._around.boot_id, "", {}, None, 0, None)
        if note is None or note.boot_id != self._around.boot_id:
            return False
        self.note, self._run, self.config_version_before = note, note.run, note.config_version
        if note.handled_at is not None:
            return False
        agent, shim = self.files.agent(note.run), self.files.shim(note.run)
        if agent is not None and self._processes.is_alive(agent):
            self._take(agent, shim, is_found=True)
        elif agent is None and self.files.is_locked():
            self.stage, self.due = SPAWNED, 0.0
        elif agent is not None or self.files.ended(note.run) is not None:
            # It ended while nobody looked.
            self.identity, self._shim = agent, shim
            self.stage, self.due, self._ending_until = ENDING, 0.0, self._system.boottime() + ENDING_S
        return self.stage != IDLE

    def signal(self, name: str) -> None:
        """To the agent's main process, which knows best what it means for the others."""
        identity = self.identity
        if self.stage == ALIVE and identity is not None and self._processes.is_alive(identity):
            self._system.kill(identity.pid, getattr(signal, f"SIG{name}"))
            if name != "KILL":
                # A stopped process would not hear it.
                self._system.kill(identity.pid, signal.SIGCONT)

    def cancel(self) -> bool:
        """Give up a start that has not begun; False if it has."""
        if self.stage not in (IDLE, LOCKED):
            return False
        self.stage, self.due = IDLE, NEVER
        return True

    def kill(self) -> None:
        """All of it, now."""
        self._is_doomed = True
        if self.stage == SPAWNED:
            self._kill_shim()
        self._kill_members()

    def doom(self) -> None:
        """It was asked to end: what it leaves behind goes too, also of an adopted one."""
        self._is_doomed = True

    def clear(self) -> None:
        """There is no process any more."""
        self.identity, self._shim, self.start_text, self.started_at = None, None, None, None
        self.is_adopted = self._is_doomed = False
        self.stage, self.due = IDLE, NEVER
        self.meter.reset()
        self._close_pidfd()

    def handled(self, restarts: int) -> None:
        """Its end was dealt with: the next Daemon must not report it again."""
        if self.note is None:
            return
        self.note = self.note._replace(handled_at=self._system.boottime(), restarts=restarts)
        try:
            self.files.write_note(self.note)
        except OSError as error:
            log.warning("cannot write down where an agent stands: %s", error)

    # ---- seeing

    def look(self, now: float) -> None:
        """Whatever is due."""
        if self.stage == LOCKED:
            self._start_again()
        elif self.stage == SPAWNED:
            self._look_for_agent(now)
        elif self.stage == ALIVE:
            self.due = now + ALIVE_LOOK_S
            if self.identity is None or not self._processes.is_alive(self.identity):
                self._ends()
        elif self.stage == ENDING:
            self._look_for_end(now)

    @property
    def _leaves_detached(self) -> bool:
        """Whether what went its own way is nobody's any more: by the manifest that this run was started with."""
        stop = None if self.note is None else self.note.manifest.get("stop")
        return isinstance(stop, dict) and stop.get("detached") == LEAVE

    def group(self, table: dict[int, Process]) -> list[Process]:
        """The agent's processes without its shim."""
        roots = [root for root in (self._shim, self.identity) if root is not None]
        shim = None if self._shim is None else self._shim.pid
        return [process for process in members(table, roots) if process.pid != shim]

    def early_words(self, ended_at: float) -> str:
        """The last line that it wrote, if it ended soon after its start: most likely why it could not go on."""
        before, started = self._output_before, self.started_at
        if before is None or started is None or ended_at - started > EARLY_S:
            return ""
        if output.size(self._system, self.files.output) <= before:
            return ""
        return "".join(line.strip() for line in output.last_lines(self._system, self.files.output, 1))

    def reap(self) -> None:
        """Take away what is left of shims that have ended."""
        self._children = {child for child in self._children if not self._system.reap(child)}

    def _start_again(self) -> None:
        try:
            self._start()
        except (OSError, ValueError) as error:
            self.stage, self.due = IDLE, NEVER
            self._on_gone(Gone(None, f"cannot be started: {error}", True))

    def _look_for_agent(self, now: float) -> None:
        self.due = now + LOOK_S
        is_over = not self.files.is_locked()
        agent = self.files.agent(self._run)
        if agent is not None:
            self._take(agent, self.files.shim(self._run), is_found=False)
        elif is_over:
            self.reap()
            self.stage, self.due = IDLE, NEVER
            lines = output.last_lines(self._system, self.files.output, 1)
            self._on_gone(Gone(None, "the shell that starts it failed" + "".join(f": {line}" for line in lines), True))

    def _take(self, agent: Identity, shim: Identity | None, is_found: bool) -> None:
        """There is a process. It may be gone already."""
        now = self._system.boottime()
        self.identity, self._shim = agent, shim
        self.stage, self.due = ALIVE, now + ALIVE_LOOK_S
        self.started_at = agent.start / TICKS_PER_S
        self.start_text = to_text(self._around.clock.best_now() - (now - self.started_at))
        self._pidfd = self._system.pidfd(agent.pid)
        if self._pidfd is not None:
            self.due = NEVER
            self._around.poller.add(self._pidfd, READ, self._ends)
        self._on_up(is_found)
        if not self._processes.is_alive(agent):
            self._ends()

    def _ends(self) -> None:
        """The process has ended; how, its parent is just writing down."""
        if self.stage == ALIVE:
            self._close_pidfd()
            self.stage, self.due = ENDING, 0.0
            self._ending_until = self._system.boottime() + ENDING_S

    def _look_for_end(self, now: float) -> None:
        self.due = now + LOOK_S
        ended: Ended | None = None
        if not self.is_adopted:
            is_over = not self.files.is_locked()
            ended = self.files.ended(self._run)
            if not is_over and now < self._ending_until:
                return
            if not is_over:
                # The shim lives on and says nothing: somebody stopped it. It must not outlive its agent.
                self._kill_shim()
        self.reap()
        is_ours = self._is_doomed or not self.is_adopted
        if is_ours and self._kill_members() and now < self._ending_until + ENDING_S:
            return
        self.stage, self.due = IDLE, NEVER
        words = "ended; how, only its parent knows" if self.is_adopted else None
        self._on_gone(Gone(ended, words, not (self.is_adopted and self._is_doomed)))

    # ---- killing

    def _kill_shim(self) -> None:
        """It did not do its part."""
        shim = self._shim or self.files.shim(self._run)
        if shim is not None and self._processes.is_alive(shim):
            self._system.kill(shim.pid, signal.SIGKILL)
        elif shim is None:
            for child in self._children:
                self._system.kill(child, signal.SIGKILL)

    def _kill_members(self) -> bool:
        """SIGKILL to all that belongs to this run but its shim; whether there was anything."""
        table = self._processes.read()
        doomed = {process.pid for process in self.group(table)}
        if not self.is_adopted and not self._leaves_detached:
            # Those that left the session and lost their parents: known from an earlier look, or by their environment.
            marker = f"{RUN_VARIABLE}={self._run}".encode("ascii")
            doomed |= {one.pid for one in self.meter.known() if one.pid in table and table[one.pid].start == one.start}
            doomed |= {pid for pid in table if pid not in doomed and self._processes.has_environment(pid, marker)}
        doomed -= {0 if self._shim is None else self._shim.pid, 1, os.getpid()} | self._children
        for pid in doomed:
            self._system.kill(pid, signal.SIGKILL)
        return bool(doomed)

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, None
        if fd is not None:
            self._around.poller.remove(fd)
            self._system.close(fd)
