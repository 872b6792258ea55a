"""Triton Inference Server's OpenAI frontend (python/openai of triton-inference-server/server), before a TensorRT-LLM or vLLM backend. It
was read, not run.

It refuses fields that it does not know, more than one choice, and `logit_bias`, and reports no cached tokens.
"""

from tollway.domain.catalog import Endpoint, Engine
from tollway.engines.profile import EngineProfile, LoadSource, ReadinessProbe

PROFILE = EngineProfile(
    engine=Engine.TRITON,
    endpoints=frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS}),
    translated_endpoints=frozenset({Endpoint.MESSAGES, Endpoint.RESPONSES}),
    # The words of its backends, in errors with status 400 or 500.
    context_words=(
        "maximum context length",
        "longer than the maximum model length",
        "exceeds maximum input length",
        "exceeds the maximum sequence length",
        "should not exceed max_num_tokens",
        "should not exceed max_seq_len",
    ),
    # openai_frontend/frontend/fastapi/routers/observability.py: 400, not 503, while it is not ready.
    readiness=ReadinessProbe("/health/ready", refusal_statuses=(400,)),
    # Of the backend for TensorRT-LLM, in the requests of its batcher; the one for vLLM publishes another gauge, and is not read.
    load=LoadSource("/metrics", "nv_trt_llm_request_metrics", labels='request_type="waiting"'),
)
