"""Read one answer of an engine, within bounds.

Readings follow no redirect and accept no compressed answer. The address of each connection is examined before a byte is sent on it, because
a name may resolve to another address than when its deployment was added.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx2

from tollway.control.authorities import read_authorities
from tollway.domain.addresses import is_metadata_peer

ANSWER_BYTES_MAX = 4 << 20
"""Largest answer that is read. The page of metrics of vLLM with all its histograms has 60 KiB per rank."""

CONCURRENT_MAX = 16
"""Connections of one client: a fleet of a thousand takes some seconds."""


class Unreadable(Exception):
    """An engine did not answer what was asked for; the text says why, for operators."""


class _ForbiddenPeer(Exception):
    """A name resolved to the metadata address of a cloud."""


def open_client() -> httpx2.AsyncClient:
    """An HTTP client for reading engines. It ignores proxies and credentials of the environment."""
    return httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=CONCURRENT_MAX, max_keepalive_connections=0),
        follow_redirects=False,
        trust_env=False,
        verify=read_authorities(),
    )


async def _examine_peer(event: str, details: Mapping[str, Any]) -> None:
    """Close a connection that leads to the metadata address of a cloud. The HTTP client calls this at each of its steps, and sends nothing
    before it returns."""
    if event == "connection.connect_tcp.complete":
        stream = details["return_value"]
        if is_metadata_peer(stream.get_extra_info("server_addr")):
            await stream.aclose()
            raise _ForbiddenPeer


async def read_answer(client: httpx2.AsyncClient, address: str, path: str, headers: Mapping[str, str], timeout_seconds: float) -> bytearray:
    """Return the body of the answer to a GET of `path` below `address`. Raises Unreadable: no answer with status 200 in time, or one of
    more than ANSWER_BYTES_MAX."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            client.stream(
                "GET",
                address + path,
                headers={**headers, "accept-encoding": "identity"},
                timeout=timeout_seconds,
                extensions={"trace": _examine_peer},
            ) as answer,
        ):
            if answer.status_code != 200:
                raise Unreadable(f"{path} answered {answer.status_code}")
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    raise Unreadable(f"{path} has more than {ANSWER_BYTES_MAX} bytes")
    except _ForbiddenPeer:
        raise Unreadable(f"{path} is at an address that is never connected to") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError) as error:
        raise Unreadable(f"{path} did not answer: {type(error).__name__}") from None
    return body
