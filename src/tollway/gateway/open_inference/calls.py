"""One request for inference by gRPC, through the phases of every request: authenticate, authorize, limit, reserve, meter, route, relay.

`InferenceCall` is driven as a request of the pipeline is (`driver.CoroutineDriver`), and everything that waits on the library runs as a
task of its own, which an interruption cancels: a client that left, a deadline, a key that was revoked, a drain. The engine's call is
cancelled with it.

What must hold: nothing reaches an engine before ADMIT is written; the answer of a call, the last answer of a stream that an engine marks as
the last one, and the end of a stream leave only after FINAL is durable; nothing that an engine counted is delivered before it is noted.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import msgspec

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Fault
from tollway.domain.usage import TOKENS_MAX, Outcome
from tollway.engines.table import ENGINES
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.blame import HeldFaults, may_retry
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.deadlines import require_time
from tollway.gateway.dialects import infer
from tollway.gateway.dialects.engine_errors import read_fault
from tollway.gateway.driver import CoroutineDriver
from tollway.gateway.meter import find_outcome
from tollway.gateway.observe import observe
from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.open_inference.channels import Channels
from tollway.gateway.open_inference.statuses import read_error
from tollway.gateway.plane import Plane
from tollway.gateway.realtime.responses import MeteredResponse, admit
from tollway.gateway.request import INFINITE, Call, ClientGone, Request, RequestHead, new_request
from tollway.gateway.route import route
from tollway.gateway.shedding import RETRY_SECONDS
from tollway.gateway.upstreams.upstream import Upstream, find_attempt_id, find_traceparent
from tollway.telemetry import describe_error
from tollway.wire import open_inference
from tollway.wire.open_inference import InferRequest
from tollway.wire.protobuf import MessageInvalid

UNARY, STREAM = "ModelInfer", "ModelStreamInfer"
_PLACEHOLDER: Final = [{"name": "tensors", "shape": [0], "datatype": "BYTES", "data": []}]
"""Inputs in the body by which a request is authorized: the tensors of the message were checked when it was read."""
_ALLOWED: Final = frozenset({"triton_enable_empty_final_response"})
_UNCHECKED = "Calls by gRPC are not checked, and the guardrail of this model is closed."

Send = Callable[[bytes], Awaitable[None]]
"""Sends the client an answer of a stream, and returns once there is space for the next one."""


class InferenceCall:
    """One request. The clock sees it as an exchange (`deadlines.Watched`) while an engine works at it."""

    call: Call

    def __init__(self, plane: Plane, bounds: GrpcBounds, channels: Channels, driver: CoroutineDriver, head: RequestHead, peer: str) -> None:
        self._plane = plane
        self._bounds = bounds
        self._channels = channels
        self._driver = driver
        now_us = plane.now_us()
        self.request: Request = new_request(plane.request_ids.new(now_us), head, b"", time.monotonic(), now_us, peer)
        self._metered: MeteredResponse | None = None
        self._buffer: BufferHold | None = None
        self._answers: BufferHold | None = None
        self._fed_at = self._started = 0.0
        self._sent = 0
        self._is_stream = self._is_observed = False

    @property
    def has_begun(self) -> bool:
        """Return whether the request was admitted."""
        return self._metered is not None

    # What the clock asks.

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        self._driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Look at the deadlines of the engine's answer, and at the client's."""
        bounds, request = self._plane.bounds, self.request
        if now - request.started >= request.head.timeout_seconds:
            self.interrupt(Fault(faults.DEADLINE_EXCEEDED))
        elif now - self._started > bounds.total_seconds:
            self.interrupt(Fault(faults.UPSTREAM_TIMEOUT_TOTAL))
        elif self._is_stream and not self._sent and now - self._fed_at > bounds.first_token_seconds:
            self.interrupt(Fault(faults.UPSTREAM_TIMEOUT_FIRST))
        elif self._is_stream and self._sent and now - self._fed_at > bounds.idle_seconds:
            self.interrupt(Fault(faults.UPSTREAM_TIMEOUT_IDLE))

    # The coroutine.

    async def run(self, message: bytes, send: Send | None) -> bytes:
        """Return the answer to a message; of a stream, whose answers `send` takes, nothing. Raises Fault, or ClientGone."""
        self._is_stream = send is not None
        fault: Fault | None = None
        if self._plane.tracer is not None:
            self._plane.tracer.begin(self.request)
        try:
            return await self._run(message, send)
        except Fault as caught:
            caught.forget_frames()
            fault = caught
            raise
        except Exception as error:
            if isinstance(error, ClientGone):
                raise
            fault = Fault(faults.INTERNAL, detail=describe_error(error))
            asyncio.get_running_loop().call_exception_handler({"message": "a call by gRPC failed", "exception": error})
            raise fault from None
        finally:
            self._plane.active.exchanges.discard(self)
            for hold in (self._buffer, self._answers):
                if hold is not None:
                    hold.release()
            metered = self._metered
            if fault is not None and not self._is_observed:
                observe(self.request, None, None, fault, self._plane)
            if metered is not None and metered.record.final is None:
                outcome, _ = (Outcome.CLIENT_CANCELLED, None) if fault is None else find_outcome(fault)
                await metered.finish(outcome, fault)

    async def _run(self, message: bytes, send: Send | None) -> bytes:
        plane, request = self._plane, self.request
        if plane.directory.obstacle is not None:
            raise Fault(plane.directory.obstacle, retry_after_seconds=1)
        if plane.draining:
            raise Fault(faults.DRAINING, retry_after_seconds=1)
        if plane.shedder.steps and plane.shedder.refuses():
            raise Fault(faults.OVERLOADED, retry_after_seconds=RETRY_SECONDS)
        caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
        require_endpoint(caller, request.endpoint)
        require_time(request, time.monotonic())
        if len(message) >= LARGE_BYTES:
            self._buffer = BufferHold(plane.buffers, plane.buffers.find_key(caller.principal.id))
            kind = self._buffer.grow_to(len(message))
            if kind is not None:
                raise Fault(kind, retry_after_seconds=1, detail="budget for buffered bytes")
        asked = read_message(message)
        request.body = msgspec.json.encode({"model": asked.model, "inputs": _PLACEHOLDER})
        request.body_bytes = len(message)
        self._is_observed = True  # by whoever admits it, or by its end
        self._metered = metered = await admit(request, plane, stream=send is not None, unchecked=_UNCHECKED)
        self.call = call = metered.call
        candidates = list_serving(route(call, plane.upstreams, request.started, plane.random))
        if candidates and candidates[0].running >= candidates[0].limit:
            placed = await plane.queues.wait(call, self._driver)
            candidates = list_serving(placed)
            if candidates[:1] != placed[:1]:  # the place that came free is the next one's
                plane.queues.dispatch(call.model.id, test=call.caller.is_test)
        if not candidates:
            raise Fault(faults.UPSTREAM_NONE, detail="no deployment serves gRPC")
        plane.active.exchanges.add(self)
        return await self._relay(candidates, message, asked, metered, send)

    async def _relay(
        self, candidates: list[Upstream], message: bytes, asked: InferRequest, metered: MeteredResponse, send: Send | None
    ) -> bytes:
        """Answer by the first engine that can. Raises the Fault of the last."""
        plane, call, endpoint = self._plane, self.call, self.request.endpoint
        held = HeldFaults(call)
        plane.retries.earn()
        fault: Fault | None = None
        for upstream in candidates:
            if fault is not None:
                if not plane.retries.spend():
                    break
                plane.metrics.retries += 1
            metered.record.attempt(upstream.deployment.id)
            upstream.running += 1
            self._started = self._fed_at = time.monotonic()
            if self.request.trace is not None:
                self.request.trace.begin_attempt(metered.record.attempts, upstream.deployment, self._started)
            is_answered, answer = False, b""
            try:
                answer = await self._ask(upstream, message, asked, metered, send)
                is_answered = True
            except Fault as caught:
                caught.forget_frames()
                fault = caught
                if caught.kind is faults.UPSTREAM_CONNECT:
                    self._channels.forget(upstream)
                plane.metrics.attempted(upstream.deployment.id, caught.kind.code)
                trace = self.request.note_trace()
                trace.end_attempt(metered.record.attempts, upstream.deployment, time.monotonic(), caught.kind.code)
                held.add(upstream, caught, has_begun=self._sent > 0)
            finally:
                upstream.running -= 1
                if upstream.running + 1 >= upstream.limit:
                    upstream.leave_full(time.monotonic(), is_answered=is_answered)
            if is_answered:
                plane.metrics.attempted(upstream.deployment.id, "ok")
                upstream.health.succeed(endpoint, time.monotonic())
                held.decide(is_answered=True)
                return answer
            assert fault is not None
            if self._sent or not may_retry(fault, call):
                break
        held.decide(is_answered=False)
        raise fault or Fault(faults.UPSTREAM_NONE)

    async def _ask(self, upstream: Upstream, message: bytes, asked: InferRequest, metered: MeteredResponse, send: Send | None) -> bytes:
        request, deployment = self.request, upstream.deployment
        if deployment.upstream_model != self.call.model.id:
            message = open_inference.rename(message, asked.spans, *open_inference.split_model(deployment.upstream_model))
        seconds = self._plane.bounds.total_seconds
        if request.head.timeout_seconds < INFINITE:
            seconds = min(seconds, request.started + request.head.timeout_seconds - time.monotonic())
            if seconds <= 0:
                raise Fault(faults.DEADLINE_EXCEEDED)
        metadata = list_metadata(upstream, request, metered.record.attempts)
        try:
            if send is None:
                asking = self._channels.ask(upstream, UNARY, message, metadata, seconds)
                answer = await self._driver.in_task(asking)
                self._hold_answers(upstream, len(answer))
                return await self._answer(answer, metered, deployment.upstream_model)
            opening = self._channels.open_stream(upstream, STREAM, message, metadata, seconds)
            stream = await self._driver.in_task(opening, lambda opened: opened.cancel())
            try:
                return await self._answer_stream(stream, upstream, metered, send)
            finally:
                stream.cancel()
        except grpc.aio.AioRpcError as error:
            late = time.monotonic() - request.started >= request.head.timeout_seconds
            fault = Fault(faults.DEADLINE_EXCEEDED) if late else read_error(error, ENGINES[deployment.engine], first=not self._sent)
        except asyncio.CancelledError:  # of the library: an interruption raises its own error here
            fault = Fault(faults.UPSTREAM_CUT, detail="the channel was closed")
        raise fault

    def _hold_answers(self, upstream: Upstream, size: int) -> None:
        """Count so many bytes of an engine's answers as held, in place of those before, if they are many. Raises Fault if the budget does
        not suffice."""
        if self._answers is not None:
            self._answers.release()
        if size >= LARGE_BYTES:
            self._answers = BufferHold(self._plane.buffers, upstream.account)
            kind = self._answers.grow_to(size)
            if kind is not None:
                kind = faults.ANSWER_TOO_LARGE if kind is faults.BODY_TOO_LARGE else kind
                raise Fault(kind, retry_after_seconds=1, detail="budget for buffered bytes")

    async def _answer(self, answer: bytes, metered: MeteredResponse, upstream_model: str) -> bytes:
        """Return the answer for the client, once its record is durable."""
        try:
            read = open_inference.read_answer(answer, infer.INPUT_TOKENS, infer.OUTPUT_TOKENS, TOKENS_MAX)
        except MessageInvalid:
            raise Fault(faults.UPSTREAM_INVALID, detail="no ModelInferResponse") from None
        metered.take(infer.report_usage(read.input_tokens, read.output_tokens))
        await metered.finish(Outcome.COMPLETED)
        return self._rename(answer, read.spans, upstream_model)

    def _rename(self, answer: bytes, spans: tuple[tuple[int, int], ...], upstream_model: str) -> bytes:
        public = self.call.model.id
        return answer if public == upstream_model else open_inference.rename(answer, spans, open_inference.split_model(public)[0], "")

    async def _answer_stream(
        self, stream: "grpc.aio.UnaryStreamCall[bytes, bytes]", upstream: Upstream, metered: MeteredResponse, send: Send
    ) -> bytes:
        """Send answers as they come. Return once the engine has ended its call as it should and the record is durable."""
        bounds, engine = self._plane.bounds, ENGINES[upstream.deployment.engine]
        input_tokens: int | None = None
        output_tokens: int | None = None
        last = b""
        size = 0
        while True:
            message = await self._driver.in_task(stream.read())
            if message is grpc.aio.EOF:
                break
            self._fed_at = time.monotonic()
            self._hold_answers(upstream, len(last) + len(message))
            size += len(message)
            if size > bounds.stream_bytes_max:
                raise Fault(faults.ANSWER_TOO_LARGE, detail="the stream exceeds stream_bytes_max")
            try:
                error, answer = open_inference.open_stream_answer(message)
                read = open_inference.read_answer(answer, infer.INPUT_TOKENS, infer.OUTPUT_TOKENS, TOKENS_MAX)
            except MessageInvalid:
                raise Fault(faults.UPSTREAM_INVALID, detail="no ModelStreamInferResponse") from None
            if error:  # Triton's word on one request of a stream, without a status: the engine goes on
                raise read_fault(msgspec.json.encode({"error": error}), 400, engine, first=not self._sent)
            if last:
                await self._driver.in_task(self._send(send, last))
                last = b""
            if read.input_tokens is not None:
                input_tokens = max(read.input_tokens, input_tokens or 0)
            if read.output_tokens is not None:
                output_tokens = min((output_tokens or 0) + read.output_tokens, TOKENS_MAX)
            if read.input_tokens is not None or read.output_tokens is not None:
                metered.take(infer.report_usage(input_tokens, output_tokens))
            if not self._sent:
                upstream.health.begin_answer(Endpoint.INFER, self._fed_at)
            relayed = open_inference.wrap_stream_answer(self._rename(answer, read.spans, upstream.deployment.upstream_model))
            if read.is_final:
                last = relayed
            else:
                await self._driver.in_task(self._send(send, relayed))
                self._hold_answers(upstream, 0)
        metered.take(infer.report_usage(input_tokens, output_tokens))
        await metered.finish(Outcome.COMPLETED)
        if last:
            await self._driver.in_task(self._send(send, last))
        return b""

    async def _send(self, send: Send, message: bytes) -> None:
        """Send an answer. A client that does not read has left."""
        self._sent += 1
        try:
            async with asyncio.timeout(self._bounds.write_stall_seconds):
                await send(message)
        except Exception:  # the time is over, or the call is, which the library says in several ways
            raise ClientGone from None


def read_message(message: bytes) -> InferRequest:
    """Return a request. Raises Fault for one that cannot be read, or has parameters that no client may set."""
    try:
        asked = open_inference.read_request(message)
    except MessageInvalid as error:
        raise Fault(faults.PARAMETER_INVALID, message=f"The message is not a request that is taken: {error}.") from None
    for name in sorted(asked.parameters - _ALLOWED):
        if infer.is_refused_parameter(name):
            text = "Shared memory, sequences, priorities and timeouts of the engine are not taken."
            raise Fault(faults.PARAMETER_INVALID, param="parameters", message=text)
    return asked


def list_serving(upstreams: list[Upstream]) -> list[Upstream]:
    """Return those that serve gRPC, in their order."""
    return [each for each in upstreams if each.grpc_target]


def list_metadata(upstream: Upstream, request: Request | None, attempt: int) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call to an engine: of the client's, only the trace goes on."""
    metadata = [] if upstream.credential is None else [("authorization", f"Bearer {upstream.credential}")]
    if request is not None:
        metadata += [("x-request-id", find_attempt_id(request, attempt)), ("traceparent", find_traceparent(request, attempt))]
        if request.head.tracestate:
            metadata.append(("tracestate", request.head.tracestate.decode("latin-1")))
    return tuple(metadata)
