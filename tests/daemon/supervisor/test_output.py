"""Captured output: bounded whatever is written, and the last lines without secrets."""

import errno
import os
import time
from pathlib import Path

import pytest

from daemon.supervisor import output
from daemon.system import System
from tests.daemon.processes import wait_for
from tests.daemon.supervisor.box import Box, shell


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_BYTES", 10_000)
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_S", 0.1)
    monkeypatch.setattr("daemon.supervisor.supervisor.SAMPLE_SHARE", 1.0)


@pytest.mark.usefixtures("small")
def test_a_chatterbox_fills_no_disk_and_loses_nothing_in_between(box: Box) -> None:
    box.add("one", shell("n=0; while [ $n -lt 3000 ]; do n=$((n+1)); echo line $n; done; exec sleep 1000"))
    box.running("one")
    paths = [Path(path) for path in box.supervisor.log_paths("one") or []]
    wait_for(lambda: any("line 3000\n" in path.read_text() for path in paths if path.exists()), "the last line")
    time.sleep(0.5)
    assert sum(path.stat().st_size for path in paths if path.exists()) < 60_000
    box.supervisor.check_health("one")
    found = "".join(path.read_text() for path in reversed(paths) if path.exists()).split("\n")
    numbers = [int(line.removeprefix("line ")) for line in found if line.startswith("line ")]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 3000


@pytest.mark.usefixtures("small")
def test_the_writer_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    system = System()
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 20_000 + b"end\n")
        assert output.rotate(system, str(path))
        assert path.stat().st_size == 0
        writer.write(b"more\n")
    assert path.read_bytes() == b"more\n"
    # Of what is too large only the end is kept.
    kept = Path(f"{path}.1").read_bytes()
    assert len(kept) == 10_000
    assert kept.endswith(b"end\n")
    assert not output.rotate(system, str(path))


@pytest.mark.usefixtures("small")
def test_so_many_files_are_kept_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    for number in range(5):
        path.write_bytes(b"%d" % number * 10_001)
        assert output.rotate(System(), str(path))
    assert [Path(name).read_bytes()[:1] for name in output.paths(str(path))[1:]] == [b"4", b"3"]
    assert len(list(tmp_path.iterdir())) == 3


def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert output.last_lines(System(), str(path)) == []
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(10_000)))
    assert output.last_lines(System(), str(path)) == [f"line {number}" for number in range(9950, 10_000)]
    path.write_bytes(b"password=hunter2\n\xff\x00 binary\nunfinished")
    assert output.last_lines(System(), str(path)) == ["password=[hidden]", "�� binary", "unfinished"]
    path.write_bytes(b"x" * 100_000)
    assert [len(line) for line in output.last_lines(System(), str(path))] == [output.LINE_CHARS]
    assert output.last_lines(System(), str(tmp_path)) == []
    assert output.last_lines(System(), "/dev/zero") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_of_an_ordinary_user_does_not_show_what_is_root_s(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    secret, link = tmp_path / "secret", tmp_path / "agent.log"
    secret.write_text("only for root\n")
    secret.chmod(0o600)
    link.symlink_to(secret)
    os.lchown(link, 65534, 65534)
    assert output.last_lines(System(), str(link)) == []


@pytest.mark.parametrize("is_full", [False, True])
def test_a_writer_that_never_rests_ends_no_copy_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    path, copy = tmp_path / "output.log", os.sendfile
    path.write_bytes(b"x" * 1000)

    def sendfile(target: int, source: int, offset: int, count: int) -> int:
        with path.open("ab") as writer:
            writer.write(b"y" * 5000)
        if is_full:
            raise OSError(errno.ENOSPC, "no space left")
        return copy(target, source, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)
    kept = tmp_path / "output.log.1"
    if is_full:
        with pytest.raises(OSError, match="no space"):
            System().cut_file(str(path), str(kept), 600)
        assert path.stat().st_size == 6000
        assert list(tmp_path.iterdir()) == [path]
        return
    System().cut_file(str(path), str(kept), 600)
    assert kept.read_bytes() == b"x" * 600
    assert path.read_bytes() == b""


def test_logs_that_the_host_does_not_show_are_not_read(tmp_path: Path) -> None:
    shown, hidden = tmp_path / "shown.log", tmp_path / "hidden.log"
    shown.write_text("to be seen\n")
    hidden.write_text("not to be seen\n")
    box = Box(tmp_path / "state", forbids_file=lambda path: "not this one" if "hidden" in path else None)
    try:
        logs = [str(shown), str(hidden)]
        box.host({"name": "own", "type": "custom", "start": shell("exit 7"), "logs": logs})
        box.add("one", shell("echo said; exit 7"), logs=logs)
        found: dict[str, list[list[str]]] = {}

        def have_ended() -> bool:
            for event in box.book.of("agent.crashed"):
                found.setdefault(event.data["agent"], list(event.data["log"].values()))
            return len(found) == 2

        wait_for(have_ended, "the ends of both")
        assert found["one"] == [["said"], ["to be seen"]]
        assert ["not to be seen"] in found["own"]
        assert (box.supervisor.log_paths("one") or [])[-1:] == [str(shown)]
        assert (box.supervisor.log_paths("own") or [])[-2:] == logs
        assert box.supervisor.forbids_log("one", str(hidden)) == "not this one"
        assert box.supervisor.forbids_log("one", str(shown)) is box.supervisor.forbids_log("own", str(hidden)) is None
    finally:
        box.close()
