"""The pauses that large bodies cause: `python -m bench.pauses`.

A gateway with its own listener and one engine receives a body of each kind, once with a reader process and once without. What is printed
is the longest callback of the gateway's loop meanwhile, in milliseconds of its thread's CPU, which feel no neighbour: for so long every
other request waits. The loop is asyncio's own, whose callbacks can be timed. Client and engine run in a loop and a thread of their own, so
that none of their work counts.
"""

import asyncio
import base64
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

from tests.fakes import Upstream
from tests.gateway.harness import Client, Served, chat, completion, connect, gateway, message, whole
from tollway.gateway.body_reader_pool import BodyReaders

_T = TypeVar("_T")

TURNS = 3
PIECE_BYTES = 200_000
_PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


def text(megabytes: int) -> str:
    """Return so much text."""
    return "all the words " * (megabytes * 1_000_000 // 14)


def picture(megabytes: int) -> list[dict[str, Any]]:
    """Return a picture whose base64 is so large."""
    data = base64.b64encode(_PIXEL + os.urandom(megabytes * 750_000)).decode()
    return [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]


def say(content: Any) -> dict[str, Any]:
    """Return a body with one message."""
    return chat(messages=[{"role": "user", "content": content}])


BODIES: dict[str, dict[str, Any]] = {
    "64 KiB with 6,000 keys": chat() | {f"k{number}": 0 for number in range(6_000)},
    "1 MB of text": say(text(1)),
    "5 MB of text": say(text(5)),
    "19 MB of picture": say(picture(19)),
    "30 MB of text": say(text(30)),
}


class LoopTimer:
    """Times the callbacks of asyncio's loops in the main thread."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            run(handle)
            if threading.current_thread() is threading.main_thread():
                self.longest_seconds = max(self.longest_seconds, time.thread_time() - began)

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - the type checker takes it for a method of another signature


class Peers:
    """Client and engine, in a loop of their own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.stack = AsyncExitStack()

    async def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


@contextmanager
def peers() -> Iterator[Peers]:
    """A loop in a thread, until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Peers(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def send(client: Client, body: dict[str, Any]) -> None:
    """Send a request with this body and read the answer."""
    data = message(body)
    for at in range(0, len(data), PIECE_BYTES):
        client.send(data[at : at + PIECE_BYTES])
        await asyncio.sleep(0)
    await client.answer()


async def measure(timer: LoopTimer, body: dict[str, Any], *, has_reader: bool) -> float:
    """Return the longest callback, in seconds, while a body is received and answered."""
    upstream = Upstream(*[[whole(completion())]] * 3)
    with peers() as others:
        await others.run(others.stack.enter_async_context(upstream.listening()))
        async with gateway({"m": Served([upstream.url])}) as running:
            client = await others.run(others.stack.enter_async_context(connect(running.port)))
            readers = BodyReaders(int(has_reader), lambda event, fields: print(event, fields))
            running.plane.body_readers = readers if has_reader else None
            await others.run(send(client, chat()))
            timer.longest_seconds = 0.0
            await others.run(send(client, body))
            longest_seconds = timer.longest_seconds
            await readers.close()
            await others.run(others.stack.aclose())
            return longest_seconds


def main() -> None:
    """Print the least of several turns for each body."""
    timer = LoopTimer()
    for name, body in BODIES.items():
        without, beside = (
            min(asyncio.run(measure(timer, body, has_reader=has_reader)) for _ in range(TURNS)) * 1000 for has_reader in (False, True)
        )
        print(f"{name}: {without:.1f} ms read by the gateway, {beside:.1f} ms with a reader process")


if __name__ == "__main__":
    main()
