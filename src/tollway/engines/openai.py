"""Anything that speaks OpenAI's API and of which nothing more is known. It publishes no counters, so it is not reconciled.

Most servers of this API have the sampling fields and the template's arguments; one that has not answers 400 itself, and its words are
shown.
"""

from tollway.domain.catalog import Endpoint, Engine
from tollway.engines.profile import SAMPLING_FIELDS, EngineProfile

PROFILE = EngineProfile(
    engine=Engine.OPENAI,
    counting_endpoints=frozenset({Endpoint.COUNT_TOKENS, Endpoint.INPUT_TOKENS}),
    fields=SAMPLING_FIELDS | {"chat_template_kwargs"},
    context_words=("maximum context length", "model's context length", "context size"),
)
