"""The resident process itself: what it imports, what it weighs, signals, kill -9, live mode, systemd."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.manager import Drop, FakeManager
from tests.daemon.processes import DaemonProcess, environment, wait_for

# Fault tests repeat once by default, 50 times in a night.
REPEATS = int(os.environ.get("OPS_FAULT_REPEATS", "1"))

# Resident memory is spent here and nowhere else; whoever adds a line says how much it costs and why it is worth it.
ALLOWED = frozenset(
    """
    __future__ __main__ abc array atexit base64 binascii bisect builtins calendar codecs collections contextlib copyreg
    daemon datetime email encodings enum errno fcntl functools genericpath grp hashlib heapq hmac http io ipaddress
    itertools json keyword linecache locale logging marshal math ntpath operator os posix posixpath protocol pwd quopri
    random re reprlib select selectors signal site socket ssl stat string struct sys sysconfig textwrap threading time
    token tokenize traceback types typing urllib warnings weakref zipimport zlib sre_compile sre_constants sre_parse
    """.split()
)
FORBIDDEN = {
    "requests", "urllib3", "cryptography", "sqlite3", "asyncio", "ruamel", "yaml", "psutil", "subprocess", "argparse",
    "pathlib", "uuid", "dataclasses", "tempfile", "shutil", "inspect", "importlib.metadata", "concurrent", "queue",
    "multiprocessing", "gzip", "pickle", "decimal", "unittest", "pydoc", "http.server", "http.cookies", "xml",
}  # fmt: skip


def loaded(code: str) -> set[str]:
    """Names of the modules in a fresh interpreter after `code`."""
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(ended.stdout.split())


def test_the_resident_daemon_imports_only_what_it_may() -> None:
    names = loaded("import daemon.main")
    assert {name for name in names if name in FORBIDDEN or name.split(".")[0] in FORBIDDEN} == set()
    foreign = {name.split(".")[0] for name in names if not name.startswith("_")} - ALLOWED
    assert foreign == set()


def test_children_s_modules_stay_in_children() -> None:
    names = loaded("import daemon.main")
    assert not names & {"daemon.configure", "daemon.keytool", "daemon.yamlread", "daemon.enroll"}


@pytest.mark.fault
def test_a_killed_daemon_loses_no_measurement_and_is_no_clone(manager: FakeManager, enrolled: DaemonProcess) -> None:
    spool = enrolled.state_dir / "spool"

    def on_disk() -> int:
        return sum(path.stat().st_size for path in spool.glob("*.seg"))

    enrolled.start()
    wait_for(lambda: manager.node.points, "a first point")
    for _ in range(REPEATS):
        release = threading.Event()
        manager.faults["checkin"] = lambda held=release: held.wait(60) and None
        before, known = on_disk(), len(manager.node.points)
        wait_for(lambda size=before: on_disk() > size, "a point on disk", 30)
        enrolled.stop(signal.SIGKILL)
        manager.faults.clear()
        release.set()
        enrolled.start()
        wait_for(lambda count=known: len(manager.node.points) > count, "the point", 30)
    assert not manager.node.is_copy
    assert max(manager.node.arrivals.values()) <= 2
    assert manager.node.checkins[-1].dropped.points == 0


@pytest.mark.fault
def test_a_killed_daemon_tells_its_results_when_it_is_back(manager: FakeManager, enrolled: DaemonProcess) -> None:
    def drop() -> None:
        raise Drop

    manager.faults["commands/reports"] = drop
    enrolled.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    command = manager.send("ping", {"echo": "kept"})
    wait_for(lambda: manager.paths().count("commands/reports") >= 2, "tries")
    enrolled.stop(signal.SIGKILL)
    manager.faults.clear()
    enrolled.start()
    result = wait_for(lambda: manager.node.result(command), "the result")
    assert result.data["echo"] == "kept"


def test_sighup_reads_the_settings_again(manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path) -> None:
    config = tmp_path / "daemon.yaml"
    config.write_text("log: {format: text}\n")
    process = enrolled.start("--config", str(config))
    wait_for(lambda: manager.node.checkins, "a check-in")
    config.write_text("log: {format: json}\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: '"msg":"the settings were read again"' in enrolled.output(), "JSON lines")
    config.write_text("log: {format: xml}\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "nothing is changed" in enrolled.output(), "the complaint")
    assert process.poll() is None
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "a command after it")


def test_capabilities_reach_the_manager_and_follow_the_file(manager: FakeManager, enrolled: DaemonProcess) -> None:
    enrolled.capabilities.write_text("allow: {terminal: false}")
    enrolled.capabilities.chmod(0o600)
    enrolled.start()
    wait_for(lambda: manager.node.checkins, "a check-in")
    assert manager.node.checkins[-1].capabilities.state == "file"
    assert not manager.node.checkins[-1].capabilities.terminal
    enrolled.capabilities.chmod(0o666)
    manager.send("settings.refresh", {})
    wait_for(lambda: manager.node.checkins[-1].capabilities.state == "unsafe", "the change")
    assert not manager.node.checkins[-1].capabilities.scripts


def test_live_mode_sends_a_sample_a_second_until_nobody_looks(manager: FakeManager, enrolled: DaemonProcess) -> None:
    manager.settings = manager.settings._replace(version=2)
    enrolled.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    with manager.changed:
        manager.live_until = manager.text(20)
        manager.changed.notify_all()
    wait_for(lambda: len(manager.node.samples) >= 4, "four samples", 15)
    stamps = [sample.timestamp for sample in manager.node.samples]
    assert len(set(stamps)) == len(stamps)
    assert all(sample.cpu_usage is not None for sample in manager.node.samples[1:])
    times = [at for at, path, _ in manager.requests if path == "live"]
    assert 0.5 < times[-1] - times[-2] < 2.0
    # The poll is held all the while, and commands come through.
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "a command meanwhile", 5)
    manager.live = lambda *_: (200, {"until": None})  # type: ignore[method-assign]
    before = manager.paths().count("live")
    wait_for(lambda: manager.paths().count("live") > before, "the last one")
    count = manager.paths().count("live")
    wait_for(lambda: manager.node.polls > 1, "the time to pass", 30)
    assert manager.paths().count("live") <= count + 1
    assert not list((enrolled.state_dir / "spool").glob("*live*"))


def test_it_fits_in_thirty_megabytes_with_its_link_up(manager: FakeManager, enrolled: DaemonProcess) -> None:
    # A coverage run would measure itself.
    process = enrolled.start(COVERAGE_PROCESS_START="", COVERAGE_PROCESS_CONFIG="")
    wait_for(lambda: manager.node.points and manager.node.polls >= 2, "the link")
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    rss_kib = next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
    assert rss_kib < 27 * 1024
    assert len(list(Path(f"/proc/{process.pid}/task").iterdir())) <= 3


def test_systemd_hears_ready_watchdog_and_stopping(
    manager: FakeManager, enrolled: DaemonProcess, tmp_path: Path
) -> None:
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        path = f"{os.path.relpath(tmp_path)}/n" if len(str(tmp_path)) > 90 else str(tmp_path / "n")
        channel.bind(path)
        channel.settimeout(30)

        def listen() -> None:
            while "STOPPING=1" not in heard:
                heard.append(channel.recv(200).decode())

        listener = threading.Thread(target=listen)
        listener.start()
        enrolled.start(NOTIFY_SOCKET=str(tmp_path / "n"), WATCHDOG_USEC="1500000")
        wait_for(lambda: heard.count("WATCHDOG=1") >= 3, "the watchdog", 30)
        assert enrolled.stop() == 0
        listener.join(10)
    assert heard[0] == "READY=1"
    assert heard[-1] == "STOPPING=1"


def test_the_allocator_is_held_to_two_arenas(manager: FakeManager, enrolled: DaemonProcess) -> None:
    process = enrolled.start()
    wait_for(lambda: manager.node.checkins, "a check-in")
    assert b"MALLOC_ARENA_MAX=2" in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_no_signal_is_lost_while_it_starts_and_stops(
    manager: FakeManager, new_daemon: Callable[..., DaemonProcess]
) -> None:
    daemon = new_daemon()
    daemon.enroll(manager)
    for _ in range(3):
        daemon.start()
        wait_for(lambda: "daemon 0.1.0 runs" in daemon.output(), "the start")
        assert daemon.stop() == 0
        daemon.log.unlink()
