"""Records and slots against everything a disk can do to them."""

import random
from pathlib import Path

import pytest

from daemon.disk import Record, SlotFile, pack_record, read_json, scan_records, write_file
from daemon.system import System

RECORDS = [Record(number, 1, f"payload {number} ".encode() * (number + 1)) for number in range(1, 21)]


def packed() -> bytes:
    return b"".join(map(pack_record, RECORDS))


def test_what_was_written_is_read() -> None:
    found = scan_records(packed())
    assert found.records == RECORDS
    assert found.end == len(packed())
    assert found.damaged == 0


def test_any_flipped_bit_costs_exactly_one_record() -> None:
    data = packed()
    draw = random.Random(7)
    for _ in range(400):
        place = draw.randrange(len(data))
        hurt = bytearray(data)
        hurt[place] ^= 1 << draw.randrange(8)
        found = scan_records(bytes(hurt))
        assert len(found.records) == len(RECORDS) - 1
        assert set(found.records) < set(RECORDS)
        assert found.damaged == 1 or found.end < len(data)


def test_any_truncation_leaves_every_whole_record() -> None:
    data = packed()
    ends = []
    for record in RECORDS:
        ends.append((ends[-1] if ends else 0) + len(pack_record(record)))
    for size in range(len(data)):
        found = scan_records(data[:size])
        whole = sum(end <= size for end in ends)
        assert found.records == RECORDS[:whole]
        assert found.end == (ends[whole - 1] if whole else 0)


@pytest.mark.parametrize("length", [1, 16, 100, 1000])
def test_zeroed_stretches_cost_only_what_they_touch(length: int) -> None:
    data = packed()
    for place in range(0, len(data) - length, 37):
        hurt = data[:place] + bytes(length) + data[place + length :]
        found = scan_records(hurt)
        touched, start = 0, 0
        for record in RECORDS:
            end = start + len(pack_record(record))
            changed = hurt[start:end] != data[start:end]
            touched += changed
            start = end
        assert len(found.records) == len(RECORDS) - touched


def test_foreign_bytes_are_no_records() -> None:
    noise = random.Random(1).randbytes(20_000)
    assert scan_records(noise).records == []
    assert scan_records(noise + packed()).records == RECORDS


def test_slots_keep_the_newest_and_survive_a_torn_write(tmp_path: Path) -> None:
    slots = SlotFile(System(), str(tmp_path), "small")
    assert slots.load() is None
    for number in range(5):
        slots.store({"number": number})
    slots.close()
    path = tmp_path / "small"
    whole = path.read_bytes()
    assert SlotFile(System(), str(tmp_path), "small").load() == {"number": 4}
    # The fifth store went to slot 1 (odd); whatever happens to it, the fourth is still there.
    for place in range(4096, 4096 + 28):
        hurt = bytearray(whole)
        hurt[place] ^= 0x10
        path.write_bytes(hurt)
        found = SlotFile(System(), str(tmp_path), "small").load()
        assert found == {"number": 3}


def test_slots_go_on_after_one_was_lost(tmp_path: Path) -> None:
    slots = SlotFile(System(), str(tmp_path), "small")
    for number in range(4):
        slots.store({"number": number})
    path = tmp_path / "small"
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])
    again = SlotFile(System(), str(tmp_path), "small")
    assert again.load() == {"number": 2}
    again.store({"number": 9})
    assert SlotFile(System(), str(tmp_path), "small").load() == {"number": 9}


@pytest.mark.parametrize("content", [b"", bytes(8192), b"x" * 8192, bytes(100)])
def test_a_slot_file_of_rubbish_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "small").write_bytes(content)
    slots = SlotFile(System(), str(tmp_path), "small")
    assert slots.load() is None
    slots.store({"a": 1})
    assert SlotFile(System(), str(tmp_path), "small").load() == {"a": 1}


def test_files_are_for_root_alone(tmp_path: Path) -> None:
    system = System()
    directory = str(tmp_path / "inner")
    system.make_dir(directory)
    write_file(system, directory, "secret", b"{}")
    assert (tmp_path / "inner").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "inner" / "secret").stat().st_mode & 0o777 == 0o600
    assert read_json(system, f"{directory}/secret") == {}
    assert read_json(system, f"{directory}/none") is None
