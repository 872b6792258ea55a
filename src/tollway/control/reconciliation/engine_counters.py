"""Read the engines' own token counters; `engines.table` says where each engine publishes them.

Readings have bounds of their own, follow no redirect and accept no compressed answer. The address of each connection is examined before
a byte is sent on it, because a name may resolve to another address than when its deployment was added. An answer that is not a page of the
engine's counters is a failure, never a zero.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tollway.domain.addresses import is_metadata_peer
from tollway.domain.reconciliation import Reading
from tollway.engines.profile import CounterNames
from tollway.wire.exposition import sum_counters

PAGE_BYTES_MAX = 4 << 20
"""Largest metrics page that is read. The page of vLLM with all its histograms has 60 KiB per rank."""

CONCURRENT_MAX = 16
"""Engines read at once: a fleet of a thousand takes some seconds."""


class Unreadable(Exception):
    """An engine's counters could not be read; the text says why, for operators."""


@dataclass(frozen=True, slots=True)
class Source:
    """An engine to be read. `members`: the deployments (id, model) that it serves."""

    address: str
    counters: CounterNames
    credential: str | None = field(repr=False)
    members: tuple[tuple[str, str], ...]


def open_client() -> httpx2.AsyncClient:
    """An HTTP client for reading engines. It ignores proxies and credentials of the environment."""
    return httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=CONCURRENT_MAX, max_keepalive_connections=0), follow_redirects=False, trust_env=False
    )


async def read_all(
    client: httpx2.AsyncClient, sources: Sequence[Source], timeout_seconds: float, now: Callable[[], int]
) -> list[Reading | Unreadable]:
    """Read the counters of all engines, in the order of `sources`; an engine that could not be read has its error in its place."""
    turns = asyncio.Semaphore(CONCURRENT_MAX)

    async def read_in_turn(source: Source) -> Reading | Unreadable:
        async with turns:
            try:
                prompt_tokens, output_tokens = await read(client, source, timeout_seconds)
            except Unreadable as error:
                return error
            return Reading(now(), prompt_tokens, output_tokens)

    return await asyncio.gather(*(read_in_turn(source) for source in sources))


class _ForbiddenPeer(Exception):
    """A name resolved to the metadata address of a cloud."""


async def _examine_peer(event: str, details: Mapping[str, Any]) -> None:
    """Close a connection that leads to the metadata address of a cloud. The HTTP client calls this at each of its steps, and sends nothing
    before it returns."""
    if event == "connection.connect_tcp.complete":
        stream = details["return_value"]
        if is_metadata_peer(stream.get_extra_info("server_addr")):
            await stream.aclose()
            raise _ForbiddenPeer


async def read(client: httpx2.AsyncClient, source: Source, timeout_seconds: float) -> tuple[int, int]:
    """Prompt and output tokens of one engine since its start. Raises Unreadable."""
    counters = source.counters
    headers = {"accept": "text/plain; version=0.0.4", "accept-encoding": "identity"}
    if source.credential is not None:
        headers["authorization"] = f"Bearer {source.credential}"
    page = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            client.stream(
                "GET", source.address + counters.path, headers=headers, timeout=timeout_seconds, extensions={"trace": _examine_peer}
            ) as answer,
        ):
            if answer.status_code != 200:
                raise Unreadable(f"{counters.path} answered {answer.status_code}")
            async for piece in answer.aiter_raw():
                page += piece
                if len(page) > PAGE_BYTES_MAX:
                    raise Unreadable(f"{counters.path} has more than {PAGE_BYTES_MAX} bytes")
        prompt, output = sum_counters(bytes(page), (counters.prompt, counters.output), counters.prefix)
    except _ForbiddenPeer:
        raise Unreadable(f"{counters.path} is at an address that is never connected to") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError) as error:
        raise Unreadable(f"{counters.path} did not answer: {type(error).__name__}") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return prompt, output
