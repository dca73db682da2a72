"""Makes this machine the Manager's first node, so that the first page shows a living host; then becomes its Daemon."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from config import load_settings

TOKEN_VARIABLE = "OPS_JOIN_TOKEN"  # noqa: S105  a variable's name
CONFIGURATION = """\
# The Daemon of the machine that the Manager runs on. Whoever stops the Manager stops what it runs here, too.
manager:
  url: {url}
state_dir: {state}
agents_at_exit: stop
task_agent:
  config: {agent}
"""
AGENT_CONFIGURATION = """\
# The task agent of the machine that the Manager runs on. configs/agent.example.yaml shows every setting.
state_dir: {state}
plugins_dir: {plugins}
# The Manager's end waits for nobody's script.
tasks:
  kill_grace_s: 2
"""


def main() -> NoReturn:
    settings = load_settings()
    os.umask(0o077)
    directory = settings.data_path / "host"
    state = directory / "daemon"
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    configuration = _write_configuration(directory, settings.gateway_url)
    answer = _ask_manager(_node_uuid(state))
    environment = _environment()
    if not answer["is_known"]:
        authority = settings.keys_path / "ca.pem"
        command = [
            "enroll",
            "--server",
            settings.gateway_url,
            "--ca-file",
            str(authority),
            "--token-env",
            TOKEN_VARIABLE,
        ]
        command += ["--config", str(configuration), "--replace"]
        enrolled = subprocess.run(_daemon(*command), env=environment | {TOKEN_VARIABLE: answer["token"]}, check=False)
        if enrolled.returncode != 0:
            sys.exit(enrolled.returncode)
    # No capability file: a demo host allows whatever the rights of its user allow.
    capabilities = directory / "capabilities.yaml"
    os.execve(  # noqa: S606
        sys.executable,
        _daemon("--config", str(configuration), "--capabilities", str(capabilities)),
        environment,
    )


def _write_configuration(directory: Path, gateway_url: str) -> Path:
    """Of the Daemon, and of the task agent that it starts."""
    daemon, agent = directory / "daemon.yaml", directory / "agent.yaml"
    names = {"url": gateway_url, "state": str(directory / "daemon"), "agent": str(agent)}
    daemon.write_text(CONFIGURATION.format(**{name: json.dumps(value) for name, value in names.items()}))
    places = {"state": str(directory / "agent"), "plugins": str(directory / "plugins")}
    agent.write_text(AGENT_CONFIGURATION.format(**{name: json.dumps(value) for name, value in places.items()}))
    return daemon


def _node_uuid(state: Path) -> str:
    """Which node this machine is, if it ever was one."""
    try:
        node: dict[str, Any] = json.loads((state / "identity" / "node.json").read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(node.get("node_uuid", ""))


def _ask_manager(node_uuid: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "ops", "local-host", "--uuid", node_uuid]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def _daemon(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "daemon", *arguments]


def _environment() -> dict[str, str]:
    """The Daemon has settings of its own; the Manager's are none of its business, least of all the secret ones."""
    kept = ("OPS_LOG__FORMAT", "OPS_LOG__LEVEL")
    return {name: value for name, value in os.environ.items() if not name.startswith("OPS_") or name in kept}


if __name__ == "__main__":
    main()
