"""Events of a real engine's prefix cache, followed by the gateway from the request that fills it to the choice by it."""

import asyncio

import pytest

from tests.engines.engine_processes import run_vllm
from tests.fakes import until
from tests.gateway.harness import NOWHERE, Served, chat, gateway, post
from tollway.domain.catalog import Engine
from tollway.gateway.prefix_routing import HeldPrefixes
from tollway.gateway.upstreams import cache_events

pytestmark = pytest.mark.engines


async def test_prompt_is_known_to_be_held_by_vllm_once_it_was_computed_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    with run_vllm(tmp_path_factory.mktemp("vllm")) as engine:
        served = Served([engine.url, NOWHERE], engine=Engine.VLLM, upstream_model=engine.model, one_tier=True)
        async with gateway({"m": served}) as running:
            upstreams = running.plane.upstreams
            held = upstreams.held = HeldPrefixes()
            following = asyncio.ensure_future(cache_events.run(upstreams.list_alternatives, held, running.plane.random))
            (there,) = [each for each in upstreams.of("m") if each.deployment.base_url == engine.url]
            body = chat(max_tokens=2) | {"messages": [{"role": "user", "content": "The toll road goes on and on. " * 50}]}
            assert (await post(running.port, body)).status == 200
            await until(lambda: there.load.is_followed and len(held) > 0)
            answers = [await post(running.port, body) for _ in range(3)]
            assert all(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0 for answer in answers)
            assert there.load.is_followed
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
