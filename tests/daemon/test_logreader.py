"""Logs are read from the end and within bounds, whatever is in them, however they are rotated, as they grow."""

import json
import logging
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import logreader, logs
from daemon.logfollow import FollowedFiles, Follower, WholeFile
from daemon.logreader import Bounds, Wish, current_only, pieces_backwards, read_logs, rotated
from daemon.logtimes import time_of
from daemon.system import System
from protocol.times import to_epoch
from tests.daemon.processes import environment

SYSTEM = System()


def read(paths: Path | list[Path], lines: int = 10, query: str = "", since: float | None = None) -> dict[str, Any]:
    told = read_logs(
        SYSTEM, [str(path) for path in ([paths] if isinstance(paths, Path) else paths)], Wish(lines, query, since)
    )
    assert len(json.dumps(told, ensure_ascii=False).encode()) < 200_000
    return told


def texts(told: dict[str, Any]) -> list[str]:
    return [line["text"] for line in told["lines"]]


def all_backwards(path: Path, query: bytes = b"", may_skip: bool = False) -> list[Any]:
    with path.open("rb") as file:
        return list(pieces_backwards(file.fileno(), path.stat().st_size, query, Bounds(), may_skip))[::-1]


# ---- the newest lines


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\ntwo", ["one", "two"]),
        (b"\n\none\r\n\n", ["", "", "one", ""]),
        ("名\n前\n".encode(), ["名", "前"]),
    ],
)
def test_lines_are_lines(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert texts(read(path)) == expected


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_blocks_may_end_anywhere(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logreader, "BLOCK_BYTES", block)
    chance = random.Random(block)
    path = tmp_path / "log"
    for _ in range(50):
        lines = [bytes(chance.choices(b"abN\xff\0 ", k=chance.randint(0, 12))) for _ in range(chance.randint(0, 12))]
        content = b"\n".join(lines) + chance.choice([b"", b"\n"])
        path.write_bytes(content)
        expected = content[:-1].split(b"\n") if content.endswith(b"\n") else content.split(b"\n") if content else []
        assert [piece.raw for piece in all_backwards(path)] == expected
        for query in (b"n", b"ab", b"bN a"):
            wanted = [line for line in expected if query.lower() in line.lower()]
            for may_skip in (False, True):
                found = all_backwards(path, query, may_skip)
                assert [piece.raw for piece in found if piece.is_match] == wanted


def test_only_so_many_and_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    told = read(path, 3)
    assert texts(told) == ["line 99997", "line 99998", "line 99999"]
    assert (told["truncated"], told["files"]) == (False, [{"path": str(path), "size": path.stat().st_size}])


def test_an_answer_has_a_size_and_says_when_it_is_full(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{number} " + "\x01" * 300 + "\n" for number in range(3000)))
    told = read(path, 2000)
    assert told["truncated"]
    assert texts(told)[-1].startswith("2999 ")
    assert 50 < len(told["lines"]) < 200


def test_a_missing_log_is_no_mistake(tmp_path: Path) -> None:
    told = read([tmp_path / "none", tmp_path / "nowhere" / "none"])
    assert (told["lines"], [file["size"] for file in told["files"]]) == ([], [None, None])


# ---- search and since


def test_search_finds_what_stands_there_whatever_its_case(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("an Error [1.*]\nfine\nERROR two\n错误: 三\n")
    assert texts(read(path, query="error")) == ["an Error [1.*]", "ERROR two"]
    assert texts(read(path, query="[1.*]")) == ["an Error [1.*]"]
    assert texts(read(path, query="错误")) == ["错误: 三"]
    assert read(path, query="nothing") == {"lines": [], "truncated": False, "files": read(path)["files"]}


def test_search_gives_the_newest_matches(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{'hit' if number % 1000 == 0 else 'miss'} {number}\n" for number in range(200_000)))
    assert texts(read(path, 2, "hit")) == ["hit 198000", "hit 199000"]


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-31T08:15:00.250Z info it runs",
        "2026-01-31 09:15:00,250+01:00 it runs",
        '{"level":"info","ts":"2026-01-31T08:15:00.25Z"}',
        '{"ts":1769847300.25,"msg":"it runs"}',
        '1.2.3.4 - - [31/Jan/2026:08:15:00 +0000] "GET / HTTP/1.1" 200 1',
        "2026/01/31 08:15:00 [error] 7#7: it runs",
        "7:M 31 Jan 2026 08:15:00.250 * Ready to accept connections",
        "Jan 31 08:15:00 host web[7]: it runs",
        "<13>Jan 31 08:15:00 host web[7]: it runs",
    ],
)
def test_times_are_recognised(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    found = time_of(line, to_epoch("2026-02-01T00:00:00Z"))
    assert found is not None
    assert 0 <= found - to_epoch("2026-01-31T08:15:00Z") < 1


def test_a_time_without_a_year_is_not_in_the_future() -> None:
    found = time_of("Dec 31 23:59:59 host it ran", to_epoch("2026-01-02T00:00:00Z"))
    assert found is not None
    assert found < to_epoch("2026-01-02T00:00:00Z")


@pytest.mark.parametrize("line", ["", "no time", "9999-99-99T99:99:99Z", "Foo 31 08:15:00", "2026-02-31", "x" * 10_000])
def test_what_is_no_time_is_none(line: str) -> None:
    assert time_of(line, 1e9) is None


def test_since_takes_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "log"
    day = "2026-01-01T00:00"
    path.write_text(f"{day}:00Z old\n  its trace\n{day}:09Z fresh\n  first\n  second\n{day}:10Z last\n")
    told = read(path, since=to_epoch("2026-01-01T00:00:05Z"))
    assert [text.split()[-1] for text in texts(told)] == ["fresh", "first", "second", "last"]
    assert [line["at"] is not None for line in told["lines"]] == [True, False, False, True]
    assert texts(read(path, query="second", since=to_epoch("2026-01-01T00:00:05Z"))) == ["  second"]
    assert texts(read(path, since=to_epoch("2027-01-01T00:00:00Z"))) == []


def test_since_stops_reading_where_all_is_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logreader, "TOO_OLD", 10)
    monkeypatch.setattr(logreader, "BLOCK_BYTES", 1024)
    path = tmp_path / "log"
    path.write_text("".join(f"2026-01-01T00:{n // 60:02d}:{n % 60:02d}Z line\n" for n in range(3000)))
    bounds = Bounds()
    told = read_logs(SYSTEM, [str(path)], Wish(100, "", to_epoch("2026-01-01T00:49:55Z")), bounds)
    assert len(told["lines"]) == 5
    assert logreader.READ_BYTES - bounds.bytes_left < 3000


def test_a_log_without_times_is_taken_if_it_was_written_to_since(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert texts(read(path, since=time.time() - 60)) == ["one", "two"]
    os.utime(path, (1, 1))
    assert texts(read(path, since=time.time() - 60)) == []


def test_several_logs_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    one.write_text("2026-01-01T00:00:01Z a\n  more of a\n2026-01-01T00:00:04Z d\n")
    two.write_text("2026-01-01T00:00:02Z b\n2026-01-01T00:00:03Z c\n")
    three.write_text("without a time\n")
    told = read([one, two, three])
    assert [text.split()[-1] for text in texts(told)] == ["a", "a", "b", "c", "d", "time"]
    assert [Path(line["file"]).name for line in told["lines"]] == ["one", "one", "two", "two", "one", "three"]


# ---- rotation


def test_lines_are_read_over_rotated_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for age, name in enumerate(["log", "log.1", "log.2", "log-20260101", "log.3.gz", "log.old", "logs", "log.x1"]):
        (tmp_path / name).write_text(f"{name} a\n{name} b\n")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert [Path(name).name for name in rotated(SYSTEM, str(path))] == ["log.1", "log.2", "log-20260101"]
    assert texts(read(path, 5)) == ["log.2 b", "log.1 a", "log.1 b", "log a", "log b"]
    assert texts(read(path, 100))[0] == "log-20260101 a"
    assert texts(read(path, query="2026")) == ["log-20260101 a", "log-20260101 b"]


def test_a_rotated_file_that_is_named_itself_is_not_read_twice(tmp_path: Path) -> None:
    for name in ("log", "log.1"):
        (tmp_path / name).write_text(f"{name}\n")
    paths = [tmp_path / "log", tmp_path / "log.1", tmp_path / "other"]
    assert sorted(texts(read(paths))) == ["log", "log.1"]
    assert len(read(paths)["files"]) == 3
    assert current_only(["/l/a", "/l/a.1", "/l/a-2026", "/l/a.gz"]) == ["/l/a", "/l/a.gz"]
    assert texts(read(tmp_path / "log.1")) == ["log.1"]


def test_a_file_that_is_cut_under_the_reader_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"line of a log\n" * 100_000)
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        path.write_bytes(b"fresh\n") if offset else None
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert texts(read(path, 2000)) in (["fresh"], [])


# ---- junk and giants


def test_junk_is_readable_and_fits_the_wire(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(random.Random(1).randbytes(3_000_000))
    told = read(path, 2000)
    assert told["lines"]
    assert all("\0" not in text and text.encode() for text in texts(told))


def big_file(path: Path, size: int, end: bytes) -> None:
    """Sparse, so that it costs no disk: a gigabyte of NUL without a line break."""
    with path.open("wb") as file:
        file.write(b"begin needle-one\n")
        file.seek(size)
        file.write(end)


def test_a_gigabyte_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "log"
    big_file(path, 1 << 30, b"\nlast line\n")
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert texts(read(path, 1)) == ["last line"]
    assert time.monotonic() - begun < 0.5
    told = read(path, 10, "needle-one")
    assert time.monotonic() - begun < 12
    assert texts(told) == ["begin needle-one"] or told["truncated"]
    read(path, 10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_time_and_bytes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 2_000_000)
    told = read_logs(SYSTEM, [str(path)], Wish(5, "y", None), Bounds(max_s=-1.0))
    assert told["truncated"]
    bounds = Bounds(max_bytes=1_000_000)
    assert read_logs(SYSTEM, [str(path)], Wish(5, "y", None), bounds)["truncated"]
    assert bounds.bytes_left <= 0


def test_a_line_without_an_end_is_cut_but_searched(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"start " + b"x" * 1_000_000 + b" needle " + b"y" * 1_000_000 + b"\nnext\n")
    told = read(path, query="needle")
    assert texts(told)[0].startswith("start xxx")
    assert texts(told)[0].endswith(logreader.CUT)
    assert len(texts(told)[0]) < 5000


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "socket"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/dev/log")
    assert read(path)["lines"] == []
    with pytest.raises(OSError, match=r"\S"):
        WholeFile(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_user_s_link_leads_only_to_his_own_files(tmp_path: Path) -> None:
    secret, own, link = tmp_path / "secret", tmp_path / "own", tmp_path / "log"
    secret.write_text("root's\n")
    own.write_text("his\n")
    os.chown(own, 65534, 65534)
    for target, expected in ((secret, []), (own, ["his"])):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        os.lchown(link, 65534, 65534)
        assert texts(read(link)) == expected
    link.unlink()
    link.symlink_to(secret)
    assert texts(read(link)) == ["root's"]


# ---- following


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def make(query: str = "", lines: int = 0) -> Follower:
        made.append(Follower(str(tmp_path / "log"), query.encode(), lines))
        return made[-1]

    yield make
    for follower in made:
        follower.close()


def test_what_is_appended_comes(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    follower = follow()
    assert follower.read(1000) == b""
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert follower.read(1000) == b"one\n"
        file.write("o\n")
        file.flush()
        assert follower.read(1000) == b"two\n"


def test_it_may_begin_with_the_last_lines(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    (tmp_path / "log").write_text("a 1\nb 2\na 3\nb 4\nunfinished")
    assert follow(lines=2).read(1000) == b"a 3\nb 4\n"
    assert follow("A", 2).read(1000) == b"a 1\na 3\n"
    follower = follow(lines=1)
    assert follower.read(1000) == b"b 4\n"
    with (tmp_path / "log").open("a") as file:
        file.write(" no more\n")
    assert follower.read(1000) == b"unfinished no more\n"


def test_only_matching_lines_come(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    path.touch()
    follower = follow("err")
    path.write_bytes(b"fine\nERROR \xff one\nfine\n")
    assert follower.read(1000) == b"ERROR \xff one\n"


def test_a_log_that_comes_later_is_followed_from_its_beginning(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    follower = follow()
    assert follower.read(1000) == b""
    (tmp_path / "log").write_text("first\n")
    assert follower.read(1000) == b"first\n"


def test_a_renamed_log_is_read_to_its_end_first(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    path.write_text("")
    follower = follow()
    with path.open("a") as file:
        path.rename(tmp_path / "log.1")
        file.write("late\nhalf")
        file.flush()
        assert follower.read(1000) == b"late\n"
        assert follower.read(1000) == b""
        path.write_text("fresh\n")
        assert follower.read(1000) == b"half\nfresh\n"


def test_a_log_that_is_cut_in_place_begins_again(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    path.write_text("x" * 100 + "\n")
    follower = follow()
    path.write_text("again\n")
    assert follower.read(1000) == b"again\n"
    path.write_text("")
    assert follower.read(1000) == b""
    path.write_text("more\n")
    assert follower.read(1000) == b"more\n"


def test_what_was_written_just_before_the_cut_is_taken_from_the_copy(
    tmp_path: Path, follow: Callable[..., Follower]
) -> None:
    path, copy = tmp_path / "log", tmp_path / "log.1"
    path.write_text("")
    follower, found, number = follow(), b"", 0
    for round_ in range(5):
        for _ in range(40):
            number += 1
            with path.open("a") as file:
                file.write(f"line {number} of a longer log\n")
            if number % 3 == 0:
                found += follower.read(10_000)
        # As the supervisor and logrotate do it; the second time only the end is copied.
        content = path.read_bytes()
        copy.write_bytes(content if round_ % 2 else content[len(content) // 4 :])
        os.truncate(path, 0)
    found += follower.read(10_000) + follower.read(10_000)
    assert found.decode().splitlines() == [f"line {n} of a longer log" for n in range(1, number + 1)]


def test_an_old_copy_is_not_taken_for_the_new_one(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1").write_text("from long ago\n" * 100)
    path.write_text("")
    follower = follow()
    path.write_text("one\ntwo\n")
    assert follower.read(1000) == b"one\ntwo\n"
    path.write_text("new\n")
    assert follower.read(1000) == b"new\n"


def test_nothing_is_lost_or_doubled_while_it_is_renamed_again_and_again(
    tmp_path: Path, follow: Callable[..., Follower]
) -> None:
    path, found = tmp_path / "log", b""
    path.touch()
    follower = follow()
    for number in range(60):
        with path.open("a") as file:
            file.write(f"line {number}\n")
        if number % 7 == 3:
            path.rename(tmp_path / f"log.{number}")
            path.touch()
        found += follower.read(100_000)
    found += follower.read(100_000) + follower.read(100_000)
    assert found.decode().splitlines() == [f"line {number}" for number in range(60)]


def test_an_endless_line_is_handed_on_in_pieces(tmp_path: Path, follow: Callable[..., Follower]) -> None:
    path = tmp_path / "log"
    path.touch()
    follower = follow()
    path.write_bytes(b"x" * 1_000_000)
    total = 0
    while piece := follower.read(64 * 1024):
        assert len(piece) < 300_000
        total += len(piece)
    assert total >= 1_000_000 - 64 * 1024


def test_several_logs_say_which_is_which(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text(f"{path.name}\n")
    source = FollowedFiles([str(one), str(two)], "", 5)
    assert source.read(10_000) == f"==> {one} <==\none\n==> {two} <==\ntwo\n".encode()
    with two.open("a") as file:
        file.write("more\n")
    assert source.read(10_000) == b"more\n"
    source.close()


def test_a_file_is_handed_out_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    content = random.Random(2).randbytes(300_000)
    path.write_bytes(content)
    whole = WholeFile(str(path))
    with path.open("ab") as file:
        file.write(b"later")
    found = b""
    while not whole.is_over:
        found += whole.read(65536)
    assert found == content
    whole.close()


# ---- the Daemon's own log


def test_its_own_log_is_kept_in_bounded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 5000)
    monkeypatch.setattr(logs, "_files", [])
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.keep_in(str(tmp_path))
        logs.set_up("text", "info")
        for number in range(300):
            logging.getLogger("daemon.test").info("line %d password=hunter2", number)
        files = sorted(path.name for path in tmp_path.iterdir())
        assert files == ["daemon.log", "daemon.log.1", "daemon.log.2"]
        assert all(path.stat().st_size <= 5000 for path in tmp_path.iterdir())
        assert (tmp_path / "daemon.log").stat().st_mode & 0o777 == 0o600
        told = read(Path(logs.file_path(str(tmp_path))), 100)
        assert [text.split("line ")[1].split()[0] for text in texts(told)] == [str(n) for n in range(200, 300)]
        assert "hunter2" not in str(told)
        assert told["lines"][-1]["at"] is not None
        # A directory that is gone costs the lines in the file, not the Daemon.
        for path in tmp_path.iterdir():
            path.unlink()
        tmp_path.rmdir()
        for _ in range(300):
            logging.getLogger("daemon.test").info("x" * 50)
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_reading_costs_no_modules() -> None:
    code = "import daemon.logreader, daemon.logfollow, sys; print('_strptime' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "False"


def test_two_readers_at_once_do_not_mind_each_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(50_000)))
    found: list[list[str]] = []
    readers = [threading.Thread(target=lambda: found.append(texts(read(path, 3, "line 4")))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [["line 49997", "line 49998", "line 49999"]] * 4
