"""Address ranges (CIDR, RFC 4632 and RFC 4291) from which a key may be used, and whether an address is in one of them.

An IPv4 address is the same address in its IPv6 form (`::ffff:192.0.2.1`, RFC 4291 section 2.5.5.2), which sockets for both families
report; ranges and addresses are compared in the IPv4 form.
"""

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HOPS_MAX = 32
"""Addresses looked at in one x-forwarded-for; no chain of proxies is longer."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> Network:
    """Return the range that `text` writes, such as `192.0.2.0/24` or `2001:db8::1`. Raises ValueError for anything else, for an address
    with bits beyond its mask, and for a zone."""
    if "%" in text:
        raise ValueError("a range names no zone")
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        inner = int(network.network_address) & 0xFFFF_FFFF
        return ipaddress.IPv4Network((inner, network.prefixlen - 96))
    return network


def parse_address(text: str) -> Address | None:
    """Return the address that `text` writes, which may have a port; None if it is not one. The zone of an IPv6 address is left out."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def contains(networks: Sequence[Network], text: str) -> bool:
    """Return whether the address that `text` writes is in one of the ranges; what is not an address is in none."""
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


def find_client(trusted: Sequence[Network], peer: str, forwarded: bytes) -> str:
    """Return the address of whoever is behind `peer`: the right-most one in `forwarded` (x-forwarded-for) that is no trusted proxy.

    Each proxy appends whom it heard from, so what stands left of an untrusted address was written by that one. An entry that is no
    address ends the search: what the proxy before it is, is the last thing known."""
    if not contains(trusted, peer):
        return peer
    for entry in reversed(forwarded.rsplit(b",", HOPS_MAX)[-HOPS_MAX:]):
        parsed = parse_address(entry.strip().decode("latin-1"))
        if parsed is None:
            return peer
        peer = str(parsed)
        if not contains(trusted, peer):
            return peer
    return peer
