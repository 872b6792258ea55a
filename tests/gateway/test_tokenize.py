"""Tokenizing and its reverse: relayed to the path that the engine has, limited like every request, and billed nothing."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import NOWHERE, OTHER_KEY, Gateway, Served, gateway, post, whole
from tests.gateway.test_bounded_keys import bound
from tests.gateway.test_test_keys import change
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.limits import Limits
from tollway.domain.usage import Outcome, billed

TEXT: dict[str, Any] = {"model": "m", "prompt": "a toll", "return_token_strs": True}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a toll"}], "add_generation_prompt": True}
BACK: dict[str, Any] = {"model": "m", "tokens": [1, 2]}
TOKENS = {"count": 2, "max_model_len": 4096, "tokens": [1, 2], "token_strs": ["a", " toll"]}
PROMPT = {"prompt": "a toll"}

CASES = [
    ("/v1/tokenize", TEXT, TOKENS),
    ("/tokenize", TEXT, TOKENS),
    ("/v1/tokenize", CHAT, TOKENS),
    ("/v1/detokenize", BACK, PROMPT),
    ("/detokenize", BACK, PROMPT),
]


@pytest.mark.parametrize(("path", "asked", "answered"), CASES)
@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.SGLANG])
async def test_answer_is_relayed_as_it_is_and_bills_nothing(engine: Engine, path: str, asked: Any, answered: Any) -> None:
    upstream = Upstream([whole(answered)])
    async with upstream.listening(), gateway({"m": Served([upstream.url], engine=engine, upstream_model="own")}) as running:
        answer = await post(running.port, asked, path)
        final = await running.sink.settled()
        assert running.plane.metrics.anomalies == {}
    assert answer.json() == answered
    name = path.removeprefix("/v1")
    assert upstream.asked[0].head.split(b" ")[1].decode() == (name if engine is Engine.VLLM else f"/v1{name}")
    sent = msgspec.json.decode(upstream.asked[0].body)
    assert {field: value for field, value in sent.items() if field != "cache_salt"} == asked | {"model": "own"}
    assert (final.outcome, final.admit.endpoint, final.used) == (Outcome.COMPLETED, name[1:], Quantities())
    assert billed(final) == NOTHING


@pytest.mark.parametrize("answered", [{"error": {"message": "x", "code": 500}}, {"object": "error", "message": "x"}, {}, [1, 2]])
async def test_answer_without_tokens_is_a_fault_of_the_engine(answered: Any) -> None:
    async with Upstream([whole(answered)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, TEXT, "/v1/tokenize")).status == 502


async def test_body_with_neither_prompt_nor_messages_is_refused_by_the_engine() -> None:
    refusal = whole({"error": {"message": "Field required", "code": 400}}, 400)
    async with Upstream([refusal]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        assert (await post(running.port, {"model": "m"}, "/v1/tokenize")).status == 400


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/tokenize", TEXT | {"prompt": ["a"]}, "prompt"),
    ("/v1/tokenize", TEXT | {"chat_template": "{{x}}"}, "chat_template"),
    ("/v1/tokenize", TEXT | {"n": 2}, "n"),
    ("/v1/detokenize", BACK | {"tokens": [-1]}, "tokens"),
    ("/v1/detokenize", BACK | {"tokens": [True]}, "tokens"),
    ("/v1/detokenize", BACK | {"tokens": "a"}, "tokens"),
    ("/detokenize", {"model": "m"}, "tokens"),
]


@pytest.mark.parametrize(("path", "asked", "param"), WRONG)
async def test_wrong_value_is_refused_by_name(path: str, asked: Any, param: str) -> None:
    async with gateway({"m": Served([NOWHERE])}) as running:
        answer = await post(running.port, asked, path)
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_links_in_tokenized_messages_are_held_to_the_rules_of_chat() -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}]
    async with gateway({"m": Served([NOWHERE])}) as running:
        answer = await post(running.port, {"model": "m", "messages": [{"role": "user", "content": content}]}, "/tokenize")
    assert answer.status == 400


async def test_limits_hold_for_tokenizing() -> None:
    upstream = Upstream([whole(TOKENS)])
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, limits=Limits(requests_per_minute=1)) as running:
        assert [(await post(running.port, TEXT, "/tokenize")).status for _ in range(2)] == [200, 429]


def _offer(running: Gateway, *endpoints: Endpoint) -> None:
    (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
    change(running, msgspec.structs.replace(model, endpoints=endpoints))


async def test_model_or_key_that_offers_tokenize_offers_detokenize_too() -> None:
    async with Upstream([whole(TOKENS)], [whole(PROMPT)]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:

        async def ask() -> list[int]:
            asked = (("/v1/tokenize", TEXT), ("/v1/detokenize", BACK))
            return [(await post(running.port, body, path, key=OTHER_KEY)).status for path, body in asked]

        _offer(running, Endpoint.CHAT_COMPLETIONS)
        assert await ask() == [400, 400], "endpoint_not_supported"
        _offer(running, Endpoint.TOKENIZE)
        bound(running, endpoints=(Endpoint.CHAT_COMPLETIONS,))
        assert await ask() == [403, 403]
        bound(running, endpoints=(Endpoint.TOKENIZE,))
        assert await ask() == [200, 200]
