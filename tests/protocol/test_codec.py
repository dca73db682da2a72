"""Bodies within bounds: size, depth, encoding, gzip bombs."""

import gzip
import json
import tracemalloc

import pytest

from protocol.codec import canonical, compress, decode, decompress, encode
from protocol.errors import TOO_LARGE, ProtocolError
from protocol.limits import DEPTH


def test_compressed_bodies_come_back() -> None:
    raw = b'{"a":1}' * 1000
    assert decompress(compress(raw), len(raw)) == raw
    assert len(compress(raw)) < len(raw) // 10


@pytest.mark.parametrize("size", [1001, 50_000_000])
def test_a_bomb_is_never_unpacked(size: int) -> None:
    bomb = compress(bytes(size))
    tracemalloc.start()
    with pytest.raises(ProtocolError) as refused:
        decompress(bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.code == TOO_LARGE
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "raw",
    [b"", b"not gzip", compress(b"whole")[:-5], compress(b"one") + compress(b"two"), compress(b"one") + b"rest"],
)
def test_what_is_not_one_gzip_stream_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decompress(raw, 1000)


def test_gzip_is_gzip() -> None:
    assert gzip.decompress(compress(b"plain")) == b"plain"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\u0000"}',
        b'{"\\u0000":1}',
        b'{"a":"\x01"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5000,
        "{}".encode("utf-16"),
    ],
    ids=lambda raw: str(raw[:12]),
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode(raw, 1 << 20)
    assert refused.value.field == "body"


def test_a_body_may_have_its_very_bound_and_no_byte_more() -> None:
    raw = json.dumps("x" * 100).encode()
    assert decode(raw, len(raw)) == "x" * 100
    with pytest.raises(ProtocolError) as refused:
        decode(raw, len(raw) - 1)
    assert refused.value.code == TOO_LARGE


def test_depth_is_bounded() -> None:
    deep = b"[" * DEPTH + b"]" * DEPTH
    assert decode(deep, 1000) is not None
    with pytest.raises(ProtocolError):
        decode(b"[" + deep + b"]", 1000)


def test_text_is_not_escaped_and_escapes_are_understood() -> None:
    assert encode({"名": "值"}) == '{"名":"值"}'.encode()
    assert decode(b'{"a":"\\u4e2d\\ud83d\\ude00"}', 100) == {"a": "中😀"}


def test_numbers_that_json_does_not_have_are_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"a": float("nan")})


def test_the_canonical_text_is_one() -> None:
    assert canonical({"b": [1, {"z": None, "a": True}], "a": "é"}) == '{"a":"é","b":[1,{"a":true,"z":null}]}'
