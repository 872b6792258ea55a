"""One HTTP/1.1 exchange with a host that an organization named: the receiver of a webhook or of telemetry, an identity provider.

Such a host is an attacker until it has proved otherwise, and the event loop works for all. What it sends is read by the framing that reads
engines (`wire.http`), a little in each turn of the loop, and no further than it can bring anything: heads, informational ones among them,
have 64 KiB together; sizes of chunks have 64 KiB and a quarter of the body; and a body has the bound that the caller gives, who also sets
the deadline. A library that reads such an answer in Python took a thousand times the CPU of a host that sent `100 Continue` without end.

No redirect is followed, no proxy of the environment is asked, no connection is used twice.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

import httpx2

from tollway.control import host_names
from tollway.wire.http import ResponseReader

READ_BYTES: Final = 8 * 1024
"""Part of an answer that is read in one turn of the loop: below a millisecond, whatever it is."""

FRAMING_BYTES_MAX: Final = 64 * 1024
"""Bytes of an answer that are no body, beyond a quarter of it."""


class AnswerInvalid(Exception):
    """An answer that is no HTTP, not whole, or has more framing than an answer has."""


class PeerRefused(Exception):
    """An address of the host that may not be asked."""


class Answer(NamedTuple):
    """An answer: its status, and as much of its body as was read."""

    status: int
    body: bytes


class Host(NamedTuple):
    """The place to connect to: `address`, a name or a number, and `port`. `tls_name`: that of its certificate; None without TLS."""

    address: str
    port: int
    tls_name: str | None


async def exchange(
    host: Host,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    body_bytes_max: int | None = None,
    is_allowed: Callable[[str], bool] | None = None,
    organization_id: str | None = None,
) -> Answer:
    """Send a request for the path and the query of `url`, and return the answer, once all of it is there or more than `body_bytes_max` of
    its body; without that bound once its status is known. `headers`: `host` among them. `is_allowed`: must be true of each address to which
    the name resolves, which is resolved for `organization_id`; the connection is made to one of these. Raises AnswerInvalid, PeerRefused,
    NamesBusy, OSError, UnicodeError and httpx2.InvalidURL. The caller sets the deadline."""
    message = _encode(method, url, headers, body)
    reader, writer = await _connect(host, [host.address] if is_allowed is None else await _resolve(host, is_allowed, organization_id))
    try:
        writer.write(message)
        return await _read(reader, body_bytes_max)
    finally:
        writer.transport.abort()


async def _resolve(host: Host, is_allowed: Callable[[str], bool], organization_id: str | None) -> list[str]:
    """Return the addresses of a host, if each of them is allowed."""
    addresses = await host_names.resolve(host.address, host.port, organization_id)
    if not all(map(is_allowed, addresses)):
        raise PeerRefused
    return addresses


async def _connect(host: Host, addresses: Sequence[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first address that takes a connection."""
    context = None if host.tls_name is None else _find_context()
    for number, address in enumerate(addresses, 1):
        try:
            return await asyncio.open_connection(address, host.port, limit=4 * READ_BYTES, ssl=context, server_hostname=host.tls_name)
        except OSError:
            if number == len(addresses):
                raise
    raise OSError(f"{host.address} has no address")


async def _read(reader: asyncio.StreamReader, body_bytes_max: int | None) -> Answer:
    answer, received = ResponseReader(FRAMING_BYTES_MAX), 0
    try:
        while not answer.complete:
            data = await reader.read(READ_BYTES)
            received += len(data)
            if data:
                answer.feed(data)
            else:
                answer.eof()
            if body_bytes_max is None and answer.has_head:
                return Answer(answer.status, b"")
            is_too_much = received - answer.body_bytes > FRAMING_BYTES_MAX + answer.body_bytes // 4
            if answer.broken or is_too_much or not (data or answer.complete):
                raise AnswerInvalid
            if body_bytes_max is not None and answer.body_bytes > body_bytes_max:
                break
            await asyncio.sleep(0)  # what was received meanwhile would be read without a turn for others
        return Answer(answer.status, b"".join(answer.body))
    finally:
        answer.close()


def _encode(method: str, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request. Raises ValueError for a header that would be two."""
    sent = {**headers, "connection": "close"} | ({"content-length": str(len(body))} if method == "POST" else {})
    if any(character in part for item in sent.items() for part in item for character in "\r\n\0"):
        raise ValueError("a header has a line end")
    lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), httpx2.URL(url).raw_path, lines.encode("ascii"), body)


@cache
def _find_context() -> ssl.SSLContext:
    """Return the context with which certificates of hosts are checked. To read the authorities costs 20 to 40 ms."""
    return httpx2.create_ssl_context(trust_env=False)
