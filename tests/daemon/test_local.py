"""What only the host decides: settings from four places, the capability file, the log, systemd."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from daemon import logs
from daemon.capabilities import CapabilityFile
from daemon.configure import KEYS, Problems, resolve
from daemon.local import LocalSettings, SettingsError, load_local
from daemon.notify import Notifier
from daemon.system import System
from daemon.yamlread import YamlProblem, read_yaml
from protocol.capabilities import parse_capabilities
from tests.daemon.processes import ROOT, environment


def test_the_nearer_place_wins(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text("log:\n  format: json\n  level: DEBUG\nstate_dir: /from/file\nmanager:\n  url: https://file:1\n")
    found = resolve(
        ["--config", str(file), "--state-dir", "/from/line"],
        {"OPS_STATE_DIR": "/from/env", "OPS_LOG__LEVEL": "warning", "OPS_DATABASE_URL": "another program's"},
    )
    found["agents"], found["builtin"] = tuple(found["agents"]), tuple(found["builtin"])
    assert LocalSettings(**found) == LocalSettings(
        manager_url="https://file:1",
        manager_proxy=None,
        state_dir="/from/line",
        log_format="json",
        log_level="warning",
        collector_gpu="auto",
        capabilities="/etc/ops-scaffold/capabilities.yaml",
        agents_at_exit="keep",
        rpc_socket=None,
        agents=(),
        builtin=(),
    )


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text("log: {format: xml, colour: red}\nnonsense: 1\nstate_dir: [a]\n")
    with pytest.raises(Problems) as found:
        resolve(["--config", str(file), "--manager-url", "http://plain"], {"OPS_COLLECTOR__GPU": "maybe"})
    words = str(found.value)
    for name in ("log.format", "log.colour", "nonsense", "state_dir", "manager.url", "collector.gpu"):
        assert name in words
    assert "OPS_COLLECTOR__GPU" in words
    assert "text or json" in words


def test_the_host_declares_agents_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = tmp_path / "daemon.yaml"
    file.write_text(
        f"state_dir: {tmp_path}\nagents_at_exit: stop\n"
        "agents:\n  - {name: own, type: custom, start: [/bin/sleep, '7'], health: [{kind: tcp, port: 80}]}\n"
    )
    local = load_local(System(), ["--config", str(file)])
    assert local.agents_at_exit == "stop"
    assert [(agent.name, agent.start, agent.health[0].port) for agent in local.agents] == [
        ("own", ("/bin/sleep", "7"), 80)
    ]


@pytest.mark.parametrize(
    ("agents", "name"),
    [
        ("{}", "agents"),
        ("[{name: A, type: custom, start: [x]}]", "agents.0.name"),
        ("[{name: a, type: custom, start: x}]", "agents.0.start"),
        ("[{name: a, type: custom, start: [x], health: [{kind: http}]}]", "agents.0.health.0.url"),
        ("[{name: a, type: custom, start: [x], colour: red}]", "agents.0.colour"),
        ("[{name: a, type: custom, start: [x]}, {name: a, type: custom, start: [y]}]", "agents.1.name"),
    ],
)
def test_agents_that_make_no_sense_are_named(tmp_path: Path, agents: str, name: str) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text(f"agents: {agents}\n")
    with pytest.raises(Problems, match=name.replace(".", r"\.")):
        resolve(["--config", str(file)], {})


@pytest.mark.parametrize("url", ["https://", "https://h:0", "https://h:99999", "https://h/path", "h:1", "https://[::1"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(Problems):
        resolve(["--manager-url", url], {})


@pytest.mark.parametrize("text", ["a: [", "- x\n- y\n", "a: !!python/object:os.system x", "a: 2020-01-01", "a: .nan"])
def test_files_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "daemon.yaml"
    file.write_text(text)
    with pytest.raises(Problems):
        resolve(["--config", str(file)], {})


def test_yaml_is_bounded() -> None:
    with pytest.raises(YamlProblem):
        read_yaml("#" * 300_000)


def test_the_settings_come_from_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in list(os.environ):
        if name.startswith("OPS_"):
            monkeypatch.delenv(name)
    local = load_local(System(), ["--state-dir", str(tmp_path)])
    assert local.state_dir == str(tmp_path)
    with pytest.raises(SettingsError):
        load_local(System(), ["--log-format", "xml"])


def test_the_example_names_every_setting() -> None:
    file = ROOT / "configs" / "daemon.example.yaml"
    values = read_yaml(file.read_text())
    for key in KEYS:
        value = values
        for part in key.name.split("."):
            assert part in value, key.name
            value = value[part]
        assert value == key.default
    assert resolve(["--config", str(file)], {}) == resolve([], {})


def test_wrong_settings_stop_the_start(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "daemon", "--state-dir", "relative", "--log-format", "xml"],
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert b"state_dir" in ended.stderr
    assert b"log.format" in ended.stderr


# ---- capabilities


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "capabilities.yaml"
    path.write_text("allow:\n  terminal: false\n  run_as: [deploy]\n")
    path.chmod(0o644)
    return path


def refreshed(path: Path, monkeypatch: pytest.MonkeyPatch) -> CapabilityFile:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = CapabilityFile(System(), str(path))
    file.refresh()
    return file


def test_what_the_file_does_not_name_is_allowed(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = refreshed(allowed, monkeypatch).current
    assert current == ("file", True, False, True, True, ("deploy",), ("/**",))


def test_a_missing_file_allows_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = refreshed(tmp_path / "none", monkeypatch).current
    assert current == ("missing", True, True, True, True, ("*",), ("/**",))


def test_commands_need_scripts_and_a_user_that_is_named(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = refreshed(allowed, monkeypatch)
    assert file.forbids_command("deploy") is None
    assert "run_as" in str(file.forbids_command("nobody"))
    assert "run_as" in str(file.forbids_command(None))
    allowed.write_text("allow: {scripts: false}")
    assert "scripts" in str(file.forbids_command("deploy"))


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_denies_everything(
    allowed: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed.chmod(mode)
    assert refreshed(allowed, monkeypatch).current == ("unsafe", False, False, False, False, (), ())


@pytest.mark.parametrize("which", ["file", "folder"])
def test_a_file_or_folder_of_another_user_denies_everything(
    allowed: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(allowed if which == "file" else allowed.parent, 65534, 65534)
    assert refreshed(allowed, monkeypatch).current.state == "unsafe"


def test_a_folder_that_others_can_write_denies_everything(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed.parent.chmod(0o777)
    assert refreshed(allowed, monkeypatch).current.state == "unsafe"


def test_a_pipe_in_its_place_denies_everything_and_blocks_nobody(
    allowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed.unlink()
    os.mkfifo(allowed, 0o644)
    assert refreshed(allowed, monkeypatch).current.state == "unsafe"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "allow:",
        "allow: [",
        "allow: {terminal: 1}",
        "allow: {terminals: false}",
        "deny: {}",
        "allow: {run_as: x}",
        "allow: {}\nmore: 1",
        "allow: {files: [1]}",
        "#" * 70_000,
    ],
)
def test_a_file_that_makes_no_sense_denies_everything(
    allowed: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed.write_text(text)
    assert refreshed(allowed, monkeypatch).current == ("invalid", False, False, False, False, (), ())


def test_changes_are_seen_and_nothing_is_parsed_twice(allowed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = refreshed(allowed, monkeypatch)
    monkeypatch.setattr(System, "run", lambda *_: pytest.fail("parsed again"))
    assert not file.refresh()
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    allowed.write_text("allow: {scripts: false}")
    assert file.refresh()
    assert not file.current.scripts
    allowed.chmod(0o666)
    assert file.refresh()
    allowed.chmod(0o644)
    assert file.refresh()
    assert file.current.state == "file"
    allowed.unlink()
    assert file.refresh()
    assert file.current.state == "missing"


def test_an_empty_allowance_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_capabilities({"allow": {}}).scripts


# ---- log


SECRETS = [
    "token=abc123def",
    'token: "abc123def"',
    "OPS_JOIN_TOKEN=abc123def",
    "{'password': 'abc123def'}",
    "db_password=abc123def&x=1",
    "Authorization: Bearer abc123def",
    "bearer abc123def",
    "api-key = abc123def",
    "command_key: abc123def",
    "-----BEGIN PRIVATE KEY-----\nabc123def\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\nabc123def",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_do_not_reach_the_log(text: str) -> None:
    assert "abc123def" not in logs.redact(f"before {text} after")
    assert logs.redact(f"before {text} after").startswith("before ")


@pytest.mark.parametrize("text", ["the token was refused", "enrolled as node 5", "tokens: expiry", "lease of 30 s"])
def test_plain_words_stay(text: str) -> None:
    assert logs.redact(text) == text or "hidden" not in logs.redact(text).replace("tokens: [hidden]", "")


@pytest.fixture
def log_lines(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_has_the_house_s_keys(form: str, log_lines: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    logs.set_up(form, "info")
    try:
        logging.getLogger("daemon.x").warning("say %s\nforged line", "token=abc", extra={"node_uuid": "n1"})
        logging.getLogger("daemon.x").debug("not shown")
        try:
            raise ValueError("password=hunter2")
        except ValueError:
            logging.getLogger("daemon.x").exception("broke")
        out = log_lines.readouterr().out
    finally:
        logging.getLogger().handlers[:] = before
    assert "abc" not in out
    assert "hunter2" not in out
    assert "not shown" not in out
    assert "ValueError" in out
    first = out.splitlines()[0]
    assert "forged line" in first
    if form == "json":
        line = json.loads(first)
        assert line["level"] == "warning"
        assert line["node_uuid"] == "n1"
        assert line["caller"].startswith("daemon.x:")
        assert line["ts"].endswith("Z")
    assert any("forged line" in kept for kept in logs.tail(10, 10_000))
    assert logs.tail(10, 10) == []


# ---- systemd


def test_systemd_is_told_and_children_are_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(5)
        os.environ.update(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="3000000", WATCHDOG_PID="1")
        notifier = Notifier(os.environ)
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
        assert notifier.watchdog_s == 3.0
        notifier.send("READY=1")
        assert channel.recv(100) == b"READY=1"


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier(os.environ)
    assert notifier.watchdog_s == 0
    notifier.send("READY=1")
