"""Nothing acknowledged is kept, nothing else is lost, and what must be lost is counted."""

import errno
import random
from pathlib import Path

import pytest

from daemon.spool import EVENT, MEMORY_RECORDS, METRICS, RECORD_BYTES, SEGMENT_BYTES, Spool
from daemon.system import System
from protocol.settings import SpoolLimits
from tests.daemon.faults import FullDisk, HastySystem

LIMITS = SpoolLimits(max_bytes=1 << 20, max_age_s=3600)


def payload(number: int, size: int = 40) -> bytes:
    return f"{number:08d}".encode().ljust(size, b".")


def number_of(content: bytes) -> int:
    return int(content[:8])


def fill(spool: Spool, first: int, last: int, size: int = 40) -> None:
    for number in range(first, last + 1):
        spool.append(METRICS, payload(number, size))


def numbers(spool: Spool, most: int = 10_000) -> list[int]:
    return [number_of(item.payload) for item in spool.take(1 << 30, most)]


def open_spool(path: Path, system: System | None = None, limits: SpoolLimits = LIMITS) -> Spool:
    return Spool(system or HastySystem(), str(path / "spool"), limits)


def test_it_gives_back_what_it_took_in_order(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.append(METRICS, payload(1))
    spool.append(EVENT, payload(2))
    assert [(item.kind, number_of(item.payload)) for item in spool.take(1000, 10)] == [(METRICS, 1), (EVENT, 2)]
    assert spool.pending() == 2


def test_records_stay_until_they_are_settled_also_over_a_restart(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 5)
    assert numbers(spool) == numbers(spool) == [1, 2, 3, 4, 5]
    spool.settle([item.id for item in spool.take(1 << 20, 2)], [])
    assert numbers(spool) == [3, 4, 5]
    assert numbers(open_spool(tmp_path)) == [3, 4, 5]


def test_a_killed_process_does_not_send_again_what_was_acknowledged(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 5)
    spool.settle([item.id for item in spool.take(1 << 20, 5)], [])
    assert numbers(open_spool(tmp_path)) == []


def test_acknowledgements_may_come_in_any_order(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 6)
    ids = [item.id for item in spool.take(1 << 20, 6)]
    spool.settle([ids[4], ids[1], "foreign-1", "nonsense"], [])
    assert numbers(spool) == [1, 3, 4, 6]
    spool.settle([ids[0], ids[2]], [])
    assert numbers(spool) == [4, 6]
    assert spool.pending() == 2
    assert spool.losses().records == 0


def test_take_is_bounded_but_never_empty_handed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 10, size=100)
    assert len(spool.take(250, 100)) == 2
    assert len(spool.take(1 << 20, 3)) == 3
    assert len(spool.take(1, 100)) == 1


def test_settled_segments_leave_the_disk(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 400, size=1000)
    assert len(list((tmp_path / "spool").glob("*.seg"))) > 5
    spool.settle([item.id for item in spool.take(1 << 30, 1000)], [])
    assert len(list((tmp_path / "spool").glob("*.seg"))) == 1
    assert spool.losses().records == 0


def test_the_size_bound_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 3000, size=1000)
    kept = numbers(spool)
    assert kept[-1] == 3000
    assert kept == list(range(kept[0], 3001))
    losses = spool.losses()
    assert losses.records == kept[0] - 1 > 1000
    assert losses.since_wall is not None
    on_disk = sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.seg"))
    assert on_disk <= LIMITS.max_bytes + SEGMENT_BYTES
    again = open_spool(tmp_path)
    assert again.losses() == losses
    assert numbers(again) == kept


def test_smaller_limits_hold_at_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, limits=SpoolLimits(8 << 20, 3600))
    fill(spool, 1, 3000, size=1000)
    assert spool.losses().records == 0
    spool.set_limits(LIMITS)
    assert spool.losses().records > 1000


def test_what_is_too_old_is_dropped_by_whole_segments(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 400, size=1000)
    spool.expire(lambda content: number_of(content) < 200)
    kept = numbers(spool)
    assert 100 < kept[0] <= 200
    assert spool.losses().records == kept[0] - 1
    spool.expire(lambda content: True)
    assert numbers(spool) == []
    assert spool.losses().records == 400
    fill(spool, 401, 402)
    assert numbers(spool) == [401, 402]


def test_refused_records_go_and_are_counted_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 3)
    ids = [item.id for item in spool.take(1 << 20, 3)]
    spool.settle([], [ids[1]])
    spool.settle([], [ids[1]])
    spool.settle([ids[0]], [ids[1]])
    assert numbers(spool) == [3]
    assert spool.losses().records == 1


def segments(path: Path) -> list[Path]:
    return sorted((path / "spool").glob("*.seg"))


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_cost_what_they_hit_and_it_is_counted(tmp_path: Path, seed: int) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 300, size=500)
    spool.close()
    draw = random.Random(seed)
    for _ in range(5):
        path = draw.choice(segments(tmp_path)[:-1])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    again = open_spool(tmp_path)
    kept = numbers(again)
    assert again.losses().records == 300 - len(kept)
    assert 1 <= 300 - len(kept) <= 5
    assert again.damaged_files() >= 1
    assert again.pending() == len(kept)
    again.settle([item.id for item in again.take(1 << 30, 1000)], [])
    assert again.pending() == 0
    assert segments(tmp_path) == []


def test_damage_that_happens_while_it_runs_is_counted_too(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 300, size=500)
    first = segments(tmp_path)[0]
    first.write_bytes(bytes(first.stat().st_size))
    kept = numbers(spool)
    assert kept[0] > 1
    assert kept == list(range(kept[0], 301))
    assert spool.losses().records == kept[0] - 1
    assert spool.pending() == len(kept)


@pytest.mark.parametrize("what", ["empty", "gone", "rubbish", "cut"])
def test_a_ruined_segment_does_not_take_the_others_along(tmp_path: Path, what: str) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 300, size=500)
    spool.close()
    second = segments(tmp_path)[1]
    content = second.read_bytes()
    if what == "gone":
        second.unlink()
    else:
        second.write_bytes({"empty": b"", "rubbish": b"\xff" * 7000, "cut": content[: len(content) // 2]}[what])
    again = open_spool(tmp_path)
    kept = numbers(again)
    assert {1, 300} < set(kept)
    assert again.losses().records == 300 - len(kept) > 0
    fill(again, 301, 302)
    assert numbers(again)[-2:] == [301, 302]


@pytest.mark.parametrize("content", [b"", bytes(8192), b"\xff" * 8192])
def test_without_its_cursor_it_sends_everything_again(tmp_path: Path, content: bytes) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 300, size=500)
    spool.settle([item.id for item in spool.take(1 << 30, 10)], [])
    spool.close()
    (tmp_path / "spool" / "cursor").write_bytes(content)
    assert numbers(open_spool(tmp_path)) == list(range(1, 301))


@pytest.mark.parametrize("is_torn", [False, True])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_disk_keeps_the_newest_in_memory(tmp_path: Path, is_torn: bool, error: int) -> None:
    system = FullDisk()
    system.error = error
    spool = open_spool(tmp_path, system)
    fill(spool, 1, 10)
    system.is_full, system.is_torn = True, is_torn
    fill(spool, 11, 20)
    assert numbers(spool) == list(range(1, 21))
    assert spool.losses().records == 0
    spool.settle([item.id for item in spool.take(1 << 20, 12)], [])
    assert numbers(spool) == list(range(13, 21))
    system.is_full = False
    fill(spool, 21, 22)
    assert numbers(spool) == list(range(13, 23))
    spool.close()
    assert numbers(open_spool(tmp_path)) == list(range(13, 23))


def test_a_disk_that_stays_full_costs_the_oldest_of_the_memory_and_says_so(tmp_path: Path) -> None:
    system = FullDisk()
    spool = open_spool(tmp_path, system)
    fill(spool, 1, 10)
    system.is_full = True
    fill(spool, 11, 10 + MEMORY_RECORDS + 30)
    assert spool.losses().records == 30
    assert numbers(spool) == [*range(1, 11), *range(41, 11 + MEMORY_RECORDS + 30)]
    system.is_full = False
    fill(spool, 161, 161)
    assert len(numbers(spool)) == 10 + MEMORY_RECORDS + 1


def test_what_was_only_in_memory_when_the_process_died_is_counted(tmp_path: Path) -> None:
    system = FullDisk()
    spool = open_spool(tmp_path, system)
    fill(spool, 1, 10)
    system.is_full = True
    fill(spool, 11, 15)
    again = open_spool(tmp_path)
    assert numbers(again) == list(range(1, 11))
    assert again.losses().records == 5


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    fill(spool, 1, 3)
    first = {item.id for item in spool.take(1 << 20, 10)}
    spool.settle(list(first), [])
    spool.close()
    again = open_spool(tmp_path)
    fill(again, 4, 6)
    assert first.isdisjoint(item.id for item in again.take(1 << 20, 10))


def test_a_record_beyond_its_bound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="512 KiB"):
        open_spool(tmp_path).append(METRICS, bytes(RECORD_BYTES + 1))
