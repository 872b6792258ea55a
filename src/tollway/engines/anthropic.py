"""Anything that speaks Anthropic's Messages API alone and of which nothing more is known. It publishes no counters, so it is not
reconciled.

Chat completions are not translated into messages: a model that offers them needs another engine.
"""

from tollway.domain.catalog import Endpoint, Engine
from tollway.engines.profile import EngineProfile

PROFILE = EngineProfile(
    engine=Engine.ANTHROPIC,
    endpoints=frozenset({Endpoint.MESSAGES}),
    # https://docs.anthropic.com/en/api/versioning: a client's own version and betas are passed on in their place.
    credential_header="x-api-key: {credential}",
    headers=((b"anthropic-version", b"2023-06-01"),),
    context_words=("prompt is too long", "exceed context limit"),
)
