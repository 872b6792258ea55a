"""The adapter of every engine before one simulated engine: requests are served, streamed, counted and refused alike."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Answer, Gateway, Served, chat, completion, gateway, post, whole
from tests.gateway.test_open_inference import text
from tests.simulator.running import Running, simulator
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.usage import Outcome, UsageSource
from tollway.engines.table import ENGINES, list_missing
from tollway.gateway.relay import RelayBounds

TOKENS = 5
COUNTED = {"return_num_input_tokens": True, "return_num_output_tokens": True}


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with simulator(tmp_path_factory.mktemp("simulator") / "truth.jsonl") as running:
        yield running


@asynccontextmanager
async def before(engine: Engine, sim: Running) -> AsyncIterator[Gateway]:
    """A gateway with two models of this engine: one that answers, and one that refuses."""
    models = {fault or "m": Served([sim.url], engine=engine, upstream_model="sim-echo" + fault) for fault in ("", "!status@400")}
    async with gateway(models, bounds=RelayBounds(first_token_seconds=5.0)) as running:
        yield running


async def ask(running: Gateway, engine: Engine, model: str = "m", **more: Any) -> Answer:
    """Ask at the API that the engine has."""
    if engine is Engine.KSERVE:
        return await post(running.port, text("Say something.", max_tokens=TOKENS, **COUNTED), f"/v2/models/{model}/infer")
    path = "/v1/messages" if engine is Engine.ANTHROPIC else "/v1/chat/completions"
    return await post(running.port, chat(model, max_tokens=TOKENS) | more, path)


@pytest.mark.parametrize("engine", ENGINES)
async def test_adapter_serves_streams_and_counts(engine: Engine, sim: Running) -> None:
    async with before(engine, sim) as running:
        for stream in (False, True):
            answer = await ask(running, engine, stream=stream)
            assert answer.status == 200, answer.body
            final = await running.sink.settled(1 + stream)
            assert (final.outcome, final.source) == (Outcome.COMPLETED, UsageSource.ENGINE_FINAL)
            assert 0 < final.used.output <= TOKENS and final.used.input + final.used.cached_input > 0
        refused = await ask(running, engine, "!status@400")
        assert refused.status == 400, refused.body
        assert (await ask(running, engine)).status == 200, "a refused request is no fault of the engine"


@pytest.mark.parametrize("engine", ENGINES)
async def test_engine_is_shown_its_credential_as_it_wants_it_and_nothing_of_the_clients(engine: Engine) -> None:
    upstream = Upstream([whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=engine, credential=b"of-the-engine")}) as running:
        await ask(running, engine)
        (asked,) = upstream.asked
    head = asked.head.lower()
    if engine is Engine.ANTHROPIC:
        assert b"\r\nx-api-key: of-the-engine\r\n" in head and head.count(b"anthropic-version: 2023-06-01\r\n") == 1
        assert b"authorization" not in head
    else:
        assert b"\r\nauthorization: bearer of-the-engine\r\n" in head and b"anthropic-version" not in head


@pytest.mark.parametrize("engine", ENGINES)
def test_adapter_says_which_endpoints_it_lacks(engine: Engine) -> None:
    missing = list_missing(engine, list(Endpoint), [Endpoint.MESSAGES])
    if engine is Engine.ANTHROPIC:
        assert Endpoint.MESSAGES not in missing and Endpoint.CHAT_COMPLETIONS in missing
    elif engine is Engine.KSERVE:
        assert set(missing) == set(Endpoint) - {Endpoint.INFER}
    elif engine is Engine.TRITON:
        assert not {Endpoint.CHAT_COMPLETIONS, Endpoint.MESSAGES, Endpoint.RESPONSES} & set(missing) and Endpoint.RERANK in missing
    else:
        assert not missing
