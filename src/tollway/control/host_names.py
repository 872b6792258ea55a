"""Addresses of hosts that organizations name, found in threads that belong to nothing else.

A name server that does not answer keeps its thread for longer than anybody waits, because a thread cannot be cancelled. So these names have
threads of their own, of which an organization has a share: those in which control does its other work wait for no name.
"""

import asyncio
import socket
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

RESOLVE_SECONDS_MAX = 5.0
"""For resolving a name."""

NAMES_MAX = 128
"""Names that a process resolves at a time, each in a thread, which a name server that does not answer keeps for longer than
RESOLVE_SECONDS_MAX."""

OWNER_NAMES_MAX = 4
"""Names that a process resolves at a time for one organization, or for the operators: only with 32 organizations whose name servers do
not answer is no thread left for the others."""

_RESOLVERS = ThreadPoolExecutor(max_workers=NAMES_MAX, thread_name_prefix="host-names")
_resolving = Counter[str | None]()
_resolving_lock = threading.Lock()


class NamesBusy(Exception):
    """Refusal of a name because as many as may be are being resolved. It says nothing about the address."""


async def resolve(host: str, port: int, organization_id: str | None) -> list[str]:
    """Return the addresses of a host that an organization named, or operators (None), without zones. Raises OSError and UnicodeError if it
    has none, TimeoutError, NamesBusy."""
    resolving = _begin_to_resolve(host, port, organization_id)
    return await asyncio.wait_for(asyncio.wrap_future(resolving), RESOLVE_SECONDS_MAX)


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
