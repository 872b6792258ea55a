"""A data plane with a hand-made snapshot, on loopback or in memory, and a plain HTTP client that shows every byte."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from tests.fakes import PATIENCE_SECONDS, Clock, Script, Step, Transport, UsageSink, Vault
from tollway.domain import keys
from tollway.domain.billing_classes import CLASS_TABLE, OtherClasses, UnitPrices
from tollway.domain.catalog import HEDGE_PERCENT_FIRST, CacheIsolation, Deployment, Endpoint, Engine, UnknownParameters
from tollway.domain.keys import KeyType
from tollway.domain.limits import UNLIMITED, Limits
from tollway.domain.prices import PriceTerms, PriceVersion
from tollway.domain.snapshot import DeploymentEntry, KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry
from tollway.domain.tenants import Status
from tollway.domain.usage import ServiceTier
from tollway.gateway.background import BackgroundTasks
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.edge import server
from tollway.gateway.edge.client_connection import ClientConnection
from tollway.gateway.edge.edge import Edge, EdgeBounds
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.plane import Plane
from tollway.gateway.relay import RelayBounds
from tollway.gateway.shedding import SheddingBounds
from tollway.gateway.waiting import QueueBounds
from tollway.telemetry import LogWriter
from tollway.wire.http import HttpBounds

PEPPER = b"p" * 32
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def _secret(type: KeyType, seed: int) -> str:
    return keys.new_key(type, bytes([seed]) * keys.RANDOM_BYTES).secret


KEY, OTHER_KEY, NARROW_KEY = (_secret(KeyType.LIVE, seed) for seed in (1, 2, 3))
EXPIRED_KEY, UNKNOWN_KEY = _secret(KeyType.LIVE, 4), _secret(KeyType.LIVE, 5)
ADMIN_KEY, PLATFORM_KEY, NODE_KEY = (_secret(type, 6) for type in (KeyType.ADMIN, KeyType.PLATFORM, KeyType.NODE))
ORGANIZATION, PROJECT = "org_" + "0" * 32, "proj_" + "0" * 32


@dataclass(frozen=True)
class Served:
    """A model of the snapshot and who serves it: upstream URLs in order of tier, or all of one tier. `regions`: those of the upstreams, in
    their order."""

    urls: Sequence[str]
    engine: Engine = Engine.SIM
    upstream_model: str | None = None
    output_tokens_max: int | None = None
    context_length: int | None = None
    retry_started: bool = True
    unknown_parameters: UnknownParameters = UnknownParameters.REFUSE
    credential: bytes | None = None
    cache_isolation: CacheIsolation = CacheIsolation.ENGINE
    translated_endpoints: tuple[Endpoint, ...] = ()
    one_tier: bool = False
    groups: tuple[str, ...] = ()
    regions: Sequence[str | None] = ()
    fallbacks: tuple[str, ...] = ()
    input_price: int = 100
    hedge_after_ms: int | None = None
    hedge_percent: int = HEDGE_PERCENT_FIRST
    latency_goal_ms: int | None = None
    priorities: bool = False
    costs: Sequence[int | None] = ()
    batch_price: int | None = None
    pixel_price: int = 0


NOWHERE = "http://127.0.0.1:9"

NEVER_LATE = SheddingBounds(lag_seconds_max=0.0)
"""Bounds of a gateway that refuses nothing although the machine is busy and its loop lags."""


@contextmanager
def plane(
    models: Mapping[str, Served] | None = None,
    *,
    bounds: RelayBounds | None = None,
    limits: Limits = UNLIMITED,
    end_user_limits: Limits = UNLIMITED,
    clock: Clock | None = None,
    buffers: BufferBounds | None = None,
    queue: QueueBounds | None = None,
    shedding: SheddingBounds = NEVER_LATE,
) -> Iterator[tuple[Plane, UsageSink, "Log"]]:
    """A plane that knows one organization and these models. `m` is served nowhere unless given."""
    clock = clock or Clock()
    sink = UsageSink()
    log = Log()
    made = Plane(
        usage_sink=sink,
        vault=Vault(),
        peppers=[PEPPER],
        log=log.writer,
        bounds=bounds or RelayBounds(),
        buffer_bounds=buffers,
        queue_bounds=queue,
        shedding_bounds=shedding,
        random_bits=clock.random_bits,
        now_us=clock.now_us,
    )
    made.begin_reset()
    made.add(OrganizationEntry(id=ORGANIZATION, currency="EUR", terms=(PriceTerms(0, "book_1"),)))
    made.add(ProjectEntry(id=PROJECT, organization_id=ORGANIZATION, limits=limits, end_user_limits=end_user_limits))
    for number, secret in enumerate((KEY, OTHER_KEY, NARROW_KEY, EXPIRED_KEY)):
        made.add(
            KeyEntry(
                id=f"key_{number:032x}",
                digest=keys.digest(PEPPER, secret.encode()),
                type=KeyType.LIVE,
                project_id=PROJECT,
                models=("other",) if secret == NARROW_KEY else None,
                expires_at=clock.now_us() - 1 if secret == EXPIRED_KEY else None,
            )
        )
    for name, served in {"m": Served([NOWHERE]), **(models or {})}.items():
        price = PriceVersion(
            id="price_" + "0" * 32, list="book_1", model=name, currency="EUR", valid_from=0,
            unit_prices=UnitPrices(
                input=served.input_price,
                cached_input=10,
                output=400,
                reasoning=400,
                other=OtherClasses(pixels=served.pixel_price) if served.pixel_price else None,
            ),
            class_table=CLASS_TABLE if served.pixel_price else 1,
        )  # fmt: skip
        made.add(
            ModelEntry(
                id=name,
                endpoints=tuple(Endpoint),
                created_at=1_000_000,
                prices=(price,) if served.batch_price is None else (price, _price_batches(price, served.batch_price)),
                output_tokens_max=served.output_tokens_max,
                context_length=served.context_length,
                retry_started=served.retry_started,
                unknown_parameters=served.unknown_parameters,
                groups=served.groups,
                fallbacks=served.fallbacks,
                hedge_after_ms=served.hedge_after_ms,
                hedge_percent=served.hedge_percent,
                latency_goal_ms=served.latency_goal_ms,
            )
        )
        for tier, url in enumerate(served.urls):
            id = f"dep-{name}-{tier}"
            deployment = Deployment(
                id=id, model=name, base_url=url, engine=served.engine, upstream_model=served.upstream_model or name, weight=1,
                tier=0 if served.one_tier else tier, status=Status.ACTIVE, created_at=0, credential=served.credential,
                region=served.regions[tier] if served.regions else None,
                cache_isolation=served.cache_isolation, translated_endpoints=served.translated_endpoints,
                priorities=served.priorities, relative_cost=served.costs[tier] if served.costs else None,
            )  # fmt: skip
            made.add(DeploymentEntry(id=id, deployment=deployment))
    made.finish_reset(1)
    try:
        yield made, sink, log
    finally:
        log.close()


def _price_batches(price: PriceVersion, input_price: int) -> PriceVersion:
    prices = msgspec.structs.replace(price.unit_prices, input=input_price)
    return msgspec.structs.replace(price, id="price_" + "b" * 32, tier=ServiceTier.BATCH, unit_prices=prices)


class Log:
    """Log of the plane: a file in memory."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("log")
        self.writer = LogWriter(self._descriptor)
        self.text = b""

    def close(self) -> None:
        """Everything written is in `text` from now on."""
        if self._descriptor >= 0:
            self.writer.close()
            self.text = os.pread(self._descriptor, 1 << 24, 0)
            os.close(self._descriptor)
            self._descriptor = -1


# In memory


async def driven(answering: Callable[[CoroutineDriver], Coroutine[Any, None, None]]) -> None:
    """Run what `answering` returns as the server does, and wait for its end."""
    over = asyncio.get_running_loop().create_future()

    async def to_the_end() -> None:
        await answering(driver)
        over.set_result(None)

    driver = CoroutineDriver(copy_context())
    over.get_loop().call_soon(driver.start, to_the_end())
    await over


class Memory:
    """Client connections in memory: bytes in, bytes out, time by hand."""

    def __init__(
        self,
        plane: Plane,
        bounds: EdgeBounds | None = None,
        http: HttpBounds | None = None,
        rules: EdgePolicy | None = None,
    ) -> None:
        self.edge = Edge(plane, bounds or EdgeBounds(), http or HttpBounds(), rules)
        self.edge.tell_date(b"Sun, 22 Nov 2026 00:00:00 GMT")

    def connect(self, peer: str = "192.0.2.1") -> Transport:
        return Transport(ClientConnection(self.edge), peer)

    def tick(self, connection: Transport, seconds: float) -> None:
        """Let so much time pass; the server's clock looks at the connection."""
        self.edge.now += seconds
        cast("ClientConnection", connection.protocol).tick(self.edge.now)

    async def exchange(self, data: bytes, step: int = 0) -> Transport:
        """The connection after these bytes, fed `step` at a time (0: at once), and after every task they started."""
        connection = self.connect()
        for start in range(0, len(data), step or len(data)):
            connection.feed(data[start : start + (step or len(data))])
        await self.settle()
        return connection

    async def settle(self) -> None:
        """Wait until no task is left but this one, and each pipelined request had its turn of the loop."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(self.edge.http.pipelined_max + 2):
                await asyncio.sleep(0)
                while others := asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}:
                    await asyncio.wait(others)


# On loopback


@dataclass
class Gateway:
    """A gateway that listens."""

    port: int
    internal_port: int
    plane: Plane
    sink: UsageSink
    log: Log
    stop: asyncio.Event
    done: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def gateway(
    models: Mapping[str, Served],
    *,
    bounds: RelayBounds | None = None,
    edge_bounds: EdgeBounds | None = None,
    drain: server.DrainBounds | None = None,
    buffers: BufferBounds | None = None,
    queue: QueueBounds | None = None,
    shedding: SheddingBounds = NEVER_LATE,
    limits: Limits = UNLIMITED,
    end_user_limits: Limits = UNLIMITED,
    rules: EdgePolicy | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Gateway]:
    """Runs a gateway in this loop. Fails if anything in it raised, or if a request was admitted and never ended."""
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    stop, ready = asyncio.Event(), asyncio.Event()
    bounded = plane(models, bounds=bounds, limits=limits, end_user_limits=end_user_limits, buffers=buffers, queue=queue, shedding=shedding)
    with bounded as (made, sink, log):
        listener, internal = _listen(), _listen()
        alarms: list[tuple[str, dict[str, object]]] = []
        background = BackgroundTasks(made.metrics, lambda event, fields: alarms.append((event, fields)))
        done = loop.create_task(
            server.serve(
                made,
                listener=listener,
                internal=internal,
                stop=stop,
                edge_bounds=edge_bounds or EdgeBounds(),
                http_bounds=HttpBounds(),
                drain=drain or server.DrainBounds(grace_seconds=1.0),
                ready=ready,
                background=background,
                rules=rules,
                tls=None if tls is None else lambda: tls,
            )
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ready.wait()
        try:
            yield Gateway(listener.getsockname()[1], internal.getsockname()[1], made, sink, log, stop, done)
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await done
                await background.stop()
        assert errors == []
        assert alarms == []
        assert sink.owed == 0
        log.close()
        assert b"internal_error" not in log.text


def _listen() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    return sock


@dataclass(frozen=True)
class Answer:
    """Answer and how it ended: "complete", "eof" (inside the answer, or instead of one) or "reset"."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str = "complete"

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails if the body is not exactly one in OpenAI's shape."""
        body = self.json()
        assert list(body) == ["error"] and set(body["error"]) == {"message", "type", "param", "code"}
        return cast("dict[str, Any]", body["error"])

    def events(self) -> list[Any]:
        """The data of the stream's events; fails for anything that is not an event of one data line, or a comment."""
        *events, rest = self.body.split(b"\n\n")
        assert rest == b"", "bytes after the last event"
        datas = [event for event in events if event != b": keepalive"]
        assert all(data.startswith(b"data: ") and b"\n" not in data for data in datas), datas
        return ["[DONE]" if data == b"data: [DONE]" else msgspec.json.decode(data[6:]) for data in datas]

    @property
    def text(self) -> str:
        """Return all text of the stream."""
        parts = [event["choices"][0] for event in self.events() if isinstance(event, dict) and event.get("choices")]
        return "".join(part["delta"].get("content") or "" for part in parts)


def split_answers(data: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """The answers in `data`, which must hold nothing else. `methods` of the requests, as far as they are HEAD."""
    answers: list[Answer] = []
    while data:
        head, blank, data = data.partition(b"\r\n\r\n")
        assert blank, "a head that does not end"
        status, headers = _read_head(head)
        if len(answers) < len(methods) and methods[len(answers)] == "HEAD":
            answers.append(Answer(status, headers, b""))
            continue
        length = int(headers["content-length"])
        assert len(data) >= length
        answers.append(Answer(status, headers, data[:length]))
        data = data[length:]
    return answers


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("ascii").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header stands twice"
    return int(status), headers


class Client:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, method: str = "POST") -> Answer:
        """The next answer."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                while True:
                    status, headers = _read_head((await self.reader.readuntil(b"\r\n\r\n"))[:-4])
                    if status >= 200:
                        break
            except (asyncio.IncompleteReadError, ConnectionResetError) as error:
                return Answer(0, {}, b"", "eof" if isinstance(error, asyncio.IncompleteReadError) else "reset")
            body = bytearray()
            try:
                if method == "HEAD":
                    pass
                elif "content-length" in headers:
                    assert "transfer-encoding" not in headers
                    body += await self.reader.readexactly(int(headers["content-length"]))
                elif "transfer-encoding" in headers:
                    while size := int(await self.reader.readuntil(b"\r\n"), 16):
                        body += await self.reader.readexactly(size)
                        assert await self.reader.readexactly(2) == b"\r\n"
                    assert await self.reader.readexactly(2) == b"\r\n"
                else:
                    body += await self.reader.read(-1)
            except asyncio.IncompleteReadError as error:
                return Answer(status, headers, bytes(body + error.partial), "eof")
            except ConnectionResetError:
                return Answer(status, headers, bytes(body), "reset")
            return Answer(status, headers, bytes(body))

    async def rest(self) -> bytes:
        """Whatever still comes until the connection ends; a reset ends it too."""
        data = b""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                while more := await self.reader.read(1 << 16):
                    data += more
            except ConnectionResetError:
                pass
        return data

    def vanish(self) -> None:
        """Leave without a goodbye."""
        self.writer.transport.abort()


@asynccontextmanager
async def connect(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, limit=1 << 24, ssl=tls, server_hostname="gateway" if tls is not None else None
    )
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def post(port: int, body: Any, path: str = CHAT, **headers: str) -> Answer:
    """One request on a connection of its own."""
    async with connect(port) as client:
        client.send(message(body, path, **headers))
        return await client.answer()


def message(body: Any, path: str = CHAT, key: str | None = KEY, **headers: str) -> bytes:
    """A POST as it goes over the wire. `body` is JSON to be, or bytes as they are."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    fields = {"host": "gateway", "content-type": "application/json", "content-length": str(len(data))}
    if key is not None:
        fields["authorization"] = f"Bearer {key}"
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}]} | more


def streamed(model: str = "m", **more: Any) -> dict[str, Any]:
    return chat(model, stream=True) | more


# What engines say


def chunk(content: str | None = None, *, finish: str | None = None, usage: Any = None, model: str = "m", **more: Any) -> dict[str, Any]:
    """One event of a chat stream."""
    delta = {} if content is None else {"content": content}
    event: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    event["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return event | ({} if usage is None else {"usage": usage}) | more


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """A usage object."""
    report: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return report | ({"prompt_tokens_details": {"cached_tokens": cached}} if cached else {})


def usage_chunk(prompt: int, completion: int, model: str = "m") -> dict[str, Any]:
    """The event that follows the finish, with usage and no choices."""
    return chunk(model=model, usage=usage(prompt, completion)) | {"choices": []}


def event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else msgspec.json.encode(data)) + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def part(*datas: Any) -> bytes:
    """Events as one chunk of a chunked body."""
    data = b"".join(data if data == DONE or (isinstance(data, bytes) and data.endswith(b"\n\n")) else event(data) for data in datas)
    return b"%x\r\n%b\r\n" % (len(data), data)


def healthy(*words: str, prompt: int = 5) -> Script:
    """A whole stream as vLLM sends it, usage at the end."""
    steps: list[Step] = [STREAM_HEAD, part(chunk("", role="assistant"))]
    steps += [part(chunk(word)) for word in words]
    return [*steps, part(chunk(finish="stop")), part(usage_chunk(prompt, len(words))), part(DONE), END]


def whole(body: Any, status: int = 200, headers: bytes = b"") -> bytes:
    """A JSON answer."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, headers, len(data)) + data


def completion(content: str = "Hello", prompt: int = 5, completion: int = 2, **more: Any) -> dict[str, Any]:
    """A whole chat answer."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": usage(prompt, completion),
    } | more
