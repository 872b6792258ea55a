"""Nothing of a connection waits for the garbage collector: its objects and the bodies that they hold are freed by their counts at its end.

The collector runs seldom in a busy gateway, so a cycle through a parser or a traceback would keep megabytes for each connection.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType

import pytest

from tests.fakes import Do, Script, Upstream, until
from tests.gateway.harness import (
    NOWHERE,
    STREAM_HEAD,
    UNKNOWN_KEY,
    Served,
    chat,
    chunk,
    completion,
    connect,
    gateway,
    healthy,
    message,
    part,
    whole,
)
from tollway.domain.faults import Fault
from tollway.gateway.edge.edge import EdgeBounds

LARGE = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 300_000 + b'"}]}'


async def collect_garbage(scene: Callable[[], Awaitable[None]]) -> Counter[str]:
    """Run `scene` without the collector; return the kinds of objects that only the collector could have freed then."""
    gc.collect()
    gc.disable()
    try:
        await scene()
        for _ in range(5):
            await asyncio.sleep(0.01)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = Counter(_name(each) for each in gc.garbage if _is_ours(each))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    return found


def _name(each: object) -> str:
    if isinstance(each, FrameType):
        return f"frame of {each.f_code.co_qualname}"
    return type(each).__qualname__


def _is_ours(each: object) -> bool:
    if isinstance(each, FrameType):
        return "/tollway/" in each.f_code.co_filename
    if isinstance(each, TracebackType):
        return "/tollway/" in each.tb_frame.f_code.co_filename
    return type(each).__module__.startswith(("tollway.", "httptools.")) or isinstance(each, Fault)


SCENES: dict[str, list[bytes]] = {
    "answered": [message(chat())],
    "answered as a stream": [message(chat(stream=True))],
    "large and answered": [message(LARGE)],
    "refused by its key": [message(LARGE, key=UNKNOWN_KEY)],
    "refused by its body": [message(b"{" + LARGE)],
    "refused by a field": [message(b'{"rank":1,' + LARGE[1:])],
    "refused by its model": [message({"model": "none", "messages": []})],
    "served nowhere": [message({"model": "nowhere", "messages": [{"role": "user", "content": "a"}]})],
    "malformed": [b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"],
    "models": [b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"],
    "limits": [b"GET /v1/limits HTTP/1.1\r\nhost: gateway\r\n\r\n"],
}
"""Messages of one connection, each of which is answered."""


@pytest.mark.parametrize("messages", SCENES.values(), ids=SCENES.keys())
async def test_73_connection_that_was_answered_leaves_no_cycle(messages: list[bytes]) -> None:
    upstream = Upstream(lambda asked: healthy("a") if b'"stream":true' in asked.body else [whole(completion())])
    async with upstream.listening(), gateway({"m": Served([upstream.url]), "nowhere": Served([NOWHERE])}) as running:

        async def scene() -> None:
            async with connect(running.port) as client:
                for each in messages:
                    client.send(each)
                    await client.answer()
            await until(lambda: not running.plane.metrics.read("tollway_connections"))

        await scene()  # names, grants and the like are made once
        assert await collect_garbage(scene) == {}


UNFINISHED = {
    "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nhost:",
    "half a small body": message(chat())[:-5],
    "half a large body": message(LARGE)[:-1000],
    "half a chunk": message(b"").replace(b"content-length: 0", b"transfer-encoding: chunked") + b"20000\r\n" + bytes(65536),
    "half a large body of an unknown key": message(LARGE, key=UNKNOWN_KEY)[:-1000],
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED.keys())
@pytest.mark.parametrize("is_timed_out", [False, True], ids=["left", "timed out"])
async def test_73_unfinished_request_leaves_no_cycle(sent: bytes, is_timed_out: bool) -> None:
    haste = EdgeBounds(head_seconds=0.2, body_grace_seconds=0.0, body_rate_min=1e9, linger_seconds=0.2)
    async with gateway({}, edge_bounds=haste if is_timed_out else EdgeBounds()) as running:

        async def scene() -> None:
            async with connect(running.port) as client:
                client.send(sent)
                await until(lambda: client.writer.transport.get_write_buffer_size() == 0)
                if is_timed_out:
                    await client.rest()
                client.vanish()
            await until(lambda: not running.plane.metrics.read("tollway_connections"))

        await scene()
        assert await collect_garbage(scene) == {}


ABANDONED: dict[str, tuple[bool, Script]] = {
    "before an answer": (False, [Do.HOLD]),
    "in the middle of an answer": (False, [b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + bytes(1_000_000), Do.HOLD]),
    "in the middle of a stream": (True, [STREAM_HEAD, part(chunk("a")), Do.HOLD]),
}


@pytest.mark.parametrize(("stream", "script"), ABANDONED.values(), ids=ABANDONED.keys())
async def test_73_abandoned_answer_leaves_no_cycle(stream: bool, script: Script) -> None:
    upstream = Upstream(script)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running:

        async def scene() -> None:
            asked = len(upstream.asked)
            async with connect(running.port) as client:
                client.send(message(chat(stream=stream)))
                await until(lambda: len(upstream.asked) > asked)
                await asyncio.sleep(0.05)
                client.vanish()
            await upstream.asked[-1].left.wait()
            await until(lambda: not running.plane.metrics.running)

        await scene()
        assert await collect_garbage(scene) == {}


FAULTY: dict[str, Script] = {
    "cut": [b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{", Do.FIN],
    "no HTTP": [b"nonsense\r\n\r\n"],
    "refused": [whole({"error": {"message": "full", "code": 503}}, 503)],
    "reset": [Do.RST],
    "cut in a stream": [STREAM_HEAD, part(chunk("a")), Do.FIN],
}


@pytest.mark.parametrize("script", FAULTY.values(), ids=FAULTY.keys())
async def test_73_answer_that_failed_leaves_no_cycle(script: Script) -> None:
    first, second = Upstream(script), Upstream(script)
    async with first.listening(), second.listening(), gateway({"m": Served([first.url, second.url])}) as running:

        async def scene() -> None:
            async with connect(running.port) as client:
                client.send(message(chat(stream="stream" in str(script))))
                await client.answer()
            await until(lambda: not running.plane.metrics.read("tollway_connections"))

        await scene()
        assert await collect_garbage(scene) == {}
