"""Servers of the Open Inference Protocol (KServe's second): Triton Inference Server with its own HTTP and gRPC frontends, before
TensorRT-LLM or vLLM backends, and KServe's model servers. They were read, not run.

Both serve gRPC on the port after that of HTTP, unless another is set: 8000 and 8001 of Triton, 8080 and 8081 of KServe.
"""

from tollway.domain.catalog import Endpoint, Engine
from tollway.engines.profile import EngineProfile, ReadinessProbe

PROFILE = EngineProfile(
    engine=Engine.KSERVE,
    endpoints=frozenset({Endpoint.INFER}),
    # The words of the backends, in errors with status 400 or 500, as behind Triton's OpenAI frontend.
    context_words=(
        "maximum context length",
        "longer than the maximum model length",
        "exceeds maximum input length",
        "exceeds the maximum sequence length",
        "should not exceed max_num_tokens",
        "should not exceed max_seq_len",
    ),
    # Triton answers 400 while it is not ready, KServe 503.
    readiness=ReadinessProbe("/v2/health/ready", refusal_statuses=(400, 503)),
    serves_grpc=True,
)
