"""Versions, states, times, signatures, refusals: the rules that are not a message's shape."""

import hashlib
import hmac
import itertools

import pytest

from protocol import errors, states
from protocol.commands import Result, is_genuine, make_command, payload_fields, state_asked_for
from protocol.errors import ProtocolError, parse_refusal, refusal_body
from protocol.signing import recovery_text
from protocol.times import to_datetime, to_epoch, to_text
from protocol.version import CURRENT, Wire, accept_answer, negotiate, supported
from tests.protocol.samples import NODE, TIME, UUID

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("offered", "spoken", "agreed"),
    [
        ("1.0", (1, 0), (1, 0)),
        ("1.1", (1, 0), (1, 0)),
        ("1.0", (1, 1), (1, 0)),
        ("1.1", (1, 2), (1, 1)),
        ("1.9", (1, 2), (1, 2)),
    ],
)
def test_the_lower_minor_is_agreed_on(offered: str, spoken: tuple[int, int], agreed: tuple[int, int]) -> None:
    assert negotiate(offered, Wire(*spoken)) == agreed


@pytest.mark.parametrize("offered", ["2.0", "0.9", "1.0", "", None, "1", "1.0.0", "01.0", "1.x", " 1.2", "1.2\n"])
def test_other_versions_are_refused(offered: str | None) -> None:
    with pytest.raises(ProtocolError) as refused:
        negotiate(offered, Wire(1, 2))
    assert refused.value.reason == errors.WIRE_UNSUPPORTED
    with pytest.raises(ProtocolError):
        accept_answer(offered, Wire(1, 2))


def test_an_answer_never_exceeds_the_offer() -> None:
    assert accept_answer("1.1", Wire(1, 2)) == (1, 1)
    with pytest.raises(ProtocolError):
        accept_answer("1.3", Wire(1, 2))


def test_people_are_told_what_is_spoken() -> None:
    assert supported(CURRENT) == "1.0"
    assert supported(Wire(1, 3)) == "1.2, 1.3"


def test_commands_only_go_forward() -> None:
    order = [states.QUEUED, states.DELIVERED, states.ACCEPTED, states.STARTED]
    for source, target in itertools.product(states.STATES, states.STATES):
        if source in states.TERMINAL:
            assert not states.can_move(source, target)
        elif target in order:
            is_forward = order.index(target) > order.index(source)
            assert states.can_move(source, target) <= is_forward
    assert set(states.TRANSITIONS) == states.STATES
    assert states.is_terminal(states.EXPIRED)
    assert not states.is_terminal(states.STARTED)


@pytest.mark.parametrize(
    ("source", "target", "is_legal"),
    [
        ("queued", "delivered", True),
        ("queued", "accepted", False),
        ("queued", "cancelled", True),
        ("queued", "succeeded", False),
        ("delivered", "started", True),
        ("delivered", "failed", True),
        ("delivered", "delivered", False),
        ("accepted", "delivered", False),
        ("accepted", "expired", True),
        ("started", "expired", False),
        ("started", "accepted", False),
        ("started", "timed_out", True),
        ("succeeded", "failed", False),
    ],
)
def test_steps(source: str, target: str, is_legal: bool) -> None:
    assert states.can_move(source, target) is is_legal


def test_a_report_asks_for_a_state() -> None:
    result = Result(UUID, "result", "failed", 1, None, None, None, TIME, 0, None, None, 0, 0, False, None)
    assert state_asked_for(result) == "failed"


def test_a_command_is_signed_over_everything_that_matters() -> None:
    command = make_command(KEY, UUID, NODE, "ping", {"echo": "héllo", "b": 1}, TIME, TIME)
    assert command.payload == '{"b":1,"echo":"héllo"}'
    text = "\n".join(
        ("ops-command-v1", UUID, NODE, "ping", hashlib.sha256(command.payload.encode()).hexdigest(), TIME, TIME)
    )
    assert command.sig == hmac.new(KEY, text.encode(), "sha256").hexdigest()
    assert is_genuine(command, KEY, NODE)
    assert payload_fields(command).text("echo") == "héllo"
    forgeries = [
        command._replace(id=NODE),
        command._replace(kind="pong"),
        command._replace(payload=command.payload + " "),
        command._replace(issued_at="2026-01-31T08:15:00.251Z"),
        command._replace(not_after="2027-01-31T08:15:00.250Z"),
        command._replace(sig=command.sig[:-1] + ("0" if command.sig[-1] != "0" else "1")),
        command._replace(node_uuid=UUID),
    ]
    assert not any(is_genuine(forgery, KEY, NODE) for forgery in forgeries)
    assert not is_genuine(command, b"x" * 32, NODE)
    assert not is_genuine(command, KEY, UUID)


def test_what_a_recovery_signs() -> None:
    digest = hashlib.sha256(b"csr").hexdigest()
    assert recovery_text(NODE, TIME, b"csr") == f"ops-recover-v1\n{NODE}\n{TIME}\n{digest}".encode()


@pytest.mark.parametrize("text", ["2026-01-31T08:15:00Z", "2026-01-31T08:15:00.5Z", "1970-01-01T00:00:00.000001Z"])
def test_times_come_back(text: str) -> None:
    assert to_datetime(to_text(to_epoch(text), 6)) == to_datetime(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-31",
        "2026-01-31T08:15:00",
        "2026-01-31 08:15:00Z",
        "2026-01-31T08:15:00z",
        "2026-13-31T08:15:00Z",
        "2026-02-29T08:15:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T08:15:60Z",
        "1969-12-31T23:59:59Z",
        "2026-01-31T08:15:00.1234567Z",
        "2026-01-31T08:15:00Z\n",
        "２０２６-01-31T08:15:00Z",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|day|month|hour|second"):
        to_datetime(text)


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [
        (0, 3, "1970-01-01T00:00:00.000Z"),
        (1.9999999, 3, "1970-01-01T00:00:01.999Z"),
        (1769847300.25, 0, "2026-01-31T08:15:00Z"),
        (-5, 0, "1970-01-01T00:00:00Z"),
        (1e18, 0, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_cut_not_rounded(seconds: float, digits: int, text: str) -> None:
    assert to_text(seconds, digits) == text


def test_a_refusal_is_understood() -> None:
    body = refusal_body(errors.TOO_MANY_REQUESTS, "slow down", errors.BUSY, TIME, {"more": 1})
    refusal = parse_refusal(429, "17", body)
    assert refusal == (429, 1005, "busy", "slow down", 17.0, TIME, {"reason": "busy", "more": 1})


@pytest.mark.parametrize("body", [None, [], "<html>", {}, {"code": "x", "message": 5, "data": [], "timestamp": 1}])
@pytest.mark.parametrize(
    ("after", "seconds"), [(None, None), ("soon", None), ("²", None), ("-1", None), ("99999999", 3600.0), ("0", 0.0)]
)
def test_any_answer_is_some_refusal(body: object, after: str | None, seconds: float | None) -> None:
    refusal = parse_refusal(502, after, body)
    assert refusal.status == 502
    assert refusal.reason == ""
    assert refusal.retry_after_s == seconds


def test_a_reason_that_nobody_knows_is_none() -> None:
    assert parse_refusal(400, None, {"data": {"reason": "made_up"}}).reason == ""


def test_every_code_has_its_status() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and type(value) is int}
    assert codes == set(errors.HTTP_STATUS)
