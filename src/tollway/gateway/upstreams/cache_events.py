"""Events of engines about their prefix caches, followed beside their requests.

An engine that publishes them (vLLM and SGLang with `--kv-events-config`) says where (`engines.profile.CacheEventSource`). Its publisher
is a ZeroMQ socket at the host of the deployment: a PUB socket for events as they happen and, where it has one, a ROUTER socket that repeats
those of a while ago. Each batch has a number, one more than the one before. What they say decides which deployments hold a prompt
(`gateway.held_prefixes`); an engine that is not followed, or whose events end, is estimated as before.

What must hold: only deployments that have an alternative are followed, FOLLOWED_MAX at most; a message has a bound; a peer that is silent
for SILENCE_SECONDS, or breaks the protocol, is left, and asked again after a pause. A batch that is missed is asked for; if it cannot be
had, all that is known of that cache is forgotten, because what it dropped is not known. Events hold ids of tokens, so they are followed
over connections without TLS only where the requests go over such ones, too.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol

from tollway.domain.addresses import is_metadata_peer
from tollway.engines.profile import CacheEventAddress, CacheEventSource
from tollway.gateway.held_prefixes import EngineCache
from tollway.gateway.prefix_routing import BOUNDARIES, HeldPrefixes, Load
from tollway.gateway.upstreams.load_reports import read_page
from tollway.gateway.upstreams.open_connections import find_name_error
from tollway.gateway.upstreams.probes import JITTER, ProbeRequest
from tollway.wire.cache_events import BlocksRemoved, BlocksStored, read_batch
from tollway.wire.zmtp import Messages, ZmtpError, frame_message, greet, ping, subscribe

FOLLOWED_MAX = 256
TICK_SECONDS = 0.5
CONNECT_SECONDS = 2.0
"""Deadline of a connection and its handshake."""
PING_SECONDS = 5.0
SILENCE_SECONDS = 15.0
"""Time without a byte, not even the answer to a ping, after which a peer is gone."""
REPLAY_SECONDS = 10.0
"""Deadline for the events of a while ago."""
PAUSE_SECONDS = 1.0
PAUSE_SECONDS_MAX = 30.0
"""Pauses before an engine is asked again: the first after its events ended, doubled each time; the longest where it publishes none."""
READ_BYTES = 65_536
END_OF_REPLAY = (1 << 64) - 1
"""Number of the message behind the last one that is repeated: -1 as it is written."""


class CacheEventQuery(NamedTuple):
    """A question where an engine publishes its events, and how to understand the answer."""

    request: ProbeRequest
    source: CacheEventSource


class Following(Protocol):
    """An upstream, as the follower of its events sees it."""

    cache_event_query: CacheEventQuery | None
    load: Load

    def estimate_input(self, prompt_bytes: int) -> int:
        """Return about how many tokens the engine counts in so many bytes of a request."""
        ...

    def count_cache_event_gap(self) -> None:
        """Batches were missed and could not be had again."""
        ...


class FollowedCache:
    """The cache of one engine while its events are followed."""

    def __init__(self, upstream: Following, held: HeldPrefixes) -> None:
        self._upstream = upstream
        self._cache = EngineCache(held, upstream.load)

    def leave(self) -> None:
        """Forget what it holds: it is followed no more."""
        self._cache.leave()

    def take(self, payload: bytes) -> None:
        """Take a batch of events. Raises ValueError for what is none."""
        self._upstream.load.unconfirmed = 0
        for event in read_batch(payload):
            if isinstance(event, BlocksStored):
                tag = event.session_id or ""
                self._cache.store(event.block_hashes, event.parent_block_hash, event.block_size, tag, self._count_boundary_tokens)
            elif isinstance(event, BlocksRemoved):
                self._cache.remove(event.block_hashes)
            else:
                self._cache.clear()

    def _count_boundary_tokens(self, levels: int) -> Sequence[int]:
        estimate = self._upstream.estimate_input
        return [max(estimate(boundary), 1) for boundary in BOUNDARIES[:levels]]

    async def follow(self, host: str, address: CacheEventAddress) -> None:
        """Follow the events until they end. Raises OSError, TimeoutError or ValueError for the reason; EOFError if the peer closed."""
        async with _connect(host, address.port, b"SUB", subscribe(address.topic)) as messages:
            expected = await self._repeat(host, address, 0)
            async for message in messages:
                if len(message) != 3 or len(message[1]) != 8:
                    raise ValueError("no message of a publisher of events")
                number = int.from_bytes(message[1], "big")
                if expected is None:
                    expected = number
                if number < expected:
                    continue  # it was repeated already
                if number > expected:
                    repeated = await self._repeat(host, address, expected)
                    if repeated is None or repeated < number:
                        self._upstream.count_cache_event_gap()
                        self._cache.clear()
                    else:
                        expected = repeated
                        if number < expected:
                            continue
                self.take(message[2])
                expected = number + 1

    async def _repeat(self, host: str, address: CacheEventAddress, first: int) -> int | None:
        """Take the batches from number `first` on that the engine can repeat. Return the number behind the last of them; None if it
        repeats none, or not from `first` on."""
        if address.replay_port is None:
            return None
        expected = first
        try:
            async with asyncio.timeout(REPLAY_SECONDS):
                asked = frame_message(b"", first.to_bytes(8, "big"))
                async with _connect(host, address.replay_port, b"DEALER", asked) as messages:
                    async for message in messages:
                        if len(message) not in (3, 4) or len(message[-2]) != 8:  # with the topic, or without as in older versions
                            return None
                        number = int.from_bytes(message[-2], "big")
                        if number == END_OF_REPLAY:
                            break
                        if number != expected and expected != 0:
                            return None
                        self.take(message[-1])
                        expected = number + 1
        except (OSError, EOFError, ZmtpError):
            return None  # TimeoutError among them
        return expected if expected != first or first == 0 else None


@asynccontextmanager
async def _connect(host: str, port: int, socket_type: bytes, first: bytes) -> AsyncIterator[AsyncIterator[list[bytes]]]:
    """Open a connection to a ZeroMQ socket and send the message `first`. Yields what it sends."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=READ_BYTES)
    except ValueError as error:
        raise find_name_error(error) from None
    try:
        if is_metadata_peer(writer.get_extra_info("peername")):
            raise PermissionError("the name resolved to an address that is not allowed")
        writer.write(greet(socket_type))
        async with aclosing(_read(reader, writer, first)) as messages:
            yield messages
    finally:
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes) -> AsyncGenerator[list[bytes], None]:
    """Yield the messages of a peer, as their frames. Raises EOFError where it closes, TimeoutError where it is silent."""
    read = Messages()
    is_asked = False
    silent_seconds = 0.0
    while True:
        try:
            async with asyncio.timeout(PING_SECONDS if is_asked else CONNECT_SECONDS):
                data = await reader.read(READ_BYTES)
        except TimeoutError:
            silent_seconds += PING_SECONDS
            if not is_asked or silent_seconds >= SILENCE_SECONDS:
                raise
            writer.write(ping())
            continue
        if not data:
            raise EOFError("the publisher of events closed the connection")
        silent_seconds = 0.0
        for message in read.feed(data):
            yield message
        if read.is_ready and not is_asked:
            is_asked = True
            writer.write(first)
        await asyncio.sleep(0)  # what is there at once must not hold up the requests


async def find_address(query: CacheEventQuery) -> CacheEventAddress | None:
    """Return where an engine publishes its events; None if it does not, or says nothing that can be understood."""
    page = await read_page(query.request)
    if page is None:
        return None
    try:
        return query.source.read(page)
    except ValueError:
        return None


async def run(upstreams: Callable[[], Iterable[Following]], held: HeldPrefixes, random: Callable[[], float]) -> None:
    """Follow the upstreams until cancelled. `upstreams`: those of the moment that have an alternative, one of each engine. `held`: gets
    what they hold. `random`: uniform in [0, 1)."""
    tasks: dict[Load, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            wanted = {each.load: each for each in upstreams() if each.cache_event_query is not None}
            for load in tasks.keys() - wanted.keys():
                tasks.pop(load).cancel()
            for load, upstream in wanted.items():
                if load not in tasks and len(tasks) < FOLLOWED_MAX:
                    tasks[load] = group.create_task(_follow(upstream, held, random))
            await asyncio.sleep(TICK_SECONDS)


async def _follow(upstream: Following, held: HeldPrefixes, random: Callable[[], float]) -> None:
    """Follow one upstream until cancelled."""
    query = upstream.cache_event_query
    if query is None:
        return
    cache = FollowedCache(upstream, held)
    pause = PAUSE_SECONDS
    try:
        while True:
            address = None
            try:
                address = await find_address(query)
                if address is not None:
                    await cache.follow(query.request.host, address)
            except (OSError, EOFError, ValueError):
                pass  # ended, silent or not understood: estimated until it can be followed again
            if upstream.load.is_followed:
                pause = PAUSE_SECONDS
            cache.leave()
            await asyncio.sleep((PAUSE_SECONDS_MAX if address is None else pause) * (1 + JITTER * (2 * random() - 1)))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
    finally:
        cache.leave()
