"""A simulator on its own uvloop in a thread of this process, and a plain HTTP client that shows every byte."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from tests.patience import PATIENCE_SECONDS
from tollway.simulator import truth
from tollway.simulator.server import serve
from tollway.simulator.settings import SimulatorSettings


@dataclass(frozen=True)
class Running:
    """A simulator that listens, and its truth log."""

    url: str
    port: int
    log: Path

    def records(self) -> list[truth.TruthRecord]:
        return truth.read(self.log)

    async def record(self, request_id: str) -> truth.TruthRecord:
        """The one record of a request, once it is there; fails if there are two."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found = [record for record in self.records() if record.request_id == request_id]
                if found:
                    assert len(found) == 1
                    return found[0]
                await asyncio.sleep(0.005)

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = (await get(self, "/sim/state")).json()
        return state

    async def wait_for(self, **expected: object) -> None:
        """Returns when /sim/state shows these values."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                state = await self.state()
                if all(state[name] == value for name, value in expected.items()):
                    return
                await asyncio.sleep(0.005)


@contextmanager
def simulator(log: Path, **settings: Any) -> Iterator[Running]:
    """Runs a simulator; fails if anything in it raised. Fast unless told otherwise."""
    defaults: dict[str, Any] = {"ttft_seconds": 0.001, "inter_token_seconds": 0.001}
    chosen = SimulatorSettings(port=0, truth_log=log, **(defaults | settings))
    urls: queue.Queue[str] = queue.Queue()
    controls: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()
    errors: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        stop = asyncio.Event()
        controls.put((loop, stop))
        await serve(chosen, ready=urls.put, stop=stop)

    def live() -> None:
        try:
            uvloop.run(main())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=live)
    thread.start()
    loop, stop = controls.get(timeout=PATIENCE_SECONDS)
    url = urls.get(timeout=PATIENCE_SECONDS)
    try:
        yield Running(url, int(url.rpartition(":")[2]), log)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        assert errors == []


# A client


@dataclass(frozen=True)
class Answer:
    """Answer and how it ended: "complete", "eof" (inside the body) or "reset"."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str
    chunks: tuple[bytes, ...] = ()

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def events(self) -> list[Any]:
        """The data of all SSE events, parsed where it is JSON."""
        return [_data(event) for event in self.body.decode().replace("\r\n", "\n").split("\n\n") if "data:" in event]


def _data(event: str) -> Any:
    text = "\n".join(line[5:].strip() for line in event.split("\n") if line.startswith("data:"))
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


class Reader(asyncio.StreamReader):
    """Gives what arrived before a reset, as the kernel does; asyncio's own reader throws it away."""

    reset = False

    def set_exception(self, exc: BaseException) -> None:
        self.reset = True
        self.feed_eof()


class Client:
    """One connection. Reads exactly one answer at a time."""

    def __init__(self, reader: Reader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        fields = {"host": "sim", "content-type": "application/json", "content-length": str(len(body))} | (headers or {})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        self.writer.write(head.encode() + body)

    async def receive(self) -> Answer:
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except asyncio.IncompleteReadError:
                return Answer(0, {}, b"", self._broken)
            first, *lines = head[:-4].split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            chunks: list[bytes] = []
            ended = "complete"
            try:
                if "transfer-encoding" in headers:
                    while chunk := await self._chunk(chunks):
                        chunks.append(chunk)
                else:
                    chunks.append(b"")
                    for _ in range(int(headers["content-length"])):
                        chunks[0] += await self.reader.readexactly(1)
            except asyncio.IncompleteReadError as error:
                ended = self._broken
                chunks.append(error.partial)
            return Answer(int(first.split()[1]), headers, b"".join(chunks), ended, tuple(chunks))

    @property
    def _broken(self) -> str:
        return "reset" if self.reader.reset else "eof"

    async def _chunk(self, chunks: list[bytes]) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = b""
        try:
            while len(data) < size:
                more = await self.reader.read(size - len(data))
                if not more:
                    raise asyncio.IncompleteReadError(b"", size)
                data += more
        except BaseException:
            chunks.append(data)  # what arrived of a chunk that was cut
            raise
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    def stop_reading(self) -> None:
        """Lets the answer pile up in the kernel's buffers, and beyond."""
        cast("asyncio.ReadTransport", self.writer.transport).pause_reading()

    def read_again(self) -> None:
        cast("asyncio.ReadTransport", self.writer.transport).resume_reading()

    def vanish(self) -> None:
        """Leaves without a goodbye."""
        self.writer.transport.abort()


@asynccontextmanager
async def connect(sim: Running) -> AsyncIterator[Client]:
    loop = asyncio.get_running_loop()
    reader = Reader(limit=8 * 1024 * 1024)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", sim.port)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def get(sim: Running, path: str, **headers: str) -> Answer:
    async with connect(sim) as client:
        client.send("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return await client.receive()


async def post(sim: Running, path: str, body: Any, request_id: str = "r", fault: str = "", **headers: str) -> Answer:
    async with connect(sim) as client:
        send(client, path, body, request_id, fault, **headers)
        return await client.receive()


def send(client: Client, path: str, body: Any, request_id: str = "r", fault: str = "", **headers: str) -> None:
    """Sends a POST. `body` is JSON to be, or bytes as they are."""
    fields = {"x-request-id": request_id} | {name.replace("_", "-"): value for name, value in headers.items()}
    if fault:
        fields["x-sim-fault"] = fault
    client.send("POST", path, body if isinstance(body, bytes) else msgspec.json.encode(body), fields)


CHAT, COMPLETIONS, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/embeddings"


def chat(tokens: int = 8, **more: Any) -> dict[str, Any]:
    """A chat body whose answer has exactly so many tokens."""
    body = {"model": "sim-small", "messages": [{"role": "user", "content": "Say something."}]}
    return body | {"max_tokens": tokens, "ignore_eos": True} | more


def streamed(tokens: int = 8, **more: Any) -> dict[str, Any]:
    """The same as a stream, with usage."""
    return chat(tokens, stream=True, stream_options={"include_usage": True}) | more


def content(events: list[Any], choice: int = 0) -> str:
    """The text that a chat stream carries for one choice."""
    return "".join(
        part["delta"].get("content") or ""
        for event in events
        if isinstance(event, dict)
        for part in event.get("choices", [])
        if part["index"] == choice
    )
