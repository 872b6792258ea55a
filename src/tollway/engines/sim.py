"""Tollway's own simulator, which behaves like vLLM."""

import msgspec

from tollway.domain.catalog import Engine
from tollway.engines import vllm

PROFILE = msgspec.structs.replace(vllm.PROFILE, engine=Engine.SIM)
