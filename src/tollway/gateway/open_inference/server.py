"""The listener of the gRPC port: the service, health and reflection, and their bounds.

Each call runs as a task of the library; what it does beyond reading and writing messages is driven beside that task (`_drive`), so that a
call that the client cancels still ends its record. Methods that there are not, messages and metadata beyond their bounds, calls beyond
`calls_max` and connections beyond `connections_max` are refused by the library, before anything of ours runs. Of the places that
`calls_max` allows, one organization has so many, and calls without a key have a small part, each for a short time.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from importlib.resources import files
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.gateway import model_descriptions, pipeline
from tollway.gateway.authenticate import authenticate
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.deadlines import read_timeout
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.edge import edge_policy
from tollway.gateway.edge.auth_failures import AuthFailureLimiter
from tollway.gateway.edge.edge_policy import EdgePolicy
from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.open_inference.calls import STREAM, UNARY, InferenceCall, list_metadata
from tollway.gateway.open_inference.channels import Channels, find_place
from tollway.gateway.open_inference.statuses import find_code, list_trailers
from tollway.gateway.plane import Plane
from tollway.gateway.request import Caller, ClientGone, RequestHead
from tollway.wire import open_inference
from tollway.wire.http import CREDENTIALS, WANTED
from tollway.wire.protobuf import MessageInvalid, encode_bytes, encode_int, read_fields, read_text

SERVICE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2
_IGNORED: Final = frozenset({b"idempotency-key", b"cache-control", b"content-type", b"host"})
"""Metadata that mean something for other APIs alone."""
MAINTENANCE_SECONDS: Final = 1.0
MESSAGE_SECONDS: Final = 15.0
"""Time for the message of a call, from its begin."""
FINISH_SECONDS: Final = 2.0
"""Time for records of calls that a drain has ended: less than the supervisor leaves after it."""
KEYLESS_PART: Final = 8
"""Part of `calls_max` that calls without a key may take."""
KEYLESS_SECONDS: Final = 5.0
"""Time for the message of a call without a key, from its begin."""
REFLECTION_SECONDS: Final = 15.0
QUESTIONS_MAX: Final = 64
"""Time and questions of one call of the reflection service, whose answers have a few kilobytes each."""
_KEYLESS: Final = ""
"""Holder of the places of calls without a key, beside the organizations."""


class _Ended(NamedTuple):
    """The end of a driven coroutine: with an answer, with a fault, or because the client is gone."""

    answer: bytes
    fault: Fault | None
    is_gone: bool


Answer = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Coroutine[Any, Any, bytes]]
"""Answers one message."""


class Listener:
    """The gRPC port of one gateway."""

    def __init__(self, plane: Plane, bounds: GrpcBounds, failed_authentications_per_minute: int, rules: EdgePolicy | None = None) -> None:
        self._plane = plane
        self._bounds = bounds
        self._rules = rules
        self._failures = AuthFailureLimiter(failed_authentications_per_minute)
        self._channels = Channels(plane.bounds.answer_bytes_max, plane.bounds.connect_seconds)
        self._drivers: set[CoroutineDriver] = set()
        self._places: dict[str, int] = {}
        self._requests = 0
        self._reflection = reflection.aio.ReflectionServicer((SERVICE, HEALTH, reflection.SERVICE_NAME), pool=_load_descriptors())
        self.port = 0

    @property
    def running(self) -> int:
        """Return how many requests run."""
        return len(self._drivers)

    async def serve(
        self,
        address: str,
        stop: asyncio.Event,
        *,
        grace_seconds: float,
        linger_seconds: float = 0.0,
        credentials: grpc.ServerCredentials | None = None,
        ready: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Serve until `stop`, then let what runs end within the grace. `ready` gets the port. Raises OSError if it cannot listen."""
        bounds = self._bounds
        server = grpc.aio.server(
            maximum_concurrent_rpcs=bounds.calls_max,
            options=(
                ("grpc.max_receive_message_length", bounds.message_bytes_max),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", bounds.connection_calls_max),
                ("grpc.max_metadata_size", bounds.metadata_bytes_max),
                ("grpc.absolute_max_metadata_size", bounds.metadata_bytes_max),
                ("grpc.max_allowed_incoming_connections", bounds.connections_max),
                ("grpc.max_connection_idle_ms", int(bounds.idle_seconds * 1000)),
                ("grpc.max_connection_age_ms", int(bounds.age_seconds * 1000)),
                ("grpc.max_connection_age_grace_ms", int(self._plane.bounds.total_seconds * 1000)),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 5),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none: little data unfolds to much
                ("grpc.so_reuseport", 1),  # a new process listens beside the one that drains
            ),
        )
        self._add_services(server)
        try:
            self.port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(f"cannot listen on {address}") from None
        await server.start()
        ready(self.port)
        try:
            while not stop.is_set():
                try:
                    async with asyncio.timeout(MAINTENANCE_SECONDS):
                        await stop.wait()
                except TimeoutError:
                    self._failures.forget_idle(time.monotonic_ns())
                    self._channels.keep_only({find_place(each) for each in self._plane.upstreams.all()})
            stopped_at = time.monotonic()
            await asyncio.sleep(linger_seconds)
        finally:
            if not stop.is_set():
                stopped_at, grace_seconds = time.monotonic(), 0.0
            await self._end(server, stopped_at, grace_seconds)

    async def _end(self, server: grpc.aio.Server, stopped_at: float, grace_seconds: float) -> None:
        """Accept nothing more, let what runs end within the grace since `stopped_at`, end the rest with the fault of a drain, and wait for
        its records. Streams without a request are ended for the drain within MAINTENANCE_SECONDS; then nothing is waited for."""
        deadline = stopped_at + grace_seconds
        stopping = asyncio.ensure_future(server.stop(max(deadline - time.monotonic(), 0.0) + FINISH_SECONDS))
        await self._wait_for_requests(deadline)
        for driver in list(self._drivers):
            driver.interrupt(Fault(faults.DRAINING, retry_after_seconds=1))
        await self._wait_for_requests(time.monotonic() + FINISH_SECONDS)
        await server.stop(max(stopped_at + 1.5 * MAINTENANCE_SECONDS - time.monotonic(), 0.0))
        await stopping
        await self.close_channels()

    async def close_channels(self) -> None:
        """Close the connections to all engines; the next call opens one again."""
        await self._channels.close()

    async def _wait_for_requests(self, deadline: float) -> None:
        while (self._drivers or self._requests) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    @contextmanager
    def _count_request(self) -> Iterator[None]:
        """Count a request from its message until its answer is sent, or reported: a drain waits for it."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def _add_services(self, server: grpc.aio.Server) -> None:
        methods = {
            UNARY: self._handle(self._infer, needs_key=True),
            STREAM: grpc.stream_stream_rpc_method_handler(self._infer_stream),
            "ServerLive": self._handle(self._answer_live),
            "ServerReady": self._handle(self._answer_ready),
            "ServerMetadata": self._handle(self._describe_server),
            "ModelReady": self._handle(self._answer_model_ready, needs_key=True),
            "ModelMetadata": self._handle(self._describe_model, needs_key=True),
        }
        health = {"Check": self._handle(self._check_health)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, methods), grpc.method_handlers_generic_handler(HEALTH, health))
        )
        described = {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(self._reflect)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, described),))

    def _handle(self, answer: Answer, *, needs_key: bool = False) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Return the handler of a method with one message and one answer.

        For the library it is a method of streams, which differs in nothing on the wire: so that a call is looked at when it begins, and
        neither one without a key nor one whose message does not come holds a place among `calls_max`.
        """

        async def handle(messages: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
            holder = _KEYLESS
            if needs_key:
                head, _ = await self._read_head(context)
                holder = (await self._authenticate(head, context)).organization.id
            await self._take_place(holder, context)
            try:
                message = await self._read(MESSAGE_SECONDS if needs_key else KEYLESS_SECONDS, context)
                with self._count_request():
                    await self._write(await answer(message, context), context)
            finally:
                self._free_place(holder)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _read(self, seconds: float, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        """Return the message of a call with one."""
        try:
            async with asyncio.timeout(seconds):
                message: Any = await context.read()
        except TimeoutError:
            message = None
        if not isinstance(message, bytes):
            kind = faults.REQUEST_TIMEOUT if message is None else faults.PARAMETER_MISSING
            await self._refuse(Fault(kind, message="The call has no message."), pipeline.new_id(self._plane), context)
        return message  # type: ignore[no-any-return]

    async def _write(self, answer: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Send the answer of a call with one. It counts in the budget for buffers until the client reads it, which has its time."""
        hold = BufferHold(self._plane.buffers)
        if len(answer) >= LARGE_BYTES:
            hold.take(len(answer))
        try:
            async with asyncio.timeout(self._bounds.write_stall_seconds):
                await context.write(answer)
        except TimeoutError:
            await context.abort(grpc.StatusCode.CANCELLED, "The client does not read.")
        finally:
            hold.release()

    # Places of open calls.

    async def _take_place(self, holder: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Count an open call of an organization, or of _KEYLESS, and refuse one too many. Free its place at its end."""
        most = max(1, self._bounds.calls_max // KEYLESS_PART) if holder == _KEYLESS else self._bounds.organization_calls_max
        taken = self._places.get(holder, 0)
        if taken >= most:
            kind, whose = (
                (faults.OVERLOADED, "without a key") if holder == _KEYLESS else (faults.CONCURRENCY_EXCEEDED, "of this organization")
            )
            fault = Fault(kind, message=f"Too many calls {whose} at once.", retry_after_seconds=1)
            await self._refuse(fault, pipeline.new_id(self._plane), context)
        self._places[holder] = taken + 1

    def _free_place(self, holder: str) -> None:
        self._places[holder] -= 1
        if not self._places[holder]:
            del self._places[holder]

    # Inference.

    async def _infer(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        ended = await self._infer_one(message, context, None)
        return ended.answer

    async def _infer_stream(self, messages: Any, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Serve the requests of a stream, one after the other."""
        head, peer = await self._read_head(context)
        caller = await self._authenticate(head, context)
        await self._take_place(caller.organization.id, context)
        try:
            while True:
                message = await self._next(head, context)
                if message is grpc.aio.EOF:
                    return
                with self._count_request():
                    await self._infer_one(message, context, context.write, (head, peer))
        finally:
            self._free_place(caller.organization.id)

    async def _next(self, head: RequestHead, context: "grpc.aio.ServicerContext[bytes, bytes]") -> Any:
        """Return the next request of a stream, or EOF. A stream that has none for too long is ended, as one whose key was revoked."""
        plane, since = self._plane, time.monotonic()
        reading = asyncio.ensure_future(context.read())
        try:
            while True:
                done, _ = await asyncio.wait((reading,), timeout=MAINTENANCE_SECONDS)
                if done:
                    return reading.result()
                if time.monotonic() - since > self._bounds.idle_seconds:
                    fault = Fault(faults.REQUEST_TIMEOUT, message="Nothing was asked in this stream for too long.")
                elif plane.draining:
                    fault = Fault(faults.DRAINING, retry_after_seconds=1)
                else:
                    await self._authenticate(head, context)
                    continue
                await self._refuse(fault, pipeline.new_id(plane), context)
        finally:
            reading.cancel()

    async def _infer_one(
        self,
        message: bytes,
        context: "grpc.aio.ServicerContext[bytes, bytes]",
        send: Callable[[bytes], Awaitable[None]] | None,
        sender: tuple[RequestHead, str] | None = None,
    ) -> _Ended:
        head, peer = sender or await self._read_head(context)
        driver = CoroutineDriver(copy_context())
        call = InferenceCall(self._plane, self._bounds, self._channels, driver, head, peer)
        self._set_deadline(head, call.request.started, context)
        ended = await self._drive(driver, call.run(message, send), context)
        if ended.fault is not None:
            fault = ended.fault if call.has_begun else self._throttle(ended.fault, head)
            await self._tell(fault, call.request.id, context)
        if ended.is_gone:
            await context.abort(grpc.StatusCode.CANCELLED, "The client has left.")
        if send is None:
            context.set_trailing_metadata((("x-request-id", call.request.id),))
        return ended

    async def _drive(
        self, driver: CoroutineDriver, coroutine: Coroutine[Any, Any, bytes], context: "grpc.aio.ServicerContext[bytes, bytes]"
    ) -> _Ended:
        """Return how a coroutine ended that is driven beside this task. If the client leaves, or its deadline passes, it is interrupted."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Ended] = loop.create_future()

        async def to_the_end() -> None:
            try:
                done.set_result(_Ended(await coroutine, None, False))
            except Fault as fault:
                done.set_result(_Ended(b"", fault, False))
            except ClientGone:
                done.set_result(_Ended(b"", None, True))
            finally:
                self._drivers.discard(driver)
                if not done.done():
                    done.set_result(_Ended(b"", Fault(faults.INTERNAL), False))

        self._drivers.add(driver)
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        loop.call_soon(driver.start, to_the_end())
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            is_late = deadline is not None and time.monotonic() >= deadline - 0.005
            driver.interrupt(Fault(faults.DEADLINE_EXCEEDED) if is_late else ClientGone())
            raise

    # What models and the server say of themselves.

    async def _answer_live(self, message: bytes, context: object) -> bytes:
        return encode_int(1, 1)

    async def _answer_ready(self, message: bytes, context: object) -> bytes:
        return encode_int(1, int(self._plane.is_ready()))

    async def _describe_server(self, message: bytes, context: object) -> bytes:
        return encode_bytes(1, b"tollway") + encode_bytes(2, b"2")

    async def _reflect(self, messages: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Describe the protocol, as the library does: question by question, within REFLECTION_SECONDS."""
        await self._take_place(_KEYLESS, context)
        try:
            async with asyncio.timeout(REFLECTION_SECONDS):
                async for answer in self._reflection.ServerReflectionInfo(_read_questions(context), context):
                    await context.write(answer.SerializeToString())
        except TimeoutError:
            await self._refuse(Fault(faults.REQUEST_TIMEOUT), pipeline.new_id(self._plane), context)
        except DecodeError:
            await self._refuse(Fault(faults.PARAMETER_INVALID), pipeline.new_id(self._plane), context)
        finally:
            self._free_place(_KEYLESS)

    async def _check_health(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        name = next(iter(_read_texts(message, 1)), "")
        if name not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return encode_int(1, SERVING if self._plane.is_ready() else NOT_SERVING)

    async def _answer_model_ready(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        _, _, ready = await self._find_model(message, context)
        return encode_int(1, int(bool(ready)))

    async def _describe_model(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        caller, model, ready = await self._find_model(message, context)
        plane = self._plane
        try:
            pipeline.admit_upload(caller, 0, plane).release(time.monotonic_ns())
        except Fault as fault:
            await self._refuse(fault, pipeline.new_id(plane), context)
        for upstream in [each for each in ready if each.grpc_target][:2]:
            name, version = open_inference.split_model(upstream.deployment.upstream_model)
            asked = encode_bytes(1, name.encode()) + encode_bytes(2, version.encode())
            try:
                answer = await self._channels.ask(upstream, "ModelMetadata", asked, list_metadata(upstream, None, 1), 2.0)
                spans = tuple((field.begin, field.end) for field in read_fields(answer) if field.number == 1)
            except (grpc.aio.AioRpcError, Fault, MessageInvalid):
                continue
            return open_inference.rename(answer, spans, open_inference.split_model(model)[0], "")
        await self._refuse(Fault(faults.UPSTREAM_NONE, retry_after_seconds=5), pipeline.new_id(plane), context)
        return b""

    async def _find_model(self, message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> tuple[Caller, str, list[Any]]:
        """Return who asks, the model that a message names, and its deployments that take requests."""
        head, _ = await self._read_head(context)
        caller = await self._authenticate(head, context)
        texts = [*_read_texts(message, 1)][-1:], [*_read_texts(message, 2)][-1:]
        name = open_inference.join_model("".join(texts[0]), "".join(texts[1]))
        try:
            model = model_descriptions.find_model(caller, name, self._plane)
            return caller, model, model_descriptions.list_ready(caller, model, self._plane, time.monotonic())
        except Fault as fault:
            await self._refuse(fault, pipeline.new_id(self._plane), context)
            raise

    # Who calls.

    async def _read_head(self, context: "grpc.aio.ServicerContext[bytes, bytes]") -> tuple[RequestHead, str]:
        """Return what the metadata of a call say, as the head of a request, and the client's address where that is logged."""
        headers: dict[bytes, bytes] = {}
        for key, value in context.invocation_metadata() or ():
            name = key.encode()
            if name not in WANTED or name in _IGNORED or isinstance(value, bytes):
                continue
            text = value.encode("latin-1", "replace")
            if headers.setdefault(name, text) != text and name in CREDENTIALS:
                await self._refuse(Fault(faults.CREDENTIALS_AMBIGUOUS), pipeline.new_id(self._plane), context)
        address = _find_address(context.peer())
        rules = self._rules
        if rules is not None:
            address = edge_policy.find_client(rules, address, headers.get(b"x-forwarded-for"))
        head = pipeline.read_head(headers, Endpoint.INFER, address)
        return head, address if rules is not None and rules.peers_logged else ""

    def _set_deadline(self, head: RequestHead, started: float, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Let the call's deadline bound a request, beside what the metadata say."""
        read_timeout(head)
        remaining = context.time_remaining()
        if remaining is not None:
            left = time.monotonic() + remaining - started
            head.timeout_seconds = min(head.timeout_seconds, max(left, 0.001))
            head.bounds_whole_answer = True

    async def _authenticate(self, head: RequestHead, context: "grpc.aio.ServicerContext[bytes, bytes]") -> Caller:
        plane = self._plane
        try:
            if plane.directory.obstacle is not None:
                raise Fault(plane.directory.obstacle, retry_after_seconds=1)
            return authenticate(head, plane.directory, plane.digesters, plane.now_us())
        except Fault as fault:
            await self._refuse(self._throttle(fault, head), pipeline.new_id(plane), context)
            raise

    def _throttle(self, fault: Fault, head: RequestHead) -> Fault:
        """Count a failed authentication against its address; return the fault to answer."""
        if self._rules is not None and edge_policy.is_trusted(self._rules, head.address):
            return fault
        return self._failures.throttle(fault, head.address, time.monotonic_ns())

    async def _refuse(self, fault: Fault, request_id: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """End a call that did not become a request, and count it."""
        self._plane.metrics.count(self._plane.metrics.refusals, fault.kind.code)
        await self._tell(fault, request_id, context)

    async def _tell(self, fault: Fault, request_id: str, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """End a call with the status of a fault."""
        text = f"{fault.message} (request id: {request_id})"
        await context.abort(find_code(fault), text, list_trailers(fault, request_id))


def make_credentials(key: bytes, chain: bytes) -> grpc.ServerCredentials:
    """Return what the port proves itself with: private key and certificate chain as PEM."""
    return grpc.ssl_server_credentials(((key, chain),))


def _find_address(peer: str | None) -> str:
    """Return the address in `ipv4:192.0.2.1:5000` or `ipv6:%5B::1%5D:5000`; empty for other sockets."""
    kind, _, rest = (peer or "").partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


async def _read_questions(context: "grpc.aio.ServicerContext[bytes, bytes]") -> AsyncIterator[Any]:
    """Yield the questions of a call of the reflection service, QUESTIONS_MAX at most. Raises DecodeError."""
    for _ in range(QUESTIONS_MAX):
        message: Any = await context.read()
        if message is grpc.aio.EOF:
            return
        yield reflection_pb2.ServerReflectionRequest.FromString(message)


def _read_texts(message: bytes, number: int) -> list[str]:
    """Return the texts of a field of a message; none of one that cannot be read."""
    try:
        return [read_text(message, field) for field in read_fields(message) if field.number == number]
    except MessageInvalid:
        return []


def load_service_file() -> Any:
    """Return the description of the protocol (`wire/open_inference.proto`), a FileDescriptorProto."""
    data = files("tollway.wire").joinpath("open_inference.binpb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data).file[0]


def _load_descriptors() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(load_service_file())
    for each in (reflection.SERVICE_NAME,):
        file = descriptor_pool.Default().FindFileContainingSymbol(each)
        copied = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copied)
        pool.Add(copied)
    return pool
