"""`python -m daemon enroll`: the first meeting with a Manager, before the resident Daemon starts."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import ssl
import sys
import time
from pathlib import Path

from daemon import logs
from daemon.backoff import Backoff
from daemon.clock import Clock
from daemon.configure import Problems, resolve
from daemon.connection import Connection, LinkDown, Peer, Refused
from daemon.credentials import Credentials, EnrolmentEnded
from daemon.identity import Identity, IdentityError
from daemon.inventory import InventoryReader, read_machine
from daemon.main import EXIT_REJECTED, EXIT_RUNNING, EXIT_SETTINGS
from daemon.measure import Logbook
from daemon.procfs import Kernel
from daemon.spool import Spool
from daemon.state import InstanceState, load_settings, store_settings
from daemon.system import System
from protocol.enrolment import EnrollPending
from protocol.errors import ProtocolError

EXIT_UNREACHED = 1
FINGERPRINT = re.compile(r"(?:sha256:)?([0-9a-f]{64})")

log = logging.getLogger("daemon.enroll")


class WrongCa(Exception):
    """The Manager's CA is not the one that the operator named."""


def arguments_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m daemon enroll", description="Make this host a node of a Manager. Safe to repeat."
    )
    parser.add_argument("--server", required=True, metavar="URL", help="such as https://manager.example:9443")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--ca-fingerprint", metavar="SHA256", help="of the Manager's CA certificate, in hex")
    trust.add_argument("--ca-file", metavar="FILE", help="the Manager's CA certificate")
    token = parser.add_mutually_exclusive_group()
    token.add_argument("--token-file", metavar="FILE", help="the join token")
    token.add_argument("--token-env", metavar="NAME", help="environment variable with the join token")
    parser.add_argument("--wait", type=int, default=0, metavar="SECONDS", help="for approval, if the token asks for it")
    parser.add_argument("--retry", type=int, default=60, metavar="SECONDS", help="while the Manager cannot be reached")
    parser.add_argument("--config", metavar="FILE", help="the Daemon's settings file")
    parser.add_argument("--state-dir", metavar="DIR", help="where the Daemon keeps its state")
    parser.add_argument("--replace", action="store_true", help="even if this host is a node already")
    return parser


def fetch_ca(server_url: str, proxy: str | None, fingerprint: str) -> str:
    """The CA certificate over TLS that nobody has verified yet: its digest is what is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = Connection(Peer(server_url, proxy, "", None), context, None)
    try:
        bundle = connection.get("ca.pem").decode("ascii", "replace")
    finally:
        connection.close()
    return pick_ca(bundle, fingerprint)


def pick_ca(bundle: str, fingerprint: str) -> str:
    """The one certificate of a bundle that has this digest; WrongCa if there is none."""
    for block in re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", bundle, re.DOTALL):
        try:
            digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(block)).hexdigest()
        except ValueError:
            continue
        if digest == fingerprint:
            return str(block) + "\n"
    raise WrongCa(
        "the Manager's CA has another fingerprint than --ca-fingerprint: wrong address, or somebody in between"
    )


def main(arguments: list[str]) -> int:
    """Enrol, or say in one line why not."""
    given = arguments_parser().parse_args(arguments)
    logs.set_up("text", "info")
    try:
        local = resolve(
            [*_pair("--config", given.config), *_pair("--state-dir", given.state_dir), "--manager-url", given.server],
            dict(os.environ),
        )
        token = read_token(given.token_file, given.token_env)
        fingerprint = read_fingerprint(given.ca_fingerprint)
    except Problems as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_SETTINGS
    try:
        return _enroll(given, local["state_dir"], local["manager_proxy"], token, fingerprint)
    except (WrongCa, EnrolmentEnded) as error:
        log.error("%s", error)  # noqa: TRY400
        return EXIT_REJECTED
    except (LinkDown, Refused) as error:
        log.error("the Manager did not let this host in: %s", _words(error))  # noqa: TRY400
        return EXIT_UNREACHED
    except (OSError, IdentityError, ProtocolError) as error:
        log.error("cannot enrol: %s", error)  # noqa: TRY400
        return EXIT_SETTINGS


def read_token(file: str | None, variable: str | None) -> str | None:
    """From a file or the environment; never from the command line, where every user of the host could read it."""
    if file is not None:
        try:
            token = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Problems(f"--token-file: {error}") from error
    elif variable is not None:
        token = os.environ.get(variable, "").strip()
    else:
        return None
    if not 1 <= len(token) <= 256:
        raise Problems("the join token must have 1 to 256 characters")
    return token


def read_fingerprint(text: str | None) -> str | None:
    """64 hex digits in any case, with colons or without."""
    if text is None:
        return None
    match = FINGERPRINT.fullmatch(text.strip().lower().replace("sha256:", "").replace(":", ""))
    if match is None:
        raise Problems("--ca-fingerprint: must be the SHA-256 of a certificate, 64 hex digits")
    return match.group(1)


def _enroll(
    given: argparse.Namespace, state_dir: str, proxy: str | None, token: str | None, fingerprint: str | None
) -> int:
    system = System()
    Path(state_dir).mkdir(parents=True, exist_ok=True)
    system.make_dir(state_dir)
    if not system.lock(f"{state_dir}/lock"):
        log.error("a daemon runs with %s; stop it first", state_dir)
        return EXIT_RUNNING
    identity = Identity(system, f"{state_dir}/identity")
    if identity.node is not None and not given.replace:
        log.info("this host is node %d (%s) already", identity.node.node_id, identity.node.node_uuid)
        return 0
    kernel = Kernel(system)
    machine = read_machine(system, kernel)
    state = InstanceState(system, state_dir, machine.boot_id)
    clock = Clock(system, machine.boot_id, state.anchor, state.first_anchor)
    spool = Spool(system, f"{state_dir}/spool", load_settings(system, state_dir).spool)
    credentials = Credentials(system, identity, clock, state, Logbook(system, spool, clock), machine)
    facts = InventoryReader(system, kernel, given.server).read()
    backoff = Backoff()
    retry_until, wait_until = time.monotonic() + given.retry, time.monotonic() + given.wait
    while True:
        try:
            if fingerprint is None:
                ca_pem = Path(given.ca_file).read_text("ascii")
            else:
                ca_pem = fetch_ca(given.server, proxy, fingerprint)
            answer = credentials.enroll(identity.begin(given.server, ca_pem, token, False), proxy, facts)
        except (LinkDown, Refused) as error:
            is_final = isinstance(error, Refused) and error.refusal.status not in (429, 500, 502, 503, 504)
            delay = backoff.delay(error.refusal.retry_after_s if isinstance(error, Refused) else None)
            if is_final or time.monotonic() + delay > retry_until:
                raise
            log.warning("%s; trying again in %.1f s", _words(error), delay)
            time.sleep(delay)
            continue
        if not isinstance(answer, EnrollPending):
            store_settings(system, state_dir, answer.settings)
            return 0
        if time.monotonic() + answer.poll_after_s > wait_until:
            log.info("waiting for approval; the daemon goes on asking once it runs")
            return 0
        retry_until = max(retry_until, wait_until)
        time.sleep(answer.poll_after_s)


def _pair(flag: str, value: str | None) -> list[str]:
    return [] if value is None else [flag, value]


def _words(error: Exception) -> str:
    return error.refusal.message if isinstance(error, Refused) else str(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
