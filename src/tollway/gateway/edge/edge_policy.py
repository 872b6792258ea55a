"""Access rules of the public listener: trusted proxies, host names that are served; `cors` reads its origins.

All of it is off by default, and then costs one comparison per request. Nothing here authenticates: a key does that. What a proxy says of
a client's address is used for the bound of connections per address and for the log.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tollway.domain import networks
from tollway.domain.networks import Network, contains

_HOST = re.compile(rb"(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_PORT = re.compile(rb":[0-9]+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePolicy:
    """`trusted`: proxies whose word on a client's address is taken, by the PROXY protocol (`proxy_protocol`: they must speak it) and
    by x-forwarded-for (`forwarded_for`). `peers_logged`: the client's address stands in the log line of its requests. `origins`:
    those whose scripts may read answers, exactly as browsers send them, or `*` alone for all; `preflight_seconds`: how long a browser
    may remember that. `hosts`: names that requests must be addressed to, with a port or for every port; none: any.
    `client_certificates`: those of TLS connections say who sends a request without a secret; or, from trusted proxies, those in the header
    `certificate_header`, empty for none."""

    trusted: tuple[Network, ...] = ()
    proxy_protocol: bool = False
    forwarded_for: bool = False
    peers_logged: bool = False
    origins: frozenset[bytes] = frozenset()
    preflight_seconds: int = 600
    hosts: frozenset[bytes] = frozenset()
    client_certificates: bool = False
    certificate_header: bytes = b""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks of "10.0.0.0/8", "::1" and so on. Raises ValueError for anything else, and for an address with bits beyond its mask."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def parse_hosts(texts: Iterable[str]) -> frozenset[bytes]:
    """Names as they stand in Host. Raises ValueError."""
    hosts = frozenset(text.lower().encode() for text in texts)
    for host in hosts:
        if _HOST.fullmatch(host) is None:
            raise ValueError(f"{host.decode()} is no host")
    return hosts


def is_addressed(rules: EdgePolicy, host: bytes) -> bool:
    """Return whether a request with this Host (empty if it has none) is for us."""
    host = host.lower()
    return not rules.hosts or host in rules.hosts or _PORT.sub(b"", host) in rules.hosts


def is_trusted(rules: EdgePolicy, address: str) -> bool:
    """Return whether this peer is a proxy whose word is taken."""
    return contains(rules.trusted, address)


def find_client(rules: EdgePolicy, peer: str, forwarded: bytes | None) -> str:
    """The address of whoever is behind `peer`, as `networks.find_client` finds it; that of the peer where x-forwarded-for is not read."""
    if not rules.forwarded_for or forwarded is None:
        return peer
    return networks.find_client(rules.trusted, peer, forwarded)
