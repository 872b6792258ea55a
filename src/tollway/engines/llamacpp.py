"""Profile of llama-server of llama.cpp."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.LLAMACPP,
    fields=SAMPLING_FIELDS | {"grammar", "json_schema", "chat_template_kwargs", "typical_p", "mirostat"},
    context_words=("maximum context length", "context size"),
    # tools/server/server-context.cpp, with --metrics. The prompt total is of tokens computed, without those from the cache.
    counters=CounterNames("/metrics", "llamacpp:", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total", counts_cached=False),
)
