"""The engines, one row each. A new engine is a file, a member of `domain.catalog.Engine`, and a row here."""

from collections.abc import Iterable

from tollway.domain.catalog import COUNTED_ENDPOINTS, NOT_GENERATING, CacheIsolation, Deployment, Endpoint, Engine
from tollway.engines import anthropic, dynamo, kserve, llamacpp, openai, sglang, sim, triton, trtllm, vllm
from tollway.engines.profile import EngineProfile

ENGINES: dict[Engine, EngineProfile] = {
    profile.engine: profile
    for profile in (
        vllm.PROFILE,
        sglang.PROFILE,
        dynamo.PROFILE,
        trtllm.PROFILE,
        triton.PROFILE,
        kserve.PROFILE,
        llamacpp.PROFILE,
        openai.PROFILE,
        anthropic.PROFILE,
        sim.PROFILE,
    )
}


def is_translated(deployment: Deployment, endpoint: Endpoint) -> bool:
    """Return whether requests to an endpoint are translated for a deployment, which has not got it: to chat completions, as
    compaction always is, or to tokenize where the endpoint counts tokens."""
    engine = ENGINES[deployment.engine]
    if endpoint is Endpoint.COMPACT:
        return True
    counted = COUNTED_ENDPOINTS.get(endpoint)
    if counted is not None:
        return endpoint not in engine.counting_endpoints or is_translated(deployment, counted)
    return endpoint in deployment.translated_endpoints or endpoint in engine.translated_endpoints


def list_missing(engine: Engine, endpoints: Iterable[Endpoint], translated: Iterable[Endpoint]) -> list[Endpoint]:
    """Return those of `endpoints` that a deployment could not serve, neither itself nor by translation to chat completions. `translated`:
    those that the deployment has translated, besides those that its engine never has."""
    has = ENGINES[engine].endpoints
    if has is None:
        return []
    as_chat = ENGINES[engine].translated_endpoints.union(translated) if Endpoint.CHAT_COMPLETIONS in has else frozenset[Endpoint]()
    return sorted(each for each in endpoints if each not in has and each not in as_chat)


def can_compact(deployment: Deployment) -> bool:
    """Return whether a deployment can have a conversation summarized, by a chat completion."""
    has = ENGINES[deployment.engine].endpoints
    return has is None or Endpoint.CHAT_COMPLETIONS in has


def can_count(deployment: Deployment, endpoint: Endpoint) -> bool:
    """Return whether a deployment can count the tokens of requests, at an endpoint of `COUNTED_ENDPOINTS`."""
    return ENGINES[deployment.engine].tokenizes_messages or not is_translated(deployment, endpoint)


_SYSTEM_PROMPT_ENDPOINTS = frozenset({Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES, Endpoint.COUNT_TOKENS, Endpoint.RESPONSES})


def list_shared_caches(
    engine: Engine, isolation: CacheIsolation, endpoints: Iterable[Endpoint], translated: Iterable[Endpoint]
) -> list[Endpoint]:
    """Return the endpoints at which organizations share the prefix cache of a deployment without anybody having decided so. `translated`:
    those that the deployment itself has translated to chat completions, besides those that its engine never has."""
    if isolation in (CacheIsolation.DEDICATED, CacheIsolation.ACCEPTED):
        return []
    separated = ENGINES[engine].salted_endpoints | NOT_GENERATING
    if isolation is CacheIsolation.PROMPT:
        separated |= _SYSTEM_PROMPT_ENDPOINTS
    as_chat = ENGINES[engine].translated_endpoints.union(translated, (Endpoint.COMPACT,))
    return sorted({each for each in endpoints if (Endpoint.CHAT_COMPLETIONS if each in as_chat else each) not in separated})
