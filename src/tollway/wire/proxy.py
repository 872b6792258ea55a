"""The PROXY protocol, version 2, without I/O: what a TCP load balancer says in front of a connection about where it came from.

(HAProxy's specification "The PROXY protocol", section 2.2.) A header is HEAD_BYTES that say how many follow, then addresses and TLVs.
The protocol has no authentication, so a header is looked for only where the peer is trusted, and there it must stand: a receiver
that guesses lets anybody choose an address. Version 1 (text) is not read.
"""

import ipaddress

HEAD_BYTES = 16
REST_BYTES_MAX = 4096
"""Addresses need 36 bytes; the rest is for TLVs, of which a client certificate's names are the longest in use."""

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP_IPV4, _TCP_IPV6 = 0x00, 0x11, 0x21
_ADDRESS_BYTES = {_TCP_IPV4: 12, _TCP_IPV6: 36}
"""Two addresses and two ports."""


class HeaderInvalid(Exception):
    """These bytes are no PROXY header that we take; the connection must be closed without an answer."""


def read_rest_bytes(head: bytes) -> int:
    """Return how many bytes follow these HEAD_BYTES, 0 to REST_BYTES_MAX. Raises HeaderInvalid."""
    if len(head) != HEAD_BYTES or not head.startswith(_SIGNATURE):
        raise HeaderInvalid("no signature")
    if head[12] not in (_LOCAL, _PROXY):
        raise HeaderInvalid("version or command")
    rest_bytes = int.from_bytes(head[14:16], "big")
    if rest_bytes > REST_BYTES_MAX:
        raise HeaderInvalid("longer than is taken")
    return rest_bytes


def find_source(head: bytes, rest: bytes) -> str | None:
    """The client's address. None where the proxy speaks for itself (LOCAL, as for its health checks) or knows no address (UNSPEC):
    then the connection's own peer counts. Raises HeaderInvalid."""
    if len(rest) != read_rest_bytes(head):
        raise HeaderInvalid("length")
    if head[12] == _LOCAL or head[13] == _UNSPECIFIED:
        return None  # whatever follows is to be skipped
    size = _ADDRESS_BYTES.get(head[13])
    if size is None:
        raise HeaderInvalid("neither TCP over IPv4 nor over IPv6")
    if len(rest) < size:
        raise HeaderInvalid("addresses cut short")
    _skip_tlvs(rest, size)
    if head[13] == _TCP_IPV4:
        return str(ipaddress.IPv4Address(rest[:4]))
    return str(ipaddress.IPv6Address(rest[:16]))


def _skip_tlvs(rest: bytes, place: int) -> None:
    """Raises HeaderInvalid unless type, length and value after type, length and value fill the header exactly."""
    while place < len(rest):
        if place + 3 > len(rest):
            raise HeaderInvalid("a TLV cut short")
        place += 3 + int.from_bytes(rest[place + 1 : place + 3], "big")
    if place != len(rest):
        raise HeaderInvalid("a TLV longer than the header")
