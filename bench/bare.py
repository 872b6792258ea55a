"""The floor: the least relay that Python on these transports can be, `python -m bench.bare PORT UPSTREAM_PORT KEY`.

Protocol to protocol on uvloop, both ends framed by llhttp, the key looked up in a dict, one connection per request taken from a pool,
answers relayed byte by byte as they come. Nothing else: no strict parse, no limits, no retries, no deadlines, no usage, no spool, no
log, no metrics. It trusts both of its ends and is for measuring alone: what the gateway costs beyond it is what its features cost.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import uvloop


class Client(asyncio.Protocol):
    """A client's connection, with one request at a time."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.parser = httptools.HttpRequestParser(self)
        self.engine: Engine | None = None
        self.key = self.target = self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.engine is not None:
            self.engine.transport.abort()

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self.key = value

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        authorization = self.relay.keys.get(self.key)
        if authorization is None or self.engine is not None:
            self.transport.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
            return
        message = b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            self.target,
            len(self.body),
            self.body,
        )
        self.body = b""
        if self.relay.idle:
            self.relay.idle.pop().ask(message, self)
        else:
            self.relay.connect(message, self)


class Engine(asyncio.Protocol):
    """An engine's connection: idle in the pool, or answering a client."""

    def __init__(self, relay: Relay, message: bytes, client: Client) -> None:
        self.relay = relay
        self.first = message, client
        self.parser = httptools.HttpResponseParser(self)
        self.client: Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.ask(*self.first)

    def ask(self, message: bytes, client: Client) -> None:
        """Relay the answer to `message` to `client`."""
        self.client = client
        client.engine = self
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        if self.client is not None:
            self.client.transport.write(data)
            self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        assert self.client is not None
        self.client.engine = None
        self.client = None
        self.relay.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.relay.idle:
            self.relay.idle.remove(self)
        if self.client is not None:
            self.client.transport.close()


class Relay:
    """State that the connections share."""

    def __init__(self, upstream_port: int, keys: dict[bytes, str]) -> None:
        self.keys = keys
        self.idle: list[Engine] = []
        self._upstream_port = upstream_port
        self._connecting: set[asyncio.Task[object]] = set()

    def connect(self, message: bytes, client: Client) -> None:
        """Ask on a new connection."""
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.create_connection(lambda: Engine(self, message, client), "127.0.0.1", self._upstream_port)
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)


async def main(port: int, upstream_port: int, key: str) -> None:
    """Serves until it is killed."""
    relay = Relay(upstream_port, {f"Bearer {key}".encode(): "organization"})
    server = await asyncio.get_running_loop().create_server(lambda: Client(relay), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
