"""The request path in one process: the gateway's own objects between a client and an engine in memory.

`python -m bench.inside request 1000` prints the CPU time per request; under callgrind, with the library that
`bench.instruments` builds, it counts instructions; with `--folded` it samples which of our functions are at work.
Real: everything from the bytes that a socket gave to the bytes that it takes, the spool on disk and its commits, the
log's thread, the event loop. Not here: sockets and the kernel's part of them. So the figure moves when our code moves,
and for no other reason.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType

import uvloop

from bench.flame import Stack, write_folded
from bench.targets import API_KEY, MODEL, Limited, snapshot_entries
from tollway.domain.keys import digest
from tollway.gateway.edge.client_connection import ClientConnection
from tollway.gateway.edge.edge import Edge, EdgeBounds
from tollway.gateway.plane import Plane
from tollway.gateway.relay import RelayBounds
from tollway.gateway.shared_counters import SharedCounters
from tollway.gateway.upstreams.connection import UpstreamConnection
from tollway.link.spool import Spool
from tollway.storage.shared_counters import RedisCounters, StoreOptions
from tollway.telemetry import LogWriter
from tollway.wire.http import HttpBounds

CONNECTIONS = 32
CHUNKS = 100
WARM_UNITS = 300
LOG_SECONDS = 0.2  # for the log's thread to write the last batch
_PEPPER = b"p" * 32
_HEAD = b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"


BODY_BYTES = 1200


def request_bytes(chunks: int, body_bytes: int = BODY_BYTES) -> bytes:
    """Return the request that native/lg.c sends, with a body of `body_bytes`; `chunks` > 0 asks for a stream."""
    tail = b'"}],"temperature":0.7,"max_tokens":%d' % (chunks or 100)
    tail += b',"seed":0,"stream":true}' if chunks else b"}"
    body = (
        b'{"model":"%b","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"' % MODEL.encode()
    )
    sentence = b"The quick brown fox jumps over the lazy dog. "
    text = sentence * (body_bytes // len(sentence) + 1)
    body += text[: body_bytes - len(body) - len(tail)] + tail
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: OpenAI/Python 3.54.0\r\nAccept: application/json\r\n"
        b"Authorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (API_KEY.encode(), len(body), body)
    )


def answer_bytes() -> bytes:
    """The answer that native/mock.c gives."""
    text = (b"lorem ipsum dolor sit amet " * 21)[:540]
    body = (
        b'{"id":"chatcmpl-8e0b9b1c2d3f4a5b8c7d6e5f4a3b2c1d","object":"chat.completion","created":1763772000,"model":"%b",'
        b'"choices":[{"index":0,"message":{"role":"assistant","content":"%b","refusal":null,"tool_calls":[]},"logprobs":null,'
        b'"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":300,"total_tokens":400,"completion_tokens":100,'
        b'"prompt_tokens_details":null},"system_fingerprint":"vllm-mock"}' % (MODEL.encode(), text)
    )
    return _HEAD + b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (len(body), body)


def stream_reads(chunks: int) -> list[bytes]:
    """Return what one stream arrives as, read by read."""

    def event(delta: bytes, finish: bytes, sent: int) -> bytes:
        data = (
            b'data: {"id":"chatcmpl-8e0b9b1c2d3f4a5b8c7d6e5f4a3b2c1d","object":"chat.completion.chunk","created":1763772000,"model":"%b",'
            b'"choices":[{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b,"token_ids":null}],"usage":{"prompt_tokens":300,'
            b'"total_tokens":%d,"completion_tokens":%d}}\n\n' % (MODEL.encode(), delta, finish, 300 + sent, sent)
        )
        return b"%x\r\n%b\r\n" % (len(data), data)

    head = _HEAD + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    reads = [head + event(b'"role":"assistant","content":""', b"null", 0)]
    reads += [event(b'"content":"T%d "' % (123456789012345 + i), b'"length"' if i == chunks else b"null", i) for i in range(1, chunks + 1)]
    usage = (
        b'data: {"id":"chatcmpl-8e0b9b1c2d3f4a5b8c7d6e5f4a3b2c1d","object":"chat.completion.chunk","created":1763772000,"model":"%b",'
        b'"choices":[],"usage":{"prompt_tokens":300,"total_tokens":%d,"completion_tokens":%d}}\n\n' % (MODEL.encode(), 300 + chunks, chunks)
    )
    return [*reads, b"%x\r\n%b\r\n" % (len(usage), usage), b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]


class _Transport(asyncio.Transport):
    """A socket without one: what is written is handed to `taken`."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken: Callable[[bytes], None] = _ignore

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.taken(data)  # type: ignore[arg-type]

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 40000) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


def _ignore(data: bytes) -> None: ...


class _Load:
    """`CONNECTIONS` clients that ask again as soon as they were answered, and the engine that answers them."""

    def __init__(self, edge: Edge, loop: asyncio.AbstractEventLoop, chunks: int, body_bytes: int) -> None:
        self._loop = loop
        self._request = request_bytes(chunks, body_bytes)
        self._reads = stream_reads(chunks) if chunks else [answer_bytes()]
        self._last = self._reads[-1][-14:]
        self._left = 0
        self._running = 0
        self._done = asyncio.Event()
        self._clients: list[ClientConnection] = []
        for _ in range(CONNECTIONS):
            client = ClientConnection(edge)
            transport = _Transport()
            client.connection_made(transport)
            transport.taken = self._client_takes(client)
            self._clients.append(client)

    def _client_takes(self, client: ClientConnection) -> Callable[[bytes], None]:
        ends = b"0\r\n\r\n" if len(self._reads) > 1 else b""

        def taken(data: bytes) -> None:
            if not ends or data.endswith(ends):
                assert data.startswith(b"HTTP/1.1 200") or ends, data
                self._running -= 1
                self._loop.call_soon(self._ask, client)

        return taken

    def _ask(self, client: ClientConnection) -> None:
        if self._left:
            self._left -= 1
            self._running += 1
            client.data_received(self._request)
        elif not self._running:
            self._done.set()

    async def connect(
        self, new_connection: Callable[[], UpstreamConnection], *_: object, **__: object
    ) -> tuple[object, UpstreamConnection]:
        """Stands in for the loop's `create_connection`."""
        connection = new_connection()
        transport = _Transport()

        def taken(data: bytes) -> None:
            self._loop.call_soon(self._answer, connection, 0)

        transport.taken = taken
        connection.connection_made(transport)
        return transport, connection

    def _answer(self, connection: UpstreamConnection, at: int) -> None:
        if at + 1 < len(self._reads):
            self._loop.call_soon(self._answer, connection, at + 1)
        connection.data_received(self._reads[at])

    async def run(self, requests: int) -> None:
        """Send so many requests, one per connection at a time."""
        self._left = requests
        self._done.clear()
        for client in self._clients:
            self._loop.call_soon(self._ask, client)
        await self._done.wait()


class _Sampler:
    """Looks at the stack at regular intervals of CPU time: which of the gateway's functions is at work. Time in C is its caller's."""

    PERIOD_SECONDS = 0.001  # the kernel may take it for longer: its own clock ticks each 1 to 4 ms

    def __init__(self) -> None:
        self.samples: dict[Stack, int] = {}
        signal.signal(signal.SIGPROF, self._look)

    def switch(self, *, on: bool) -> None:
        """Begin or stop looking."""
        period = self.PERIOD_SECONDS if on else 0.0
        signal.setitimer(signal.ITIMER_PROF, period, period)

    def _look(self, number: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None:
            _, found, path = frame.f_code.co_filename.rpartition("/tollway/")
            if found:
                stack.append(f"{path}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        if stack:
            stack.reverse()
            self.samples[tuple(stack)] = self.samples.get(tuple(stack), 0) + 1


STORE_SECONDS = 60.0
"""Deadline of the store's decisions: under callgrind the process is fifty times slower, and no decision is to be made without the store."""


@asynccontextmanager
async def _counting(plane: Plane, url: str | None) -> AsyncIterator[None]:
    """Count the requests of `plane` in the store at `url` while the block runs; None counts in memory."""
    if url is None:
        yield
        return
    counters = SharedCounters("bench", time.monotonic_ns, plane.directory.end_user_key)
    options = StoreOptions(url=url, decision_seconds=STORE_SECONDS)
    store = RedisCounters(options, recover=counters.restore, alarm=lambda event, fields: print(event, fields, file=sys.stderr))
    counters.use(store)
    plane.limits = counters
    if reason := await store.connect():
        raise SystemExit(f"the store of limits cannot be used: {reason}")
    yield
    assert counters.by_store and not counters.alone, "a decision without the store"
    store.disconnect("the measurement is over")


async def _main(options: argparse.Namespace, directory: Path) -> None:
    scenario: str = options.scenario
    count: int = options.count
    folded: Path | None = options.folded
    loop = asyncio.get_running_loop()
    spool = Spool.open(directory / "spool", alarm=lambda event, fields: print(event, fields, file=sys.stderr))
    with open(directory / "log", "wb") as log:
        plane = Plane(
            usage_sink=spool,
            vault=_Vault(),
            peppers=[_PEPPER],
            log=LogWriter(log.fileno()),
            bounds=RelayBounds(),
            random_bits=random.Random(1).getrandbits,
            now_us=lambda: time.time_ns() // 1000,
        )
        plane.begin_reset()
        for entry in snapshot_entries(digest(_PEPPER, API_KEY.encode()), "http://127.0.0.1:9", options.limits, options.deployments):
            plane.add(entry)
        plane.finish_reset(1)
        if options.traces is not Traces.OFF:
            _trace(plane, options.traces)
        edge = Edge(plane, EdgeBounds(), HttpBounds())
        edge.tell_date(b"Sun, 22 Nov 2026 00:00:00 GMT")
        chunks = CHUNKS if scenario == "chunk" else 0
        load = _Load(edge, loop, chunks, options.body_bytes)
        store = _counting(plane, options.store)
        await store.__aenter__()
        loop.create_connection = load.connect  # type: ignore[method-assign,assignment]
        units = count * max(1, chunks)
        await load.run(max(WARM_UNITS // max(1, chunks), 2 * CONNECTIONS))  # a head is known from its second time on
        gc.collect()
        gc.freeze()
        collect = ctypes.PyDLL(options.collect) if options.collect else None
        sampler = _Sampler() if folded else None
        if sampler:
            sampler.switch(on=True)
        best = 1e9
        for _ in range(1 if collect else 5):
            began = time.process_time_ns()
            if collect:
                collect.start()
            await load.run(count)
            plane.log.flush()
            await asyncio.sleep(LOG_SECONDS)
            if collect:
                collect.stop()
            best = min(best, (time.process_time_ns() - began) / 1000 / units)
        if sampler and folded:
            sampler.switch(on=False)
            folded.write_text(write_folded(sampler.samples))
        await store.__aexit__(None, None, None)
        print(f"{best:.2f} us of CPU per {scenario}", flush=True)
        plane.log.close()
    await spool.close()


class Traces(StrEnum):
    """Tracing of requests: none, with traces that are not kept, or with traces that are."""

    OFF = "off"
    UNSAMPLED = "unsampled"
    SAMPLED = "sampled"


def _trace(plane: Plane, traces: Traces) -> None:
    """Trace requests as a process with a collector does, up to the frames that its exporter is written."""
    from tollway.gateway.tracing import Tracer  # here, so that states of the code without it can be measured too
    from tollway.serve.telemetry_export import BATCH_SPANS_MAX
    from tollway.serve.telemetry_messages import Spans, encode_frame
    from tollway.spans import Sampler, Span, TraceBounds

    pending: list[Span] = []

    def take(spans: list[Span]) -> None:
        pending.extend(spans)
        if len(pending) >= BATCH_SPANS_MAX:
            encode_frame(Spans(pending[:]))
            pending.clear()

    bounds = TraceBounds(sample_ratio=float(traces is Traces.SAMPLED), slow_seconds=86_400, traces_per_second_max=10**9)
    plane.tracer = Tracer(Sampler(bounds), take)


class _Loop(uvloop.Loop):
    """A loop whose methods can be replaced."""


class _Vault:
    def unseal(self, sealed: bytes) -> str:
        """Nothing is sealed here."""
        return sealed.decode()


def main() -> None:
    """Runs one scenario and prints its cost."""
    parser = argparse.ArgumentParser(prog="python -m bench.inside", description=main.__doc__)
    parser.add_argument("scenario", choices=["request", "chunk"])
    parser.add_argument("count", type=int, help="requests")
    parser.add_argument("--collect", help="library that tells callgrind when to count")
    parser.add_argument("--folded", type=Path, help="file for the stacks that were sampled")
    parser.add_argument("--limits", type=Limited, choices=list(Limited), default=Limited.REQUESTS, help="limits of the caller")
    parser.add_argument("--store", help="URL of a Redis or Valkey server that counts the limits")
    parser.add_argument("--deployments", type=int, default=1, help="equal deployments of the model")
    parser.add_argument("--traces", type=Traces, choices=list(Traces), default=Traces.OFF, help="whether requests are traced")
    parser.add_argument("--body-bytes", type=int, default=BODY_BYTES, help="length of a request's body")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollway-bench-") as directory:
        uvloop.run(_main(arguments, Path(directory)), loop_factory=_Loop)


if __name__ == "__main__":
    main()
