"""SGLang (checked with 0.5)."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.SGLANG,
    cache_salt=True,
    fields=SAMPLING_FIELDS
    | {
        "chat_template_kwargs",
        "continue_final_message",
        "ebnf",
        "no_stop_trim",
        "regex",
        "separate_reasoning",
        "stop_regex",
        "stream_reasoning",
    },
    context_words=("maximum context length", "context size"),
    # srt/metrics/collector.py, with --enable-metrics. Both totals move when a request has finished.
    counters=CounterNames("/metrics", "sglang:", "sglang:prompt_tokens_total", "sglang:generation_tokens_total"),
)
