"""Keys that may be used for some endpoints, from some addresses, or for short outputs only."""

from typing import Any

import msgspec
import pytest

from tests.fakes import Upstream
from tests.gateway.harness import KEY, OTHER_KEY, PEPPER, PROJECT, Gateway, Served, chat, completion, connect, gateway, message, post, whole
from tests.gateway.test_test_keys import change
from tollway.domain import keys
from tollway.domain.catalog import Endpoint
from tollway.domain.keys import KeyType
from tollway.domain.snapshot import KeyEntry
from tollway.gateway.edge.edge_policy import EdgePolicy, parse_networks

BOUNDED = KeyEntry(id=f"key_{1:032x}", digest=keys.digest(PEPPER, OTHER_KEY.encode()), type=KeyType.LIVE, project_id=PROJECT)


def bound(running: Gateway, **bounds: Any) -> None:
    change(running, msgspec.structs.replace(BOUNDED, **bounds))


async def ask(
    running: Gateway, body: Any = None, path: str = "/v1/chat/completions", key: str = OTHER_KEY, **headers: str
) -> tuple[int, str]:
    answer = await post(running.port, chat() if body is None else body, path, key=key, **headers)
    return answer.status, "" if answer.status == 200 else str(msgspec.json.decode(answer.body)["error"].get("code"))


async def test_key_with_endpoints_is_refused_at_the_others_before_its_body_is_read() -> None:
    async with Upstream([whole(completion("a"))]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        bound(running, endpoints=(Endpoint.EMBEDDINGS,))
        assert await ask(running) == (403, "insufficient_scope")
        assert await ask(running, {"not": "a chat"}) == (403, "insufficient_scope")
        assert await ask(running, chat(pad="x" * 2_000_000)) == (403, "insufficient_scope"), "a large body as well"
        assert await ask(running, path="/v1/quote") == (403, "insufficient_scope"), "and a quote"
        assert await ask(running, key=KEY) == (200, ""), "another key of the project is not bound"
        bound(running, endpoints=(Endpoint.EMBEDDINGS, Endpoint.CHAT_COMPLETIONS))
        assert await ask(running) == (200, "")


async def test_key_for_messages_may_count_their_tokens() -> None:
    async with gateway({"m": Served([])}) as running:
        bound(running, endpoints=(Endpoint.MESSAGES,))
        body = {"model": "nothing", "messages": [{"role": "user", "content": "a"}]}
        assert (await ask(running, body, "/v1/messages/count_tokens"))[0] == 404
        bound(running, endpoints=(Endpoint.CHAT_COMPLETIONS,))
        assert (await ask(running, body, "/v1/messages/count_tokens"))[0] == 403


@pytest.mark.parametrize("range", ["127.0.0.0/8", "127.0.0.1/32"])
async def test_key_with_addresses_is_accepted_from_these_and_refused_from_others(range: str) -> None:
    async with Upstream([whole(completion("a"))]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        bound(running, addresses=(range,))
        assert await ask(running, x_forwarded_for="203.0.113.9") == (200, ""), "nobody's word is taken"
        bound(running, addresses=("203.0.113.0/24", "2001:db8::/32"))
        assert await ask(running, x_forwarded_for="203.0.113.9") == (403, "address_not_allowed")


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("203.0.113.9", 200),
        ("::ffff:203.0.113.9", 200),
        ("198.51.100.1, 203.0.113.9", 200),
        ("203.0.113.9, 10.0.0.3", 200),
        ("203.0.113.9, 198.51.100.1", 403),
        ("203.0.113.9, nonsense", 403),
        ("198.51.100.1", 403),
        ("", 403),
    ],
)
async def test_address_behind_a_trusted_proxy_is_the_right_most_that_is_not_trusted(forwarded: str, status: int) -> None:
    rules = EdgePolicy(trusted=parse_networks(["127.0.0.1", "10.0.0.0/8"]), forwarded_for=True)
    async with Upstream([whole(completion("a"))]).listening() as upstream, gateway({"m": Served([upstream.url])}, rules=rules) as running:
        bound(running, addresses=("203.0.113.0/24",))
        assert (await ask(running, x_forwarded_for=forwarded))[0] == status


async def test_address_is_checked_again_when_the_key_changes_on_a_kept_connection() -> None:
    async with Upstream([whole(completion("a"))]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        bound(running, addresses=("127.0.0.1",))
        async with connect(running.port) as client:
            for address, status in (("127.0.0.1", 200), ("203.0.113.9", 403)):
                bound(running, addresses=(address,))
                client.send(message(chat(), key=OTHER_KEY))
                assert (await client.answer()).status == status


async def test_output_cap_of_a_key_refuses_larger_wishes_and_is_set_where_none_is_made() -> None:
    async with Upstream([whole(completion("a"))]).listening() as upstream, gateway({"m": Served([upstream.url])}) as running:
        bound(running, output_tokens_max=50)
        assert await ask(running, chat(max_tokens=51)) == (400, "invalid_value")
        assert await ask(running) == (200, "")
        assert await ask(running, key=KEY) == (200, "")
        sent = [msgspec.json.decode(each.body) for each in upstream.asked]
        assert [body.get("max_completion_tokens", body.get("max_tokens")) for body in sent] == [50, None]
