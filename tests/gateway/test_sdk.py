"""The official SDK against an engine that dies at every byte of a stream: it must never see a success that was none."""

from collections.abc import AsyncIterator

import openai
import pytest

from tests.fakes import Do, Upstream
from tests.gateway.harness import DONE, END, KEY, STREAM_HEAD, Gateway, Served, chat, chunk, event, gateway, usage_chunk
from tests.patience import CLIENT_SECONDS
from tollway.domain.usage import Outcome

STREAM = event(chunk("Hel", role="assistant")) + event(chunk("lo")) + event(chunk(finish="stop")) + event(usage_chunk(5, 2)) + DONE
BARE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
WAYS: dict[str, tuple[bytes, bytes, Do]] = {
    "chunked-reset": (STREAM_HEAD, b"", Do.RST),
    "chunked-closed": (STREAM_HEAD, b"", Do.FIN),
    "chunked-ended": (STREAM_HEAD, END, Do.FIN),
    "bare-closed": (BARE_HEAD, b"", Do.FIN),
}


def framed(data: bytes, head: bytes) -> bytes:
    return data if head == BARE_HEAD or not data else b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url="http://unused/v1", api_key=KEY, max_retries=0, timeout=CLIENT_SECONDS) as made:
        yield made


async def consume(client: openai.AsyncOpenAI, running: Gateway) -> str:
    stream = await client.with_options(base_url=running.url + "/v1").chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    return "".join([part.choices[0].delta.content or "" async for part in stream])


@pytest.mark.parametrize("way", WAYS)
async def test_an_engine_that_dies_at_any_byte_is_never_a_success(way: str, client: openai.AsyncOpenAI) -> None:
    head, end, death = WAYS[way]
    step = 1 if way == "bare-closed" else 3
    places = range(0, len(STREAM), step)
    upstream = Upstream()
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:
        for place in places:
            running.plane.retries._tokens = 0.0
            upstream.scripts = ([head + framed(STREAM[:place], head) + end, death],)
            try:
                text = await consume(client, running)
            except (openai.APIError, openai.APIConnectionError):
                pass
            else:
                pytest.fail(f"cut after {place} of {len(STREAM)} bytes, and the client saw {text!r} as a success")
        upstream.scripts = ([head + framed(STREAM, head) + end, death],)
        assert await consume(client, running) == "Hello"
        await running.sink.settled(len(places) + 1)
        assert {final.outcome for final in running.sink.finals[:-1]} == {Outcome.UPSTREAM_ERROR}
        assert all(final.error for final in running.sink.finals[:-1])


async def test_the_sdk_reads_our_errors(client: openai.AsyncOpenAI) -> None:
    async with gateway({}) as running:
        here = client.with_options(base_url=running.url + "/v1")
        with pytest.raises(openai.NotFoundError) as unknown:
            await here.chat.completions.create(model="absent", messages=[{"role": "user", "content": "hi"}])
        assert unknown.value.code == "model_not_found" and unknown.value.request_id is not None
        with pytest.raises(openai.AuthenticationError):
            await here.with_options(api_key="tw_live_x").models.list()
        with pytest.raises(openai.BadRequestError) as invalid:
            await here.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=-1)
        assert invalid.value.param == "max_tokens"
        assert [model.id async for model in here.models.list()] == ["m"]
        with pytest.raises(openai.APIStatusError):
            await here.chat.completions.create(**chat())
