"""TensorRT-LLM's OpenAI server (trtllm-serve)."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import SAMPLING_FIELDS, CounterNames, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.TRTLLM,
    fields=SAMPLING_FIELDS,
    context_words=("maximum context length", "context size"),
    # tensorrt_llm/metrics/collector.py, with return_perf_metrics. Its /metrics is another page, and reading that one consumes it.
    counters=CounterNames("/prometheus/metrics", "trtllm_", "trtllm_prompt_tokens_total", "trtllm_generation_tokens_total"),
)
