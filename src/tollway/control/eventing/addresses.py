"""Addresses that webhooks are sent to: public ones, by HTTPS, and those in networks that the operator has listed.

Tenants name the addresses. A name is resolved before each attempt, all its addresses are checked, and the connection is made to the checked
address itself, so that a name which resolves to something else a moment later changes nothing.
"""

import asyncio
import ipaddress
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import urlsplit

from tollway.control.identity.issuer_keys import is_url
from tollway.domain.addresses import is_public
from tollway.domain.networks import Network, contains

URL_CHARACTERS_MAX = 2048

RESOLVE_SECONDS_MAX = 5.0
"""For resolving a name."""

NAMES_MAX = 128
"""Names of webhooks that a process resolves at a time, each in a thread. A name server that does not answer keeps its thread for longer
than RESOLVE_SECONDS_MAX, because a thread cannot be cancelled."""

OWNER_NAMES_MAX = 4
"""Names that a process resolves at a time for one organization, or for the operators: only with 32 organizations whose name servers do
not answer is no thread left for the others."""

_RESOLVERS = ThreadPoolExecutor(max_workers=NAMES_MAX, thread_name_prefix="webhook-names")
_resolving = Counter[str | None]()
_resolving_lock = threading.Lock()


class AddressRefused(Exception):
    """An address that no webhook is sent to. The text follows the name of the field."""


class NamesBusy(Exception):
    """Refusal of a name because as many as may be are being resolved. It says nothing about the address."""


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
    resolving = _begin_to_resolve(host, port, organization_id)
    try:
        addresses = await asyncio.wait_for(asyncio.wrap_future(resolving), RESOLVE_SECONDS_MAX)
    except (OSError, UnicodeError, TimeoutError):
        raise AddressRefused("its host has no address") from None
    for each in addresses:
        _check_address(each, parts.scheme, networks)
    return Peer(addresses[0], port, host, parts.netloc)


def _begin_to_resolve(host: str, port: int, owner: str | None) -> "Future[list[str]]":
    """Resolve a name in a thread. Raises NamesBusy."""
    with _resolving_lock:
        if _resolving[owner] >= OWNER_NAMES_MAX or _resolving.total() >= NAMES_MAX:
            raise NamesBusy
        _resolving[owner] += 1
    try:
        resolving = _RESOLVERS.submit(_resolve, host, port)
    except BaseException:
        _end_to_resolve(owner)
        raise
    resolving.add_done_callback(lambda _: _end_to_resolve(owner))
    return resolving


def _end_to_resolve(owner: str | None) -> None:
    with _resolving_lock:
        _resolving[owner] -= 1
        if not _resolving[owner]:
            del _resolving[owner]


def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, without zones. Raises OSError if it has none."""
    return [str(peer[0]).partition("%")[0] for *_, peer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _check_address(address: str, scheme: str, networks: Sequence[Network]) -> None:
    if contains(networks, address):
        return
    if not is_public(ipaddress.ip_address(address)):
        raise AddressRefused("its host is not public")
    if scheme != "https":
        raise AddressRefused("it must be an https URL")
