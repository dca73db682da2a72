"""`python -m daemon enroll` and what the resident Daemon does with an enrolment that is not answered yet."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.enroll import WrongCa, pick_ca, read_fingerprint
from daemon.main import EXIT_REJECTED, EXIT_RUNNING, EXIT_SETTINGS
from protocol import errors
from tests.daemon.manager import Drop, FakeManager, Refusal
from tests.daemon.pki import Authority
from tests.daemon.processes import DaemonProcess, environment, wait_for
from tests.daemon.test_faults import once

NewDaemon = Callable[..., DaemonProcess]


def drop() -> None:
    raise Drop


@pytest.fixture
def enrolled(manager: FakeManager, new_daemon: NewDaemon) -> DaemonProcess:
    """By the command itself."""
    daemon = new_daemon()
    assert daemon.enroll(manager) == 0, daemon.output()
    return daemon


def test_a_host_becomes_a_node_and_its_secrets_are_its_own(manager: FakeManager, enrolled: DaemonProcess) -> None:
    node = manager.node
    assert node.inventory.hostname == os.uname().nodename
    assert node.inventory.arch in ("amd64", "arm64")
    files = {path.name: path.stat().st_mode & 0o777 for path in (enrolled.state_dir / "identity").iterdir()}
    assert files == {"node.json": 0o600, "current.pem": 0o600}
    assert enrolled.state_dir.stat().st_mode & 0o777 == 0o700
    assert "join-me" not in enrolled.output()


def test_enrolling_again_changes_nothing(manager: FakeManager, enrolled: DaemonProcess) -> None:
    before = (enrolled.state_dir / "identity" / "current.pem").read_bytes()
    assert enrolled.enroll(manager) == 0
    assert len(manager.nodes) == 1
    assert (enrolled.state_dir / "identity" / "current.pem").read_bytes() == before
    assert enrolled.enroll(manager, "--replace") == 0
    assert len(manager.nodes) == 2


def test_a_lost_answer_gives_the_same_node(manager: FakeManager, new_daemon: NewDaemon) -> None:
    manager.after["enroll"] = once(drop)
    assert new_daemon().enroll(manager) == 0
    assert manager.enrolments == 2
    assert len(manager.nodes) == 1


def test_a_crash_after_the_request_gives_the_same_node(manager: FakeManager, new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    manager.after["enroll"] = drop
    assert daemon.enroll(manager, "--retry", "1") == 1
    assert len(manager.nodes) == 1
    manager.after.clear()
    assert daemon.enroll(manager) == 0
    assert len(manager.nodes) == 1
    assert daemon.stored("identity/node.json")["node_uuid"] == manager.node.uuid


@pytest.mark.parametrize("token", ["wrong", None])
def test_without_a_good_token_nobody_comes_in(manager: FakeManager, new_daemon: NewDaemon, token: str | None) -> None:
    daemon = new_daemon()
    assert daemon.enroll(manager, token=token) == EXIT_REJECTED
    assert not (daemon.state_dir / "identity" / "node.json").exists()
    # With a good one the same host comes in later.
    assert daemon.enroll(manager) == 0


def test_another_ca_than_the_named_one_is_refused(manager: FakeManager, new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    assert daemon.enroll(manager, "--ca-fingerprint", "0" * 64) == EXIT_REJECTED
    assert manager.enrolments == 0


def test_a_ca_file_serves_as_well(manager: FakeManager, new_daemon: NewDaemon, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(manager.authority.pem)
    assert new_daemon().enroll(manager, "--ca-file", str(tmp_path / "ca.pem")) == 0


def test_a_token_file_serves_as_well(manager: FakeManager, new_daemon: NewDaemon, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("join-me\n")
    assert new_daemon().enroll(manager, "--token-file", str(tmp_path / "token"), token=None) == 0


def test_only_the_named_certificate_of_a_bundle_is_trusted() -> None:
    good, bad = Authority(), Authority()
    assert pick_ca(bad.pem + good.pem, good.fingerprint()).strip() == good.pem.strip()
    with pytest.raises(WrongCa):
        pick_ca(bad.pem, good.fingerprint())


def test_fingerprints_are_read_in_every_common_form() -> None:
    plain = "ab" * 32
    colons = ":".join(["AB"] * 32)
    assert {
        read_fingerprint(form) for form in (plain, plain.upper(), colons, f"SHA256:{colons}", f"sha256:{plain}")
    } == {plain}


def test_a_manager_that_is_not_there_yet_is_waited_for(manager: FakeManager, new_daemon: NewDaemon) -> None:
    def refuse() -> None:
        raise Refusal(errors.DATABASE_AWAY, errors.BUSY, 1)

    manager.faults["enroll"] = once(refuse)
    assert new_daemon().enroll(manager) == 0


def test_approval_is_waited_for(manager: FakeManager, new_daemon: NewDaemon) -> None:
    manager.needs_approval = True
    daemon = new_daemon()
    assert daemon.enroll(manager) == 0
    assert manager.nodes == {}
    pending = daemon.stored("identity/pending.json")
    daemon.start()
    wait_for(lambda: manager.paths().count("enroll") >= 2, "the resident Daemon to ask again")
    manager.approved.add(pending["ticket"])
    wait_for(lambda: manager.nodes and manager.node.checkins, "the first check-in")
    assert manager.paths().count("checkin") >= 1
    assert daemon.stored("identity/node.json")["node_id"] == 1


def test_the_command_waits_for_approval_if_asked_to(manager: FakeManager, new_daemon: NewDaemon) -> None:
    manager.needs_approval = True
    daemon = new_daemon()

    def approve() -> None:
        if manager.waiting:
            manager.approved.update(manager.waiting)

    manager.faults["enroll"] = approve
    assert daemon.enroll(manager, "--wait", "30") == 0
    assert len(manager.nodes) == 1


def test_discovery_needs_no_token(manager: FakeManager, new_daemon: NewDaemon) -> None:
    manager.is_discovery_on = True
    daemon = new_daemon()
    assert daemon.enroll(manager, token=None) == 0
    assert len(manager.waiting) == 1


def test_a_rejected_host_stops_asking(manager: FakeManager, new_daemon: NewDaemon) -> None:
    def reject() -> None:
        raise Refusal(errors.FORBIDDEN, errors.REJECTED)

    manager.needs_approval = True
    daemon = new_daemon()
    daemon.enroll(manager)
    manager.faults["enroll"] = reject
    process = daemon.start()
    assert process.wait(20) == EXIT_REJECTED
    assert not (daemon.state_dir / "identity" / "pending.json").exists()


def test_a_daemon_without_identity_says_so(new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    assert daemon.start().wait(20) == EXIT_SETTINGS
    assert "not enrolled" in daemon.output()


def test_two_daemons_do_not_share_a_state_directory(manager: FakeManager, enrolled: DaemonProcess) -> None:
    first = enrolled.start()
    wait_for(lambda: manager.node.checkins, "a check-in")
    second = enrolled.start()
    assert second.wait(20) == EXIT_RUNNING
    assert enrolled.enroll(manager, "--replace") == EXIT_RUNNING
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server", "http://x", "--ca-fingerprint", "0" * 64],
        ["--server", "https://x", "--ca-fingerprint", "12"],
        ["--server", "https://x"],
        ["--server", "https://x", "--ca-fingerprint", "0" * 64, "--token-file", "/nowhere"],
        ["--server", "https://x", "--ca-fingerprint", "0" * 64, "--token-env", "NOT_THERE"],
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "daemon", "enroll", "--state-dir", str(tmp_path), *arguments],
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == EXIT_SETTINGS
    assert ended.stderr
    assert b"Traceback" not in ended.stderr
