"""Tollway's own simulator, which behaves like vLLM, and like a server of the Open Inference Protocol."""

import msgspec

from tollway.domain.catalog import Engine
from tollway.engines import vllm

PROFILE = msgspec.structs.replace(vllm.PROFILE, engine=Engine.SIM, serves_grpc=True)
