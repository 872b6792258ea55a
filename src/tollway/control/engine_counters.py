"""The engines' own token counters: where each kind keeps them, and how they are read.

Reading them is nobody's request: it has its own bounds, no redirect is followed, no compressed answer is taken, and whatever an engine
answers that is no page of its counters is a failure, never a zero.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from tollway.domain.catalog import Engine
from tollway.domain.reconciliation import Reading
from tollway.wire.exposition import sum_counters

PAGE_BYTES_MAX = 4 << 20
"""vLLM's page with all its histograms has 60 KiB per rank."""

CONCURRENT_MAX = 16
"""Engines read at once: a fleet of a thousand takes some seconds."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Where a kind of engine keeps its counters: the page, what its metrics begin with, and the totals of prompt and output tokens.
    `counts_cached`: whether the prompt total has what came from the prefix cache."""

    path: str
    prefix: str
    prompt: str
    output: str
    counts_cached: bool = True


_VLLM = Counters("/metrics", "vllm:", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")

COUNTERS: dict[Engine, Counters] = {
    # vLLM 0.32: v1/metrics/loggers.py. The prompt total counts whole prompts; both move while a request runs.
    Engine.VLLM: _VLLM,
    Engine.SIM: _VLLM,
    # SGLang 0.5: srt/metrics/collector.py, with --enable-metrics. Both move when a request has finished.
    Engine.SGLANG: Counters("/metrics", "sglang:", "sglang:prompt_tokens_total", "sglang:generation_tokens_total"),
    # Dynamo 1.6, the frontend: lib/runtime/src/metrics/prometheus_names.rs. The input total is the sum of its histogram.
    Engine.DYNAMO: Counters(
        "/metrics", "dynamo_frontend_", "dynamo_frontend_input_sequence_tokens_sum", "dynamo_frontend_output_tokens_total"
    ),
    # TensorRT-LLM: tensorrt_llm/metrics/collector.py, with return_perf_metrics. Its /metrics is another thing, and reading consumes it.
    Engine.TRTLLM: Counters("/prometheus/metrics", "trtllm_", "trtllm_prompt_tokens_total", "trtllm_generation_tokens_total"),
    # llama.cpp: tools/server/server-context.cpp, with --metrics. The prompt total is of tokens computed, without those of the cache.
    Engine.LLAMACPP: Counters(
        "/metrics", "llamacpp:", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", counts_cached=False
    ),
}
"""By kind. One that is missing here (OpenAI and what else only speaks its API) shows nothing, and is not observed."""


class Unreadable(Exception):
    """An engine could not be read now; the text says why, for operators."""


@dataclass(frozen=True, slots=True)
class Source:
    """An engine to be read, and the deployments (id, model) that it is the engine of."""

    address: str
    counters: Counters
    credential: str | None = field(repr=False)
    members: tuple[tuple[str, str], ...]


def open_client() -> httpx2.AsyncClient:
    """A client for reading engines. Proxies and credentials of the environment are none of its business."""
    return httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=CONCURRENT_MAX, max_keepalive_connections=0), follow_redirects=False, trust_env=False
    )


async def read_all(
    client: httpx2.AsyncClient, sources: Sequence[Source], timeout_seconds: float, now: Callable[[], int]
) -> list[Reading | Unreadable]:
    """What each engine's counters show, or why they cannot be had; in the order of `sources`."""
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
    headers = {"accept": "text/plain; version=0.0.4", "accept-encoding": "identity"}
    if source.credential is not None:
        headers["authorization"] = f"Bearer {source.credential}"
    page = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            client.stream("GET", source.address + counters.path, headers=headers, timeout=timeout_seconds) as answer,
        ):
            if answer.status_code != 200:
                raise Unreadable(f"{counters.path} answered {answer.status_code}")
            async for piece in answer.aiter_raw():
                page += piece
                if len(page) > PAGE_BYTES_MAX:
                    raise Unreadable(f"{counters.path} has more than {PAGE_BYTES_MAX} bytes")
        prompt, output = sum_counters(bytes(page), (counters.prompt, counters.output), counters.prefix)
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, TimeoutError) as error:
        raise Unreadable(f"{counters.path} did not answer: {type(error).__name__}") from None
    except ValueError as error:
        raise Unreadable(str(error)) from None
    return prompt, output
