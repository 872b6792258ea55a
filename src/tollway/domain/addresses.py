"""Addresses that no engine has: those where clouds keep the credentials of their machines, and those that are nobody's. And which addresses
are of the public Internet, by the registries of IANA for special purposes as of 2025: the tables of a Python are as old as its release."""

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: metadata of most clouds
        "fe80::/10",
        "fd00:ec2::/32",  # AWS over IPv6
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "168.63.129.16/32",  # Azure: a public address that leads to the host of the machine
        "0.0.0.0/8",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
    )
)
_EMBEDDING_IPV4 = ((ipaddress.ip_network("64:ff9b::/96"), 0), (ipaddress.ip_network("::/96"), 0), (ipaddress.ip_network("2002::/16"), 80))
"""IPv6 ranges that carry an IPv4 address (NAT64, compatible, 6to4), and by how many bits it is shifted."""
_UNICAST = ipaddress.ip_network("2000::/3")
"""The only addresses of IPv6 that are given to networks of the Internet (RFC 4291, section 2.4)."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Stands for the Internet's addresses of IPv4 in networks without IPv4 (RFC 6052): resolvers return them there."""
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # assignments of the IETF
        "192.88.99.0/24",  # relays of 6to4, retired (RFC 7526)
        "2001::/23",  # assignments of the IETF, Teredo among them
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation (RFC 9637)
    )
)
"""Not of the public Internet, though the tables of some Pythons say so."""


def is_metadata(address: Address) -> bool:
    """Return whether an address, or an IPv4 address inside it, is one of clouds' metadata or nobody's."""
    return any(each in network for each in _list_meanings(address) for network in _METADATA)


def is_metadata_peer(peer: tuple[str, int] | tuple[str, int, int, int] | None) -> bool:
    """Return whether the peer of a connected socket has such an address. An IPv6 address may name a zone; a peer that is gone is None."""
    return peer is not None and is_metadata(ipaddress.ip_address(peer[0].partition("%")[0]))


def _list_meanings(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The address, and any IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inside = [
        ipaddress.IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
        for network, shift in _EMBEDDING_IPV4
        if address in network and int(address) > 0xFFFF
    ]
    return [address, *inside, *([address.ipv4_mapped] if address.ipv4_mapped else [])]


def is_nat64(address: Address) -> bool:
    """Return whether an address stands for one of IPv4: whoever reaches it depends on the translator of a network."""
    return isinstance(address, ipaddress.IPv6Address) and address in _NAT64


def is_public(address: Address) -> bool:
    """Return whether an address, and any IPv4 address inside it, belongs to the public Internet. One that a resolver made for NAT64 does,
    if the address inside it does."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST and not is_nat64(address):
        return False
    return not is_metadata(address) and all(
        each.is_global and not each.is_multicast and not any(each in network for network in _SPECIAL) for each in _list_meanings(address)
    )
