"""Fixtures: a supervisor whose agents are gone when the test ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.supervisor.box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    found = Box(tmp_path / "state")
    yield found
    found.close()


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[list[Box]]:
    """For tests that restart the supervisor: whatever is put in here is closed, the last one with its agents."""
    made: list[Box] = [Box(tmp_path / "state")]
    yield made
    made[-1].close()
