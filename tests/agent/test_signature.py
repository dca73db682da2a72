"""Callers over TCP: the signature and every way around it, nonces over restarts, addresses, rates, TLS."""

import hashlib
import http.client
import json
import select
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.server import Peer, Request
from agent.signature import Gate, Nonces, NotAuthentic, Rates
from tests.agent.processes import KEY, SECRET, AgentProcess, Said, said, sign
from tests.daemon.pki import Authority

ORDER = json.dumps({"id": "signed", "type": "script", "content": {"script": "echo signed"}}).encode()
PATH = "/api/v1/task/execute"


def test_a_signed_request_is_believed(tcp_agent: AgentProcess) -> None:
    assert tcp_agent.ask_tcp("POST", "task/execute", ORDER).status == 202
    assert tcp_agent.ask_tcp("GET", "task/signed/events?after=0&wait_s=5").status == 200


def test_health_alone_needs_no_signature(shared_agent: AgentProcess) -> None:
    assert shared_agent.ask_tcp("GET", "health", headers={}).data["status"] == "ok"
    for method, path in (("GET", "status"), ("POST", "task/execute"), ("GET", "file/download?path=/etc/hostname")):
        answer = shared_agent.ask_tcp(method, path, ORDER if method == "POST" else b"", headers={})
        assert (answer.status, answer.code) == (401, 1002)


def altered(**changes: str) -> dict[str, str]:
    return {**sign("POST", PATH, "", ORDER), **changes}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(lambda: altered(**{"X-Ops-Signature": "0" * 64}), id="another signature"),
        pytest.param(lambda: altered(**{"X-Ops-Signature": ""}), id="no signature"),
        pytest.param(lambda: altered(**{"X-Ops-Key": "nobody"}), id="another key"),
        pytest.param(lambda: altered(**{"X-Ops-Nonce": "another-nonce"}), id="another nonce"),
        pytest.param(lambda: altered(**{"X-Ops-Timestamp": str(int(time.time()) - 1)}), id="another time"),
        pytest.param(lambda: sign("POST", PATH, "", ORDER, secret="a secret of others"), id="another secret"),
        pytest.param(lambda: sign("POST", PATH, "", ORDER + b" "), id="another body"),
        pytest.param(lambda: sign("POST", PATH, "a=1", ORDER), id="another query"),
        pytest.param(lambda: sign("POST", "/api/v1/task/it/cancel", "", ORDER), id="another path"),
        pytest.param(lambda: sign("PUT", PATH, "", ORDER), id="another method"),
        pytest.param(lambda: sign("POST", PATH, "", ORDER, at=int(time.time()) - 62), id="too old"),
        pytest.param(lambda: sign("POST", PATH, "", ORDER, at=int(time.time()) + 63), id="too new"),
        pytest.param(lambda: sign("POST", PATH, "", ORDER, nonce="short"), id="a short nonce"),
        pytest.param(
            lambda: {name: value.upper() for name, value in sign("POST", PATH, "", ORDER).items()}, id="upper case"
        ),
    ],
)
def test_what_is_altered_is_refused(shared_agent: AgentProcess, headers: Callable[[], dict[str, str]]) -> None:
    answer = shared_agent.ask_tcp("POST", "task/execute", ORDER, headers())
    assert (answer.status, answer.code) == (401, 1002)
    assert shared_agent.get("task/signed/status").code == 4001


def test_a_replay_is_refused_also_after_a_restart(tcp_agent: AgentProcess) -> None:
    headers = sign("GET", "/api/v1/status", "", b"")
    assert tcp_agent.ask_tcp("GET", "status", headers=headers).status == 200
    assert tcp_agent.ask_tcp("GET", "status", headers=headers).status == 401
    tcp_agent.stop(9)
    tcp_agent.start()
    assert tcp_agent.ask_tcp("GET", "status", headers=headers).status == 401
    assert tcp_agent.ask_tcp("GET", "status").status == 200


def request(headers: dict[str, str]) -> Request:
    lower = {name.lower(): value for name, value in headers.items()}
    return Request("GET", "/x", "", lower, b"", Peer(False, "127.0.0.1"))


def test_after_another_boot_nothing_signed_before_the_start_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "nonces")
    first = Nonces(path, "boot-1")
    Gate({KEY: SECRET}, first).check(request(sign("GET", "/x", "", b"")))
    first.close()
    old = sign("GET", "/x", "", b"", at=int(time.time()) - 20)
    again = Nonces(path, "boot-2")
    gate = Gate({KEY: SECRET}, again)
    with pytest.raises(NotAuthentic, match="signed before"):
        gate.check(request(old))
    gate.check(request(sign("GET", "/x", "", b"", at=int(time.time()) + 1)))
    again.close()
    same = Nonces(path, "boot-2")
    Gate({KEY: SECRET}, same).check(request(old))
    same.close()


def test_nonces_are_dropped_when_they_can_no_longer_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.signature.COMPACT_ENTRIES", 10)
    nonces = Nonces(str(tmp_path / "nonces"), "boot")
    now = int(time.time())
    for number in range(100):
        assert nonces.use(KEY, f"nonce-{number}", now + number * 60)
    assert (tmp_path / "nonces").stat().st_size < 1000
    assert not nonces.use(KEY, "nonce-99", now + 99 * 60)
    nonces.close()


def test_rates_are_limited_by_caller() -> None:
    rates = Rates(10, 3)
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0]
    assert 0 < rates.take("a") <= 0.1
    assert rates.take("b") == 0
    for number in range(2000):
        rates.take(f"caller-{number}")
    assert rates.take("a") == 0


def test_too_many_requests_say_when_to_come_again(new_agent: Callable[..., AgentProcess], keys_file: Path) -> None:
    agent = new_agent(http_addr="127.0.0.1:0", http_keys_file=keys_file, http_rate_per_s=1, http_burst=5)
    agent.start()
    answers = [agent.ask_tcp("GET", "status") for _ in range(7)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert {(answer.code, answer.headers["retry-after"]) for answer in refused} <= {(1005, "1"), (1005, "2")}
    assert agent.get("status").status == 200


def test_other_addresses_are_not_let_in(new_agent: Callable[..., AgentProcess], keys_file: Path) -> None:
    agent = new_agent(http_addr="127.0.0.1:0", http_keys_file=keys_file, http_allow="10.0.0.0/8")
    agent.start()
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as channel:
        # Before a byte was sent.
        assert channel.recv(100) == b""
    assert "its address is not allowed" in agent.output()


def body_of(agent: AgentProcess, length: int, sent: bytes, headers: dict[str, str]) -> socket.socket:
    """A connection on which a part of a body has been sent."""
    channel = socket.create_connection(("127.0.0.1", agent.port), timeout=10)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["POST /api/v1/task/execute HTTP/1.1", f"Content-Length: {length}", *lines, "", ""])
    channel.sendall(head.encode() + sent)
    return channel


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(dict, id="no signature"),
        pytest.param(lambda: sign("POST", PATH, "", b"", at=int(time.time()) - 62), id="too old"),
        pytest.param(lambda: sign("POST", PATH, "", b"", nonce="short"), id="a short nonce"),
    ],
)
def test_nobody_waits_for_the_body_of_what_is_refused(
    shared_agent: AgentProcess, headers: Callable[[], dict[str, str]]
) -> None:
    with body_of(shared_agent, 1 << 20, b"", headers()) as channel:
        assert channel.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_what_strangers_send_is_bounded_for_all_of_them_together(
    new_agent: Callable[..., AgentProcess], keys_file: Path
) -> None:
    agent = new_agent(http_addr="127.0.0.1:0", http_keys_file=keys_file, http_body_max_bytes=1 << 20, http_burst=1000)
    agent.start()
    part, false = b"x" * 1_000_000, {"X-Ops-Signature": "0" * 64}
    channels = [body_of(agent, 1 << 20, part, {**sign("POST", PATH, "", b""), **false}) for _ in range(5)]
    # Four is what may be held; which of them is one too many is for the order in which it comes to say.
    (refused,), _, _ = select.select(channels, [], [], 10)
    assert refused.recv(4096).startswith(b"HTTP/1.1 429 ")
    channels.remove(refused)
    refused.close()
    # Small ones still pass.
    assert agent.ask_tcp("POST", "task/execute", ORDER).status == 202
    for channel in channels:
        channel.settimeout(0.05)
        with pytest.raises(TimeoutError):
            channel.recv(4096)
        channel.close()
    query = f"offset=0&total={len(part)}&sha256={hashlib.sha256(part).hexdigest()}"
    for _ in range(6):
        # What is over is held no more, whether it was believed or not.
        assert agent.ask_tcp("POST", f"file/stage?{query}", part).status == 200
        headers = {**sign("POST", PATH, "", part), **false}
        assert agent.ask_tcp("POST", "task/execute", part, headers).status == 401


def test_without_keys_nobody_listens_at_tcp(new_agent: Callable[..., AgentProcess]) -> None:
    agent = new_agent(http_addr="127.0.0.1:0")
    agent.start()
    assert agent.port == 0
    assert agent.get("status").status == 200


def test_two_signatures_are_none(shared_agent: AgentProcess) -> None:
    headers = sign("GET", "/api/v1/status", "", b"")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    raw = "\r\n".join(["GET /api/v1/status HTTP/1.1", "Host: a", *lines, f"X-Ops-Key: {KEY}", "", ""])
    with socket.create_connection(("127.0.0.1", shared_agent.port), timeout=10) as channel:
        channel.sendall(raw.encode())
        assert channel.recv(4096).startswith(b"HTTP/1.1 400 ")


class Tls(NamedTuple):
    agent: AgentProcess
    authority: Authority
    client: tuple[str, str]

    def ask(self, version: ssl.TLSVersion | None = None, *, is_known: bool = True) -> Said:
        context = ssl.create_default_context(cadata=self.authority.pem)
        if version is not None:
            context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, version
            context.set_ciphers("ALL:@SECLEVEL=0")
        if is_known:
            context.load_cert_chain(*self.client)
        connection = http.client.HTTPSConnection("127.0.0.1", self.agent.port, timeout=10, context=context)
        try:
            connection.request("GET", "/api/v1/status", headers=sign("GET", "/api/v1/status", "", b""))
            return said(connection.getresponse())
        finally:
            connection.close()


@pytest.fixture
def tls(new_agent: Callable[..., AgentProcess], keys_file: Path, tmp_path: Path) -> Tls:
    authority = Authority("agents")
    cert, key = authority.server_files(tmp_path / "server")
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.pem)
    agent = new_agent(
        http_addr="127.0.0.1:0", http_keys_file=keys_file, http_tls_cert=cert, http_tls_key=key, http_tls_client_ca=ca
    )
    agent.start()
    return Tls(agent, authority, authority.server_files(tmp_path / "client", usage=ExtendedKeyUsageOID.CLIENT_AUTH))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_with_client_certificates(tls: Tls) -> None:
    assert tls.ask().status == 200
    assert tls.ask(ssl.TLSVersion.TLSv1_2).status == 200
    with pytest.raises(OSError, match=r"(?i)certificate required|EOF|reset|disconnected"):
        tls.ask(is_known=False)
    with pytest.raises(OSError):  # noqa: PT011 - OpenSSL's words differ
        tls.ask(ssl.TLSVersion.TLSv1_1)
    with pytest.raises((http.client.BadStatusLine, OSError)):
        tls.agent.ask_tcp("GET", "status")


def test_a_large_file_goes_both_ways_through_tls(tls: Tls, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * 12000)
    context = ssl.create_default_context(cadata=tls.authority.pem)
    context.load_cert_chain(*tls.client)
    connection = http.client.HTTPSConnection("127.0.0.1", tls.agent.port, timeout=20, context=context)
    path, query = "/api/v1/file/download", f"path={source}"
    connection.request("GET", f"{path}?{query}", headers=sign("GET", path, query, b""))
    body = connection.getresponse().read()
    assert body == source.read_bytes()
    total, digest = len(body), hashlib.sha256(body).hexdigest()
    path, query = "/api/v1/file/upload", f"path={tmp_path}/copy&offset=0&total={total}&sha256={digest}"
    connection.request("POST", f"{path}?{query}", body, sign("POST", path, query, body))
    assert said(connection.getresponse()).data["complete"] is True
    connection.close()
    assert (tmp_path / "copy").read_bytes() == body
