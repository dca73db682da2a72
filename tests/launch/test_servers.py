"""Both planes as they are really served: slow, silent and hostile clients, TLS, and stopping."""

import contextlib
import datetime as dt
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from app.kernel import pki
from app.kernel.secrets import create_missing_keys, load_keys
from config import load_settings
from tests.launch.served import Answer, Plane, ask, request, seconds_until_closed
from tests.services import Redis, wait_for

READ_S = 1.5
EXPECT = "Expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WEB = {"OPS_SERVER__HTTP__READ_TIMEOUT": f"{READ_S}s", "OPS_SERVER__HTTP__WRITE_TIMEOUT": "1s"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planes")
    create_missing_keys(load_settings([], {"OPS_DATA_DIR": str(path)}))
    return path


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """A port where somebody listens and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def web(directory: Path, silent: int) -> Iterator[Plane]:
    with Redis() as redis, Plane("web", directory, **WEB, TINY_REDIS=redis.url, TINY_SILENT=str(silent)) as plane:
        yield plane


@pytest.fixture
def few_places(directory: Path) -> Iterator[Plane]:
    patient = {"OPS_SERVER__HTTP__READ_TIMEOUT": "60s", "QUICK_FIRST_BYTE": "60"}
    with Plane("web", directory, QUICK_CONNECTIONS="5", **patient) as plane:
        yield plane


@pytest.fixture
def own_web(directory: Path) -> Iterator[Plane]:
    """For tests that stop it."""
    with Plane("web", directory) as plane:
        yield plane


# Ordinary clients


def test_a_connection_serves_several_requests(web):
    with web.connect() as client:
        for _ in range(3):
            answer = ask(client, "/hello")
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"hello", "keep-alive")


def test_requests_may_be_sent_ahead(web):
    with web.connect() as client:
        client.sendall(request("/hello") + request("/body", body=b"abc", method="POST"))
        assert Answer(client).body == b"hello"
        assert Answer(client).body == b"3"


def test_a_large_answer_arrives_whole(web):
    with web.connect() as client:
        assert len(ask(client, "/big").body) == 20_000_000


def test_a_large_upload_may_take_longer_than_the_time_limit_as_long_as_it_flows(web):
    with web.connect() as client:
        client.sendall(request("/body", "Content-Length: 600000", method="POST"))
        began = time.monotonic()
        for _ in range(30):
            client.sendall(b"x" * 20_000)
            time.sleep(0.1)
        assert Answer(client).body == b"600000"
        assert time.monotonic() - began > READ_S


def test_the_time_that_we_need_is_not_the_clients(web):
    with web.connect() as client:
        assert ask(client, "/late_body", body=b"abc", method="POST").body == b"3"


def together(plane: Plane, path: str, count: int) -> float:
    """How long so many requests take at the same time."""

    def one(_number: int) -> None:
        with plane.connect() as client:
            assert ask(client, path).body == b"ok"

    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))
    return time.monotonic() - began


@pytest.mark.parametrize("path", ["/redis", "/mysql", "/processes"])
def test_libraries_that_wait_let_others_work(web, path):
    """Each waits a second; if one stopped the process, five would take five."""
    assert together(web, path, 5) < 3.5


# Slow, silent and hostile clients


def test_a_client_that_says_nothing_is_sent_away(web):
    with web.connect() as client:
        assert seconds_until_closed(client) < 4


def test_a_client_that_trickles_its_head_is_sent_away_with_a_reason(web):
    with web.connect() as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        began = time.monotonic()
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.1):
                    client.send(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            answer = Answer(client)
        finally:
            stop.set()
            thread.join()
        assert answer.status == 408
        assert READ_S - 0.5 < time.monotonic() - began < READ_S + 20


def test_a_client_that_trickles_its_body_is_sent_away(web):
    with web.connect() as client:
        client.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
        assert seconds_until_closed(client, trickle=b"x" * 500) < READ_S + 4


@pytest.mark.parametrize("path", ["/big", "/drip"])
def test_a_client_that_does_not_take_its_answer_is_sent_away(web, path):
    """It gets what lies in buffers when it comes back, and no more."""
    with web.connect() as client:
        client.sendall(request(path))
        time.sleep(3)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := client.recv(1_000_000):
                received += len(data)
    assert 0 < received < 19_000_000


def test_a_connection_that_is_idle_ends(web):
    with web.connect() as client:
        ask(client, "/hello")
        assert 2 < seconds_until_closed(client) < 8


def test_silent_clients_take_nobodys_place(few_places):
    """Of five places all are always taken by clients that say nothing; who asks for something is served at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(few_places.connect())
        time.sleep(0.2)
        began = time.monotonic()
        for _ in range(8):
            with few_places.connect() as client:
                assert ask(client, "/hello").status == 200
            stack.enter_context(few_places.connect())
            time.sleep(0.02)
        assert time.monotonic() - began < 20


def test_slow_clients_take_nobodys_place(few_places):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(few_places.connect())
            client.sendall(b"GET /hello HTTP/1.1\r\nX-Slow: ")
        time.sleep(0.2)
        for _ in range(10):
            with few_places.connect() as client:
                assert ask(client, "/hello").status == 200


def test_idle_connections_take_nobodys_place(few_places):
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            ask(stack.enter_context(few_places.connect()), "/hello")
        began = time.monotonic()
        with few_places.connect() as client:
            assert ask(client, "/hello").status == 200
        assert time.monotonic() - began < 20


def wait_until_begun(client: socket.socket) -> None:
    """The server says so to those who ask, once it has read the head and hands the request on."""
    said = b""
    while len(said) < len(CONTINUE):
        data = client.recv(len(CONTINUE) - len(said))
        assert data, "the server has closed the connection"
        said += data
    assert said == CONTINUE


def begun(plane: Plane, stack: contextlib.ExitStack, data: bytes) -> socket.socket:
    """One after the other: who has connected and not asked yet may lose his place to the next."""
    client = stack.enter_context(plane.connect())
    client.sendall(data)
    wait_until_begun(client)
    return client


def test_clients_that_are_being_served_keep_their_places(few_places):
    with contextlib.ExitStack() as stack:
        busy = [begun(few_places, stack, request("/slow", EXPECT)) for _ in range(5)]
        with few_places.connect() as late:
            late.sendall(request("/hello"))
            assert [Answer(client).body for client in busy] == [b"slow"] * 5
            assert Answer(late).body == b"hello"


def test_clients_that_are_sending_a_body_keep_their_places(few_places):
    with contextlib.ExitStack() as stack:
        begin = request("/body", "Content-Length: 6", EXPECT, method="POST") + b"abc"
        busy = [begun(few_places, stack, begin) for _ in range(5)]
        with few_places.connect() as late:
            late.sendall(request("/hello"))
            time.sleep(1.5)
            for client in busy:
                client.sendall(b"def")
            assert [Answer(client).body for client in busy] == [b"6"] * 5
            assert Answer(late).body == b"hello"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET /hello HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(80)) + b"\r\n", 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
    ids=["long-header", "many-headers", "long-line", "tls-on-plain", "smuggling"],
)
def test_requests_beyond_the_limits_are_refused(web, data, status):
    with web.connect() as client:
        client.sendall(data)
        assert Answer(client).status == status


def test_a_refusal_survives_the_body_that_is_still_being_sent(web):
    """The application does not read the body; closing at once would destroy its answer on the way."""
    for _ in range(5):
        with web.connect() as client:
            client.sendall(request("/ignore", body=b"x" * 400_000, method="POST"))
            assert Answer(client).status == 413
            assert ask(client, "/hello").body == b"hello"


def test_a_body_without_end_is_not_read_to_its_end(web):
    with web.connect() as client:
        client.sendall(request("/ignore", "Content-Length: 1000000000", method="POST"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 100_000_000:
                sent += client.send(b"x" * 100_000)
        assert sent < 50_000_000


def test_the_log_stays_quiet_about_what_clients_do(web):
    text = web.log.read_text()
    assert "Traceback" not in text
    assert text.count("\n") < 30


# Stopping


def test_an_idle_server_stops_at_once(own_web):
    with own_web.connect() as client:
        ask(client, "/hello")
        assert own_web.stop() < 20
        assert client.recv(100) == b""
    assert own_web.process.returncode == 0


def test_requests_that_run_are_answered_and_their_connections_closed(own_web):
    with own_web.connect() as client, own_web.connect() as other:
        ask(other, "/hello")
        client.sendall(request("/slow", EXPECT))
        wait_until_begun(client)
        with ThreadPoolExecutor(1) as pool:
            stopping = pool.submit(own_web.stop)
            answer = Answer(client)
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"slow", "close")
            assert stopping.result() < 20
    with pytest.raises(ConnectionRefusedError):
        own_web.connect()


def test_held_requests_are_told_to_answer(own_web):
    clients = [own_web.connect() for _ in range(100)]
    for client in clients:
        client.sendall(request("/held", EXPECT))
        wait_until_begun(client)
    assert own_web.stop() < 20
    assert [Answer(client).body for client in clients] == [b"draining"] * 100
    for client in clients:
        client.close()


def test_a_request_that_does_not_end_is_cut_off(own_web):
    with own_web.connect() as client:
        client.sendall(request("/stuck", EXPECT))
        wait_until_begun(client)
        assert own_web.stop() < 20


@pytest.mark.fault
def test_a_killed_worker_is_replaced(own_web):
    def worker() -> int:
        try:
            with own_web.connect() as client:
                return int(ask(client, "/pid").body)
        except (OSError, EOFError):
            return 0

    first = wait_for(worker, 20, "a worker")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: worker() not in (0, first), 20, "another worker")


@pytest.mark.fault
def test_workers_die_with_their_arbiter(own_web):
    """One that went on would keep the port from the next arbiter, and one that is busy would not notice by itself."""
    pids = wait_for(own_web.worker_pids, 20, "a worker")
    with own_web.connect() as client:
        client.sendall(request("/spin", EXPECT))
        wait_until_begun(client)
        own_web.process.kill()
        own_web.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5, "the workers to be gone")


def test_nothing_is_left_in_the_home_directory(own_web, directory):
    """Gunicorn's control socket would be one for both planes."""
    with own_web.connect() as client:
        ask(client, "/hello")
    assert not (directory / "home").exists()
    held = [str(path.readlink()) for path in Path(f"/proc/{own_web.process.pid}/fd").iterdir()]
    inodes = {target.removeprefix("socket:[").rstrip("]") for target in held if target.startswith("socket:[")}
    named = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    assert not [fields for fields in named if len(fields) > 7 and fields[6] in inodes]


# TLS on the web port


@pytest.fixture(scope="module")
def authority(directory: Path) -> pki.Authority:
    return load_keys(load_settings([], {"OPS_DATA_DIR": str(directory)})).authority


@pytest.fixture(scope="module")
def tls_web(directory: Path, authority: pki.Authority) -> Iterator[Plane]:
    key = pki.create_key()
    certificate = authority.sign_server(key.public_key(), ["localhost"])
    (directory / "web.key").write_bytes(pki.to_pem(key))
    (directory / "web.pem").write_bytes(pki.to_pem(certificate))
    given = {
        "OPS_TLS__ENABLED": "1",
        "OPS_TLS__CERT_FILE": f"{directory}/web.pem",
        "OPS_TLS__KEY_FILE": f"{directory}/web.key",
    }
    with Plane("web", directory, **given) as plane:
        yield plane


def client_context(authority: pki.Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=pki.to_pem(authority.certificate).decode())
    return context


def in_tls(plane: Plane, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    return context.wrap_socket(plane.connect(), server_hostname="localhost", session=session)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_web_port_speaks_modern_tls(tls_web, authority, version):
    context = client_context(authority)
    context.minimum_version = context.maximum_version = version
    with in_tls(tls_web, context) as client:
        assert ask(client, "/hello").body == b"hello"
        name = client.cipher()[0]
        assert "GCM" in name or "CHACHA20" in name


def test_the_web_port_refuses_old_suites(tls_web, authority):
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA:AES128-SHA:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        in_tls(tls_web, context)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_the_web_port_refuses_old_versions(tls_web, authority):
    context = client_context(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        in_tls(tls_web, context)


# The gateway


GATEWAY = {"OPS_SERVER__GATEWAY__HANDSHAKE_TIMEOUT": "1.5s", "OPS_SERVER__HTTP__READ_TIMEOUT": f"{READ_S}s"}


@pytest.fixture(scope="module")
def gateway(directory: Path) -> Iterator[Plane]:
    with Plane("gateway", directory, **GATEWAY) as plane:
        yield plane


Identity = Callable[..., tuple[ssl.SSLContext, x509.Certificate]]


@pytest.fixture
def identity(authority: pki.Authority, tmp_path: Path) -> Identity:
    def make(
        signer: pki.Authority | None = None, at: dt.datetime | None = None
    ) -> tuple[ssl.SSLContext, x509.Certificate]:
        key = pki.create_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web-1")])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        certificate = (signer or authority).sign_node(csr, uuid4(), dt.timedelta(days=30), at)
        (tmp_path / "client.pem").write_bytes(pki.to_pem(key) + pki.to_pem(certificate))
        context = client_context(authority)
        context.load_cert_chain(tmp_path / "client.pem")
        return context, certificate

    return make


def test_the_gateway_serves_clients_without_a_certificate(gateway, authority):
    with in_tls(gateway, client_context(authority)) as client:
        assert client.version() == "TLSv1.3"
        assert ask(client, "/peer").body == b"nobody"


def test_the_application_sees_whose_certificate_it_is(gateway, identity):
    context, certificate = identity()
    with in_tls(gateway, context) as client:
        assert ask(client, "/peer").body.decode() == pki.fingerprint(certificate)
        assert ask(client, "/peer").body.decode() == pki.fingerprint(certificate)


def test_the_gateway_refuses_older_tls(gateway, authority):
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        in_tls(gateway, context)


@pytest.mark.parametrize("kind", ["foreign", "expired"])
def test_certificates_that_are_not_ours_or_too_old_end_the_connection(gateway, identity, kind):
    if kind == "foreign":
        context, _ = identity(pki.create_authority())
    else:
        context, _ = identity(at=dt.datetime.now(dt.UTC) - dt.timedelta(days=100))
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)), in_tls(gateway, context) as client:
        ask(client, "/peer")


def test_no_session_is_resumed(gateway, identity):
    """It would bring along a certificate that nobody looks at again."""
    context, _ = identity()
    with in_tls(gateway, context) as client:
        ask(client, "/hello")
        session = client.session
    assert session is None or not session.has_ticket
    with in_tls(gateway, context, session) as client:
        ask(client, "/hello")
        assert not client.session_reused


def test_a_client_that_never_begins_its_handshake_is_sent_away(gateway):
    with gateway.connect() as client:
        assert seconds_until_closed(client) < 4.5


def test_a_client_that_trickles_its_handshake_is_sent_away(gateway):
    with gateway.connect() as client:
        assert seconds_until_closed(client, trickle=b"\x16\x03\x01\x02\x00" + b"\x01" * 200) < 4.5


def test_a_client_that_says_nothing_in_tls_is_sent_away(gateway, authority):
    with in_tls(gateway, client_context(authority)) as client:
        assert seconds_until_closed(client) < 4


def test_a_client_that_trickles_inside_tls_is_sent_away(gateway, authority):
    with in_tls(gateway, client_context(authority)) as client:
        client.sendall(b"GET /hello HTTP/1.1\r\nX-Slow: ")
        assert seconds_until_closed(client, trickle=b"a" * 200) < READ_S + 20


def test_silent_tls_clients_take_nobodys_place(directory, authority):
    patient = {"OPS_SERVER__GATEWAY__HANDSHAKE_TIMEOUT": "60s", "QUICK_FIRST_BYTE": "60"}
    with Plane("gateway", directory, QUICK_CONNECTIONS="5", **patient) as plane, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(plane.connect())
        time.sleep(0.3)
        for _ in range(5):
            with in_tls(plane, client_context(authority)) as client:
                assert ask(client, "/hello").status == 200


def test_held_requests_in_tls_are_told_to_answer(directory, authority):
    with Plane("gateway", directory) as plane:
        context = client_context(authority)
        clients = [in_tls(plane, context) for _ in range(50)]
        for client in clients:
            client.sendall(request("/held", EXPECT))
            wait_until_begun(client)
        assert plane.stop() < 20
        answers = [Answer(client) for client in clients]
        assert {(answer.body, answer.headers["connection"]) for answer in answers} == {(b"draining", "close")}
        for client in clients:
            client.close()


def test_the_gateways_log_stays_quiet_about_what_clients_do(gateway):
    text = gateway.log.read_text()
    assert "Traceback" not in text
    assert text.count("\n") < 30
