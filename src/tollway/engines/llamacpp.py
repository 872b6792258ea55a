"""Profile of llama-server of llama.cpp."""

from tollway.domain.catalog import Engine
from tollway.domain.reconciliation import PromptCount
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile, LoadSource, ReadinessProbe

PROFILE = EngineProfile(
    engine=Engine.LLAMACPP,
    reports_one_sequence=True,
    # tools/server/server-schema.cpp
    fields=SAMPLING_FIELDS
    | {
        "add_generation_prompt",
        "cache_prompt",
        "chat_template_kwargs",
        "dry_allowed_length",
        "dry_base",
        "dry_multiplier",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "dynatemp_range",
        "grammar",
        "json_schema",
        "min_keep",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "n_probs",
        "parse_tool_calls",
        "post_sampling_probs",
        "reasoning_format",
        "repeat_last_n",
        "repeat_penalty",
        "return_progress",
        "return_tokens",
        "samplers",
        "timings_per_token",
        "top_n_sigma",
        "typical_p",
        "xtc_probability",
        "xtc_threshold",
    },
    # tools/server/server-context.cpp. Older versions call most of these errors of the server (status 500).
    context_words=(
        "exceeds the available context size",
        "exceed_context_size_error",
        "Context size has been exceeded",
        "maximum context length",
        "input is too large to process",
        "larger than the max context size",
    ),
    request_words=(
        "image input is not supported",
        "audio input is not supported",
        "video input is not supported",
        "does not support multimodal",
        "Failed to load image",
        "Failed to parse messages",
        "Failed to parse grammar",
        "Failed to initialize samplers",
        "prompt must not be empty",
    ),
    # tools/server/server-context.cpp, with --metrics. The prompt total is of tokens computed, without those from the cache. The slot of
    # each further choice takes the prompt over from the first one, and counts it too.
    counters=CounterNames(
        "/metrics",
        "llamacpp:",
        "llamacpp:prompt_tokens_total",
        "llamacpp:tokens_predicted_total",
        counts_cached=False,
        prompt_count=PromptCount.PER_CHOICE,
    ),
    # 503 while the model is loaded.
    readiness=ReadinessProbe("/health"),
    # tools/server/server-context.cpp, with --metrics: requests for which no slot is free
    load=LoadSource("/metrics", "llamacpp:requests_deferred"),
)
