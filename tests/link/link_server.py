"""Control's link in small: a real HTTP server on loopback whose answers a test decides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import msgspec

from tollway.domain.snapshot import FORMAT, Change, Entry, SnapshotHead
from tollway.wire.segments import Reader, Tail, first_chain, parse_head


class Hangup(Exception):
    """Cut the connection instead of answering."""


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: bytes
    authorization: str


Answer = tuple[int, bytes | AsyncIterator[bytes]]


class LinkServer:
    """Serves `answer(request)`; an answer of several parts is sent as they come."""

    def __init__(self, answer: Callable[[Request], Awaitable[Answer]]) -> None:
        self._answer = answer
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests: list[Request] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    def hang_up(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                method, target, _ = first.split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                path, _, query = target.partition("?")
                pairs = dict(pair.split("=") for pair in query.split("&") if pair)
                request = Request(method, path, pairs, body, headers.get("authorization", ""))
                self.requests.append(request)
                await self._respond(writer, *(await self._answer(request)))
        except (Hangup, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _respond(self, writer: asyncio.StreamWriter, status: int, body: bytes | AsyncIterator[bytes]) -> None:
        if isinstance(body, bytes):
            length = "" if status == 204 else f"content-length: {len(body)}\r\n"
            writer.write(f"HTTP/1.1 {status} x\r\n{length}\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(f"HTTP/1.1 {status} x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        async for part in body:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@dataclass
class Publisher:
    """The downward half: versions, a snapshot, changes, acknowledgements."""

    version: int = 0
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    acks: list[int] = field(default_factory=list)
    gateways: int = 1
    oldest: int = 0
    streams: bool = True
    heartbeats: bool = True

    def publish(self, kind: str, id: str, entry: Entry | None) -> None:
        self.version += 1
        self.changes.append(Change(version=self.version, kind=kind, id=id, entry=entry))
        if entry is None:
            self.entries.pop((kind, id), None)
        else:
            self.entries[kind, id] = entry

    async def answer(self, request: Request) -> Answer:
        if request.path == "/v1/link/snapshot":
            return 200, self.snapshot()
        if request.path == "/v1/link/ack":
            self.acks.append(msgspec.json.decode(request.body)["version"])
            return 200, b'{"gateways":%d}' % self.gateways
        since = int(request.query["since"])
        if not self.oldest <= since <= self.version:
            return 410, b"{}"
        if request.query["follow"] == "true":
            if not self.streams:
                raise Hangup
            return 200, self.follow(since)
        return 200, b"".join(msgspec.json.encode(change) + b"\n" for change in self.changes if change.version > since)

    def snapshot(self) -> bytes:
        head = SnapshotHead(format=FORMAT, version=self.version, entries=len(self.entries))
        return b"".join(msgspec.json.encode(line) + b"\n" for line in (head, *self.entries.values()))

    async def follow(self, since: int) -> AsyncIterator[bytes]:
        while True:
            for change in [change for change in self.changes if change.version > since]:
                since = change.version
                yield msgspec.json.encode(change) + b"\n"
            if self.heartbeats:
                yield b'{"version":%d}\n' % since
            await asyncio.sleep(0.02)


@dataclass
class Collector:
    """The upward half: keeps each epoch's frames, checked as the real one checks them."""

    taken: dict[tuple[str, int], bytes] = field(default_factory=dict)
    readers: dict[tuple[str, int], Reader] = field(default_factory=dict)

    async def answer(self, request: Request) -> Answer:
        _, _, _, _, node_id, number, *rest = request.path.split("/")
        place = (node_id, int(number))
        reader = self.readers.setdefault(place, Reader(1, first_chain(*place)))
        if request.method == "GET":
            return 200, self.next_seq(reader)
        first_seq, offset = int(rest[0]), 0
        if first_seq > reader.next_seq:
            return 409, self.next_seq(reader)
        while first_seq < reader.next_seq and (head := parse_head(request.body, offset)) is not None:
            offset, first_seq = offset + 32 + head[0], first_seq + 1
        for frame in reader.read(request.body, offset):
            self.taken[place] = self.taken.get(place, b"") + request.body[offset : frame.end]
            offset = frame.end
        if reader.tail is not Tail.CLEAN:
            return 400, b"{}"
        return 200, self.next_seq(reader)

    @staticmethod
    def next_seq(reader: Reader) -> bytes:
        return msgspec.json.encode({"next_seq": reader.next_seq})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come true; the deadline is against hangs only."""
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")
