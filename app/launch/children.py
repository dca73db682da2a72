"""One child process: how it is started, heard and ended. When and how often the supervisor decides."""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping

from app.launch.processes import Process, Stage

PR_SET_PDEATHSIG = 1
PRIVATE_UMASK = 0o077
# What runs on the host is not the Manager's: scripts expect the mask that a service manager gives them.
HOST_UMASK = 0o022
READ_BYTES = 65536
LONGEST_LINE = 65536

_libc = ctypes.CDLL(None)

Show = Callable[[str, bytes], None]


class Child:
    """A running process in a session of its own, so that a terminal's Ctrl-C reaches the launcher only.

    With `captures`, what it writes to standard output is kept instead of shown.
    """

    def __init__(
        self,
        spec: Process,
        environment: Mapping[str, str],
        selector: selectors.BaseSelector,
        show: Show,
        *,
        captures: bool = False,
    ) -> None:
        self.spec = spec
        self.captured = b""
        self._selector = selector
        self._show = show
        launcher = os.getpid()
        # The host's agents are no children of ours: its Daemon must live to stop them.
        last_word = signal.SIGTERM if spec.stage == Stage.HOST else signal.SIGKILL
        self._process = subprocess.Popen(
            spec.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if captures else subprocess.STDOUT,
            start_new_session=True,
            umask=HOST_UMASK if spec.stage == Stage.HOST else PRIVATE_UMASK,
            preexec_fn=lambda: _die_with(launcher, last_word),  # noqa: PLW1509 - this process has one thread
        )
        shown = self._process.stderr if captures else self._process.stdout
        self._lines = _Lines(lambda line: show(spec.name, line))
        self._readers: dict[int, Callable[[bytes], None]] = {}
        if shown is not None:
            self._listen(shown.fileno(), self._lines.feed)
        if captures and self._process.stdout is not None:
            self._listen(self._process.stdout.fileno(), self._capture)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> int | None:
        """The exit code (negative: a signal's number) once it is over, else None. Takes its whole group with it."""
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Before it is reaped, so that its number cannot belong to somebody else yet.
        self.kill()
        code = self._process.wait()
        for descriptor in list(self._readers):
            self._read(descriptor)
            self._forget(descriptor)
        self._lines.flush()
        return code

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """It and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _listen(self, descriptor: int, feed: Callable[[bytes], None]) -> None:
        os.set_blocking(descriptor, False)
        self._readers[descriptor] = feed
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._read(descriptor))

    def _read(self, descriptor: int) -> None:
        """What is there now; at its end the descriptor is forgotten."""
        while descriptor in self._readers:
            try:
                data = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._forget(descriptor)
                return
            self._readers[descriptor](data)

    def _forget(self, descriptor: int) -> None:
        if self._readers.pop(descriptor, None):
            self._selector.unregister(descriptor)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed and stream.fileno() == descriptor:
                stream.close()

    def _capture(self, data: bytes) -> None:
        self.captured += data


class _Lines:
    """Cuts a stream into lines."""

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > LONGEST_LINE:
            self.flush()

    def flush(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""


def describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _die_with(launcher: int, last_word: int) -> None:
    """Runs in the child before its program. The kernel keeps this across the exec."""
    _libc.prctl(PR_SET_PDEATHSIG, last_word)
    if os.getppid() != launcher:
        os._exit(1)
