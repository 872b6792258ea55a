"""Links in messages: which URLs an engine may fetch for a client from inside the platform's network.

Engines resolve and fetch what image parts name, and have been led to metadata services and neighbours that way. An accepted link is an
http(s) URL whose host is a public address or a name under a public top-level domain (`data:` URLs: see `bounds`). Inside a cluster any
pair of labels can be the name of a service (`redis.production`), so a list of private names would never be complete. A link is read by one
strict grammar instead of a URL library: whatever two libraries read differently (backslashes, users, addresses in octal or as one number,
full-width digits) is rejected.

A public name may still resolve to a private address, now or at the next look-up. Who resolves it decides: an engine that may fetch
belongs behind an egress that refuses private networks.
"""

import ipaddress
import re

from tollway.domain import addresses
from tollway.gateway.media.top_level_domains import GENERIC

_URL = re.compile(r"https?://([^/?#]*)(?:[/?#][\x21-\x5b\x5d-\x7e]*)?", re.ASCII)
_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\.?")
_PORT = re.compile(r"(.*?)(?::([0-9]{1,5}))?")

_COUNTRY = re.compile(r"(?!aa|q[m-z]|x|zz)[a-z]{2}|qa")
"""Two letters that ISO 3166-1 does not leave to users."""
_PRIVATE_NAMES = (
    ".home.arpa", ".in-addr.arpa", ".ip6.arpa",
    # public names by which clouds serve metadata and credentials inside their networks
    ".metadata.google.com", ".metadata.goog", ".metadata.azure.com", ".metadata.packet.net", ".metadata.platformequinix.com",
    ".metadata.tencentyun.com", ".metadata.cloud.ibm.com",
    # public names that resolve to any address written in them, or to loopback
    ".nip.io", ".sslip.io", ".xip.io", ".localtest.me", ".lvh.me", ".vcap.me", ".lacolhost.com", ".traefik.me", ".local.gd",
)  # fmt: skip
"""Names below public domains that lead into private networks."""


def is_public(link: str) -> bool:
    """Return whether a link may be fetched: http(s) to a host that is not recognisably private."""
    match = _URL.fullmatch(link[:8].lower() + link[8:])
    return match is not None and _is_public_host(match[1].lower())


def _is_public_host(authority: str) -> bool:
    parts = _PORT.fullmatch(authority)
    host = parts[1] if parts is not None else ""
    if host.startswith("[") and host.endswith("]"):
        return _is_public_address(host[1:-1], ipaddress.IPv6Address)
    if _NAME.fullmatch(host) is not None:
        name = host.rstrip(".")
        top = name.rpartition(".")[2]
        return (top in GENERIC or _COUNTRY.fullmatch(top) is not None) and not ("." + name).endswith(_PRIVATE_NAMES)
    return _is_public_address(host, ipaddress.IPv4Address)


def _is_public_address(text: str, family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        address = family(text)
    except ValueError:
        return False
    if "%" in text:  # a zone names an interface of the machine, in any characters
        return False
    return addresses.is_public(address) and not addresses.is_nat64(address)  # in a link nobody's resolver made it
