"""SGLang (checked with 0.5)."""

import msgspec

from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.reconciliation import PromptCount
from tollway.domain.usage import ServiceTier
from tollway.engines.profile import (
    SAMPLING_FIELDS,
    CacheEventAddress,
    CacheEventSource,
    CounterNames,
    EngineProfile,
    LoadSource,
    ReadinessProbe,
)


class _Publisher(msgspec.Struct):
    endpoint_port_base: int
    dp_size: int = 1
    topic: str = ""


class _ServerInfo(msgspec.Struct):
    kv_events: _Publisher | None = None


def read_cache_event_address(page: bytes) -> CacheEventAddress | None:
    """Return where SGLang publishes the events of its cache, as /server_info says; it does not say where it repeats them. Of several
    data-parallel ranks each has a cache of its own and a request may go to any, so they are not followed. Raises ValueError for another
    page."""
    found = msgspec.json.decode(page, type=_ServerInfo).kv_events
    if found is None or found.dp_size != 1:
        return None
    if not 0 < found.endpoint_port_base < 65_536:
        raise ValueError("no port")
    return CacheEventAddress(found.endpoint_port_base, None, found.topic.encode())


PROFILE = EngineProfile(
    engine=Engine.SGLANG,
    continuous_usage=True,
    salted_endpoints=frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES}),  # its messages have no such field
    fields=SAMPLING_FIELDS
    | {
        "chat_template_kwargs",
        "continue_final_message",
        "ebnf",
        "json_schema",
        "no_stop_trim",
        "regex",
        "return_cached_tokens_details",
        "return_prompt_token_ids",
        "return_token_ids",
        "separate_reasoning",
        "stop_regex",
        "stream_reasoning",
        "thinking",
    },
    # srt/managers/tokenizer_manager.py (before it is scheduled), srt/managers/utils.py and schedule_batch.py (inside a 200 stream).
    context_words=(
        "maximum context length",
        "longer than the model's context length",
        "exceeds the maximum allowed length",
        "Multimodal prompt is too long",
    ),
    request_words=("cannot identify image file",),
    # srt/metrics/collector.py, with --enable-metrics. Both totals move when a request has finished. For several choices, a first request
    # fills the prefix cache (srt/managers/tokenizer_manager.py).
    counters=CounterNames(
        "/metrics",
        "sglang:",
        "sglang:prompt_tokens_total",
        "sglang:generation_tokens_total",
        prompt_count=PromptCount.PER_CHOICE_AND_ONCE,
    ),
    # /health generates a token and takes a second; this one does not, and turns 503 when the engine drains.
    readiness=ReadinessProbe("/ready", seconds=2.0),
    # srt/entrypoints/v1_loads.py, one element for each data-parallel rank; a snapshot may be a second old.
    load=LoadSource("/v1/loads?include=core", "num_waiting_uncached_tokens", list="loads", in_tokens=True),
    # srt/disaggregation/kv_events.py, with --kv-events-config; the session of a request is in its events since 0.5.23. Its messages
    # have no such field.
    cache_events=CacheEventSource(
        "/server_info",
        read_cache_event_address,
        tag_field="session_id",
        tag_endpoints=frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.RESPONSES}),
        seconds=2.0,
    ),
    # With --enable-priority-scheduling (srt/managers/schedule_policy.py): the higher number first, the opposite of vLLM's;
    # --schedule-low-priority-values-first would turn it round.
    priorities={ServiceTier.PRIORITY: 10, ServiceTier.STANDARD: 0, ServiceTier.FLEX: -10, ServiceTier.BATCH: -20},
)
