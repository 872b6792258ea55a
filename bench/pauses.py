"""The pauses that large bodies cause: `python -m bench.pauses`.

A gateway with its own listener and one engine receives a body of each kind, once with a reader process and once without. What is printed
is the longest callback of the gateway's loop meanwhile, in milliseconds of its thread's CPU, which feel no neighbour: for so long every
other request waits. The loop is asyncio's own, whose callbacks can be timed.
"""

import asyncio
import base64
import os
import time
from typing import Any

from tests.fakes import Upstream
from tests.gateway.harness import Served, chat, completion, connect, gateway, message, whole
from tollway.gateway.body_reader_pool import BodyReaders

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
    """Times the callbacks of asyncio's loops in this process. Callbacks of the client of the tests do not count."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            callback = repr(getattr(handle, "_callback", None))
            began = time.thread_time()
            run(handle)
            if "Client" not in callback:
                self.longest_seconds = max(self.longest_seconds, time.thread_time() - began)

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - the type checker takes it for a method of another signature


async def measure(timer: LoopTimer, body: dict[str, Any], *, has_reader: bool) -> float:
    """Return the longest callback, in seconds, while a body is received and answered."""
    upstream = Upstream(*[[whole(completion())]] * 3)
    async with upstream.listening(), gateway({"m": Served([upstream.url])}) as running, connect(running.port) as client:
        readers = BodyReaders(int(has_reader), lambda event, fields: print(event, fields))
        running.plane.body_readers = readers if has_reader else None
        data = message(body)
        client.send(message(chat()))
        await client.answer()
        timer.longest_seconds = 0.0
        for at in range(0, len(data), PIECE_BYTES):
            client.send(data[at : at + PIECE_BYTES])
            await asyncio.sleep(0)
        await client.answer()
        longest_seconds = timer.longest_seconds
        await readers.close()
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
