"""Settings: where they come from, all problems at once, and that the example lists every key with its default."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.configure import KEYS, Problems, resolve
from agent.yamlread import read_yaml

ROOT = Path(__file__).parents[2]


def test_command_line_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("log: {format: json, level: debug}\ntasks: {max_running: 3, max_queued: 4}\n")
    environ = {"OPS_TASKS__MAX_RUNNING": "5", "OPS_LOG__LEVEL": "WARNING"}
    found = resolve(["--config", str(config), "--log-level", "error"], environ)
    assert (found["log_level"], found["log_format"]) == ("error", "json")
    assert (found["tasks_max_running"], found["tasks_max_queued"], found["tasks_kill_grace_s"]) == (5, 4, 5)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    config, keys = tmp_path / "agent.yaml", tmp_path / "keys"
    keys.write_text("a: short\n")
    config.write_text(
        f"state_dir: here\nhttp: {{addr: nowhere, keys_file: {keys}, tls: {{cert: /absent}}}}\nnothing: 1\n"
    )
    with pytest.raises(Problems) as caught:
        resolve(["--config", str(config), "--capabilities", "here"], {"OPS_TASKS__MAX_RUNNING": "0"})
    text = str(caught.value)
    for words in (
        "state_dir = 'here'", "http.addr = 'nowhere'", "http.tls.cert, http.tls.key: must be given together",
        "must be readable by its owner alone", "the secret of a", "nothing: is not a setting", "--capabilities",
        "OPS_TASKS__MAX_RUNNING", "'/absent': cannot be read",
    ):  # fmt: skip
        assert words in text


def test_the_sockets_have_their_places(tmp_path: Path) -> None:
    assert resolve([], {})["socket"] == "/run/ops-scaffold/agent.sock"
    assert resolve(["--state-dir", "/x"], {})["socket"] == "/x/agent.sock"
    assert resolve(["--socket", "off"], {})["socket"] is None
    assert resolve(["--daemon-socket", "off"], {})["daemon_socket"] is None
    with pytest.raises(Problems, match="one of them must be given"):
        resolve(["--socket", "off", "--http-addr", "null"], {})


def test_the_example_lists_every_key_with_its_default() -> None:
    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            found.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
        return found

    example = flat(read_yaml((ROOT / "configs" / "agent.example.yaml").read_text()))
    assert example == {key.name: key.default for key in KEYS}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPS_")}
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=kept,
    )


def test_the_command_line() -> None:
    assert run("--version").stdout == "0.1.0\n"
    helped = run("--help")
    assert helped.returncode == 0
    assert "--tasks-max-running" in helped.stdout
    wrong = run("--log-format", "xml")
    assert wrong.returncode == 2
    assert "log.format = 'xml'" in wrong.stderr


def test_json_lines(tmp_path: Path) -> None:
    found = run("--state-dir", "/proc/nowhere", "--log-format", "json")
    assert found.returncode == 2
    line = json.loads(found.stdout.splitlines()[-1])
    assert {"level", "ts", "caller", "msg"} <= set(line)
    assert "cannot start" in line["msg"]
