"""The PROXY protocol, version 2: an address is taken from a whole, exact header or not at all."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollway.wire.proxy import HEAD_BYTES, REST_BYTES_MAX, HeaderInvalid, find_source, read_rest_bytes

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IPV4 = bytes((192, 0, 2, 7, 10, 0, 0, 1)) + struct.pack("!HH", 51000, 443)
IPV6 = ipaddress.IPv6Address("2001:db8::7").packed + ipaddress.IPv6Address("2001:db8::1").packed + struct.pack("!HH", 51000, 443)


def header(rest: bytes, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> tuple[bytes, bytes]:
    """Head and rest."""
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(rest) if length is None else length), rest


def tlv(type: int, value: bytes) -> bytes:
    return struct.pack("!BH", type, len(value)) + value


@pytest.mark.parametrize(
    ("told", "source"),
    [
        (header(IPV4), "192.0.2.7"),
        (header(IPV6, family=0x21), "2001:db8::7"),
        (header(IPV4 + tlv(0xEA, b"vpce-1") + tlv(0x04, bytes(4000))), "192.0.2.7"),
        (header(IPV6 + tlv(0x20, b""), family=0x21), "2001:db8::7"),
        (header(b"", command=0x20, family=0), None),
        (header(IPV4, command=0x20), None),
        (header(b"\xff" * 9, command=0x20, family=0xEE), None),
        (header(b"", family=0), None),
        (header(bytes(216), family=0), None),
    ],
)
def test_the_source_of_a_connection_is_read(told: tuple[bytes, bytes], source: str | None) -> None:
    head, rest = told
    assert read_rest_bytes(head) == len(rest)
    assert find_source(head, rest) == source


@pytest.mark.parametrize(
    "told",
    [
        header(IPV4, command=0x22),  # no such command
        header(IPV4, command=0x11),  # version 1
        header(IPV4, command=0x31),  # version 3
        header(IPV4, family=0x12),  # UDP
        header(IPV4, family=0x31),  # a UNIX socket
        header(IPV4, family=0x01),
        header(IPV4[:11]),
        header(IPV4, family=0x21),
        header(IPV4 + b"\x04"),
        header(IPV4 + b"\x04\x00\x05abcd"),
        header(IPV4 + tlv(1, b"h2") + b"\x00\x00"),
        header(IPV4, length=11),
        header(IPV4, length=13),
        header(IPV4, length=REST_BYTES_MAX + 1),
        (b"PROXY TCP4 1.2.3", IPV4),
        (b"GET / HTTP/1.1\r\n", IPV4),
        (header(IPV4)[0][:-1], IPV4),
        (b"", b""),
    ],
)
def test_anything_else_is_refused(told: tuple[bytes, bytes]) -> None:
    with pytest.raises(HeaderInvalid):
        find_source(*told)


@given(st.binary(max_size=64), st.binary(max_size=2 * HEAD_BYTES))
@example(b"\x21\x11\x00\x0c", IPV4)
def test_whatever_follows_the_signature_is_an_address_or_refused(after: bytes, rest: bytes) -> None:
    head = (SIGNATURE + after)[:HEAD_BYTES]
    try:
        source = find_source(head, rest)
    except HeaderInvalid:
        return
    assert read_rest_bytes(head) == len(rest) <= REST_BYTES_MAX
    assert source is None or ipaddress.ip_address(source).packed == rest[: 4 if head[13] == 0x11 else 16]
