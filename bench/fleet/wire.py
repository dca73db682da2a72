"""One simulated host's connection: HTTP/1.1 over TLS 1.3 with its own certificate, kept alive as a Daemon keeps it."""

import asyncio
import json
import ssl
import tempfile
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from protocol.codec import compress, encode
from protocol.version import CURRENT, HEADER, INSTANCE_HEADER

NO_CHECK_TIME = 0x200000
COMPRESSED_FROM = 2048


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]
    retry_after_s: float


class BrokenError(Exception):
    """The connection ended where an answer was expected."""


def tls(ca_pem: str, certificate_pem: str | None = None, key_pem: str | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.load_verify_locations(cadata=ca_pem)
    if certificate_pem and key_pem:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(key_pem + certificate_pem)
            file.flush()
            context.load_cert_chain(file.name)
    return context


class Connection:
    """Opened when first used, reopened when it broke."""

    def __init__(self, url: str, context: ssl.SSLContext, instance: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 443
        self._context, self._instance = context, instance
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.handshakes = 0

    async def post(self, path: str, message: Any, timeout_s: float = 30.0) -> Answer:
        body = encode(message)
        headers = [f"POST /daemon/v1/{path} HTTP/1.1", f"Host: {self._host}", f"{HEADER}: {CURRENT}"]
        headers += [f"{INSTANCE_HEADER}: {self._instance}"] if self._instance else []
        if path == "checkin" and len(body) > COMPRESSED_FROM:
            body = compress(body)
            headers.append("Content-Encoding: gzip")
        headers += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._open()
                writer.write("\r\n".join(headers).encode() + body)
                return await self._read(reader)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            raise BrokenError(type(error).__name__) from error

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, ssl=self._context)
            self.handshakes += 1
        return self._streams

    async def _read(self, reader: asyncio.StreamReader) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if value
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        found = json.loads(body) if body else {}
        return Answer(int(head[0].split(" ")[1]), found, float(headers.get("retry-after", "0")))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
