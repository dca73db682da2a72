"""Every message of the wire: what is written is read, and what is wrong is refused by its name."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.checkin import parse_checkin, parse_checkin_answer
from protocol.codec import decode, encode, to_plain
from protocol.commands import parse_poll, parse_poll_answer, parse_report, parse_reports, parse_reports_answer
from protocol.enrolment import (
    parse_certificate_answer,
    parse_enroll,
    parse_enroll_answer,
    parse_recover,
    parse_renew,
)
from protocol.errors import ProtocolError
from protocol.fields import Fields
from protocol.metrics import parse_live, parse_live_answer
from protocol.settings import DEFAULTS, parse_settings
from tests.protocol.samples import MESSAGES, RESULT, UUID

PARSERS: dict[str, Callable[[Fields], Any]] = {
    "enroll": parse_enroll,
    "enroll_answer": parse_enroll_answer,
    "enroll_pending": parse_enroll_answer,
    "renew": parse_renew,
    "recover": parse_recover,
    "certificate_answer": parse_certificate_answer,
    "checkin": parse_checkin,
    "checkin_answer": parse_checkin_answer,
    "poll": parse_poll,
    "poll_answer": parse_poll_answer,
    "reports": parse_reports,
    "reports_answer": parse_reports_answer,
    "live": parse_live,
    "live_answer": parse_live_answer,
    "settings": parse_settings,
}


def read(name: str, body: Any) -> Any:
    return PARSERS[name](Fields(decode(json.dumps(body).encode(), 1 << 20)))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields, those in lists included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        if key != "data" or isinstance(inner, str):
            yield from leaves(inner, (*path, key))


def changed(name: str, path: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(MESSAGES[name])
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return body


CASES = [(name, path) for name, body in MESSAGES.items() for path in leaves(body)]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_survives_the_wire(name: str) -> None:
    message = read(name, MESSAGES[name])
    assert to_plain(message) == MESSAGES[name]
    assert PARSERS[name](Fields(decode(encode(message), 1 << 20))) == message


NONSENSE: list[Any] = [{"strange": 1}, "x" * 600_000, -(2**70), 1e300, [[]], True]


def is_free(path: tuple[Any, ...], value: Any) -> bool:
    """Places where the wire takes whatever object comes."""
    return path[-1] == "data" and isinstance(value, dict)


@pytest.mark.parametrize(
    ("name", "path"), CASES, ids=lambda part: part if isinstance(part, str) else ".".join(map(str, part))
)
def test_a_wrong_field_is_refused_by_its_name(name: str, path: tuple[Any, ...]) -> None:
    original = MESSAGES[name]
    for key in path:
        original = original[key]
    dotted = ".".join(map(str, path))
    for value in NONSENSE:
        if (type(value) is type(original) and isinstance(value, (bool, dict))) or is_free(path, value):
            continue
        if "settings" in (name, *path) and "agents" in path and path[-1] == "type":
            continue
        with pytest.raises(ProtocolError) as refused:
            PARSERS[name](Fields(changed(name, path, value)))
        field = refused.value.field
        # A token and a ticket exclude each other; a wrong type word makes another message of a report.
        parent = dotted.rpartition(".")[0] if path[-1] in ("type", "status") else dotted
        assert field == dotted or field.startswith((parent, "token")), value


@pytest.mark.parametrize("name", MESSAGES)
def test_unknown_fields_are_ignored_and_absent_optional_ones_are_null(name: str) -> None:
    body = {**MESSAGES[name], "from_the_future": {"deep": [1, 2]}}
    assert read(name, body) == read(name, MESSAGES[name])
    nulls = {key: value for key, value in MESSAGES[name].items() if value is not None}
    assert read(name, nulls) == read(name, MESSAGES[name])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("checkin", "instance_id"),
        ("checkin", "dropped"),
        ("checkin", "capabilities"),
        ("checkin", "clock"),
        ("checkin_answer", "server_time"),
        ("poll", "wait_s"),
        ("poll_answer", "server_time"),
        ("enroll", "facts"),
        ("enroll_answer", "command_key"),
        ("recover", "signature"),
        ("settings", "version"),
    ],
)
def test_a_required_field_is_required(name: str, field: str) -> None:
    body = {key: value for key, value in MESSAGES[name].items() if key != field}
    with pytest.raises(ProtocolError) as refused:
        read(name, body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("checkin", ("metrics",), [MESSAGES["checkin"]["metrics"][0]] * 501),
        ("checkin", ("metrics", 0, "points"), []),
        ("checkin", ("metrics", 0, "points"), MESSAGES["checkin"]["metrics"][0]["points"] * 101),
        ("checkin", ("metrics", 0, "points", 0, "cpu_usage"), 100.01),
        ("checkin", ("metrics", 0, "points", 0, "detail", "cores"), [101]),
        ("checkin", ("metrics", 0, "id"), "with blank"),
        ("checkin", ("sequence",), 0),
        ("checkin", ("sequence",), 1.0),
        ("checkin", ("sent_at",), "2026-02-30T00:00:00Z"),
        ("checkin", ("sent_at",), "2026-02-03T00:00:00+00:00"),
        ("checkin", ("events", 0, "severity"), "fatal"),
        ("checkin", ("inventory", "ips"), ["1.2.3.4"] * 129),
        ("poll", ("wait_s",), 51),
        ("poll", ("have",), ["no-uuid"]),
        ("poll", ("have",), [UUID] * 257),
        ("settings", ("heartbeat_interval_s",), 9),
        ("settings", ("heartbeat_interval_s",), 301),
        ("settings", ("log_level",), "loud"),
        ("settings", ("agents",), [{"type": "task"}]),
        ("reports", ("reports", 2, "data"), "not base64!"),
        ("reports", ("reports", 2, "data"), "aGk"),
        ("reports", ("reports", 2, "data"), "aG!k="),
        ("reports", ("reports", 2, "stream"), "stdin"),
        ("reports", ("reports", 3, "status"), "started"),
        ("reports", ("reports", 3, "error_code"), "made_up"),
        ("reports", ("reports", 0, "command"), UUID.upper()),
        ("enroll_answer", ("command_key",), "a2s="),
        ("enroll", ("csr_pem",), "x" * 16385),
        ("poll_answer", ("commands",), MESSAGES["poll_answer"]["commands"] * 33),
        ("poll_answer", ("commands", 0, "sig"), "A" * 64),
        ("poll_answer", ("commands", 0, "kind"), "two\nlines"),
    ],
)
def test_bounds_hold(name: str, path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(name, changed(name, path, value))
    assert refused.value.field.startswith(".".join(map(str, path)))


def test_a_token_and_a_ticket_exclude_each_other() -> None:
    with pytest.raises(ProtocolError) as refused:
        read("enroll", {**MESSAGES["enroll"], "ticket": "ticket-12"})
    assert refused.value.field == "token"


def test_a_single_report_takes_its_names_from_the_path() -> None:
    body = {key: value for key, value in RESULT.items() if key not in ("command", "type")}
    assert to_plain(parse_report(Fields(body), UUID, "result")) == RESULT
    with pytest.raises(ProtocolError):
        parse_report(Fields(body), UUID, "dance")


def test_absent_settings_have_the_defaults() -> None:
    assert read("settings", {"version": 0}) == DEFAULTS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(CASES), value=json_values)
def test_whatever_stands_in_a_field_nothing_but_a_refusal_comes_of_it(case: tuple[str, Any], value: Any) -> None:
    name, path = case
    try:
        PARSERS[name](Fields(changed(name, path, value)))
    except ProtocolError as error:
        assert error.field  # noqa: PT017 - raising is one of two right outcomes


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for parse in PARSERS.values():
        try:
            parse(Fields(decode(raw, 1 << 16)))
        except ProtocolError as error:
            assert error.code in (1001, 1008)  # noqa: PT017
