"""Anything that speaks OpenAI's API and of which nothing more is known. It publishes no counters, so it is not reconciled."""

from tollway.domain.catalog import Engine
from tollway.engines.profile import EngineProfile

PROFILE = EngineProfile(engine=Engine.OPENAI, context_words=("maximum context length", "context size"))
