"""NVIDIA Dynamo's frontend (checked with 1.6)."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import CounterNames, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.DYNAMO,
    context_words=("maximum context length", "context size"),
    # lib/runtime/src/metrics/prometheus_names.rs. The input total is the sum of its histogram.
    counters=CounterNames(
        "/metrics", "dynamo_frontend_", "dynamo_frontend_input_sequence_tokens_sum", "dynamo_frontend_output_tokens_total"
    ),
)
