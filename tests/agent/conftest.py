"""Fixtures of the task agent's tests: agents that are ended whatever happens."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.processes import KEY, SECRET, AgentProcess


@pytest.fixture
def new_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    made: list[AgentProcess] = []

    def make(name: str = "agent", **settings: object) -> AgentProcess:
        made.append(AgentProcess(tmp_path / name, **settings))
        return made[-1]

    yield make
    for agent in made:
        agent.stop(signal.SIGKILL)
        Path(agent.socket).unlink(missing_ok=True)


@pytest.fixture
def agent(new_agent: Callable[..., AgentProcess]) -> AgentProcess:
    found = new_agent()
    found.start()
    return found


@pytest.fixture(scope="module")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """For tests that leave nothing behind; speaks TCP as well."""
    directory = tmp_path_factory.mktemp("shared")
    keys = make_keys(directory)
    found = AgentProcess(directory, http_addr="127.0.0.1:0", http_keys_file=keys, http_burst=1000)
    found.start()
    yield found
    found.stop(signal.SIGKILL)
    Path(found.socket).unlink(missing_ok=True)


def make_keys(directory: Path) -> Path:
    path = directory / "keys.yaml"
    path.touch(0o600)
    path.write_text(f"{KEY}: {SECRET}\n")
    return path


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return make_keys(tmp_path)


@pytest.fixture
def tcp_agent(new_agent: Callable[..., AgentProcess], keys_file: Path) -> AgentProcess:
    found = new_agent("tcp", http_addr="127.0.0.1:0", http_keys_file=keys_file, http_burst=1000)
    found.start()
    return found
