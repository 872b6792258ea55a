"""Addresses that webhooks are sent to: public ones, by HTTPS, and those in networks that the operator has listed.

Tenants name the addresses. A name is resolved before each attempt, all its addresses are checked, and the connection is made to the checked
address itself, so that a name which resolves to something else a moment later changes nothing.
"""

import ipaddress
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from tollway.control import host_names
from tollway.control.identity.issuer_keys import is_url
from tollway.domain.addresses import is_public
from tollway.domain.networks import Network, contains

URL_CHARACTERS_MAX = 2048


class AddressRefused(Exception):
    """An address that no webhook is sent to. The text follows the name of the field."""


class Peer(NamedTuple):
    """A checked address to connect to. `host`: for the certificate and the header."""

    address: str
    port: int
    host: str
    authority: str


def check_url(url: str, networks: Sequence[Network]) -> None:
    """Raise AddressRefused unless webhooks may be sent to a URL, as far as its text says. `networks`: those of the
    operator's list."""
    if not is_url(url) or len(url) > URL_CHARACTERS_MAX:
        raise AddressRefused("it must be a URL of printable ASCII characters")
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise AddressRefused("it must be a URL without a user and a fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and networks):
        raise AddressRefused("it must be an https URL")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not networks and ("." not in host or host.endswith((".local", ".internal", ".localhost"))):
            raise AddressRefused("its host is not public") from None
    else:
        _check_address(host, parts.scheme, networks)


async def find_peer(url: str, networks: Sequence[Network], organization_id: str | None) -> Peer:
    """Return where to connect for a URL of an organization, or of the operators (None). Raises AddressRefused if one of its addresses is
    not allowed, or it has none; NamesBusy."""
    check_url(url, networks)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = await host_names.resolve(host, port, organization_id)
    except (OSError, UnicodeError, TimeoutError):
        raise AddressRefused("its host has no address") from None
    for each in addresses:
        _check_address(each, parts.scheme, networks)
    return Peer(addresses[0], port, host, parts.netloc)


def _check_address(address: str, scheme: str, networks: Sequence[Network]) -> None:
    if contains(networks, address):
        return
    if not is_public(ipaddress.ip_address(address)):
        raise AddressRefused("its host is not public")
    if scheme != "https":
        raise AddressRefused("it must be an https URL")
