"""The engines, one row each. A new engine is a file, a member of `domain.catalog.Engine`, and a row here."""

from tollway.domain.catalog import Engine
from tollway.engines import dynamo, llamacpp, openai, sglang, sim, trtllm, vllm
from tollway.engines.profile import EngineProfile

ENGINES: dict[Engine, EngineProfile] = {
    profile.engine: profile
    for profile in (
        vllm.PROFILE,
        sglang.PROFILE,
        dynamo.PROFILE,
        trtllm.PROFILE,
        llamacpp.PROFILE,
        openai.PROFILE,
        sim.PROFILE,
    )
}
