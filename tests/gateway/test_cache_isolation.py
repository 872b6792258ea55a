"""Separation of organizations in an engine's prefix cache: by the engine's own salt, or by a salt at the beginning of the system prompt."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import CHAT, COMPLETIONS, Served, chat, completion, gateway, post, whole
from tollway.domain.catalog import CacheIsolation, Endpoint, Engine
from tollway.engines.table import ENGINES, list_shared_caches

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
USER = {"role": "user", "content": "Hello"}
ANSWER = completion() | {"type": "message", "content": [], "output": []}


async def send(body: dict[str, Any], path: str, engine: Engine, isolation: CacheIsolation) -> dict[str, Any]:
    """Return the body that an engine gets."""
    async with Upstream([whole(ANSWER)]).listening() as upstream:
        async with gateway({"m": Served([upstream.url], engine=engine, cache_isolation=isolation)}) as running:
            answer = await post(running.port, body, path)
            assert answer.status == 200
        (asked,) = upstream.asked
    sent: dict[str, Any] = msgspec.json.decode(asked.body)
    return sent


SALTED = [
    (Engine.VLLM, CHAT, True),
    (Engine.VLLM, MESSAGES, True),
    (Engine.SGLANG, CHAT, True),
    (Engine.SGLANG, MESSAGES, False),
    (Engine.VLLM, RESPONSES, True),
    (Engine.SGLANG, RESPONSES, True),
    (Engine.TRTLLM, RESPONSES, False),
    (Engine.TRTLLM, CHAT, True),
    (Engine.DYNAMO, CHAT, False),
    (Engine.LLAMACPP, CHAT, False),
]


@pytest.mark.parametrize(("engine", "path", "salted"), SALTED)
async def test_56_salt_goes_to_the_endpoints_at_which_the_engine_separates_by_it(engine: Engine, path: str, salted: bool) -> None:
    prompt = {"input": [USER]} if path == RESPONSES else {"messages": [USER], "max_tokens": 5}
    sent = await send({"model": "m"} | prompt, path, engine, CacheIsolation.ENGINE)
    assert ("cache_salt" in sent) is salted and prompt.items() <= sent.items()


SYSTEM = {"role": "system", "content": "Be brief."}
PROMPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat without a system message": (CHAT, {"messages": [USER]}),
    "chat with a system message": (CHAT, {"messages": [SYSTEM, USER]}),
    "chat with a developer message": (CHAT, {"messages": [SYSTEM | {"role": "developer"}, USER]}),
    "chat with system parts": (CHAT, {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER]}),
    "chat with an empty system list": (CHAT, {"messages": [{"role": "system", "content": []}, USER]}),
    "messages without a system prompt": (MESSAGES, {"messages": [USER], "max_tokens": 5}),
    "messages with a system prompt": (MESSAGES, {"messages": [USER], "max_tokens": 5, "system": 'Say "é".\n'}),
    "responses without instructions": (RESPONSES, {"input": "Hello"}),
    "responses with instructions": (RESPONSES, {"input": "Hello", "instructions": "Be brief."}),
    "messages with system parts": (MESSAGES, {"messages": [USER], "max_tokens": 5, "system": [{"type": "text", "text": "Be brief."}]}),
}


def find_prompt(body: dict[str, Any]) -> str:
    """Return the text that a model reads first."""
    content = body.get("system") or body.get("instructions") or body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize("case", PROMPTS)
async def test_56_prompt_isolation_begins_the_prompt_with_the_organization_salt(case: str) -> None:
    path, body = PROMPTS[case]
    sent = await send({"model": "m"} | body, path, Engine.LLAMACPP, CacheIsolation.PROMPT)
    salt, _, rest = find_prompt(sent).partition("\n")
    assert len(salt) == 32 and set(salt) <= set("0123456789abcdef")
    has_system = "system" in body or "instructions" in body or body.get("messages", [USER])[0]["role"] != "user"
    assert rest == (find_prompt(body) if has_system else "")
    assert "cache_salt" not in sent and sent.get("input") == body.get("input")
    if "messages" in body:
        assert sent["messages"][-1] == USER
        assert len(sent["messages"]) == len(body["messages"]) + (path == CHAT and not has_system)


@pytest.mark.parametrize("isolation", [CacheIsolation.ENGINE, CacheIsolation.DEDICATED, CacheIsolation.ACCEPTED])
async def test_prompt_is_left_alone_unless_the_operator_wants_it_salted(isolation: CacheIsolation) -> None:
    assert (await send(chat(), CHAT, Engine.LLAMACPP, isolation)) == chat()


async def test_prompt_is_left_alone_where_the_engine_separates_by_its_own_salt() -> None:
    sent = await send(chat(), CHAT, Engine.VLLM, CacheIsolation.PROMPT)
    assert sent["messages"] == chat()["messages"] and "cache_salt" in sent


async def test_prompt_of_completions_is_never_changed() -> None:
    answer = {"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    async with Upstream([whole(answer)]).listening() as upstream:
        served = Served([upstream.url], engine=Engine.LLAMACPP, cache_isolation=CacheIsolation.PROMPT)
        async with gateway({"m": served}) as running:
            assert (await post(running.port, {"model": "m", "prompt": "a"}, COMPLETIONS)).status == 200
        assert msgspec.json.decode(upstream.asked[0].body)["prompt"] == "a"


@pytest.mark.parametrize("engine", Engine)
def test_every_endpoint_whose_cache_is_shared_is_listed(engine: Engine) -> None:
    as_chat = {Endpoint.CHAT_COMPLETIONS, Endpoint.COMPACT, Endpoint.MESSAGES, Endpoint.RESPONSES}
    others = {Endpoint.COMPLETIONS, Endpoint.INFER, Endpoint.REALTIME}
    profile = ENGINES[engine]
    salted = set(profile.salted_endpoints)
    salted |= {Endpoint.COMPACT, *profile.translated_endpoints} if Endpoint.CHAT_COMPLETIONS in salted else set()
    assert list_shared_caches(engine, CacheIsolation.ENGINE, Endpoint, []) == sorted((as_chat | others) - salted)
    assert list_shared_caches(engine, CacheIsolation.PROMPT, Endpoint, []) == sorted(others - salted)
    assert list_shared_caches(engine, CacheIsolation.DEDICATED, Endpoint, []) == []
    assert list_shared_caches(engine, CacheIsolation.ACCEPTED, Endpoint, []) == []


def test_translated_endpoint_is_separated_as_chat_completions_are() -> None:
    given = [Endpoint.MESSAGES, Endpoint.RESPONSES]
    assert list_shared_caches(Engine.TRTLLM, CacheIsolation.ENGINE, given, []) == [Endpoint.RESPONSES]
    assert list_shared_caches(Engine.TRTLLM, CacheIsolation.ENGINE, given, [Endpoint.RESPONSES]) == []
    assert list_shared_caches(Engine.SGLANG, CacheIsolation.ENGINE, given, []) == [Endpoint.MESSAGES]
    assert list_shared_caches(Engine.SGLANG, CacheIsolation.ENGINE, given, [Endpoint.MESSAGES]) == []
    assert list_shared_caches(Engine.LLAMACPP, CacheIsolation.ENGINE, given, given) == given
