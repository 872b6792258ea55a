"""The relay between two sockets in memory: however an engine's bytes are cut, the client gets the same and the record says the same."""

import asyncio
import itertools
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import PATIENCE_SECONDS, Clock, Recorder, Transport, until
from tests.gateway.harness import DONE, END, KEY, STREAM_HEAD, Served, chunk, driven, event, part, plane, streamed, usage, usage_chunk
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Endpoint, Engine
from tollway.domain.usage import Final, Outcome, UsageSource
from tollway.gateway import pipeline
from tollway.gateway.request import RequestHead, new_request
from tollway.gateway.upstreams.connection import UpstreamConnection

WORDS = ["a", "bc", "}}", "\r\n", "é", "5\r\n", '"usage":{', "f"]


def stream_of(*words: str, running: bool) -> list[bytes]:
    """A stream as vLLM writes it: a chunk for each event, with running usage or without."""
    steps = [STREAM_HEAD, part(chunk("", role="assistant", usage=usage(5, 0) if running else None))]
    steps += [part(chunk(word, usage=usage(5, count) if running else None)) for count, word in enumerate(words, 1)]
    return [
        *steps,
        part(chunk(finish="stop", usage=usage(5, len(words)) if running else None)),
        part(usage_chunk(5, len(words))),
        part(DONE),
        END,
    ]


async def relay(pieces: Sequence[bytes], *, is_slow: bool = False, closed: bool = False) -> tuple[Recorder, Final, Transport]:
    """Return what a client is told of a stream that comes in these reads, how it is recorded, and the engine's connection afterwards."""
    recorder, clock, loop = Recorder(), Clock(), asyncio.get_running_loop()
    recorder.is_slow = is_slow
    with plane({"m": Served(["http://192.0.2.1:9"], engine=Engine.VLLM)}, clock=clock) as (made, sink, _):
        (upstream,) = made.upstreams.of("m")
        connection = UpstreamConnection(upstream)
        transport = Transport(connection)
        connection.settled_at = loop.time()
        upstream._idle.append(connection)
        headers = {b"authorization": b"Bearer " + KEY.encode()}
        body = msgspec.json.encode(streamed())
        request = new_request("req_1", RequestHead(Endpoint.CHAT_COMPLETIONS, headers), body, loop.time(), clock.now_us())
        answering = asyncio.ensure_future(driven(lambda driver: pipeline.answer(request, recorder, made, driver)))
        await until(lambda: bool(transport.written))
        for piece in pieces:
            transport.feed(piece)
            await asyncio.sleep(0)
        if closed:
            transport.close()
        await asyncio.wait_for(answering, PATIENCE_SECONDS)
        final = await sink.settled()
        assert not made.active.exchanges
    return recorder, final, transport


def told(*words: str) -> bytes:
    events = [chunk("", role="assistant"), *map(chunk, words), chunk(finish="stop")]
    return b"".join(map(event, events)) + DONE


@settings(max_examples=150)
@given(st.lists(st.sampled_from(WORDS), max_size=8), st.booleans(), st.lists(st.integers(0, 3000), max_size=12), st.booleans())
def test_cut_anywhere_a_stream_is_the_same(words: list[str], running: bool, cuts: list[int], by_chunk: bool) -> None:
    parts = stream_of(*words, running=running)
    data = b"".join(parts)
    ends = list(itertools.accumulate(map(len, parts))) if by_chunk else []
    places = sorted({0, len(data), *ends, *(cut for cut in cuts if cut < len(data))})
    recorder, final, transport = asyncio.run(relay([data[start:end] for start, end in itertools.pairwise(places)]))
    assert recorder.body == told(*words) and recorder.ended
    assert (final.outcome, final.used, final.source) == (Outcome.COMPLETED, Quantities(5, 0, len(words)), UsageSource.ENGINE_FINAL)
    assert not transport.is_over, "its connection is kept"


@settings(max_examples=100)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(0, 10_000), st.booleans())
def test_cut_off_anywhere_a_stream_is_no_success(words: list[str], place: int, by_chunk: bool) -> None:
    parts = stream_of(*words, running=True)[:-2]
    data = b"".join(parts) + part(DONE)[:-4]  # all but the last byte of [DONE]'s blank line
    data = data[: 1 + place % len(data)]
    ends = itertools.accumulate(map(len, parts)) if by_chunk else []
    places = sorted({0, len(data), *(end for end in ends if end < len(data))})
    recorder, final, _ = asyncio.run(relay([data[start:end] for start, end in itertools.pairwise(places)], closed=True))
    assert b"[DONE]" not in recorder.body and b'{"error":' in recorder.body
    assert final.outcome is Outcome.UPSTREAM_ERROR and final.error in ("upstream_cut", "upstream_error")
    relayed = recorder.body.count(b'"index":0')
    assert final.used.output <= len(words)
    assert relayed <= 1 or final.used.output >= min(len(words), relayed - 1), "what was delivered is known"


REGULAR = part(chunk("c", usage=usage(5, 3)))


@pytest.mark.parametrize(
    "bad",
    [
        REGULAR.replace(b"\r\n", b"\n", 1),
        b"0x" + REGULAR,
        b"+" + REGULAR,
        b" " + REGULAR,
        b"0_" + REGULAR,
        b"0x5\r\nhello\r\n",
        b"-5\r\n",
        b"+5\r\nhello\r\n",
        b"5\nhello\n",
        b"zz\r\n",
        b"\r\n\r\n",
        b"5\r\nhello5\r\n",
    ],
)
async def test_chunks_that_are_none_break_the_stream_wherever_they_stand(bad: bytes) -> None:
    good = stream_of("a", "b", running=True)[:-4]
    recorder, final, transport = await relay([*good, bad])
    assert b"[DONE]" not in recorder.body and final.outcome is Outcome.UPSTREAM_ERROR and final.used.output == 2
    assert transport.aborted


async def test_a_connection_paused_for_a_slow_reader_hears_again_when_it_is_kept() -> None:
    recorder, final, transport = await relay([b"".join(stream_of("a", running=True))], is_slow=True)
    assert recorder.body == told("a") and final.outcome is Outcome.COMPLETED
    assert transport.is_reading() and not transport.is_over
