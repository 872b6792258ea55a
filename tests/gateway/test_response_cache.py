"""The exact cache of responses: who gets an answer again, from what, at which price, and that nobody gets one of others."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import Do, Upstream
from tests.gateway.harness import (
    DONE,
    END,
    KEY,
    ORGANIZATION,
    OTHER_KEY,
    PEPPER,
    STREAM_HEAD,
    Answer,
    Gateway,
    Served,
    chat,
    chunk,
    completion,
    gateway,
    part,
    post,
    usage_chunk,
    whole,
)
from tests.gateway.test_audio import ASKED as TRANSCRIBED
from tests.gateway.test_audio import FORM
from tests.gateway.test_test_keys import change
from tollway.domain import keys
from tollway.domain.answers import StoredAnswer
from tollway.domain.billing_classes import NOTHING
from tollway.domain.catalog import Endpoint
from tollway.domain.keys import KeyType
from tollway.domain.limits import Limits
from tollway.domain.snapshot import Change, KeyEntry, ProjectEntry
from tollway.domain.usage import Outcome, billed
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.response_cache import EXPIRED_MAX, CacheBounds, ResponseCache, find_key

ASKS = {"cache_control": "max-age=60"}
STREAM = [
    STREAM_HEAD,
    part(chunk("Hel", role="assistant")),
    part(chunk("lo")),
    part(chunk(finish="stop")),
    part(usage_chunk(5, 2)),
    part(DONE),
    END,
]


@asynccontextmanager
async def serve(upstream: Upstream, seconds: int = 3600, **more: Any) -> AsyncIterator[Gateway]:
    """A gateway with a cache, for a model that has it for so long."""
    async with upstream.listening(), gateway({"m": Served([upstream.url])}, **more) as running:
        running.plane.response_cache = ResponseCache(CacheBounds())
        offer(running, response_cache_seconds=seconds)
        yield running


def offer(running: Gateway, **more: Any) -> None:
    (model,) = (each for each in running.plane.directory.list_models() if each.id == "m")
    change(running, msgspec.structs.replace(model, **more))


async def ask(running: Gateway, body: dict[str, Any] | None = None, *, headers: dict[str, str] | None = None, key: str = KEY) -> Answer:
    return await post(running.port, body or chat(), key=key, **(ASKS if headers is None else headers))


def cached(answer: Answer) -> str | None:
    assert answer.status == 200, answer.body
    return answer.headers.get("x-tollway-cache")


async def test_same_request_is_answered_once_by_the_engine_and_each_answer_has_one_event() -> None:
    upstream = Upstream([whole(completion("Hello"))])
    async with serve(upstream) as running:
        first, second = [await ask(running, chat(temperature=0.5)) for _ in range(2)]
        reordered = dict(reversed(chat(temperature=0.5).items()))
        third = await ask(running, reordered, key=OTHER_KEY)
        assert [cached(each) for each in (first, second, third)] == ["miss", "hit", "hit"]
        assert first.body == second.body == third.body and second.headers["age"] == "0"
        assert len({each.headers["x-request-id"] for each in (first, second, third)}) == 3
        await running.sink.settled(3)
        one, *others = running.sink.finals
        assert one.used != NOTHING and len(upstream.asked) == 1
        for final in others:
            assert (final.outcome, final.used, final.attempts, final.deployment_id) == (Outcome.COMPLETED, NOTHING, 0, None)
            assert billed(final).request == 1, "the price per request"


async def test_stream_is_given_again_as_a_stream() -> None:
    async with serve(Upstream(STREAM)) as running:
        asked = chat(stream=True)
        first, second = [await ask(running, asked) for _ in range(2)]
        assert (cached(first), cached(second)) == ("miss", "hit")
        assert first.events() == second.events() and second.headers["content-type"].startswith("text/event-stream")
        headers = {"cache-control": "max-age=60"}
        client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0, default_headers=headers)
        async with client:
            chunks = [each async for each in await client.chat.completions.create(**asked)]
        assert "".join(each.choices[0].delta.content or "" for each in chunks) == "Hello"


@pytest.mark.parametrize("header", [None, "no-cache", "no-store", "max-age=0", "max-age=60, no-store", "max-age=x", "public"])
async def test_request_that_does_not_ask_for_it_is_served_by_the_engine(header: str | None) -> None:
    async with serve(Upstream(*[[whole(completion(text))] for text in "abc"])) as running:
        await ask(running)
        answer = await ask(running, headers={} if header is None else {"cache_control": header})
        assert cached(answer) is None and answer.json()["choices"][0]["message"]["content"] == "b"


async def test_model_without_it_and_another_body_key_and_age_are_served_by_the_engine() -> None:
    async with serve(Upstream(*[[whole(completion(text))] for text in "abcdefg"])) as running:
        assert cached(await ask(running)) == "miss"
        assert cached(await ask(running, chat(seed=1))) == "miss"

        offer(running, output_tokens_max=77)
        assert cached(await ask(running)) == "miss", "another revision of the model"
        change(running, ProjectEntry(id="proj_2", organization_id=ORGANIZATION))
        digest = keys.digest(PEPPER, OTHER_KEY.encode())
        change(running, KeyEntry(id="key_2", digest=digest, type=KeyType.LIVE, project_id="proj_2"))
        assert cached(await ask(running, key=OTHER_KEY)) == "miss", "another project"
        offer(running, response_cache_seconds=0)
        assert cached(await ask(running)) is None


async def test_answer_whose_output_a_price_bounds_is_not_given_to_a_request_without_that_bound() -> None:
    async with serve(Upstream(*[[whole(completion(text))] for text in "abc"])) as running:
        asked = chat(max_tokens=10**6)
        bounded = ASKS | {"x_max_cost": "0.000001"}
        answers = [await ask(running, asked, headers=headers) for headers in (bounded, ASKS, bounded, ASKS)]
        assert [cached(each) for each in answers] == ["miss", "miss", "hit", "hit"]
        assert [each.json()["choices"][0]["message"]["content"] for each in answers] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("way", [[whole({"error": {"message": "no", "code": 400}}, 400)], [*STREAM[:3], Do.RST]])
async def test_answer_that_failed_or_was_cut_is_not_stored(way: Any) -> None:
    stream = way[0] is STREAM_HEAD
    async with serve(Upstream(way, STREAM if stream else [whole(completion("b"))])) as running:
        await ask(running, chat(stream=stream))
        assert cached(await ask(running, chat(stream=stream))) == "miss"


async def test_hit_counts_as_a_request_in_the_limits() -> None:
    async with serve(Upstream([whole(completion("a"))]), limits=Limits(requests_per_minute=2)) as running:
        assert [(await ask(running)).status for _ in range(3)] == [200, 200, 429]


async def test_revoked_key_gets_nothing_from_the_cache() -> None:
    async with serve(Upstream([whole(completion("a"))])) as running:
        await ask(running, key=OTHER_KEY)
        running.plane.apply(Change(version=running.plane.version + 1, kind="key", id="key_" + f"{1:032x}", entry=None))
        assert (await ask(running, key=OTHER_KEY)).status == 401


# The store


def answer(size: int) -> StoredAnswer:
    return StoredAnswer(b"", b"x" * size, is_stream=False)


def test_127_answers_of_one_organization_never_displace_those_of_another_within_its_part() -> None:
    cache = ResponseCache(CacheBounds(total_bytes_max=20_000, organization_bytes_max=8_000, answer_bytes_max=4_000))
    cache.store(b"theirs", "b", answer(2_000), 0, 3600)
    for number in range(50):
        cache.store(b"%d" % number, "a", answer(2_000), 0, 3600)
    assert cache.find(b"theirs", 1, 60) is not None and cache.find(b"49", 1, 60) is not None and cache.find(b"0", 1, 60) is None
    cache.store(b"long", "a", answer(4_001), 0, 3600)
    assert cache.find(b"long", 1, 60) is None
    assert cache.find(b"49", 61, 60) is None, "older than asked for"


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcd"), st.integers(0, 3_000)), max_size=80))
@settings(max_examples=60, deadline=None)
def test_bytes_are_counted_and_bounded_whatever_is_stored(steps: list[tuple[int, str, int]]) -> None:
    cache = ResponseCache(CacheBounds(total_bytes_max=10_000, organization_bytes_max=6_000, answer_bytes_max=2_500))
    for number, organization, size in steps:
        cache.store(b"%d" % number, organization, answer(size), 0, 3600)
        assert cache.bytes == sum(entry.size for entry in cache._entries.values()) == sum(part.bytes for part in cache._parts.values())
        assert cache.bytes <= 10_000 and max((part.bytes for part in cache._parts.values()), default=0) <= 6_000
        for organization_id, own in cache._parts.items():
            assert list(own.keys) == [key for key, entry in cache._entries.items() if entry.organization_id == organization_id]
        cache.find(b"%d" % (number // 2), 1, 60)


def test_answers_of_an_organization_at_its_part_give_way_without_a_look_at_those_of_others() -> None:
    cache = ResponseCache(CacheBounds(total_bytes_max=20_000, organization_bytes_max=1_100, answer_bytes_max=1_000))
    for number in range(10):
        cache.store(b"theirs%d" % number, f"org_{number}", answer(0), 0, 3600)
    cache.store(b"first", "a", answer(0), 0, 3600)
    cache.store(b"second", "a", answer(0), 0, 3600)
    looked_at = cache._entries = _Counted(cache._entries)
    cache.find(b"first", 1, 60)
    cache.store(b"third", "a", answer(0), 0, 3600)
    assert looked_at.iterations == 0 and set(looked_at) >= {b"first", b"third"} and b"second" not in looked_at


class _Counted(OrderedDict[bytes, Any]):
    """Counts how often it is gone through."""

    iterations = 0

    def __iter__(self) -> Iterator[bytes]:
        self.iterations += 1
        return super().__iter__()

    def items(self) -> Any:
        self.iterations += 1
        return super().items()


def test_answers_older_than_their_model_allows_are_removed_though_nobody_asks() -> None:
    cache = ResponseCache(CacheBounds())
    cache.store(b"short", "a", answer(1), 0, 10)
    cache.store(b"long", "a", answer(1), 0, 100)
    cache.store(b"late", "b", answer(1), 8, 10)
    cache.remove_expired(10)
    assert cache.count() == 3
    cache.remove_expired(11)
    assert cache.count() == 2 and cache.find(b"long", 11, 60) is not None
    cache.remove_expired(101)
    assert (cache.count(), cache.bytes, cache._parts, cache._by_lifetime) == (0, 0, {}, {})
    for number in range(EXPIRED_MAX + 1):
        cache.store(b"%d" % number, "a", answer(0), 0, 10)
    cache.remove_expired(11)
    assert cache.count() == 1, "a bounded number at a time"


async def test_form_is_served_by_the_engine() -> None:
    async with serve(Upstream([whole({"text": "Hello."})])) as running:
        got = await post(running.port, TRANSCRIBED, "/v1/audio/transcriptions", **FORM, **ASKS)
        assert cached(got) is None and got.json()["text"] == "Hello."


PARTS = st.fixed_dictionaries(
    {
        "organization": st.sampled_from(["org_1", "org_2"]),
        "project": st.sampled_from(["proj_1", "proj_2", "proj_1\0"]),
        "tier": st.sampled_from(["standard", "flex"]),
        "model": st.sampled_from([b"r1", b"r2"]),
        "cap": st.sampled_from([None, 1, 16]),
        "beta": st.sampled_from(["", "a", "b"]),
        "body": st.fixed_dictionaries(
            {"model": st.sampled_from(["m", "n"]), "x": st.sampled_from([1, 1.0, True, "1", None, [1], {"a": 1}])}
        ),
    }
)


class _Any:
    """An object with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def key_of(parts: dict[str, Any]) -> bytes:
    caller = _Any(organization=_Any(id=parts["organization"]), project=_Any(id=parts["project"]))
    headers = {b"anthropic-beta": parts["beta"].encode(), b"other": b"x"}
    request = _Any(endpoint="messages", body=msgspec.json.encode(parts["body"]), headers=headers)
    call: Any = _Any(
        caller=caller,
        request=request,
        price=_Any(tier=parts["tier"]),
        grant=_Any(model=None),
        output_cap=parts["cap"],
        dialect=DIALECTS[Endpoint.MESSAGES],
    )
    directory: Any = _Any(digest_model=lambda model, caller: parts["model"])
    return find_key(call, directory)


@given(PARTS, PARTS)
@settings(max_examples=300, deadline=None)
def test_127_key_is_the_same_only_where_tenant_project_model_and_the_whole_request_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    same, as_other = (msgspec.json.encode(each | {"model": each["model"].decode()}, order="sorted") for each in (one, other))
    assert (key_of(one) == key_of(other)) == (same == as_other)
