"""Two machines with one identity part ways; one machine on a bad day stays one."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.connection import Refused
from protocol.codec import encode
from protocol.errors import CHALLENGE, FORBIDDEN, REJECTED
from tests.daemon.host import MACHINE, Host
from tests.daemon.manager import FakeManager, Refusal
from tests.daemon.processes import wait_for

OTHER = MACHINE._replace(boot_id="boot-2", hardware_id="c" * 64)


def checked_in(host: Host, times: int = 1) -> None:
    """Let a running host check in."""
    node = host.identity.node
    assert node is not None
    known = host.manager.nodes[node.node_uuid]
    for _ in range(times):
        before = len(known.checkins)
        host.link.check_in_now()
        wait_for(lambda count=before: len(known.checkins) > count, "a check-in")


def copied(host: Host, path: Path) -> Path:
    shutil.copytree(host.directory, path)
    return path


def test_a_copied_disk_is_found_and_gets_an_identity_of_its_own(
    host: Host, manager: FakeManager, new_host: Callable[..., Host], tmp_path: Path
) -> None:
    host.start()
    checked_in(host, 2)
    original = manager.node
    copied(host, tmp_path / "copy")
    checked_in(host, 2)
    copy = new_host("copy", machine=OTHER)
    stamps = copy.add_points(2)
    copy.start()
    wait_for(lambda: len(manager.nodes) == 2, "an identity of its own")
    assert original.is_copy
    assert set(stamps).isdisjoint(original.points)
    second = next(node for node in manager.nodes.values() if node is not original)
    wait_for(lambda: set(stamps) <= set(second.points), "the copy's own measurements")
    assert copy.identity.node is not None
    assert copy.identity.node.node_uuid == second.uuid
    checked_in(host)
    assert host.identity.node is not None
    assert host.identity.node.node_uuid == original.uuid
    command = manager.send("ping", {}, second)
    wait_for(lambda: second.result(command), "a command for the copy")
    assert [ran.id for ran in copy.ran] == [command]
    assert host.ran == []


def test_a_template_that_two_machines_boot_from_is_found(
    host: Host, manager: FakeManager, new_host: Callable[..., Host], tmp_path: Path
) -> None:
    host.start()
    checked_in(host, 2)
    host.stop()
    copied(host, tmp_path / "one")
    copied(host, tmp_path / "two")
    one = new_host("one", machine=OTHER).start()
    wait_for(lambda: manager.node.instance == one.state.instance_id, "the first machine")
    two = new_host("two", machine=OTHER._replace(boot_id="boot-3")).start()
    wait_for(
        lambda: manager.nodes and any(node.instance == two.state.instance_id for node in manager.nodes.values()), "two"
    )
    one.link.check_in_now()
    wait_for(lambda: len(manager.nodes) == 2, "an identity of its own for one of them")
    names = {one.identity.node.node_uuid, two.identity.node.node_uuid}  # type: ignore[union-attr]
    wait_for(lambda: len({h.identity.node.node_uuid for h in (one, two)}) == 2, f"two names, not {names}")  # type: ignore[union-attr]


def test_a_copy_that_is_rejected_does_not_insist(
    host: Host, manager: FakeManager, new_host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.WIRE_RETRY_S", 0.3)
    host.start()
    checked_in(host, 2)
    copied(host, tmp_path / "copy")
    checked_in(host, 2)

    def reject() -> None:
        raise Refusal(FORBIDDEN, REJECTED)

    manager.faults["enroll"] = reject
    copy = new_host("copy", machine=OTHER).start()
    wait_for(lambda: manager.paths().count("enroll") >= 3, "tries")
    requests = {body for body in manager.bodies if b"csr_pem" in body}
    assert len(requests) >= 3
    checked_in(host)
    assert copy.identity.node is not None
    assert len(manager.nodes) == 1


def test_a_host_that_waits_for_approval_does_not_hurry(manager: FakeManager, new_host: Callable[..., Host]) -> None:
    manager.needs_approval = True
    host = new_host()
    host.identity.begin(manager.url, manager.authority.pem, "join-me", False)
    host.start()
    wait_for(lambda: manager.paths().count("enroll") >= 1, "the request")
    for _ in range(5):
        host.link.check_in_now()
    wait_for(lambda: host.identity.pending is not None and host.identity.pending.ticket, "the ticket")
    begun, count = time.monotonic(), manager.paths().count("enroll")
    wait_for(lambda: manager.paths().count("enroll") >= count + 2, "two more")
    assert time.monotonic() - begun > 0.8


def test_a_restart_is_no_clone(host: Host, manager: FakeManager) -> None:
    for _ in range(4):
        host.start()
        wait_for(lambda subject=host: manager.node.instance == subject.state.instance_id, "a check-in")
        host = host.restarted()
    assert not manager.node.is_copy
    assert [checkin.generation for checkin in manager.node.checkins][-1] >= 4


def test_a_reboot_is_no_clone(host: Host, manager: FakeManager) -> None:
    host.start()
    checked_in(host, 2)
    host.machine = OTHER
    again = host.restarted().start()
    wait_for(lambda: manager.node.instance == again.state.instance_id, "a check-in")
    assert not manager.node.is_copy
    again.stop()


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 8192])
def test_a_lost_state_file_is_no_clone_on_the_same_boot(
    host: Host, manager: FakeManager, new_host: Callable[..., Host], content: bytes | None
) -> None:
    host.start()
    checked_in(host, 3)
    host.stop()
    path = host.directory / "instance"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    again = new_host().start()
    # Its generation starts at 1 again, below the last accepted: the Manager challenges, and the host answers.
    wait_for(lambda: manager.node.instance == again.state.instance_id, "a check-in")
    assert not manager.node.is_copy
    assert manager.node.checkins[-1].challenge is not None
    checked_in(again)
    assert manager.node.checkins[-1].challenge is None


def test_a_request_that_comes_late_changes_nothing(host: Host, manager: FakeManager) -> None:
    host.start()
    checked_in(host)
    late = manager.node.checkins[-1]
    checked_in(host, 2)
    lease = manager.node.lease
    second = host.link.new_connection()
    with pytest.raises(Refused) as refused:
        second.post("checkin", encode(late))
    second.close()
    assert refused.value.refusal.reason == CHALLENGE
    assert manager.node.lease == lease
    checked_in(host, 2)
    assert not manager.node.is_copy


def test_the_lease_is_on_disk_before_the_next_check_in(host: Host, manager: FakeManager) -> None:
    seen: list[tuple[str | None, str | None]] = []
    store = host.state.store

    def watched() -> None:
        store()
        seen.append((host.state.lease, host.state._slots.load() and None))

    host.state.store = watched  # type: ignore[method-assign]
    host.start()
    checked_in(host, 3)
    wait_for(lambda: len(seen) >= 3, "the leases")
    used = [checkin.lease for checkin in manager.node.checkins[1:]]
    assert used == [lease for lease, _ in seen][: len(used)]


def test_an_instance_that_does_not_hold_the_lease_checks_in_first(
    host: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.link.FIRST_POINT_S", 60.0)
    manager.next_checkin_s = 60.0
    host.start()
    wait_for(lambda: manager.node.polls >= 1, "a held poll")
    manager.node.instance = "f" * 32
    before = len(manager.node.checkins)
    with manager.changed:
        manager.is_draining = True
        manager.changed.notify_all()
    wait_for(lambda: len(manager.node.checkins) > before, "a check-in instead of a poll", 10)
    wait_for(lambda: manager.node.polls >= 2, "a poll", 10)
