"""Events of engines about their prefix caches: what they say decides, what was missed is asked for, and without them all is as before."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.fakes import PATIENCE_SECONDS, Upstream, until
from tests.gateway.harness import Served, chat, completion, gateway, post, whole
from tests.gateway.test_probes import answering
from tests.gateway.test_selection import choose, loads, prompt
from tollway.domain.catalog import Engine
from tollway.engines.profile import CacheEventAddress, CacheEventSource
from tollway.engines.table import ENGINES
from tollway.gateway.held_prefixes import BLOCKS_MAX, LEVELS_MAX, EngineCache, format_tag, read_tag
from tollway.gateway.prefix_routing import BOUNDARIES, UNCONFIRMED_MAX, HeldPrefixes, Load, Selector, find_idlest_and_home, hash_prefixes
from tollway.gateway.upstreams import cache_events
from tollway.gateway.upstreams.cache_events import CacheEventQuery
from tollway.wire.cache_events import BlocksStored, read_batch

VLLM, SGLANG = ENGINES[Engine.VLLM].cache_events, ENGINES[Engine.SGLANG].cache_events
assert VLLM is not None and SGLANG is not None
BLOCK_TOKENS = 16
TOKENS_PER_LEVEL = [boundary // 4 for boundary in BOUNDARIES]


def boundary_tokens(levels: int) -> list[int]:
    return TOKENS_PER_LEVEL[:levels]


def stored(hashes: Sequence[object], parent: int | None = None, tag: str = "", **more: object) -> dict[str, object]:
    """An event as vLLM and SGLang publish it."""
    return {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": [7] * len(hashes) * BLOCK_TOKENS,
        "block_size": BLOCK_TOKENS, "lora_id": None, "medium": "GPU", "lora_name": None, "session_id": tag or None, **more,
    }  # fmt: skip


def removed(hashes: list[int]) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


def batch(*events: object) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), 0])


def tag_of(text: bytes) -> str:
    return format_tag(hash_prefixes(text, 0, 0), 0).decode()


# ---- What is held


def test_prefix_is_held_while_the_block_is_in_which_it_ends() -> None:
    held, load = HeldPrefixes(), Load("dep")
    cache = EngineCache(held, load)
    first, second = hash_prefixes(prompt(1, 3000), 0, 0)
    blocks = list(range(46))  # 736 tokens; the prefixes end after 256 and 512
    cache.store(blocks[:20], None, BLOCK_TOKENS, tag_of(prompt(1, 3000)), boundary_tokens)
    assert (held.find(first), held.find(second), load.is_followed) == ({load: None}, None, True)
    cache.store(blocks[20:], 19, BLOCK_TOKENS, tag_of(prompt(1, 3000)), boundary_tokens)
    assert held.find(second) == {load: None}
    cache.remove([45, 33, 32])
    assert held.find(second) == {load: None}
    cache.remove([31, 999])
    assert (held.find(first), held.find(second)) == ({load: None}, None)
    cache.clear()
    assert len(held) == len(cache) == 0 and load.is_followed
    cache.leave()
    assert not load.is_followed


def test_block_behind_an_unknown_one_says_nothing() -> None:
    held = HeldPrefixes()
    cache = EngineCache(held, Load("dep"))
    cache.store([1, 2], 77, BLOCK_TOKENS, tag_of(prompt(1, 3000)), boundary_tokens)
    assert len(held) == len(cache) == 0


def test_memory_of_blocks_is_bounded_and_what_was_stored_first_is_forgotten_first() -> None:
    held = HeldPrefixes()
    cache = EngineCache(held, Load("dep"))
    cache.store(list(range(64)), None, BLOCK_TOKENS, tag_of(prompt(1, 3000)), boundary_tokens)
    assert len(held) == 2
    cache.store(list(range(100, 100 + BLOCKS_MAX)), None, BLOCK_TOKENS, "", boundary_tokens)
    assert (len(cache), len(held)) == (BLOCKS_MAX, 0)


@pytest.mark.parametrize(
    "tag", ["", "a session of a client", "tw1.zz", "tw1.-1", "tw1.1ffffffff", "tw2.1", "tw1" + ".1" * (LEVELS_MAX + 1)]
)
def test_session_that_is_no_tag_of_a_gateway_names_no_prefix(tag: str) -> None:
    assert read_tag(tag) == []


def test_prompt_goes_where_the_engine_says_that_it_is_held_whoever_sent_it_there() -> None:
    group, text = loads(4), prompt(1, 9000)
    held = HeldPrefixes()
    selector = Selector(0, held)
    home = find_idlest_and_home(hash_prefixes(text, 0, 0)[0], group)[1]
    there = (home + 1) % 4
    cache = EngineCache(held, group[there])
    cache.store(list(range(200)), None, BLOCK_TOKENS, tag_of(text), boundary_tokens)
    choice = choose(selector, group, text)
    assert choice.place == there and choice.charged_tokens == pytest.approx(2250 * (1 - 8192 / 9000))
    group[there].unconfirmed = UNCONFIRMED_MAX + 1
    assert choose(Selector(0, held), group, text).place == home, "an engine that fell silent is estimated"
    group[there].unconfirmed = 0
    cache.remove(list(range(200)))
    assert choose(selector, group, text).place == home, "what an engine dropped is not held, whatever was sent there"


def test_prefix_that_every_deployment_holds_goes_to_the_shortest_queue() -> None:
    group, text, held = loads(20), prompt(1, 9000), HeldPrefixes()
    for load in group:
        EngineCache(held, load).store(list(range(200)), None, BLOCK_TOKENS, tag_of(text), boundary_tokens)
        load.send(5000.0)
    group[3].begin_answer(5000.0)
    assert choose(Selector(0, held), group, text).place == 3


# ---- Batches


def test_events_that_vllm_published_are_read() -> None:
    recorded = json.loads(Path(__file__).with_name("vllm_cache_events.json").read_text())
    first, second, third = [event for payload in recorded["batches"] for event in read_batch(bytes.fromhex(payload))]
    assert isinstance(first, BlocksStored) and isinstance(second, BlocksStored) and isinstance(third, BlocksStored)
    assert (first.session_id, second.session_id, third.session_id) == ("tw1.abc.def", "tw1.abc.fff", "tw1.aaa")
    assert first.parent_block_hash is None and second.parent_block_hash == first.block_hashes[-1]
    assert [len(event.block_hashes) * event.block_size for event in (first, second, third)] == [160, 64, 128]


def test_events_of_the_cache_itself_are_read_and_others_passed_over() -> None:
    old = ["BlockStored", [1], None, [7] * 16, 16, None]  # before 0.32
    events = read_batch(
        batch(old, stored([1, 2**64 - 1], tag="s"), stored([-5], medium="CPU"), stored([6], kv_cache_spec_sliding_window=128),
              stored([9], new_field={"a": 1}), removed([-5]), CLEARED)
    )  # fmt: skip
    assert [type(event).__name__ for event in events] == ["BlocksStored", "BlocksStored", "BlocksRemoved", "CacheCleared"]


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", batch(stored([1]))[:-3], batch({"type": "Other"}), batch(stored([1], block_size=0)), msgspec.msgpack.encode({"a": 1}),
     batch(stored(["text"])), msgspec.msgpack.encode([1.5, [CLEARED] * 70_000, 0])],
)  # fmt: skip
def test_bytes_that_are_no_batch_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_batch(payload)


# ---- Where they are published


@pytest.mark.parametrize(
    ("source", "page", "found"),
    [
        (VLLM, {"0": {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558", "topic": "kv"}}, CacheEventAddress(5557, 5558, b"kv")),
        (VLLM, {"0": {"endpoint": "tcp://10.1.2.3:5557"}}, CacheEventAddress(5557, None, b"")),
        (VLLM, {}, None),
        (VLLM, {"0": {"endpoint": "tcp://*:1"}, "1": {"endpoint": "tcp://*:2"}}, None),
        (VLLM, {"0": {"endpoint": "ipc:///tmp/a"}}, ValueError),
        (VLLM, {"0": {"endpoint": "tcp://*:0"}}, ValueError),
        (VLLM, [], ValueError),
        (SGLANG, {"kv_events": {"endpoint_port_base": 5557, "dp_size": 1, "topic": ""}}, CacheEventAddress(5557, None, b"")),
        (SGLANG, {"kv_events": None, "version": "0.5"}, None),
        (SGLANG, {"kv_events": {"endpoint_port_base": 5557, "dp_size": 2}}, None),
        (SGLANG, {"kv_events": {"endpoint_port_base": 70_000}}, ValueError),
    ],
)  # fmt: skip
def test_engine_says_where_it_publishes_its_events(
    source: CacheEventSource, page: object, found: CacheEventAddress | type[Exception] | None
) -> None:
    text = json.dumps(page).encode()
    if isinstance(found, type):
        with pytest.raises(found):
            source.read(text)
    else:
        assert source.read(text) == found


# ---- A publisher


class Publisher:
    """The sockets of an engine that publishes, as libzmq has them. `kept`: what it can repeat."""

    def __init__(self, *, repeats: bool = True) -> None:
        self._context = zmq.Context()
        self._pub, self._router = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        replay = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.page = {"0": {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{replay}" if repeats else None, "topic": "kv@"}}
        self.kept: list[tuple[int, bytes]] = []
        self._next = 0

    def publish(self, payload: bytes, *, is_lost: bool = False) -> None:
        number, self._next = self._next, self._next + 1
        if not is_lost:
            self._pub.send_multipart((b"kv@pod", number.to_bytes(8, "big"), payload))
        self.kept.append((number, payload))

    async def repeat(self) -> None:
        while True:
            if self._router.poll(0):
                client, _, first = self._router.recv_multipart()
                for number, payload in self.kept:
                    if number >= int.from_bytes(first, "big"):
                        self._router.send_multipart((client, b"", b"kv@pod", number.to_bytes(8, "big"), payload))
                self._router.send_multipart((client, b"", b"", (-1).to_bytes(8, "big", signed=True), b""))
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._context.destroy(linger=0)


class Engined:
    """An upstream, as the follower sees it."""

    def __init__(self, query: CacheEventQuery) -> None:
        self.cache_event_query: CacheEventQuery | None = query
        self.load = Load("dep")
        self.gaps = 0

    def estimate_input(self, prompt_bytes: int) -> int:
        return prompt_bytes // 4

    def count_cache_event_gap(self) -> None:
        self.gaps += 1


@asynccontextmanager
async def following(publisher: Publisher) -> AsyncIterator[tuple[Engined, HeldPrefixes]]:
    """Follows a publisher until the block ends."""
    page = json.dumps(publisher.page).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page)
    async with answering(answer) as (request, _):
        assert VLLM is not None
        engine, held = Engined(CacheEventQuery(request, VLLM)), HeldPrefixes()
        tasks = [asyncio.ensure_future(cache_events.run(lambda: [engine], held, lambda: 0.5)), asyncio.ensure_future(publisher.repeat())]
        try:
            yield engine, held
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            publisher.close()
    assert not engine.load.is_followed and not len(held), "nothing is left of an engine that is followed no more"


def text_batch(number: int) -> bytes:
    """A batch in which a prompt of 3,000 bytes was stored, another one for each number."""
    base = number * 1000
    return batch(stored(list(range(base, base + 46)), tag=tag_of(prompt(number, 3000))))


async def publish_until(publisher: Publisher, condition: Callable[[], object], payload: bytes = batch()) -> None:
    """Publish a batch again and again until a condition holds: a publisher sends to nobody whose subscription has not arrived."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            publisher.publish(payload)
            await asyncio.sleep(0.02)


async def test_what_was_stored_before_and_what_is_stored_now_is_held() -> None:
    publisher = Publisher()
    publisher.publish(text_batch(1))
    async with following(publisher) as (engine, held):
        await until(lambda: engine.load.is_followed and len(held) == 2)
        engine.load.unconfirmed = 5
        await publish_until(publisher, lambda: engine.load.unconfirmed == 0)
        publisher.publish(text_batch(2))
        await until(lambda: len(held) == 4)
        publisher.publish(batch(removed([1031])))
        await until(lambda: len(held) == 3)
        assert engine.gaps == 0


async def test_batches_that_were_missed_are_asked_for() -> None:
    publisher = Publisher()
    publisher.publish(text_batch(1))
    async with following(publisher) as (engine, held):
        await until(lambda: engine.load.is_followed)
        engine.load.unconfirmed = 5
        await publish_until(publisher, lambda: engine.load.unconfirmed == 0)
        publisher.publish(batch(removed([1031])), is_lost=True)
        publisher.publish(text_batch(2))
        await until(lambda: len(held) == 3)
        assert engine.gaps == 0


async def test_what_is_known_is_forgotten_where_missed_batches_cannot_be_had() -> None:
    publisher = Publisher(repeats=False)
    async with following(publisher) as (engine, held):
        await publish_until(publisher, lambda: engine.load.is_followed, text_batch(1))
        publisher.publish(batch(removed([1031])), is_lost=True)
        publisher.publish(text_batch(2))
        await until(lambda: engine.gaps == 1)
        assert len(held) == 2 and engine.load.is_followed


@pytest.mark.parametrize("payload", [b"\xc1 no batch", batch({"type": "Unheard"})])
async def test_engine_whose_events_are_not_understood_is_estimated(payload: bytes) -> None:
    publisher = Publisher()
    publisher.publish(text_batch(1))
    async with following(publisher) as (engine, held):
        await until(lambda: engine.load.is_followed)
        await publish_until(publisher, lambda: not engine.load.is_followed, payload)
        assert not len(held)


async def test_publisher_that_is_none_leaves_the_estimate_and_is_asked_again_later() -> None:
    left: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is another protocol\r\n")
        with suppress(ConnectionError):
            left.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    page = json.dumps({"0": {"endpoint": f"tcp://*:{server.sockets[0].getsockname()[1]}"}}).encode()
    async with server, answering(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page)) as (request, _):
        assert VLLM is not None
        engine = Engined(CacheEventQuery(request, VLLM))
        task = asyncio.ensure_future(cache_events.run(lambda: [engine], HeldPrefixes(), lambda: 0.5))
        await until(lambda: bool(left))
        assert not engine.load.is_followed and not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ---- Requests


@pytest.mark.parametrize("kind", [Engine.VLLM, Engine.SGLANG, Engine.DYNAMO])
async def test_request_carries_the_tag_of_its_prompt_where_events_are_followed(kind: Engine) -> None:
    engines = [Upstream([whole(completion())]) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine.listening())
        running = await stack.enter_async_context(gateway({"m": Served([engine.url for engine in engines], engine=kind, one_tier=True)}))
        body = chat() | {"messages": [{"role": "user", "content": "toll " * 500}]}
        for held in (None, HeldPrefixes()):
            running.plane.upstreams.held = held
            assert (await post(running.port, body)).status == 200
        assert (await post(running.port, body | {"prompt_cache_key": "mine"})).status == 200, "a session has no prefixes to be found by"
        sent = [asked for engine in engines for asked in engine.asked]
    headers = [re.search(rb"x-session-id: (\S+)", asked.head) for asked in sent]
    tags = [
        found.group(1).decode() if found else json.loads(asked.body).get("session_id", "")
        for asked, found in zip(sent, headers, strict=True)
    ]
    assert len(sent) == 3 and sum(bool(tag) for tag in tags) == (kind is not Engine.DYNAMO)
    assert all(len(read_tag(tag)) == 2 for tag in tags if tag)
