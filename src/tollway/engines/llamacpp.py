"""Profile of llama-server of llama.cpp."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.LLAMACPP,
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
    context_words=("maximum context length", "context size"),
    # tools/server/server-context.cpp, with --metrics. The prompt total is of tokens computed, without those from the cache.
    counters=CounterNames("/metrics", "llamacpp:", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", counts_cached=False),
)
