"""Profile of vLLM (checked with 0.32)."""

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
    read_zmq_port,
)


class _Publisher(msgspec.Struct):
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""


def read_cache_event_address(page: bytes) -> CacheEventAddress | None:
    """Return where vLLM publishes the events of its cache, as /kv_event_sources says: a publisher for each data-parallel rank. Of several
    ranks each has a cache of its own and a request may go to any, so they are not followed. Raises ValueError for another page."""
    publishers = msgspec.json.decode(page, type=dict[str, _Publisher])
    if len(publishers) != 1:
        return None
    (found,) = publishers.values()
    replay = None if found.replay_endpoint is None else read_zmq_port(found.replay_endpoint)
    return CacheEventAddress(read_zmq_port(found.endpoint), replay, found.topic.encode())


PROFILE = EngineProfile(
    engine=Engine.VLLM,
    continuous_usage=True,
    tokenizes_messages=True,  # entrypoints/serve/tokenize/protocol.py, TokenizeChatRequest
    salted_endpoints=frozenset(Endpoint) - {Endpoint.REALTIME, Endpoint.INFER},  # whose messages have no such field
    # entrypoints/serve/tokenize and entrypoints/pooling/classify have these paths alone.
    paths={Endpoint.TOKENIZE: "/tokenize", Endpoint.DETOKENIZE: "/detokenize", Endpoint.CLASSIFY: "/classify"},
    fields=SAMPLING_FIELDS
    | {
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "echo",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "include_reasoning",
        "include_stop_str_in_output",
        "length_penalty",
        "logprob_token_ids",
        "prompt_logprobs",
        "repetition_detection",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "spaces_between_special_tokens",
        "structured_outputs",
        "thinking_token_budget",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_beam_search",
    },
    # renderers/params.py since 0.17, v1/engine/input_processor.py before; entrypoints/openai for max_tokens.
    context_words=(
        "maximum context length",
        "model's context length is only",
        "longer than the maximum model length",
        "exceeds the maximum model length",
        "greater than max_model_len",
        "cannot be greater than max_total_tokens",
    ),
    # With --shutdown-timeout: /health stays 200 while it drains, and its thread pool refuses what is new.
    drain_messages=frozenset({"cannot schedule new futures after shutdown"}),
    request_words=("is not a multimodal model", "At most 0 image", "cannot identify image file"),
    # v1/metrics/loggers.py. The prompt total counts whole prompts; both totals move while a request runs. Each choice is a request of its
    # own (v1/engine/parallel_sampling.py).
    counters=CounterNames(
        "/metrics", "vllm:", "vllm:prompt_tokens_total", "vllm:generation_tokens_total", prompt_count=PromptCount.PER_CHOICE
    ),
    # Says only that the process lives: it stays 200 while the engine drains, whose new requests then fail with 500.
    readiness=ReadinessProbe("/health"),
    # v1/metrics/loggers.py
    load=LoadSource("/metrics", "vllm:num_requests_waiting"),
    # distributed/kv_events.py, with --kv-events-config; the session of a request is in its events since 0.32.
    cache_events=CacheEventSource("/kv_event_sources", read_cache_event_address, tag_header=b"x-session-id"),
    # With --scheduling-policy priority (v1/core/sched/request_queue.py): the lower number first; without it the field is ignored.
    priorities={ServiceTier.PRIORITY: -10, ServiceTier.STANDARD: 0, ServiceTier.FLEX: 10, ServiceTier.BATCH: 20},
)
