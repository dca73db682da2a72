"""Certificates: renewed before they end, proven before the old one goes, recovered after; and whom a Daemon trusts."""

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from daemon.connection import Connection, LinkDown, Peer, Refused, make_context
from daemon.identity import CANDIDATE, CURRENT
from protocol.errors import CERTIFICATE_SUPERSEDED
from protocol.times import to_epoch
from tests.daemon.host import Host
from tests.daemon.manager import Drop, FakeManager
from tests.daemon.pki import Authority
from tests.daemon.processes import wait_for
from tests.daemon.test_faults import once

YEAR = 365 * 86400.0


def drop() -> None:
    raise Drop


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.backoff.MOST_S", 0.2)


@pytest.fixture
def ageing(manager: FakeManager, new_host: Callable[..., Host]) -> Host:
    """A host whose certificate is about to be renewed."""
    manager.lifetime = dt.timedelta(days=2)
    manager.settings = manager.settings._replace(renew_before_s=30 * 86400)
    found = new_host()
    found.enroll()
    return found


def renewed(host: Host, manager: FakeManager, before: list[str]) -> None:
    wait_for(
        lambda: manager.node.fingerprints != before and not host.identity.has(CANDIDATE), "the new certificate", 10
    )


def test_a_certificate_is_renewed_before_it_ends(ageing: Host, manager: FakeManager) -> None:
    before = manager.node.fingerprints
    ageing.start()
    renewed(ageing, manager, before)
    assert manager.paths().count("renew") == 1
    assert ageing.identity.expires_at(CURRENT) > manager.now() + 80 * 86400
    ageing.link.check_in_now()
    event = wait_for(lambda: [e for e in manager.node.events if e.kind == "certificate.renewed"], "the event")[0]
    assert event.severity == "info"
    command = manager.send("ping", {})
    wait_for(lambda: manager.node.result(command), "a command under it")


def test_the_old_certificate_is_refused_from_then_on(ageing: Host, manager: FakeManager, tmp_path: Path) -> None:
    old = tmp_path / "old.pem"
    old.write_bytes((ageing.directory / "identity" / CURRENT).read_bytes())
    before = manager.node.fingerprints
    ageing.start()
    renewed(ageing, manager, before)
    peer = Peer(manager.url, None, manager.authority.pem, str(old))
    connection = Connection(peer, make_context(peer), "0" * 32)
    with pytest.raises(Refused) as refused:
        connection.post("poll", b'{"wait_s":0}')
    connection.close()
    assert refused.value.refusal.reason == CERTIFICATE_SUPERSEDED


def test_a_lost_answer_to_renew_is_asked_for_again_with_the_same_key(
    ageing: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.credentials.RENEW_RETRY_S", 0.2)
    manager.after["renew"] = once(drop)
    before = manager.node.fingerprints
    ageing.start()
    renewed(ageing, manager, before)
    requests = [body for body in manager.bodies if b'"csr_pem"' in body and b"facts" not in body]
    assert len(requests) == 2
    assert requests[0] == requests[1]


@pytest.mark.parametrize("is_proven", [False, True])
def test_a_crash_before_the_switch_leaves_a_way_in(ageing: Host, manager: FakeManager, is_proven: bool) -> None:
    """With `is_proven` the Manager has already seen the candidate, so that only it still works."""
    before = manager.node.fingerprints
    ageing.identity.promote = lambda: None  # type: ignore[method-assign]
    if not is_proven:
        manager.faults["checkin"] = lambda: manager.node.candidate and drop()  # type: ignore[func-returns-value]
    ageing.start()
    wait_for(lambda: ageing.identity.has(CANDIDATE), "a candidate", 10)
    if is_proven:
        wait_for(lambda: manager.node.fingerprints != before, "its first use", 10)
    again = ageing.restarted()
    manager.faults.clear()
    assert again.identity.has(CANDIDATE)
    again.start()
    renewed(again, manager, before)
    again.stop()


def test_a_candidate_that_the_manager_does_not_take_is_given_up_and_asked_for_again(
    ageing: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.credentials.RENEW_RETRY_S", 1.0)
    before = manager.node.fingerprints

    def forget() -> None:
        manager.node.candidate = "0" * 64

    manager.after["renew"] = once(forget)
    ageing.start()
    renewed(ageing, manager, before)
    assert manager.paths().count("renew") == 2


def test_a_candidate_that_cannot_be_read_is_given_up(ageing: Host, manager: FakeManager) -> None:
    (ageing.directory / "identity" / CANDIDATE).write_bytes(b"not-after: 2030-01-01T00:00:00Z\nrubbish")
    before = manager.node.fingerprints
    ageing.start()
    renewed(ageing, manager, before)


# ---- recovery


@pytest.fixture
def expired(manager: FakeManager, new_host: Callable[..., Host]) -> Host:
    """A host whose certificate ended while it was off."""
    manager.lifetime = dt.timedelta(seconds=-60)
    found = new_host()
    found.enroll()
    return found


def test_an_expired_certificate_is_recovered_with_the_old_key(expired: Host, manager: FakeManager) -> None:
    before = manager.node.fingerprints
    stamps = expired.add_points(2)
    expired.start()
    renewed(expired, manager, before)
    wait_for(lambda: set(stamps) <= set(manager.node.points), "its measurements")
    assert manager.recoveries == 1


def test_a_lost_answer_to_recover_is_asked_for_again(
    expired: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.credentials.RECOVER_RETRY_S", 0.2)
    manager.after["recover"] = once(drop)
    before = manager.node.fingerprints
    expired.start()
    renewed(expired, manager, before)
    assert manager.recoveries == 2


def test_a_host_with_a_slow_clock_finds_out_by_the_silence(expired: Host, manager: FakeManager) -> None:
    """Its own clock says that the certificate is good; the Manager's TLS ends without a word."""
    expired.system.shift_s = -YEAR  # type: ignore[attr-defined]
    expired.clock.anchor = expired.clock.first = None
    before = manager.node.fingerprints
    expired.start()
    renewed(expired, manager, before)
    assert manager.recoveries == 1


def test_a_host_with_a_fast_clock_is_told_that_its_certificate_is_good(
    manager: FakeManager, new_host: Callable[..., Host]
) -> None:
    host = new_host()
    host.enroll()
    host.system.shift_s = YEAR  # type: ignore[attr-defined]
    host.clock.anchor = host.clock.first = None
    host._first = host.system.wall()
    stamps = host.add_points(1)
    host.start()
    wait_for(lambda: manager.node.points, "its measurement")
    assert manager.recoveries == 0
    assert manager.paths().count("recover") == 1
    # Measured before the Manager's time was known, and put right with it.
    assert stamps[0] not in manager.node.points


@pytest.mark.parametrize("error", [-YEAR, YEAR])
def test_points_from_before_the_first_answer_of_a_boot_arrive_with_true_times(
    manager: FakeManager, new_host: Callable[..., Host], error: float
) -> None:
    host = new_host()
    host.enroll()
    host.system.shift_s = error  # type: ignore[attr-defined]
    host.clock.anchor = host.clock.first = None
    host._first = host.system.wall()
    host.add_points(3)
    host.start()
    wait_for(lambda: host.spool.pending() == 0 and manager.node.points, "the points")
    # A slow clock is found out by the first check-in, a fast one already by the question for a new certificate.
    assert error > 0 or manager.node.checkins[0].metrics == ()
    for stamp in manager.node.points:
        assert abs(to_epoch(stamp) - manager.now()) < 30
    assert manager.node.checkins[-1].clock.offset_ms == pytest.approx(-error * 1000, abs=1000)


def test_another_key_recovers_nothing(expired: Host, manager: FakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expired.identity, "recovery_signature", lambda csr, at: (_certificate(expired), b"0" * 70))
    expired.start()
    wait_for(lambda: "recover" in manager.paths(), "a try")
    assert manager.recoveries == 0
    assert not expired.identity.has(CANDIDATE)


def _certificate(host: Host) -> str:
    text = (host.directory / "identity" / CURRENT).read_text()
    return text[text.index("-----BEGIN CERT") : text.index("-----BEGIN PRIVATE")]


# ---- whom a Daemon trusts


class Impostor:
    """A TLS server that speaks to nobody but lets them in."""

    def __init__(self, certificate: tuple[str, str], version: ssl.TLSVersion | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version is not None:
            self.context.maximum_version = version
        self.context.load_cert_chain(*certificate)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.received = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                raw = self.listener.accept()[0]
            except OSError:
                return
            try:
                with self.context.wrap_socket(raw, server_side=True) as channel:
                    while not self.received.endswith(b"{}"):
                        self.received += channel.recv(1000)
                    body = b'{"server_time":"2026-01-01T00:00:00Z"}'
                    head = f"HTTP/1.1 200 OK\r\nX-Ops-Wire: 1.0\r\nContent-Length: {len(body)}\r\n\r\n"
                    channel.sendall(head.encode() + body)
                    channel.recv(1000)
            except OSError:
                raw.close()


@pytest.fixture
def impostors() -> Iterator[Callable[..., Impostor]]:
    made: list[Impostor] = []

    def make(*args: object, **how: object) -> Impostor:
        made.append(Impostor(*args, **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for impostor in made:
        impostor.listener.close()


def ask(url: str, ca: Authority) -> None:
    peer = Peer(url, None, ca.pem, None)
    connection = Connection(peer, make_context(peer), None)
    try:
        connection.post("poll", b"{}")
    finally:
        connection.close()


def test_a_manager_with_the_right_certificate_is_trusted(tmp_path: Path, impostors: Callable[..., Impostor]) -> None:
    ca = Authority()
    ask(impostors(ca.server_files(tmp_path)).url, ca)


@pytest.mark.parametrize("age_days", [400, -400])
def test_dates_are_not_looked_at(tmp_path: Path, impostors: Callable[..., Impostor], age_days: int) -> None:
    ca = Authority()
    ask(impostors(ca.server_files(tmp_path, age_days=age_days)).url, ca)


def test_another_ca_is_not_trusted(tmp_path: Path, impostors: Callable[..., Impostor]) -> None:
    impostor = impostors(Authority().server_files(tmp_path))
    with pytest.raises(LinkDown, match="CERTIFICATE_VERIFY_FAILED"):
        ask(impostor.url, Authority())
    assert impostor.received == b""


def test_a_node_s_certificate_makes_no_manager(tmp_path: Path, impostors: Callable[..., Impostor]) -> None:
    ca = Authority()
    impostor = impostors(ca.server_files(tmp_path, usage=ExtendedKeyUsageOID.CLIENT_AUTH))
    with pytest.raises(LinkDown, match="CERTIFICATE_VERIFY_FAILED"):
        ask(impostor.url, ca)


def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path, impostors: Callable[..., Impostor]) -> None:
    ca = Authority()
    impostor = impostors(ca.server_files(tmp_path))
    with pytest.raises(LinkDown, match="CERTIFICATE_VERIFY_FAILED"):
        # The same address, written as a name that the certificate does not hold.
        ask(impostor.url.replace("127.0.0.1", "127.1"), ca)


def test_tls_below_1_3_is_not_spoken(tmp_path: Path, impostors: Callable[..., Impostor]) -> None:
    ca = Authority()
    with pytest.raises(LinkDown):
        ask(impostors(ca.server_files(tmp_path), ssl.TLSVersion.TLSv1_2).url, ca)
