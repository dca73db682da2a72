"""Commands on their way to a host and the reports that come back: the poll, the signed command, accept to result."""

from __future__ import annotations

from typing import Any, NamedTuple, Union

from protocol.codec import canonical, decode
from protocol.errors import OUTCOME_CODES, ProtocolError
from protocol.fields import HEX_64, UUID, WORD, Fields
from protocol.limits import BIG, COMMANDS, IN_FLIGHT, OUTPUT_BYTES, PAYLOAD_CHARS, POLL_WAIT_S, REPORTS
from protocol.signing import command_text, is_signature_valid, sign_command
from protocol.states import REPORT_STATE, TERMINAL

STREAMS = ("stdout", "stderr")


class Poll(NamedTuple):
    """Body of `POST poll`. `have` names the commands that this instance knows and has not finished reporting."""

    wait_s: int
    have: tuple[str, ...]


class Command(NamedTuple):
    """One order for one host. `payload` is JSON text, because the signature covers its very characters."""

    id: str
    node_uuid: str
    kind: str
    payload: str
    issued_at: str
    not_after: str
    sig: str


class LiveWish(NamedTuple):
    """Somebody looks at this host: one-second samples are wanted until then, in the Manager's time."""

    until: str


class PollAnswer(NamedTuple):
    """What ends a held poll; an empty one only means that the time is up."""

    commands: tuple[Command, ...]
    revoked: bool
    drain: bool
    checkin: bool
    live: LiveWish | None
    server_time: str


class Accept(NamedTuple):
    """The host has the command on disk and will act on it, or already has."""

    command: str
    type: str
    at: str


class Start(NamedTuple):
    """The first instruction ran."""

    command: str
    type: str
    at: str
    pid: int | None


class Output(NamedTuple):
    """A piece of a stream. `seq` orders the pieces of both streams; `offset` counts the bytes of this one."""

    command: str
    type: str
    seq: int
    stream: str
    offset: int
    data: bytes
    cut: bool


class Result(NamedTuple):
    """The end. `status` is a terminal state."""

    command: str
    type: str
    status: str
    exit_code: int | None
    signal: int | None
    user: str | None
    started_at: str | None
    finished_at: str
    duration_ms: int | None
    error_code: str | None
    error: str | None
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    data: dict[str, Any] | None


Report = Union[Accept, Start, Output, Result]


class Reports(NamedTuple):
    """Body of `POST commands/reports`; taken one by one, in this order."""

    reports: tuple[Report, ...]


class ReportOutcome(NamedTuple):
    """What became of one report. `reason` is set when it was refused for good."""

    command: str
    type: str
    ok: bool
    reason: str | None


class ReportsAnswer(NamedTuple):
    """One outcome for each report, in order."""

    results: tuple[ReportOutcome, ...]
    server_time: str


def make_command(
    key: bytes, uuid: str, node_uuid: str, kind: str, payload: dict[str, Any], issued_at: str, not_after: str
) -> Command:
    """Sign an order for a host."""
    text = canonical(payload)
    signature = sign_command(key, uuid, node_uuid, kind, text, issued_at, not_after)
    return Command(uuid, node_uuid, kind, text, issued_at, not_after, signature)


def is_genuine(command: Command, key: bytes, node_uuid: str) -> bool:
    """Whether the Manager made this very command for this very host."""
    text = command_text(
        command.id, command.node_uuid, command.kind, command.payload, command.issued_at, command.not_after
    )
    return command.node_uuid == node_uuid and is_signature_valid(key, text, command.sig)


def payload_fields(command: Command) -> Fields:
    """The payload, once the signature was found genuine."""
    return Fields(decode(command.payload.encode("utf-8"), 4 * PAYLOAD_CHARS), "payload")


def parse_poll(fields: Fields) -> Poll:
    """Read a poll."""
    return Poll(fields.integer("wait_s", 0, POLL_WAIT_S), fields.texts("have", IN_FLIGHT, 36, UUID))


def parse_poll_answer(fields: Fields) -> PollAnswer:
    """Read the answer to a poll."""
    return PollAnswer(
        commands=fields.each("commands", COMMANDS, parse_command),
        revoked=fields.flag("revoked", False),
        drain=fields.flag("drain", False),
        checkin=fields.flag("checkin", False),
        live=fields.inner_or_none("live", _parse_live_wish),
        server_time=fields.time("server_time"),
    )


def parse_command(fields: Fields) -> Command:
    """Read a command; its signature is the caller's to check."""
    return Command(
        id=fields.uuid("id"),
        node_uuid=fields.uuid("node_uuid"),
        kind=fields.text("kind", 64, 1, WORD),
        payload=fields.text("payload", PAYLOAD_CHARS, 2),
        issued_at=fields.time("issued_at"),
        not_after=fields.time("not_after"),
        sig=fields.text("sig", 64, 64, HEX_64),
    )


def parse_reports(fields: Fields) -> Reports:
    """Read a batch of reports."""
    return Reports(fields.each("reports", REPORTS, _parse_any_report))


def parse_report(fields: Fields, command: str, kind: str) -> Report:
    """Read the body of `POST commands/{uuid}/{accept|start|output|result}`: both names come from the path."""
    if kind == "accept":
        return Accept(command, kind, fields.time("at"))
    if kind == "start":
        return Start(command, kind, fields.time("at"), fields.integer_or_none("pid", 1, 2**31))
    if kind == "output":
        return _parse_output(fields, command)
    if kind == "result":
        return _parse_result(fields, command)
    raise ProtocolError("type", "must be one of accept, output, result, start")


def parse_reports_answer(fields: Fields) -> ReportsAnswer:
    """Read the outcomes."""
    return ReportsAnswer(fields.each("results", REPORTS, _parse_outcome), fields.time("server_time"))


def state_asked_for(report: Report) -> str | None:
    """The state that a report asks for; None for output."""
    return report.status if isinstance(report, Result) else REPORT_STATE.get(report.type)


def _parse_live_wish(fields: Fields) -> LiveWish:
    return LiveWish(fields.time("until"))


def _parse_any_report(fields: Fields) -> Report:
    return parse_report(fields, fields.uuid("command"), fields.choice("type", ("accept", "start", "output", "result")))


def _parse_output(fields: Fields, command: str) -> Output:
    return Output(
        command=command,
        type="output",
        seq=fields.integer("seq", 0, BIG),
        stream=fields.choice("stream", STREAMS),
        offset=fields.integer("offset", 0, BIG),
        data=fields.blob("data", OUTPUT_BYTES),
        cut=fields.flag("cut", False),
    )


def _parse_result(fields: Fields, command: str) -> Result:
    error_code = fields.text_or_none("error_code", 32)
    if error_code is not None and error_code not in OUTCOME_CODES:
        raise fields.refuse("error_code", "must be one of " + ", ".join(sorted(OUTCOME_CODES)))
    return Result(
        command=command,
        type="result",
        status=fields.choice("status", TERMINAL),
        exit_code=fields.integer_or_none("exit_code", -(2**31), 2**32),
        signal=fields.integer_or_none("signal", 0, 128),
        user=fields.text_or_none("user", 64),
        started_at=fields.time_or_none("started_at"),
        finished_at=fields.time("finished_at"),
        duration_ms=fields.integer_or_none("duration_ms", 0, BIG),
        error_code=error_code,
        error=fields.text_or_none("error", 2000),
        stdout_bytes=fields.integer_or_none("stdout_bytes") or 0,
        stderr_bytes=fields.integer_or_none("stderr_bytes") or 0,
        truncated=fields.flag("truncated", False),
        data=fields.free("data", 200),
    )


def _parse_outcome(fields: Fields) -> ReportOutcome:
    return ReportOutcome(
        command=fields.uuid("command"),
        type=fields.text("type", 16),
        ok=fields.flag("ok"),
        reason=fields.text_or_none("reason", 64),
    )
