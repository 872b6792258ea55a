"""Read the engines' own token counters; `engines.table` says where each engine publishes them.

An answer that is not a page of the engine's counters is a failure, never a zero.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from tollway.control.reconciliation.engine_answers import CONCURRENT_MAX, Unreadable, read_answer
from tollway.domain.reconciliation import Reading
from tollway.engines.profile import CounterNames
from tollway.wire.exposition import sum_counters


@dataclass(frozen=True, slots=True)
class Source:
    """An engine to be read. `members`: the deployments (id, model) that it serves."""

    address: str
    counters: CounterNames
    credential: str | None = field(repr=False)
    members: tuple[tuple[str, str], ...]


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


async def read(client: httpx2.AsyncClient, source: Source, timeout_seconds: float) -> tuple[int, int]:
    """Prompt and output tokens of one engine since its start. Raises Unreadable."""
    counters = source.counters
    headers = {"accept": "text/plain; version=0.0.4"}
    if source.credential is not None:
        headers["authorization"] = f"Bearer {source.credential}"
    page = await read_answer(client, source.address, counters.path, headers, timeout_seconds)
    try:
        prompt, output = sum_counters(bytes(page), (counters.prompt, counters.output), counters.prefix)
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return prompt, output
