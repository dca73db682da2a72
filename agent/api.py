"""`/api/v1` of the task agent: who may call, which path means what, and the answers."""

from __future__ import annotations

import ipaddress
import os
import time
from typing import Any, Callable
from urllib.parse import parse_qsl

from agent.answers import TASK_NOT_FOUND, TASK_STATE, Refused, bad, enveloped, refusal
from agent.contents import parse_task
from agent.files_api import FilesApi, is_id
from agent.loop import Loop
from agent.output import STDERR, STDOUT
from agent.runner import Busy, Execution, Known, NotFound, Over, Runner, event_of, text_of
from agent.server import Answer, Exchange, Request
from agent.settings import Settings
from agent.signature import Gate, NotAuthentic, Rates
from agent.usage import Usage
from agent.version import VERSION
from protocol import errors
from protocol.codec import decode
from protocol.errors import ProtocolError
from protocol.times import to_text

ROOT = "/api/v1/"
ORDER_BYTES = 1024 * 1024
WAIT_S = 50.0
EVENTS_BYTES = 128 * 1024
FOLLOWED = 64
OUTPUT_BYTES = 1024 * 1024
RETRY_S = 1

RECORD_STATUS = {
    "queued": "pending", "running": "running", "succeeded": "success", "failed": "failed", "timed_out": "timeout",
    "cancelled": "cancelled", "interrupted": "interrupted", "expired": "expired",
}  # fmt: skip

Query = dict[str, str]


class Api:
    """Local callers are root or the agent's own user; all others need an allowed address and a signature."""

    def __init__(
        self, loop: Loop, settings: Settings, runner: Runner, files: FilesApi, gate: Gate, usage: Usage
    ) -> None:  # fmt: skip
        self._loop = loop
        self._settings = settings
        self._runner = runner
        self._files = files
        self._gate = gate
        self._usage = usage
        self._started = time.time()
        self._rates = Rates(settings.http_rate_per_s, settings.http_burst)
        self._allowed = [ipaddress.ip_network(word) for word in settings.http_allow]

    def is_allowed(self, address: str) -> bool:
        """Whether this address is on the list."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._allowed)

    def look(self, request: Request) -> Answer | None:
        """What a head is refused for, before anybody waits for its body: too many requests, or no signature."""
        if request.peer.is_local:
            return None
        try:
            pause = self._rates.take(request.peer.name)
            if pause:
                raise Refused(errors.TOO_MANY_REQUESTS, "too many requests", None, max(1, int(pause + 1)))
            if not _is_open(request):
                self._gate.look(request)
        except NotAuthentic as error:
            return refusal(Refused(errors.NOT_AUTHENTICATED, str(error)), request.headers.get("accept-language", ""))
        except Refused as error:
            return refusal(error, request.headers.get("accept-language", ""))
        return None

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer at once or later."""
        try:
            self._dispatch(request, exchange)
        except Refused as error:
            exchange.answer(refusal(error, request.headers.get("accept-language", "")))
        except ProtocolError as error:
            data = {"errors": [{"field": error.field, "message": error.message}]}
            exchange.answer(refusal(Refused(error.code, str(error), data), request.headers.get("accept-language", "")))

    # ---- who and what

    def _dispatch(self, request: Request, exchange: Exchange) -> None:
        path = request.path[len(ROOT) :] if request.path.startswith(ROOT) else ""
        if not request.peer.is_local and not _is_open(request):
            self._admit(request)
        words = path.split("/")
        if len(words) == 3 and words[0] == "task" and is_id(words[1]):
            methods = self._task_routes().get(words[2])
        else:
            methods = self._routes().get(path)
        if methods is None:
            raise Refused(errors.NOT_FOUND, "there is nothing at this path")
        route = methods.get(request.method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise Refused(errors.METHOD_NOT_ALLOWED, f"allowed is {allowed}", {"allow": sorted(methods)})
        route(request, _query_of(request), words[1] if len(words) == 3 else "", exchange)

    def _admit(self, request: Request) -> None:
        try:
            self._gate.check(request)
        except NotAuthentic as error:
            raise Refused(errors.NOT_AUTHENTICATED, str(error)) from None
        except OSError as error:
            raise Refused(errors.INTERNAL, f"the nonce cannot be written down: {error.strerror}") from None

    def _routes(self) -> dict[str, dict[str, Route]]:
        return {
            "health": {"GET": self._health},
            "status": {"GET": self._status},
            "events": {"GET": self._follow_many},
            "task/execute": {"POST": self._execute},
            "file/upload": {
                "POST": lambda request, query, _, exchange: self._files.upload(request, query, exchange),
                "GET": lambda request, query, _, exchange: self._files.progress(request, query, exchange),
            },
            "file/stage": {"POST": lambda request, query, _, exchange: self._files.stage(request, query, exchange)},
            "file/download": {
                "GET": lambda request, query, _, exchange: self._files.download(request, query, exchange)
            },
        }

    def _task_routes(self) -> dict[str, dict[str, Route]]:
        return {
            "status": {"GET": self._show},
            "cancel": {"POST": self._cancel},
            "forget": {"POST": self._forget},
            "output": {"GET": self._output},
            "events": {"GET": self._follow},
            "file": {"GET": lambda request, _, name, exchange: self._files.outbox(request, name, exchange)},
        }

    # ---- the agent

    def _health(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        state = "stopping" if self._runner.is_stopping else "ok"
        exchange.answer(_fine(request, {"status": state, "version": VERSION}))

    def _status(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        running, queued = self._runner.counts()
        usage = self._usage.now()
        data = {
            "status": "stopping" if self._runner.is_stopping else "busy" if running else "idle",
            "version": VERSION,
            "pid": os.getpid(),
            "started_at": to_text(self._started),
            "cpu_usage": usage.cpu_percent,
            "memory_usage": usage.memory_bytes,
            "running": running,
            "queued": queued,
            "max_running": self._settings.tasks_max_running,
            "max_queued": self._settings.tasks_max_queued,
            "executions": [
                {"id": execution.id, "type": execution.kind, "status": RECORD_STATUS[execution.status]}
                for execution in self._runner.all()
                if not execution.is_over
            ],
        }
        exchange.answer(_fine(request, data))

    # ---- executions

    def _execute(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        task = parse_task(decode(request.body, ORDER_BYTES))

        def on_done(outcome: Execution | OSError) -> None:
            if isinstance(outcome, OSError):
                refused = Refused(errors.INTERNAL, f"the order cannot be written down: {outcome.strerror}")
                exchange.answer(refusal(refused))
                return
            exchange.answer(_fine(request, self._brief(outcome), 202))

        try:
            self._runner.submit(task, on_done)
        except Busy:
            raise Refused(errors.TOO_MANY_REQUESTS, "too many executions run and wait", None, RETRY_S) from None
        except Known as error:
            raise Refused(errors.CONFLICT, str(error), {"id": task.id}) from None

    def _show(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        execution = self._find(name)
        frames = self._runner.frames_of(execution)
        data = self._brief(execution)
        data["stdout"], data["stderr"] = text_of(frames, STDOUT), text_of(frames, STDERR)
        exchange.answer(_fine(request, data))

    def _cancel(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        self._find(name)
        try:
            execution = self._runner.cancel(name)
        except Over:
            raise Refused(TASK_STATE, "it has ended already") from None
        exchange.answer(_fine(request, self._brief(execution), 202))

    def _forget(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        self._find(name)
        try:
            self._runner.forget(name)
        except Over:
            raise Refused(TASK_STATE, "it has not ended yet") from None
        except OSError as error:
            raise Refused(errors.INTERNAL, f"it cannot be forgotten: {error.strerror}") from None
        exchange.answer(_fine(request, None))

    def _output(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        """Bytes of one stream from `offset` to the next place where something was left out."""
        stream = query.get("stream", "stdout")
        if stream not in ("stdout", "stderr"):
            raise bad("stream", "must be stdout or stderr")
        offset = _number(query, "offset", 0)
        frames = self._runner.frames_of(self._find(name))
        kind, found, at = (STDOUT if stream == "stdout" else STDERR), bytearray(), None
        for number in range(len(frames)):
            frame = frames.read(number)
            if frame.kind != kind or frame.offset + len(frame.data) <= offset:
                continue
            begin = max(offset, frame.offset)
            if at is None:
                at = begin
            if begin != at + len(found) or len(found) >= OUTPUT_BYTES:
                break
            found += frame.data[begin - frame.offset :]
        headers = (("X-Ops-Offset", str(offset if at is None else at)),)
        exchange.answer(Answer(200, bytes(found), headers, "application/octet-stream"))

    def _follow(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        """What has happened since frame `after`, held until there is something or the time is up."""
        after, wait_s = _number(query, "after", 0), _number(query, "wait_s", 0)
        execution = self._find(name)

        def look(is_last_look: bool) -> bool:
            found = self._since(execution, after)
            if not found["events"] and not found["done"] and not is_last_look:
                return False
            exchange.answer(_fine(request, found))
            return True

        _Hold(self._loop, exchange, look, min(float(wait_s), WAIT_S), [execution], None).begin()

    def _follow_many(self, request: Request, query: Query, name: str, exchange: Exchange) -> None:
        """As `_follow` for several at once: `after=id:frame,id:frame`. A new execution ends the wait as well."""
        wait_s = _number(query, "wait_s", 0)
        wanted = [_place(word) for word in query.get("after", "").split(",") if word]
        if len(wanted) > FOLLOWED:
            raise bad("after", f"must name at most {FOLLOWED} executions")
        places = dict(wanted)
        looked_up = {name: self._runner.get(name) for name in places}
        known = [execution for execution in looked_up.values() if execution is not None]
        unknown = [name for name, execution in looked_up.items() if execution is None]
        is_new: list[bool] = []

        def look(is_last_look: bool) -> bool:
            found, room = [], EVENTS_BYTES
            for execution in known:
                told = self._since(execution, places[execution.id], room)
                room -= sum(len(event.get("data", b"")) for event in told["events"])
                if told["events"] or told["done"]:
                    found.append(told)
            if not found and not unknown and not is_last_look and not is_new:
                return False
            exchange.answer(_fine(request, {"tasks": found, "unknown": unknown}))
            return True

        hold = _Hold(self._loop, exchange, look, min(float(wait_s), WAIT_S), known, self._runner)
        hold.is_new = is_new
        hold.begin()

    def _since(self, execution: Execution, after: int, room: int = EVENTS_BYTES) -> dict[str, Any]:
        frames = self._runner.frames_of(execution)
        events: list[dict[str, Any]] = []
        number = after
        while number < len(frames) and room > 0:
            event = event_of(number, frames.read(number))
            room -= len(event.get("data", b"")) + 200
            events.append(event)
            number += 1
        return {
            "id": execution.id,
            "status": RECORD_STATUS[execution.status],
            "events": events,
            "next": number,
            "done": execution.is_over and number >= len(frames),
        }

    def _find(self, name: str) -> Execution:
        try:
            return self._runner.find(name)
        except NotFound:
            words = "it is forgotten" if self._runner.is_forgotten(name) else "there is no execution of this id"
            raise Refused(TASK_NOT_FOUND, words) from None

    def _brief(self, execution: Execution) -> dict[str, Any]:
        """A record, as far as a host knows it, without its output."""
        result = execution.result
        return {
            "id": execution.id,
            "type": execution.kind,
            "status": RECORD_STATUS[execution.status],
            "exit_code": result.exit_code if result else None,
            "signal": result.signal if result else None,
            "user": result.user if result else execution.user,
            "pid": execution.child.process.pid if execution.child else None,
            "stdout_bytes": result.stdout_bytes
            if result
            else execution.output.sizes[STDOUT]
            if execution.output
            else 0,
            "stderr_bytes": result.stderr_bytes
            if result
            else execution.output.sizes[STDERR]
            if execution.output
            else 0,
            "truncated": result.truncated if result else execution.output.is_truncated if execution.output else False,
            "error": result.error if result else None,
            "error_code": result.error_code if result else None,
            "waiting_for": "agent_queue" if execution.status == "queued" else None,
            "queued_at": to_text(execution.queued_at),
            "started_at": result.started_at if result else execution.started_at,
            "finished_at": result.finished_at if result else None,
            "duration_ms": result.duration_ms if result else None,
            "events": self._runner.count_of(execution),
        }


def _is_open(request: Request) -> bool:
    """Whoever may connect may see that somebody lives here, and no more."""
    return (request.method, request.path) == ("GET", f"{ROOT}health") and "x-ops-key" not in request.headers


class _Hold:
    """A held request: looks again whenever something happened, and a last time when its time is up."""

    def __init__(
        self, loop: Loop, exchange: Exchange, look: Callable[[bool], bool], wait_s: float, on: list[Execution],
        runner: Runner | None,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._exchange = exchange
        self._look = look
        self._wait_s = wait_s
        self._on = on
        self._runner = runner
        self.is_new: list[bool] = []

    def begin(self) -> None:
        """The first look."""
        if self._look(self._wait_s <= 0):
            return
        self._timer = self._loop.later(self._wait_s, lambda: self._end(True))
        self._exchange.on_gone = lambda: self._end(False)
        self._arm()

    def _arm(self) -> None:
        for execution in self._on:
            execution.waiters.append(self._wake)
        if self._runner is not None:
            self._runner.on_any_news(self._wake_for_new)

    def _disarm(self) -> None:
        for execution in self._on:
            if self._wake in execution.waiters:
                execution.waiters.remove(self._wake)
        if self._runner is not None:
            self._runner.ignore_news(self._wake_for_new)

    def _wake(self) -> None:
        if self._exchange.is_over:
            return
        self._disarm()
        if self._look(False):
            self._timer.cancel()
        else:
            self._arm()

    def _wake_for_new(self) -> None:
        self.is_new.append(True)
        self._wake()

    def _end(self, is_look_wanted: bool) -> None:
        self._timer.cancel()
        self._disarm()
        if is_look_wanted and not self._exchange.is_over:
            self._look(True)


Route = Callable[[Request, "dict[str, str]", str, Exchange], Any]


def _fine(request: Request, data: Any, status: int = 200) -> Answer:
    return enveloped(data, status, request.headers.get("accept-language", ""))


def _query_of(request: Request) -> dict[str, str]:
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, strict_parsing=bool(request.query), errors="strict")
    except ValueError:
        raise bad("query", "is not well formed") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise bad("query", "names something twice")
    return found


def _number(query: dict[str, str], name: str, default: int) -> int:
    value = query.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) <= 15):
        raise bad(name, "must be a whole number")
    return int(value)


def _place(word: str) -> tuple[str, int]:
    name, _, number = word.partition(":")
    if not is_id(name) or not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise bad("after", "must be id:number, several of them with commas between")
    return name, int(number)
