"""What should run survives a crash at any step and a power cut; older words never win."""

import contextlib
from pathlib import Path

import pytest

from daemon.supervisor.desires import Desires
from daemon.system import System
from tests.daemon.faults import Died, StepSystem, dies_at


def test_words_are_kept(tmp_path: Path) -> None:
    desires = Desires(System(), str(tmp_path))
    assert desires.find("a") is None
    desires.put("a", "running", 3)
    desires.put("b", "stopped", -1)
    again = Desires(System(), str(tmp_path))
    assert again.find("a") == ("running", 3)
    assert again.find("b") == ("stopped", -1)
    again.forget("a")
    assert Desires(System(), str(tmp_path)).find("a") is None


def test_old_is_what_comes_before_the_known(tmp_path: Path) -> None:
    desires = Desires(System(), str(tmp_path))
    assert not desires.is_old("a", 0)
    desires.put("a", "running", 3)
    assert [desires.is_old("a", seq) for seq in (2, 3, 4)] == [True, False, False]


@pytest.mark.parametrize("step", range(1, 8))
def test_whichever_step_it_dies_at_the_old_or_the_new_word_stands(tmp_path: Path, step: int) -> None:
    Desires(System(), str(tmp_path)).put("a", "running", 1)

    def die() -> None:
        raise Died

    with contextlib.suppress(Died):
        Desires(StepSystem(dies_at(step, die)), str(tmp_path)).put("a", "stopped", 2)
    found = Desires(System(), str(tmp_path))
    assert not found.is_damaged
    assert found.find("a") in (("running", 1), ("stopped", 2))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 5}', '{"a": ["running"]}'])
def test_a_damaged_file_is_said_and_forgotten(tmp_path: Path, text: str) -> None:
    (tmp_path / "_desired.json").write_text(text)
    desires = Desires(System(), str(tmp_path))
    assert desires.is_damaged
    desires.put("a", "running", 1)
    assert Desires(System(), str(tmp_path)).find("a") == ("running", 1)


def test_a_full_disk_costs_durability_not_the_order(tmp_path: Path) -> None:
    class Full(System):
        def write(self, fd: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    desires = Desires(Full(), str(tmp_path))
    desires.put("a", "running", 1)
    assert desires.find("a") == ("running", 1)
