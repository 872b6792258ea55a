"""Requests to the guardrail: the one service, named by the operator, that checks what models are asked and what they answer.

Its address comes from the settings of the gateway and from nowhere else. The peer of each connection is examined before a byte is sent on
it; redirects are not followed, compressed answers not accepted, and nothing waits beyond the deadline. The contract is in
docs/guardrails.md.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx2

from tollway.domain.addresses import is_metadata_peer
from tollway.link.authorities import trusted_authorities

ANSWER_BYTES_MAX: Final = 16 * 1024
"""Longest answer that is read: an action and a reason have a few hundred bytes."""

CONNECTIONS_MAX: Final = 64
"""Connections to the guardrail. Requests beyond them wait for one, within their deadline."""

CONCURRENT_MAX: Final = 1024
"""Requests at once. More fail at once: each holds its document in memory."""

IDLE_SECONDS: Final = 4.0
"""Time for which an idle connection is kept: below the five seconds after which usual servers close theirs."""

TRIES: Final = 2
"""A kept connection may be closed just when it is used again; a check can be asked for twice."""


class _ForbiddenPeer(Exception):
    """A name resolved to an address that is never connected to."""


async def _examine_peer(event: str, details: Mapping[str, Any]) -> None:
    """Close a connection to a metadata address of a cloud. The HTTP client calls this at each step, and sends nothing before it returns."""
    if event == "connection.connect_tcp.complete":
        stream = details["return_value"]
        if is_metadata_peer(stream.get_extra_info("server_addr")):
            await stream.aclose()
            raise _ForbiddenPeer


class GuardrailRequests:
    """The way of documents to the guardrail. Use: `await ask(...)` as often as wanted, then `await close()`."""

    def __init__(self, *, url: str, token: str | None, timeout_seconds: float) -> None:
        """`token`: sent as a bearer token; None for none. `timeout_seconds`: deadline of one document, all tries included."""
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._running = 0
        headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(timeout_seconds),
            limits=httpx2.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_SECONDS),
            follow_redirects=False,
            trust_env=False,
            verify=trusted_authorities(),
        )

    async def ask(self, document: bytes) -> bytes | None:
        """Return the body of the answer to a document; None if there was none of status 200 within the bounds."""
        if self._running >= CONCURRENT_MAX:
            return None
        self._running += 1
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for left in reversed(range(TRIES)):
                    try:
                        return await self._post(document)
                    except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                        if not left:
                            return None
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, TimeoutError, _ForbiddenPeer):
            return None
        finally:
            self._running -= 1
        return None

    async def _post(self, document: bytes) -> bytes | None:
        async with self._client.stream("POST", self._url, content=document, extensions={"trace": _examine_peer}) as answer:
            if answer.status_code != 200:
                return None
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    return None
            return bytes(body)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
