"""TensorRT-LLM's OpenAI server (trtllm-serve)."""

from tollway.domain.catalog import Endpoint, Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile, LoadSource, ReadinessProbe

PROFILE = EngineProfile(
    engine=Engine.TRTLLM,
    translated_endpoints=frozenset({Endpoint.MESSAGES}),  # tensorrt_llm/serve/openai_server.py has no such route
    salted_endpoints=frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS}),
    # tensorrt_llm/serve/openai_protocol.py
    fields=SAMPLING_FIELDS
    | {
        "add_generation_prompt",
        "add_special_tokens",
        "chat_template_kwargs",
        "documents",
        "early_stopping",
        "echo",
        "include_stop_str_in_output",
        "length_penalty",
        "spaces_between_special_tokens",
        "top_p_min",
        "truncate_prompt_tokens",
        "use_beam_search",
    },
    # llmapi/llm.py and executor/base_worker.py, whose errors the server reports as the request's or as its own, by version.
    context_words=(
        "maximum context length",
        "`default_max_tokens`",
        "should not exceed max_num_tokens",
        "should not exceed max_seq_len",
        "exceeds maximum input length",
        "exceeds the maximum sequence length",
    ),
    # tensorrt_llm/metrics/collector.py, with return_perf_metrics. Its /metrics is another page, and reading that one consumes it.
    counters=CounterNames("/prometheus/metrics", "trtllm_", "trtllm_prompt_tokens_total", "trtllm_generation_tokens_total"),
    # tensorrt_llm/serve/openai_server.py
    readiness=ReadinessProbe("/health"),
    load=LoadSource("/prometheus/metrics", "trtllm_num_requests_waiting"),
)
