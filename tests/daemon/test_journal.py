"""A command is on disk before it is done, done once, and its end is kept until the Manager knows it."""

import json
import random
from pathlib import Path

import pytest

from daemon.journal import COMPACT_BYTES, FINISHED, KEEP_S, RECEIVED, STARTED, Journal
from protocol.commands import Command
from tests.daemon.faults import FullDisk, HastySystem

UNTIL = 1000.0


def command(number: int, payload: str = "{}") -> Command:
    name = f"00000000-0000-4000-8000-{number:012d}"
    return Command(name, "n" * 36, "ping", payload, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "0" * 64)


def open_journal(path: Path) -> Journal:
    return Journal(HastySystem(), str(path / "journal"))


def test_a_second_delivery_is_recognised_also_after_a_restart(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    assert journal.receive(command(1), UNTIL, starts_now=True)
    assert not journal.receive(command(1), UNTIL, starts_now=True)
    again = open_journal(tmp_path)
    assert not again.receive(command(1), UNTIL, starts_now=True)
    assert [(entry.id, entry.stage) for entry in again.unreported()] == [(command(1).id, STARTED)]


def test_a_command_that_has_not_begun_is_kept_whole(tmp_path: Path) -> None:
    open_journal(tmp_path).receive(command(1, '{"echo":"名"}'), UNTIL, starts_now=False)
    entry = open_journal(tmp_path).unreported()[0]
    assert entry.stage == RECEIVED
    assert entry.command == command(1, '{"echo":"名"}')._asdict()


def test_a_result_is_kept_until_it_is_reported(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.receive(command(1), UNTIL, starts_now=True)
    journal.finish(command(1).id, {"status": "succeeded"})
    again = open_journal(tmp_path)
    assert again.result_of(command(1).id) == {"status": "succeeded"}
    again.reported(command(1).id)
    assert again.result_of(command(1).id) is None
    assert again.unreported() == []
    assert open_journal(tmp_path).unreported() == []
    assert open_journal(tmp_path).knows(command(1).id)


def test_ids_are_forgotten_only_when_nothing_can_come_any_more(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    for number in (1, 2):
        journal.receive(command(number), UNTIL, starts_now=True)
        journal.finish(command(number).id, {})
    journal.reported(command(1).id)
    journal.forget(UNTIL + KEEP_S - 1)
    assert journal.knows(command(1).id)
    journal.forget(UNTIL + KEEP_S + 1)
    assert not journal.knows(command(1).id)
    assert journal.knows(command(2).id)


def test_it_is_rewritten_when_it_has_grown(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    path = tmp_path / "journal" / "commands.log"
    for number in range(300):
        journal.receive(command(number, json.dumps({"echo": "x" * 1000})), UNTIL, starts_now=True)
        journal.finish(command(number).id, {"number": number})
        if number != 150:
            journal.reported(command(number).id)
    assert path.stat().st_size > COMPACT_BYTES
    journal.forget(0)
    assert path.stat().st_size < COMPACT_BYTES / 4
    again = open_journal(tmp_path)
    assert all(again.knows(command(number).id) for number in range(300))
    assert [entry.result for entry in again.unreported()] == [{"number": 150}]


@pytest.mark.parametrize("seed", range(20))
def test_damage_never_lets_a_started_command_run_again_if_any_of_it_is_left(tmp_path: Path, seed: int) -> None:
    journal = open_journal(tmp_path)
    for number in range(20):
        journal.receive(command(number), UNTIL, starts_now=True)
        journal.finish(command(number).id, {"number": number})
    journal.close()
    path = tmp_path / "journal" / "commands.log"
    content = bytearray(path.read_bytes())
    draw = random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    again = open_journal(tmp_path)
    # One record of three is gone; the other two still know the command.
    assert all(again.knows(command(number).id) for number in range(20))
    again.receive(command(99), UNTIL, starts_now=True)
    assert open_journal(tmp_path).knows(command(99).id)


@pytest.mark.parametrize("size", range(0, 700, 7))
def test_any_truncation_is_survived(tmp_path: Path, size: int) -> None:
    journal = open_journal(tmp_path)
    journal.receive(command(1), UNTIL, starts_now=True)
    journal.finish(command(1).id, {})
    journal.close()
    path = tmp_path / "journal" / "commands.log"
    path.write_bytes(path.read_bytes()[:size])
    again = open_journal(tmp_path)
    assert again.receive(command(2), UNTIL, starts_now=True)
    last = open_journal(tmp_path)
    assert last.knows(command(2).id)
    # A torn end is what a crash leaves, and no damage; it must not become one by being written over.
    assert not last.is_damaged


def test_on_a_full_disk_nothing_new_is_taken_and_results_are_still_reported(tmp_path: Path) -> None:
    system = FullDisk()
    journal = Journal(system, str(tmp_path / "journal"))
    journal.receive(command(1), UNTIL, starts_now=True)
    system.is_full = system.is_torn = True
    with pytest.raises(OSError, match="No space"):
        journal.receive(command(2), UNTIL, starts_now=True)
    assert not journal.knows(command(2).id)
    journal.finish(command(1).id, {"status": "succeeded"})
    assert journal.result_of(command(1).id) == {"status": "succeeded"}
    system.is_full = False
    assert journal.receive(command(2), UNTIL, starts_now=True)
    again = open_journal(tmp_path)
    assert not again.is_damaged
    assert {entry.id: entry.stage for entry in again.unreported()} == {command(1).id: FINISHED, command(2).id: STARTED}


def test_a_full_disk_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.receive(command(1), UNTIL, starts_now=True)
    journal.close()
    path = tmp_path / "journal" / "commands.log"
    path.write_bytes(path.read_bytes() + b"torn")
    system = FullDisk()
    system.is_full = True
    again = Journal(system, str(tmp_path / "journal"))
    assert again.knows(command(1).id)
    system.is_full = False
    again.start(command(1).id)
    assert open_journal(tmp_path).knows(command(1).id)
