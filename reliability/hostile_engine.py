"""An engine, in a process of its own, that misbehaves in the way that each request names.

A request's text is `[[marker]] behaviour s` (or `w`, if it asks for no stream), in any of the APIs of `hostile_apis`. Whatever the engine
answers contains the marker of the request that it answers, so that a client that finds another marker has been given a part of another
client's answer.
"""

import asyncio
import itertools
import json
import multiprocessing
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized

from reliability.hostile_apis import APIS, Api

ORDER = re.compile(rb"\[\[(t\d{2}-\d{6})\]\] ([a-z0-9-]+) ([sw])")
"""Order that a request contains: its marker, the name of a behaviour, whether it is a stream."""
HEAD_BYTES_MAX = 1 << 20
LARGE_REPEATS = 8_000
"""Times that a large answer repeats its marker."""


class LeavingError(Exception):
    """The connection is to be closed."""


@dataclass(slots=True)
class Exchange:
    """One request on one connection, to be answered."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    marker: str
    api: Api
    is_stream: bool
    unread_bytes: int
    dice: random.Random

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)

    async def read_rest(self) -> None:
        """Read what is left of the request."""
        while self.unread_bytes:
            data = await self.reader.read(min(self.unread_bytes, 65536))
            if not data:
                raise LeavingError
            self.unread_bytes -= len(data)

    def reset(self) -> None:
        """Close with a reset."""
        self.writer.transport.abort()
        raise LeavingError

    def close(self) -> None:
        """Close after what was sent."""
        raise LeavingError

    # ---- The answers --------------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[bytes]:
        """The events of a stream of this request."""
        assert self.api.events is not None
        return self.api.events(self.marker)

    def document(self, repeats: int = 1) -> bytes:
        """The whole answer to this request."""
        return json.dumps(self.api.answer(self.marker, repeats)).encode()

    def error(self, **more: object) -> bytes:
        """An error document that quotes the request."""
        return json.dumps({"error": {"message": f"cannot do [[{self.marker}]]", "type": "invalid_request_error", **more}}).encode()

    def whole(self, *more: str, status: str = "200 OK", body: bytes | None = None, kind: str = "application/json") -> bytes:
        """A message with a length."""
        body = self.document() if body is None else body
        lines = (f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more)
        return "\r\n".join((*lines, "\r\n")).encode() + body

    def head(self, *more: str) -> bytes:
        """The head of a stream in chunks."""
        return "\r\n".join(("HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *more, "\r\n")).encode()

    def parts(self) -> list[bytes]:
        """The right answer, in pieces of a sensible size."""
        if not self.is_stream:
            return [self.whole()]
        return [self.head(), *map(chunk, self.events), LAST]


LAST = b"0\r\n\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """Frame data as a chunk."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


Behaviour = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One behaviour. `is_served`: every client gets the whole answer. `group`: requests for it go to a deployment of that name.
    `needs_retry`: the first attempt fails, so that a gateway which has spent its retries refuses the request."""

    behave: Behaviour
    is_served: bool
    group: str
    needs_retry: bool


BEHAVIOURS: dict[str, Row] = {}


def behaviour(*, is_served: bool = False, group: str = "steady", needs_retry: bool = False) -> Callable[[Behaviour], Behaviour]:
    """Add a row to BEHAVIOURS under the function's name."""

    def add(behave: Behaviour) -> Behaviour:
        name = getattr(behave, "__name__").replace("_", "-")  # noqa: B009 - no protocol has it
        BEHAVIOURS[name] = Row(behave, is_served, group, needs_retry)
        return behave

    return add


# ---- Answers that are right, in every form ---------------------------------------------------------------------------


@behaviour(is_served=True)
async def answer(of: Exchange) -> None:
    """Answer in one piece."""
    await of.read_rest()
    await of.send(b"".join(of.parts()))


@behaviour(is_served=True)
async def answer_in_parts(of: Exchange) -> None:
    """Answer event by event."""
    await of.read_rest()
    await of.send(*of.parts())


@behaviour(is_served=True)
async def answer_in_torn_pieces(of: Exchange) -> None:
    """Tear the answer anywhere."""
    await of.read_rest()
    data = b"".join(of.parts())
    cuts = sorted({0, len(data), *(of.dice.randrange(len(data)) for _ in range(9))})
    await of.send(*(data[a:b] for a, b in itertools.pairwise(cuts)))


@behaviour(is_served=True)
async def answer_late(of: Exchange) -> None:
    """Answer after 10 ms."""
    await of.read_rest()
    await asyncio.sleep(0.01)
    await of.send(b"".join(of.parts()))


@behaviour(is_served=True)
async def answer_with_pauses(of: Exchange) -> None:
    """Pause before each part."""
    await of.read_rest()
    for part in of.parts():
        await asyncio.sleep(0.002)
        await of.send(part)


@behaviour(is_served=True)
async def answer_in_chunks(of: Exchange) -> None:
    """Answer in chunks of 7 bytes with extensions, whatever was asked for."""
    await of.read_rest()
    data, kind = (b"".join(of.events), "text/event-stream") if of.is_stream else (of.document(), "application/json")
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    await of.send(head + b"".join(chunk(data[at : at + 7], b";a=b" if at % 70 == 0 else b"") for at in range(0, len(data), 7)) + LAST)


@behaviour(is_served=True)
async def answer_with_trailers(of: Exchange) -> None:
    """End the chunks with trailers that look like the head of an answer."""
    await of.read_rest()
    if not of.is_stream:
        await of.send(of.whole())
        return
    await of.send(of.head() + b"".join(map(chunk, of.events)), b"0\r\nx-status: HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")


@behaviour(is_served=True)
async def answer_after_information(of: Exchange) -> None:
    """Send informational answers first."""
    await of.read_rest()
    await of.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 2 + b"".join(of.parts()))


@behaviour(is_served=True)
async def answer_with_comments(of: Exchange) -> None:
    """Send comments between the events."""
    await of.read_rest()
    if not of.is_stream:
        await of.send(of.whole())
        return
    await of.send(of.head(), *(chunk(b": still here\n\n" + event) for event in of.events), LAST)


@behaviour(is_served=True)
async def answer_and_close(of: Exchange) -> None:
    """Close after the answer, as announced."""
    await of.read_rest()
    data = b"".join(of.parts())
    await of.send(data.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
    of.close()


@behaviour(is_served=True)
async def answer_and_close_without_a_word(of: Exchange) -> None:
    """Close after the answer, which promised to go on."""
    await of.read_rest()
    await of.send(b"".join(of.parts()))
    await asyncio.sleep(of.dice.random() * 0.005)
    of.close()


@behaviour(is_served=True)
async def answer_and_say_408(of: Exchange) -> None:
    """Close the idle connection with a 408. A busy gateway may read it together with the answer."""
    await of.read_rest()
    await of.send(b"".join(of.parts()))
    await asyncio.sleep(0.002 + of.dice.random() * 0.005)
    await of.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    of.close()


@behaviour(is_served=True)
async def answer_at_length(of: Exchange) -> None:
    """Answer with 100 KB."""
    await of.read_rest()
    if of.is_stream:
        first = next(number for number, event in enumerate(of.events) if b"[[" in event)
        events = of.events[:first] + of.events[first : first + 1] * 200 + of.events[first:]
        await of.send(of.head(), *map(chunk, events), LAST)
    else:
        await of.send(of.whole(body=of.document(LARGE_REPEATS)))


@behaviour(is_served=True)
async def answer_until_the_end(of: Exchange) -> None:
    """Answer without a length: the end of the connection is the end of the answer."""
    await of.read_rest()
    data, kind = (b"".join(of.events), "text/event-stream") if of.is_stream else (of.document(), "application/json")
    await of.send(f"HTTP/1.0 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode(), data)
    of.close()


@behaviour(is_served=True, needs_retry=True)
async def answer_at_the_second_time(of: Exchange) -> None:
    """Reset the first attempt before its answer."""
    await of.read_rest()
    if of.marker not in SEEN:
        SEEN.add(of.marker)
        of.reset()
    await of.send(*of.parts())


# ---- Answers before the request is read -------------------------------------------------------------------------------


@behaviour()
async def answer_early_and_read_on(of: Exchange) -> None:
    """Answer before the body is read, and then read it."""
    await of.send(b"".join(of.parts()))
    await of.read_rest()


@behaviour()
async def answer_early_and_close(of: Exchange) -> None:
    """Answer before the body is read, and close."""
    await of.send(b"".join(of.parts()))
    of.close()


@behaviour()
async def refuse_early_and_linger(of: Exchange) -> None:
    """Refuse before the body is read, and read nothing for a while."""
    await of.send(of.whole(status="413 Content Too Large", body=of.error()))
    await asyncio.sleep(0.02)
    await of.read_rest()


# ---- Refusals and errors -----------------------------------------------------------------------------------------------


@behaviour()
async def refuse_as_invalid(of: Exchange) -> None:
    """Answer 400 with the request quoted."""
    await of.read_rest()
    await of.send(of.whole(status="400 Bad Request", body=of.error()))


@behaviour()
async def fail(of: Exchange) -> None:
    """Answer 500."""
    await of.read_rest()
    await of.send(of.whole(status="500 Internal Server Error", body=of.error()))


@behaviour(group="busy")
async def refuse_as_busy(of: Exchange) -> None:
    """Answer 503 or 429."""
    await of.read_rest()
    status = of.dice.choice(("503 Service Unavailable", "429 Too Many Requests"))
    await of.send(of.whole("retry-after: 0", status=status, body=of.error()))


@behaviour()
async def redirect(of: Exchange) -> None:
    """Redirect."""
    await of.read_rest()
    await of.send(of.whole("location: /elsewhere", status="302 Found"))


@behaviour()
async def switch_protocols(of: Exchange) -> None:
    """Switch protocols without being asked to."""
    await of.read_rest()
    await of.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n" + of.document())


@behaviour()
async def answer_with_an_error_inside(of: Exchange) -> None:
    """Answer 200 with an error in it."""
    await of.read_rest()
    if of.is_stream:
        await of.send(of.head(), chunk(of.events[0]), chunk(b"data: " + of.error(code=500) + b"\n\n"), chunk(of.events[-1]), LAST)
    else:
        await of.send(of.whole(body=of.error(code=500)))


@behaviour()
async def answer_as_html(of: Exchange) -> None:
    """Answer with a page."""
    await of.read_rest()
    await of.send(of.whole(body=f"<p>[[{of.marker}]]".encode(), kind="text/html"))


@behaviour()
async def answer_compressed(of: Exchange) -> None:
    """Announce a coding that nobody asked for."""
    await of.read_rest()
    await of.send(of.whole("content-encoding: gzip"))


# ---- Broken answers ------------------------------------------------------------------------------------------------------


@behaviour()
async def break_json(of: Exchange) -> None:
    """Answer with half a document."""
    await of.read_rest()
    data = of.document()[:-9]
    await of.send(of.head(), chunk(b"data: " + data + b"\n\n"), LAST) if of.is_stream else await of.send(of.whole(body=data))


@behaviour()
async def break_utf8(of: Exchange) -> None:
    """Answer with bytes that are no text."""
    await of.read_rest()
    data = of.document().replace(b"assistant", b"assist\xff\xfe")
    await of.send(of.head(), chunk(b"data: " + data + b"\n\n"), LAST) if of.is_stream else await of.send(of.whole(body=data))


@behaviour()
async def end_without_done(of: Exchange) -> None:
    """End a stream before its terminator."""
    await of.read_rest()
    await of.send(of.head(), *map(chunk, of.events[:3]), LAST)


@behaviour()
async def close_in_the_middle(of: Exchange) -> None:
    """Close in the middle of the answer."""
    await of.read_rest()
    data = b"".join(of.parts())
    await of.send(data[: len(data) // 2])
    of.close()


@behaviour()
async def reset_in_the_middle(of: Exchange) -> None:
    """Reset in the middle of the answer."""
    await of.read_rest()
    await of.send(b"".join(of.parts()[:3])[:-20])
    of.reset()


@behaviour()
async def reset_before_the_answer(of: Exchange) -> None:
    """Reset before the answer, each time."""
    await of.read_rest()
    await asyncio.sleep(0.002)
    of.reset()


@behaviour()
async def announce_two_framings(of: Exchange) -> None:
    """Announce a length and chunks."""
    await of.read_rest()
    await of.send(of.head("content-length: 20") + chunk(of.document()) + LAST)


@behaviour()
async def announce_too_much(of: Exchange) -> None:
    """Announce more bytes than come, and close."""
    await of.read_rest()
    data = of.whole()
    await of.send(data.replace(b"content-length: ", b"content-length: 1", 1))
    of.close()


@behaviour()
async def break_a_chunk(of: Exchange) -> None:
    """Send a size that is none."""
    await of.read_rest()
    await of.send(of.head(), chunk(of.events[0]), b"zz\r\n" + of.document() + b"\r\n")
    await asyncio.sleep(0.005)


@behaviour()
async def speak_no_http(of: Exchange) -> None:
    """Answer with something that is not HTTP."""
    await of.read_rest()
    await of.send(f"220 [[{of.marker}]] ready\r\n".encode())
    of.close()


# ---- Bytes that nothing asked for ------------------------------------------------------------------------------------


@behaviour(group="unasked-0")
async def answer_twice_at_once(of: Exchange) -> None:
    """Answer twice in one write."""
    await of.read_rest()
    await of.send(b"".join(of.parts()) * 2)


@behaviour(group="unasked-1")
async def answer_twice_soon(of: Exchange) -> None:
    """Repeat the answer at once, in another write."""
    await of.read_rest()
    await of.send(b"".join(of.parts()), b"".join(of.parts()))


@behaviour(group="unasked-2")
async def answer_twice_late(of: Exchange) -> None:
    """Repeat the answer up to 10 ms later."""
    await of.read_rest()
    await of.send(b"".join(of.parts()))
    await asyncio.sleep(of.dice.random() * 0.01)
    await of.send(b"".join(of.parts()))


@behaviour(group="unasked-3")
async def talk_on_after_done(of: Exchange) -> None:
    """Send events behind the terminator."""
    await of.read_rest()
    if of.is_stream:
        await of.send(*of.parts()[:-1], *map(chunk, of.events), LAST)
    else:
        await of.send(of.whole() + b"\r\n\r\n" + of.document())


@behaviour(group="unasked-4")
async def announce_too_little(of: Exchange) -> None:
    """Announce fewer bytes than come."""
    await of.read_rest()
    data = of.document()
    await of.send(of.whole(body=data).replace(f"length: {len(data)}".encode(), f"length: {len(data) - 30}".encode(), 1))


@behaviour(group="unasked-5")
async def leave_half_an_answer_behind(of: Exchange) -> None:
    """Begin another answer behind the first, which the next request would complete."""
    await of.read_rest()
    await of.send(b"".join(of.parts()))
    await of.send(of.whole()[: -len(of.document())] + of.document()[:9])


SEEN: set[str] = set()
"""Markers of requests that were seen before."""


@dataclass(slots=True)
class Counts:
    """Counters of the engine, in memory that it shares: requests, and those on connections that had had another."""

    requests: "Synchronized[int]" = field(default_factory=lambda: multiprocessing.Value("i", 0))
    reused: "Synchronized[int]" = field(default_factory=lambda: multiprocessing.Value("i", 0))


@contextmanager
def hostile_engine(seed: int) -> Iterator[tuple[str, Counts]]:
    """The URL of the engine and its counts."""
    counts = Counts()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("fork").Process(target=_run, args=(listener, counts, seed), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", counts
        finally:
            process.kill()
            process.join()


def _run(listener: socket.socket, counts: Counts, seed: int) -> None:
    dice = random.Random(seed)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first = True
        try:
            while await _answer(reader, writer, dice):
                counts.requests.value += 1
                counts.reused.value += not is_first
                is_first = False
        except (LeavingError, OSError, asyncio.IncompleteReadError):
            counts.requests.value += 1
            counts.reused.value += not is_first
        finally:
            writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, sock=listener, limit=HEAD_BYTES_MAX) as server:
            await server.serve_forever()

    asyncio.run(run())


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random) -> bool:
    """Answer the next request of a connection. Return False if there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return False
    length = int((re.search(rb"content-length: (\d+)", head) or [b"", b"0"])[1])
    seen = b""
    while len(seen) < length and not (found := ORDER.search(seen)):
        seen += await reader.read(min(length - len(seen), 65536)) or _leave()
    found = ORDER.search(seen)
    if found is None:  # not one of ours, such as a probe
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        return True
    marker, name, form = (each.decode() for each in found.groups())
    path = head.split(b" ", 2)[1].decode().removeprefix("/v1/")
    await BEHAVIOURS[name].behave(Exchange(reader, writer, marker, APIS[path], form == "s", length - len(seen), dice))
    return True


def _leave() -> bytes:
    raise LeavingError
