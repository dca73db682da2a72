"""The log: its keys, its lines, its files, and that no secret ever stands in it."""

import io
import json
import logging
import multiprocessing
import os
import re
import stat
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kernel import logs
from app.kernel.logs import JsonFormatter, SharedFileHandler, TextFormatter, configure_logging, log_context, redact
from config import load_settings

CANARY = "hunter2-canary"


def record(message: str = "hello", *arguments: object, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    path = str(Path(logs.PROJECT) / "app/people/actions.py")
    made = logging.LogRecord("app", level, path, 45, message, arguments, None)
    made.created = 1767225599.9876
    vars(made).update(extra)
    return made


def failed_record(message: str = "it failed") -> logging.LogRecord:
    made = record(message, level=logging.ERROR)
    try:
        raise ValueError(f"password={CANARY}")
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def as_json(made: logging.LogRecord) -> dict[str, object]:
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    return json.loads(line)


def test_a_line_has_exactly_the_four_keys_that_are_always_there():
    assert as_json(record("hello %s", "world")) == {
        "level": "info",
        "ts": "2025-12-31T23:59:59.987Z",
        "caller": "app/people/actions.py:45",
        "msg": "hello world",
    }


def test_the_other_four_keys_appear_when_they_are_known():
    token = log_context.set({"request_id": "r1", "ip": "10.0.0.1", "node_uuid": "", "user": "alice"})
    try:
        line = as_json(record(duration_ms=12.5))
    finally:
        log_context.reset(token)
    assert list(line) == ["level", "ts", "caller", "msg", "request_id", "ip", "duration_ms"]
    assert (line["request_id"], line["ip"], line["duration_ms"]) == ("r1", "10.0.0.1", 12.5)


def test_what_a_line_says_itself_wins_over_its_context():
    token = log_context.set({"request_id": "r1"})
    try:
        assert as_json(record(request_id="r2", node_uuid="u"))["request_id"] == "r2"
    finally:
        log_context.reset(token)


def test_further_values_stand_behind_the_message_and_add_no_keys():
    line = as_json(record("saved", rows=3, password=CANARY, otp=CANARY, detail={"api_key": CANARY, "jwt": CANARY}))
    assert line["msg"] == "saved rows=3 password=*** otp=*** detail={'api_key': ***, 'jwt': '***'}"
    assert set(line) == {"level", "ts", "caller", "msg"}


def test_libraries_are_named_by_their_own_paths():
    made = record()
    made.pathname = "/x/lib/python3.11/site-packages/sqlalchemy/engine/base.py"
    assert as_json(made)["caller"] == "sqlalchemy/engine/base.py:45"


def test_a_traceback_stays_inside_its_line():
    line = as_json(failed_record())
    assert "Traceback (most recent call last)" in line["msg"]
    assert CANARY not in line["msg"]


def test_text_is_for_people():
    shown = TextFormatter().format(record("hello", ip="10.0.0.1"))
    assert shown == "2025-12-31T23:59:59.987Z info     app/people/actions.py:45  hello ip=10.0.0.1"


def test_in_text_a_traceback_follows_indented():
    first, *rest = TextFormatter().format(failed_record()).splitlines()
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_nobody_forges_a_line(formatter, end):
    forged = f"x{end}2025-12-31T23:59:59.987Z info forged"
    assert len(formatter.format(record("user %s", forged, request_id=forged)).splitlines()) == 1


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_nobody_speaks_to_the_terminal(formatter):
    assert "\x1b" not in formatter.format(record("\x1b[2J\x9b0m \x00"))


def test_every_text_can_be_written():
    assert JsonFormatter().format(record("节点 \ud800 ok")).encode()
    assert "节点" in JsonFormatter().format(record("节点"))


def test_very_long_messages_lose_their_middle():
    message = as_json(record("a" * 50_000 + "b" * 50_000))["msg"]
    assert len(message) < 40_000
    assert message.startswith("aaa")
    assert message.endswith("bbb")
    assert "characters left out" in message


SECRETS_IN_TEXT = [
    "password={}",
    "user=alice&password={}&next=/",
    'token="{} with blanks" ok',
    "'secret': '{}'",
    '{{"password": "{}", "a": 1}}',
    '"{{\\"api_key\\": \\"{}\\"}}"',
    "password: {}",
    "Password : {}, next",
    "new_password={}",
    "password2={}",
    "client_secret = {}",
    "Authorization: Bearer {}",
    "Authorization: Token {}",
    "Proxy-Authorization: Basic {}",
    "sent Bearer {} there",
    "Cookie: a=b; ops_session={}; c=d",
    "Set-Cookie: ops_session={}; HttpOnly",
    "ops_session={}",
    "X-Api-Key: {}",
    "api-key={}",
    "key ops_pat_{} was used",
    "join with ops_join_{}0123456789abcdef",
    "redis://:{}@10.0.0.1:6379/0",
    "mysql+pymysql://manager:{}@db:3306/ops",
    "https://{}@git.example/x",
    "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\n{}",
    "/enroll?token={}&x=1",
    "passwd={}",
]


@pytest.mark.parametrize("text", SECRETS_IN_TEXT)
def test_secrets_in_texts_are_masked(text):
    shown = logs.redact_text(text.format(CANARY))
    assert CANARY not in shown
    assert "***" in shown


def test_tokens_of_ours_are_recognised_without_a_name():
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    assert logs.redact_text(f"got {jwt} from") == "got *** from"


@pytest.mark.parametrize(
    "text",
    [
        "password: at least 8 characters are needed",
        "invalid token: it has expired",
        "GET /api/v1/auth/tokens 200",
        "token_type=bearer",
        "password_min_length=8",
        "the key node.heartbeat_timeout changed",
        "see https://docs.example/a:b/@c",
        "node web-1 is offline",
    ],
)
def test_what_is_no_secret_stays_readable(text):
    assert logs.redact_text(text) == text


@pytest.mark.parametrize(
    "name",
    ["password", "newPassword", "new_password", "password2", "password_again", "password_hash", "passwd", "token",
     "access_token", "refreshToken", "totp_secret", "api_key", "apiKey", "X-Api-Key", "private_key", "Authorization",
     "cookie", "Set-Cookie", "ops_session", "client-secret", "recovery_codes", "auth.jwt.access_secret", "otp"],
)  # fmt: skip
def test_secret_names(name):
    assert redact({name: CANARY}) == {name: "***"}


@pytest.mark.parametrize(
    "name",
    ["password_min_length", "token_type", "token_id", "public_key", "key", "access_ttl", "must_change_password_at",
     "cookie_name", "username", "attempts", "monkey", "tokens"],
)  # fmt: skip
def test_names_that_only_sound_secret(name):
    assert redact({name: "x"}) == {name: "x"}


def test_nothing_and_yes_or_no_are_worth_knowing():
    value = {"password": None, "must_change_password": True, "token": ""}
    assert redact(value) == value


def test_values_are_searched_at_any_depth_and_not_changed_in_place():
    value = {"user": [{"name": "a", "password": CANARY}, (f"token={CANARY}",)], "raw": b"abc", "n": 1}
    assert redact(value) == {"user": [{"name": "a", "password": "***"}, ["token=***"]], "raw": "<3 bytes>", "n": 1}
    assert value["user"][0]["password"] == CANARY


@given(st.text(alphabet="abcXYZ019-_", min_size=6), st.sampled_from(["password", "access_token", "api_key", "secret"]))
def test_a_named_secret_never_survives(value, name):
    secret = f"q{value}q"
    for text in (f"{name}={secret}", json.dumps({name: secret}), str({name: secret}), f"a=1&{name}={secret}&b=2"):
        assert secret not in logs.redact_text(text)


@pytest.mark.parametrize(
    "evil",
    ["a", "token", "a://", "password=", "a_", '"', "-----BEGIN PRIVATE KEY", "passw: ", "cookie ", "ops_aaaa_", "eyJ",
     "basic ", "\\", 'token="\\', "x://:", "password:\t", "a:b@"],
)  # fmt: skip
def test_searching_takes_time_in_proportion(evil):
    """Whoever sends us long nonsense must not stop the process."""
    text = (evil * 200_000)[:200_000]
    began = time.perf_counter()
    logs.redact_text(text + " key")
    assert time.perf_counter() - began < 20


def test_a_line_costs_microseconds():
    formatter, made = JsonFormatter(), record("GET /nodes/12 200", request_id="a", ip="10.0.0.1", duration_ms=1.5)
    began = time.perf_counter()
    for _ in range(2000):
        formatter.format(made)
    assert (time.perf_counter() - began) / 2000 < 0.005


@pytest.fixture
def root_logger():
    """As it was before, whatever the test configures."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


def settings_with(tmp_path: Path, **environment: str):
    return load_settings([], {"OPS_DATA_DIR": str(tmp_path), **environment})


def test_settings_decide_where_and_how(root_logger, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    given = {"OPS_LOG__FORMAT": "text", "OPS_LOG__OUTPUT": "stderr", "OPS_LOG__LEVEL": "warning"}
    configure_logging(settings_with(tmp_path, **given))
    logging.getLogger("x").info("not important")
    logging.getLogger("x").warning("important")
    assert "important" in stream.getvalue()
    assert "not important" not in stream.getvalue()


def test_configuring_again_replaces(root_logger, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    for _ in range(3):
        configure_logging(settings_with(tmp_path, OPS_LOG__FILE__ENABLED="true"))
    logging.getLogger("x").info("once")
    assert stream.getvalue().count("once") == 1
    assert (tmp_path / "logs" / "manager.log").read_text().count("once") == 1


def test_the_file_is_private(root_logger, tmp_path):
    configure_logging(settings_with(tmp_path, OPS_LOG__FILE__ENABLED="true"))
    path = tmp_path / "logs" / "manager.log"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_file_may_lie_elsewhere(root_logger, tmp_path):
    given = {"OPS_LOG__FILE__ENABLED": "true", "OPS_LOG__FILE__PATH": str(tmp_path / "x.log")}
    configure_logging(settings_with(tmp_path, **given))
    logging.getLogger("x").info("there")
    assert "there" in (tmp_path / "x.log").read_text()


def handler_for(path: Path, max_bytes: int = 1000, backups: int = 3, days: int = 30) -> SharedFileHandler:
    handler = SharedFileHandler(path, max_bytes, backups, days)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


def test_a_full_file_is_rotated_and_the_oldest_goes(tmp_path):
    handler = handler_for(tmp_path / "m.log")
    for number in range(60):
        handler.emit(record(f"{number:03d}" + "x" * 97))
    handler.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["m.log", "m.log.1", "m.log.2", "m.log.3", "m.log.lock"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.glob("m.log*"))
    newest_first = [(tmp_path / name).read_text().splitlines() for name in ("m.log", "m.log.1", "m.log.2", "m.log.3")]
    numbers = [int(line[:3]) for lines in reversed(newest_first) for line in lines]
    assert numbers == list(range(numbers[0], 60))


def test_a_line_that_is_larger_than_a_file_is_written_all_the_same(tmp_path):
    handler = handler_for(tmp_path / "m.log", max_bytes=10)
    handler.emit(record("x" * 100))
    handler.close()
    assert (tmp_path / "m.log").read_text() == "x" * 100 + "\n"
    assert not (tmp_path / "m.log.1").exists()


def test_files_past_their_age_go(tmp_path):
    for name, days in (("m.log.1", 5), ("m.log.2", 31), ("m.log.9", 1), ("m.log.txt", 99)):
        (tmp_path / name).write_text("x")
        moment = time.time() - days * 86400
        os.utime(tmp_path / name, (moment, moment))
    handler_for(tmp_path / "m.log").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.log", "m.log.1", "m.log.txt"]


def write_lines(path: str, writer: int) -> None:
    handler = handler_for(Path(path), max_bytes=20_000, backups=50)
    for number in range(400):
        handler.emit(record(f"{writer}-{number:04d}-" + "x" * 80))
    handler.close()


def test_processes_that_share_a_file_lose_and_mix_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=write_lines, args=(str(tmp_path / "m.log"), number)) for number in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    lines = [line for path in tmp_path.glob("m.log*") for line in path.read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 1600
    assert all(re.fullmatch(r"\d-\d{4}-x{80}", line) for line in lines)
    rotated = [path for path in tmp_path.glob("m.log.*") if path.suffix != ".lock"]
    assert rotated
    assert all(path.stat().st_size > 19_000 for path in rotated), "somebody rotated what was rotated just before"


def test_a_full_disk_does_not_stop_the_work(tmp_path, monkeypatch, capsys):
    handler = handler_for(tmp_path / "m.log")
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    handler.emit(record("x"))
    monkeypatch.undo()
    handler.close()
    assert "No space left" in capsys.readouterr().err
