"""The adapter of every engine before one simulated engine: requests are served, streamed, counted and refused alike."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import Answer, Gateway, Served, chat, completion, gateway, post, whole
from tests.gateway.test_open_inference import text
from tests.simulator.running import Running, simulator
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.usage import Outcome, ServiceTier, UsageSource
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


class Contract(NamedTuple):
    """Facts of an engine as it is asked on the wire. `probe`: target by which it says whether it takes requests, None where it has none.
    `refusals`: statuses with which it says no. `load`: target of its page with what waits; `in_tokens`: it counts prompt tokens.
    `is_continuous`: it reports usage in each event where it is asked to. `is_salted`: chat completions carry a salt of the organization.
    `sign`: of the priority that the tier `priority` gets, 0 for none. `words`: an error by which it says that a prompt is too long."""

    probe: str | None
    refusals: tuple[bytes, ...]
    load: str | None
    in_tokens: bool
    is_continuous: bool
    is_salted: bool
    sign: int
    words: str


NO = (b"503",)
TOO_LONG = "This model's maximum context length is 8 tokens."
CONTRACTS = {
    Engine.VLLM: Contract("/health", NO, "/metrics", False, True, True, -1, TOO_LONG),
    Engine.SGLANG: Contract("/ready", NO, "/v1/loads?include=core", True, True, True, 1, "9 is longer than the model's context length"),
    Engine.DYNAMO: Contract("/v1/models/m/ready", NO, "/metrics", True, True, False, 0, TOO_LONG),
    Engine.TRTLLM: Contract("/health", NO, "/prometheus/metrics", False, False, True, 0, TOO_LONG),
    Engine.TRITON: Contract("/health/ready", (b"400",), "/metrics", False, False, False, 0, TOO_LONG),
    Engine.KSERVE: Contract("/v2/health/ready", (b"400", b"503"), None, False, False, False, 0, TOO_LONG),
    Engine.LLAMACPP: Contract("/health", NO, "/metrics", False, False, False, 0, "9 exceeds the available context size"),
    Engine.OPENAI: Contract(None, (), None, False, False, False, 0, TOO_LONG),
    Engine.ANTHROPIC: Contract(None, (), None, False, False, False, 0, "prompt is too long: 9 tokens > 8 maximum"),
    Engine.SIM: Contract("/health", NO, "/metrics", False, True, True, -1, TOO_LONG),
}


@pytest.mark.parametrize("engine", ENGINES)
async def test_engine_is_asked_as_its_contract_says_and_its_words_are_understood(engine: Engine) -> None:
    contract, profile = CONTRACTS[engine], ENGINES[engine]
    refused = whole({"error": {"message": contract.words, "type": "invalid_request_error", "code": 400}}, status=400)
    busy, other = Upstream([refused], [whole({"error": "busy"}, status=503)]), Upstream([whole(completion())])
    async with busy.listening(), other.listening():
        served = Served([busy.url, other.url], engine=engine, upstream_model="m", priorities=bool(contract.sign))
        async with gateway({"m": served}) as running:
            first, _ = running.plane.upstreams.of("m")
            for query, target in ((first.probe, contract.probe), (first.load_query and first.load_query.request, contract.load)):
                assert (query and query.head.split(b" ", 2)[1].decode()) == target
            assert first.probe is None or first.probe.refusals == contract.refusals
            assert profile.load is None or profile.load.in_tokens is contract.in_tokens
            refusal = await ask(running, engine, stream=True)
            assert refusal.status == 400 and len(other.asked) == 0, "what is too long is too long everywhere"
            if engine is not Engine.KSERVE:  # whose error is a text
                assert contract.words in refusal.body.decode() and (engine is Engine.ANTHROPIC or b"context_length" in refusal.body)
            await ask(running, engine, stream=True)
            assert (len(busy.asked), len(other.asked)) == (2, 1), "what is too much for one engine is asked of another"
    body = msgspec.json.decode(busy.asked[0].body)
    assert bool(body.get("stream_options", {}).get("continuous_usage_stats")) is contract.is_continuous
    assert ("cache_salt" in body) is contract.is_salted
    told = profile.priorities or {}
    assert (told.get(ServiceTier.PRIORITY, 0) > 0) - (told.get(ServiceTier.PRIORITY, 0) < 0) == contract.sign


def test_every_engine_has_a_contract() -> None:
    assert CONTRACTS.keys() == ENGINES.keys()
