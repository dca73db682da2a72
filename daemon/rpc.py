"""The local socket: agents say over JSON-RPC 2.0 that they live, ask how they stand, and have themselves stopped.

One object or batch a line. It owns no thread: the main loop waits for `fileno()` and calls `serve`. Whoever connects is
believed only as far as the kernel vouches for him: his process must belong to the agent that he speaks for.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import stat
import struct
from typing import Any, Callable, NamedTuple, Protocol

from daemon.supervisor.processes import Process, ProcessTable
from daemon.system import System
from daemon.version import VERSION
from protocol.checkin import AgentStatus
from protocol.errors import ProtocolError
from protocol.fields import Fields

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
UNKNOWN_METHOD = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
FORBIDDEN = -32001
TOO_MANY = -32002

LINE_BYTES = 64 * 1024
BATCH = 50
CONNECTIONS = 256
PER_AGENT = 16
OUTPUT_BYTES = 256 * 1024
READ_BYTES = 16 * 1024
PER_TURN = 32
IDLE_S = 180.0
PER_S = 20.0
BURST = 100.0
MOST_REFUSED = 200
HEARTBEAT_S = 30
ANCESTORS = 64
SUN_PATH = 107

_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger("daemon.rpc")


class Agents(Protocol):
    """What is asked of the supervisor."""

    def agents(self) -> tuple[AgentStatus, ...]:
        """All of them."""

    def find(self, name: str) -> AgentStatus | None:
        """One of them."""

    def note_heartbeat(self, name: str, version: str | None = None) -> None:
        """It lives."""

    def order(self, verb: str, name: str, seq: int | None, on_end: Callable[[Any], None]) -> None:
        """start, stop, restart, reload."""


class RpcError(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Peer(NamedTuple):
    """Who is at the other end, and for which agent's process he speaks. Start times tell reused pids apart."""

    pid: int
    start: int
    uid: int
    agent: str
    agent_pid: int


class _Connection:
    __slots__ = ("channel", "heard_at", "incoming", "outgoing", "peer", "refused", "tokens", "tokens_at")

    def __init__(self, channel: socket.socket, peer: Peer, now: float) -> None:
        self.channel = channel
        self.peer = peer
        self.incoming = b""
        self.outgoing = b""
        self.heard_at = self.tokens_at = now
        self.tokens = BURST
        self.refused = 0


class RpcServer:
    """Everything bounded: connections, lines, batches, rates, answers that nobody reads."""

    def __init__(self, system: System, agents: Agents, proc: str = "/proc") -> None:
        self._system = system
        self._agents = agents
        self._processes = ProcessTable(system, proc)
        self._proc = proc
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._path = ""
        self._place: tuple[int, int] | None = None
        self._complaint = ""
        self._connections: dict[int, _Connection] = {}
        self._methods: dict[str, Callable[[str, Fields], Any]] = {
            "heartbeat": self._heartbeat,
            "status": self._status,
            "stop": self._stop,
        }

    # ---- from the main loop

    def listen(self, path: str) -> bool:
        """Begin. False, with a line in the log, if it cannot be: the Daemon is of use without it too."""
        self._path = path
        try:
            self._listener = open_listener(path)
        except OSError as error:
            words = f"no local socket at {path}: {error.strerror or error}"
            if words != self._complaint:
                log.error(words)  # noqa: TRY400
            self._complaint = words
            return False
        self._complaint = ""
        self._place = _place(path)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        return True

    def fileno(self) -> int:
        """Readable when `serve` has something to do."""
        return self._epoll.fileno()

    def serve(self) -> None:
        """Whatever is ready, a bounded part of it; the rest makes `fileno()` readable again at once."""
        for fd, events in self._epoll.poll(0, PER_TURN):
            connection = self._connections.get(fd)
            if connection is None:
                self._accept()
                continue
            try:
                self._attend(connection, events)
            except OSError:
                self._drop(connection)
            except Exception:
                # A loop's iteration: one client must not take the others along.
                log.exception("a client of the local socket stumbled")
                self._drop(connection)

    def tend(self) -> None:
        """Now and then: drop who has not said anything for long, and come back if somebody cleared the place away."""
        self._expire()
        if self._listener is not None and _place(self._path) != self._place:
            log.warning("the local socket at %s is gone; making it anew", self._path)
            self._epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None
        if self._listener is None and self._path:
            self.listen(self._path)

    def _expire(self) -> None:
        limit = self._system.boottime() - IDLE_S
        for connection in list(self._connections.values()):
            if connection.heard_at < limit:
                self._drop(connection)

    def close(self) -> None:
        """End."""
        for connection in list(self._connections.values()):
            self._drop(connection)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if _place(self._path) == self._place:
                self._system.remove(self._path)
        self._epoll.close()

    # ---- connections

    def _accept(self) -> None:
        """One of those that wait; the others are next turn, so that those who left make room before."""
        if self._listener is None:
            return
        try:
            channel, _ = self._listener.accept()
        except OSError:
            # He went away before he came, or there are no descriptors left.
            return
        channel.setblocking(False)
        try:
            peer = self._admit(channel)
        except RpcError as error:
            _say_goodbye(channel, error)
            return
        connection = _Connection(channel, peer, self._system.boottime())
        self._connections[channel.fileno()] = connection
        self._epoll.register(channel.fileno(), select.EPOLLIN)

    def _admit(self, channel: socket.socket) -> Peer:
        peer = self._identify(channel)
        if len(self._connections) >= CONNECTIONS:
            self._expire()
        mine = sum(connection.peer.agent == peer.agent for connection in self._connections.values())
        if len(self._connections) >= CONNECTIONS or mine >= PER_AGENT:
            raise RpcError(TOO_MANY, "too many connections")
        return peer

    def _identify(self, channel: socket.socket) -> Peer:
        """By the kernel's word on who connected."""
        pid, uid, _ = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        process = self._processes.one(pid) if pid > 0 else None
        if process is None:
            raise RpcError(FORBIDDEN, "this process cannot be seen from here")
        agent = self._agent_of(process)
        if agent is None or agent.pid is None:
            raise RpcError(FORBIDDEN, "this process belongs to no agent")
        if uid not in (0, os.geteuid(), self._owner(agent.pid)):
            raise RpcError(FORBIDDEN, f"this user may not speak for {agent.name}")
        return Peer(pid, process.start, uid, agent.name, agent.pid)

    def _agent_of(self, process: Process) -> AgentStatus | None:
        """The agent that a process belongs to: it is it, descends from it, or is in the same process group."""
        by_pid = {agent.pid: agent for agent in self._agents.agents() if agent.pid is not None}
        by_group: dict[int, AgentStatus] = {}
        for pid, agent in by_pid.items():
            leader = self._processes.one(pid)
            if leader is not None:
                by_group[leader.group] = agent
        found: Process | None = process
        for _ in range(ANCESTORS):
            if found is None or found.pid <= 1:
                return None
            agent_found = by_pid.get(found.pid) or by_group.get(found.group)
            if agent_found is not None:
                return agent_found
            found = self._processes.one(found.ppid)
        return None

    def _owner(self, pid: int) -> int:
        try:
            return self._system.facts(f"{self._proc}/{pid}").owner
        except OSError:
            return -1

    def _is_still_he(self, peer: Peer) -> bool:
        """Whether the connection still is what it was when it was admitted: an agent may have been restarted since."""
        agent, process = self._agents.find(peer.agent), self._processes.one(peer.pid)
        is_same = agent is not None and agent.pid == peer.agent_pid
        return is_same and process is not None and process.start == peer.start

    def _attend(self, connection: _Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(connection)
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        raw = connection.channel.recv(READ_BYTES)
        if not raw:
            self._drop(connection)
            return
        connection.heard_at = self._system.boottime()
        *lines, connection.incoming = (connection.incoming + raw).split(b"\n")
        for line in lines:
            self._take_line(connection, line)
            if connection.channel.fileno() < 0:
                return
        if len(connection.incoming) > LINE_BYTES:
            self._part(connection, RpcError(INVALID_REQUEST, f"a line must not exceed {LINE_BYTES} bytes"))

    def _take_line(self, connection: _Connection, line: bytes) -> None:
        if not line.strip():
            return
        if len(line) > LINE_BYTES:
            self._part(connection, RpcError(INVALID_REQUEST, f"a line must not exceed {LINE_BYTES} bytes"))
            return
        if not self._is_still_he(connection.peer):
            self._part(connection, RpcError(FORBIDDEN, f"this process does not belong to {connection.peer.agent}"))
            return
        answer = self._answer(connection, line)
        if answer is not None:
            connection.outgoing += json.dumps(answer, separators=(",", ":")).encode("utf-8") + b"\n"
            self._flush(connection)
        if connection.refused > MOST_REFUSED or len(connection.outgoing) > OUTPUT_BYTES:
            self._drop(connection)

    def _flush(self, connection: _Connection) -> None:
        fd = connection.channel.fileno()
        if connection.outgoing:
            try:
                sent = connection.channel.send(connection.outgoing)
            except BlockingIOError:
                sent = 0
            connection.outgoing = connection.outgoing[sent:]
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if connection.outgoing else 0))

    def _part(self, connection: _Connection, error: RpcError) -> None:
        """Say why, and close."""
        fd = connection.channel.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        _say_goodbye(connection.channel, error)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.channel.fileno()
        if self._connections.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            connection.channel.close()

    # ---- JSON-RPC 2.0

    def _answer(self, connection: _Connection, line: bytes) -> Any:
        """What is said to a line: an object, a list of them, or None to notifications."""
        try:
            message = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return _error(None, PARSE_ERROR, "this is not JSON in UTF-8")
        if not isinstance(message, list):
            return self._take(connection, message)
        if not message:
            return _error(None, INVALID_REQUEST, "an empty batch")
        if len(message) > BATCH:
            return _error(None, INVALID_REQUEST, f"a batch must not have more than {BATCH} requests")
        answers = [answer for answer in (self._take(connection, item) for item in message) if answer is not None]
        return answers or None

    def _take(self, connection: _Connection, message: object) -> dict[str, Any] | None:
        problem = _problem(message)
        if problem is not None or not isinstance(message, dict):
            return _error(_usable_id(message), INVALID_REQUEST, problem or "a request is an object")
        is_notification = "id" not in message
        try:
            result = self._call(connection, message["method"], message.get("params", {}))
        except RpcError as error:
            return None if is_notification else _error(message["id"], error.code, str(error))
        except ProtocolError as error:
            return None if is_notification else _error(message["id"], INVALID_PARAMS, str(error))
        except Exception:
            # A method's mistake must not close the connection.
            log.exception("%s failed", message["method"][:64])
            return None if is_notification else _error(message["id"], INTERNAL_ERROR, "something went wrong")
        return None if is_notification else {"jsonrpc": "2.0", "result": result, "id": message["id"]}

    def _call(self, connection: _Connection, method: str, params: Any) -> Any:
        now = self._system.boottime()
        connection.tokens = min(BURST, connection.tokens + (now - connection.tokens_at) * PER_S)
        connection.tokens_at = now
        if connection.tokens < 1:
            connection.refused += 1
            raise RpcError(TOO_MANY, "too many requests")
        connection.tokens -= 1
        connection.refused = 0
        called = self._methods.get(method)
        if called is None:
            raise RpcError(UNKNOWN_METHOD, f"there is no method {method[:64]}")
        if isinstance(params, list) and params:
            raise RpcError(INVALID_PARAMS, "parameters have names here")
        fields = Fields(params or {}, "params")
        name = fields.text_or_none("name", 64)
        if name is not None and name != connection.peer.agent:
            raise RpcError(FORBIDDEN, f"this process does not belong to {name}")
        return called(connection.peer.agent, fields)

    def _heartbeat(self, agent: str, params: Fields) -> Any:
        """Of what it says only the version is kept: what it uses, the Daemon sees for itself."""
        params.integer_or_none("pid", 1, 2**31)
        params.number_or_none("cpu", 0, 1e6)
        params.number_or_none("memory", 0, 1e18)
        params.text_or_none("state", 64)
        self._agents.note_heartbeat(agent, params.text_or_none("version", 64))
        return {"interval_s": HEARTBEAT_S}

    def _status(self, agent: str, _: Fields) -> Any:
        found = self._agents.find(agent)
        if found is None:
            raise RpcError(FORBIDDEN, f"there is no agent {agent}")
        told = ("name", "type", "version", "status", "desired", "pid", "start_time", "restart_count", "config_version")
        return {**{name: getattr(found, name) for name in told}, "daemon_version": VERSION}

    def _stop(self, agent: str, _: Fields) -> Any:
        """It wants to end and not to be started again: it will be asked to, as with any stop."""
        log.info("%s asks to be stopped", agent)
        self._agents.order("stop", agent, None, lambda _: None)
        return {"accepted": True}


def open_listener(path: str) -> socket.socket:
    """A listening socket at a path of any length. What a dead Daemon left is taken away, a living one is not."""
    parent, _, name = path.rpartition("/")
    with contextlib.suppress(FileExistsError):
        os.mkdir(parent or "/", 0o755)  # noqa: PTH102
    folder = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The address of a socket has room for 107 bytes; this way round there is room for any path.
        near = path if len(os.fsencode(path)) <= SUN_PATH else f"/proc/self/fd/{folder}/{name}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            _clear_place(near)
            listener.bind(near)
            # Everybody may knock; who is let in, credentials decide.
            os.chmod(near, 0o666)  # noqa: PTH101, S103  # nosec B103
            listener.listen(CONNECTIONS)
        except BaseException:
            listener.close()
            raise
    finally:
        os.close(folder)
    return listener


def _place(path: str) -> tuple[int, int] | None:
    """What stands there."""
    try:
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _clear_place(path: str) -> None:
    try:
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "something else is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as knocker:
        knocker.settimeout(1.0)
        try:
            knocker.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)  # noqa: PTH108
            return
        except OSError:
            # It does not even answer: busy, but alive.
            pass
    raise OSError(errno.EADDRINUSE, "another process listens there")


def _say_goodbye(channel: socket.socket, error: RpcError) -> None:
    try:
        channel.send(json.dumps(_error(None, error.code, str(error)), separators=(",", ":")).encode("utf-8") + b"\n")
        # With something left unread the kernel would reset the connection before he has read why.
        channel.recv(LINE_BYTES)
    except OSError:
        # He does not even want to know.
        log.debug("a client left before it was told why")
    channel.close()


def _problem(message: object) -> str | None:
    """Why this is no request; None if it is one."""
    if not isinstance(message, dict):
        return "a request is an object"
    if message.get("jsonrpc") != "2.0":
        return 'jsonrpc must be "2.0"'
    if not isinstance(message.get("method"), str):
        return "method must be a string"
    if "id" in message and not _is_id(message["id"]):
        return "id must be a string, a number or null"
    if "params" in message and not isinstance(message["params"], (dict, list)):
        return "params must be an object or a list"
    return None


def _is_id(value: object) -> bool:
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def _usable_id(message: object) -> Any:
    value = message.get("id") if isinstance(message, dict) else None
    return value if _is_id(value) else None


def _error(request_id: Any, code: int, words: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": words}, "id": request_id}


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)
