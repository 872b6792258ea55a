"""A realtime session, from its handshake to its end.

Theory of operation. One driven coroutine takes the messages of both ends in the order in which they came, from a queue that is bounded by
reading no further at an end whose messages fill it. An end that reads slowly stops the reading of the other one; a client, also its own,
because what it sends is answered with pongs and errors. The session counts by response:

- Before the engine is connected to, and after each response that began, one response is admitted ahead (`responses.admit`): its limits and
  budgets are asked, and its ADMIT is written. So whatever an engine does, on request or because it heard somebody speak, has its record.
- `response.created` gives that record to the response; `response.done` brings what it used, and is passed on once FINAL is durable.
- While no response can be admitted, because a limit or a budget is spent, no message of the client goes to the engine: each is answered
  with the error. A response that an engine begins nevertheless ends the session.
- Each response has a span below that of the session (`tracing.SessionTrace`).
- At the end of the session the responses that run are what they are at the end of any request, and the one that was admitted ahead has used
  nothing.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from tollway.domain import faults
from tollway.domain.catalog import Endpoint
from tollway.domain.faults import Blame, Fault
from tollway.domain.usage import Outcome
from tollway.gateway.authenticate import authenticate, require_endpoint
from tollway.gateway.blame import HeldFaults
from tollway.gateway.dialects.realtime import read_transcript_usage, read_usage
from tollway.gateway.driver import CoroutineDriver, Waiter
from tollway.gateway.observe import observe
from tollway.gateway.plane import Plane
from tollway.gateway.ports import Client
from tollway.gateway.realtime.ends import End, EngineEnd
from tollway.gateway.realtime.messages import read_client, read_engine, rename_model, render_fault
from tollway.gateway.realtime.responses import MeteredResponse, admit
from tollway.gateway.realtime_sessions import RealtimeSessions
from tollway.gateway.refusals import refuse
from tollway.gateway.request import Call, ClientGone, Request, RequestHead, new_request
from tollway.gateway.route import route
from tollway.gateway.tracing import SessionTrace
from tollway.gateway.upstreams.upstream import Upstream
from tollway.telemetry import describe_error
from tollway.wire import web_sockets
from tollway.wire.web_sockets import WebSocket

QUEUE_BYTES_MAX: Final = 1024 * 1024
"""Bytes of messages that wait, beyond which no end is read further; one read of an end may come on top."""
QUEUE_MESSAGES_MAX: Final = 1_024
"""Messages that wait: short ones take more memory than their bytes."""
RESPONSES_MAX: Final = 16
"""Responses that run in one session."""
RESPONSES_BEGUN_MAX: Final = 64
"""Responses that an engine may have begun and not ended: those that a client asked for before it heard of the first, and some more."""
REFUSALS_PER_SECOND_MAX: Final = 100
"""Messages in a second that are refused for what they are, beyond which the session ends: no client that works sends them."""
HANDSHAKE_SECONDS: Final = 10.0
"""Time for the answer of an engine to the handshake."""

_CLOSE_CODES: Final = {
    faults.KEY_INVALID: web_sockets.UNAUTHORIZED,
    faults.TOKEN_INVALID: web_sockets.UNAUTHORIZED,
    faults.DRAINING: web_sockets.GOING_AWAY,
    faults.REQUEST_TIMEOUT: web_sockets.TIMED_OUT,
    faults.BODY_TOO_LARGE: web_sockets.TOO_BIG,
}


class Upgradable(Client, Protocol):
    """The connection of a client before it is taken over."""

    def upgrade(self, headers: bytes, session: "Session", end: End) -> Callable[[], None]:
        """Answer 101 with these header lines; from now on the connection belongs to `end`, and the clock looks at `session`. Return what to
        call once the connection is gone."""
        ...


class Session:
    """One session. The clock and the drain see it as a connection (`edge.TimedConnection`) and as an exchange (`deadlines.Watched`)."""

    def __init__(
        self, plane: Plane, sessions: RealtimeSessions, driver: CoroutineDriver, head: RequestHead, body: bytes, peer: str
    ) -> None:
        """`body`: of the request that each response is."""
        loop = asyncio.get_running_loop()
        self._plane = plane
        self._bounds = sessions.bounds
        self._sessions = sessions
        self._driver = driver
        self._head = head
        self._body = body
        self._peer = peer
        self._loop = loop
        self._queue: deque[tuple[End, bytes]] = deque()
        self._queued_bytes = 0
        self._waiter: Waiter | None = None
        self._client = End(WebSocket(is_client=False, message_bytes_max=self._bounds.message_bytes_max), self, is_paced=True)
        self._engine: EngineEnd | None = None
        self._ahead: MeteredResponse | None = None
        self._responses: dict[str, MeteredResponse] = {}
        self._refusals = 0
        self._refusals_since = 0.0
        self._began_at = self._active_at = self._pinged_at = loop.time()
        self._is_over = False
        self._leave: Callable[[], None] = _do_nothing
        self._trace: SessionTrace | None = None
        self._trace_id = ""
        self.request_id = ""
        self.call: Call

    # Events of the ends (`ends.Owner`).

    def received(self, end: End, messages: list[bytes]) -> None:
        self._active_at = self._loop.time()
        for message in messages:
            self._queue.append((end, message))
            self._queued_bytes += len(message)
        self._watch_queue()
        self._resume()

    def lost(self, end: End) -> None:
        if end is self._client:
            self._leave()
            self._driver.interrupt(ClientGone())
        else:
            self._resume()

    def paced(self) -> None:
        self._watch_queue()

    def _watch_queue(self) -> None:
        """Read at each end what there is space for, and whose other end keeps up."""
        has_space = self._queued_bytes < QUEUE_BYTES_MAX and len(self._queue) < QUEUE_MESSAGES_MAX
        engine = self._engine
        if engine is not None:
            has_space = has_space and self._client.slow_since is None
            self._client.read(has_space and engine.slow_since is None)
            engine.read(has_space)

    def _resume(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.resume()

    # What the clock and the drain ask.

    def interrupt(self, fault: Fault) -> None:
        """End the session with a fault."""
        if not self._is_over:
            self._driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Look at the deadlines, and ask both ends whether they are there. An end that is not read cannot be heard."""
        bounds, engine, client = self._bounds, self._engine, self._client
        if engine is None or self._is_over:
            return
        if client.slow_since is not None and now - client.slow_since > bounds.write_stall_seconds:
            client.abort()
        elif now - self._began_at > bounds.age_seconds:
            self.interrupt(Fault(faults.REQUEST_TIMEOUT, message="The session has reached its greatest age."))
        elif now - self._active_at > bounds.idle_seconds:
            self.interrupt(Fault(faults.REQUEST_TIMEOUT, message="Nothing was said in this session for too long."))
        elif client.is_reading and now - client.heard_at > 3 * bounds.ping_seconds:
            client.abort()
        elif engine.is_reading and now - engine.heard_at > 3 * bounds.ping_seconds:
            self.interrupt(Fault(faults.UPSTREAM_TIMEOUT_IDLE, detail="no answer to pings"))
        elif now - self._pinged_at > bounds.ping_seconds:
            self._pinged_at = now
            client.ping()
            engine.ping()

    def find_idle_since(self) -> float | None:
        """Return None: a session is never closed for another connection."""
        return None

    def close_if_idle(self, *, is_rested: bool) -> None:
        """End the session, during a drain, once no response runs in it."""
        if is_rested and not self._responses:
            self.interrupt(Fault(faults.DRAINING))

    def hang_up(self) -> None:
        """Close both ends at once."""
        self._client.abort()
        if self._engine is not None:
            self._engine.abort()

    # The coroutine.

    def new_request(self) -> Request:
        """Return the request that the next response is. All of a session have one trace."""
        now_us = self._plane.now_us()
        request = new_request(self._plane.request_ids.new(now_us), self._head, self._body, self._loop.time(), now_us, self._peer)
        request.trace_id = self._trace_id
        return request

    async def run(self, request: Request, connection: Upgradable, headers: bytes) -> None:
        """Open the session, carry it, and end it. `request`: the one by which it was asked for. `headers`: of the handshake."""
        plane = self._plane
        upstream: Upstream | None = None
        organization_id = ""
        has_begun = is_observed = False
        fault: Fault | None = None
        self.request_id = request.id
        self._trace_id = request.trace_id
        if plane.tracer is not None:
            plane.tracer.begin(request)
        try:
            if plane.directory.obstacle is not None:
                raise Fault(plane.directory.obstacle, retry_after_seconds=1)
            if plane.draining:
                raise Fault(faults.DRAINING, retry_after_seconds=1)
            caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
            require_endpoint(caller, request.endpoint)
            self._sessions.enter(caller.organization.id)
            organization_id = caller.organization.id
            is_observed = True  # by whoever admits it, or by its end
            self._ahead = await admit(request, plane)
            self.call = call = self._ahead.call
            candidates = route(call, plane.upstreams, request.started, plane.random)
            if candidates[0].running >= candidates[0].limit:
                candidates = await plane.queues.wait(call, self._driver)
            upstream = await self._connect(request, call, candidates)
            if connection.gone:
                raise ClientGone
            self._leave = connection.upgrade(headers + call.dialect.identify(request.id) + self._ahead.headers, self, self._client)
            has_begun = True
            if plane.tracer is not None:
                self._trace = plane.tracer.open_session(request)
            plane.active.exchanges.add(self)
            self._began_at = self._active_at = self._pinged_at = self._client.heard_at = self._loop.time()
            await self._carry(upstream)
        except ClientGone:
            pass
        except Fault as caught:
            caught.forget_frames()
            fault = caught
        except Exception as error:  # what was admitted is ended, and both ends are closed, whatever happens
            fault = Fault(faults.INTERNAL, detail=describe_error(error))
            self._loop.call_exception_handler({"message": "a realtime session failed", "exception": error})
        finally:
            self._is_over = True
            plane.active.exchanges.discard(self)
            if upstream is not None:
                upstream.running -= 1
                if upstream.running + 1 >= upstream.limit:
                    upstream.leave_full(self._loop.time(), is_answered=has_begun)
            if organization_id:
                self._sessions.leave(organization_id)
        if fault is not None and not is_observed:
            observe(request, None, None, fault, plane)
        await self._end(fault, upstream)
        if plane.tracer is not None and self._trace is not None:
            plane.tracer.end_session(self._trace, self.call, fault)
        if not has_begun and fault is not None:
            refuse(request, connection, connection.throttle(fault, request.headers) if not organization_id else fault)

    async def _connect(self, request: Request, call: Call, candidates: list[Upstream]) -> Upstream:
        """Return the first deployment that takes the session, counted as one of its requests. Raises the Fault of the last."""
        plane, record = self._plane, self._ahead
        assert record is not None
        held = HeldFaults(call)
        fault = Fault(faults.UPSTREAM_NONE)
        for upstream in candidates:
            record.record.attempt(upstream.deployment.id)
            engine = EngineEnd(WebSocket(is_client=True, message_bytes_max=self._bounds.message_bytes_max), self, plane.random_bits)
            upstream.running += 1
            trace = request.trace
            if trace is not None and trace.is_sampled:
                trace.begin_attempt(record.record.attempts, upstream.deployment, time.monotonic())
            is_open = False
            timer = self._loop.call_later(HANDSHAKE_SECONDS, engine.abort)
            try:
                await self._driver.in_task(upstream.connect_socket(engine, plane.bounds.connect_seconds))
                await engine.ask(upstream.socket_head(request, record.record.attempts, engine.key))
                is_open = True
            except Fault as caught:
                caught.forget_frames()
                fault = caught
            finally:
                timer.cancel()
                if not is_open:
                    upstream.running -= 1
                    engine.abort()
            if is_open:
                self._engine = engine
                plane.metrics.attempted(upstream.deployment.id, "ok")
                if plane.tracer is not None:
                    request.note_trace().end_attempt(record.record.attempts, upstream.deployment, time.monotonic(), "")
                upstream.health.succeed(request.endpoint, self._loop.time())
                held.decide(is_answered=True)
                return upstream
            plane.metrics.attempted(upstream.deployment.id, fault.kind.code)
            if plane.tracer is not None:
                request.note_trace().end_attempt(record.record.attempts, upstream.deployment, time.monotonic(), fault.kind.code)
            held.add(upstream, fault, has_begun=False)
            if fault.kind.blame is not Blame.UPSTREAM and fault.kind is not faults.UPSTREAM_MISCONFIGURED:
                break
        held.decide(is_answered=False)
        raise fault

    async def _carry(self, upstream: Upstream) -> None:
        """Carry messages until an end closes. Raises Fault, or ClientGone."""
        engine, client = self._engine, self._client
        assert engine is not None
        while True:
            if not self._queue:
                if client.closed is not None:
                    raise ClientGone
                if not engine.is_open and not engine.has_more:
                    code, _ = engine.closed or (web_sockets.ABNORMAL, "")
                    if code in (web_sockets.NORMAL, web_sockets.GOING_AWAY) and not self._responses:
                        return
                    cut = Fault(faults.UPSTREAM_CUT, detail=f"the engine closed with {code}")
                    upstream.fail(cut, Endpoint.REALTIME, self.call.caller.organization.id, self._loop.time(), has_begun=True)
                    raise cut
                self._waiter = Waiter()
                await self._waiter
                continue
            end, message = self._queue.popleft()
            self._queued_bytes -= len(message)
            self._watch_queue()
            if end is client:
                await self._take_from_client(message, upstream)
            else:
                await self._take_from_engine(message, upstream)

    async def _take_from_client(self, message: bytes, upstream: Upstream) -> None:
        engine = self._engine
        assert engine is not None
        fault: Fault | None = None
        event_id: str | None = None
        content = b""
        is_read = False
        try:
            asked = read_client(message, self.call.model.id, upstream.deployment.upstream_model, self._plane.media_bounds)
            event_id, content = asked.event_id, asked.content
            if asked.asks_for_response and len(self._responses) >= RESPONSES_MAX:
                raise Fault(faults.CONCURRENCY_EXCEEDED, message=f"At most {RESPONSES_MAX} responses run in a session.")
            is_read = True
            if self._ahead is None:
                await self._admit_ahead(upstream)
        except Fault as caught:
            caught.forget_frames()
            fault = caught
        if fault is None:
            engine.send(content)
        elif fault.kind in _CLOSE_CODES or fault.kind.blame is Blame.PLATFORM or (not is_read and self._is_flooded()):
            raise fault
        else:
            self._client.send(render_fault(fault, self.request_id, event_id))

    def _is_flooded(self) -> bool:
        """Count a message that is refused; return whether there were too many in this second."""
        now = self._loop.time()
        if now - self._refusals_since >= 1:
            self._refusals, self._refusals_since = 0, now
        self._refusals += 1
        return self._refusals > REFUSALS_PER_SECOND_MAX

    async def _admit_ahead(self, upstream: Upstream) -> None:
        """Admit the next response. Raises Fault."""
        self._ahead = ahead = await admit(self.new_request(), self._plane)
        self.call = ahead.call
        ahead.record.attempt(upstream.deployment.id)

    def _trace_response(self, response: MeteredResponse, upstream: Upstream) -> None:
        """Have a span made of a response once it ends."""
        if self._trace is not None:
            self._trace.begin_response(response.call.request, response.record.attempts, upstream.deployment)

    async def _take_from_engine(self, message: bytes, upstream: Upstream) -> None:
        event = read_engine(message)
        if event.type == "response.created" and event.response_id not in self._responses:
            if len(self._responses) >= RESPONSES_BEGUN_MAX:
                raise Fault(faults.UPSTREAM_INVALID, detail=f"more than {RESPONSES_BEGUN_MAX} responses were begun and not ended")
            if self._ahead is None:
                await self._admit_ahead(upstream)
            assert self._ahead is not None
            self._ahead.begin()
            self._trace_response(self._ahead, upstream)
            self._responses[event.response_id], self._ahead = self._ahead, None
            with suppress(Fault):  # the next message of the client asks again, and gets the reason
                await self._admit_ahead(upstream)
        elif event.type == "response.done":
            done = self._responses.get(event.response_id)
            if done is not None:
                done.take(read_usage(event.usage) if event.usage else None)
                del self._responses[event.response_id]
                await done.finish(_OUTCOMES.get(event.status, Outcome.COMPLETED), _FAULTS.get(event.status))
        elif event.type == "transcription.done" and self._ahead is not None:
            done = self._ahead
            done.begin_once()
            self._trace_response(done, upstream)
            done.take(read_transcript_usage(event.usage) if event.usage else None)
            self._ahead = None
            await done.finish(Outcome.COMPLETED)
            with suppress(Fault):
                await self._admit_ahead(upstream)
        elif event.type.endswith(".delta"):
            running = self._responses.get(event.response_id) if event.response_id else self._ahead
            if running is not None:
                running.begin_once()  # nothing else says that a transcription has begun
                running.advance()
        elif event.type.startswith("session.") and upstream.deployment.upstream_model != self.call.model.id:
            message = rename_model(message, upstream.deployment.upstream_model, self.call.model.id)
        self._client.send(message)

    async def _end(self, fault: Fault | None, upstream: Upstream | None) -> None:
        """Finish what was admitted, and close both ends."""
        outcome = Outcome.CLIENT_CANCELLED if fault is None or fault.kind.blame in (Blame.TENANT, Blame.CLIENT) else Outcome.UPSTREAM_ERROR
        if fault is not None and fault.kind is faults.REQUEST_TIMEOUT:
            outcome = Outcome.CLIENT_CANCELLED
        ahead, self._ahead = self._ahead, None
        left, self._responses = [*self._responses.values()], {}
        for each in left:
            with suppress(Fault):  # a spool that fails ends the process
                await each.finish(outcome, fault)
        if ahead is not None:
            has_output = ahead.record.used.output_tokens > 0 or self._engine is None
            if not has_output:
                ahead.leave_unused()
            elif upstream is not None:
                self._trace_response(ahead, upstream)
            with suppress(Fault):
                await ahead.finish(outcome if has_output else Outcome.CLIENT_CANCELLED, fault if has_output else None)
        engine, client = self._engine, self._client
        if fault is None:
            code, reason = (engine.closed if engine is not None and not client.closed else None) or (web_sockets.NORMAL, "")
        else:
            client.send(render_fault(fault, self.request_id, None))
            fallback = web_sockets.POLICY if fault.kind.blame in (Blame.TENANT, Blame.CLIENT) else web_sockets.FAILED
            code, reason = _CLOSE_CODES.get(fault.kind, fallback), fault.message
        client.close(code if code != web_sockets.ABNORMAL else web_sockets.FAILED, reason)
        if engine is not None:
            engine.close(web_sockets.NORMAL)


_OUTCOMES: Final = {"cancelled": Outcome.CLIENT_CANCELLED, "failed": Outcome.UPSTREAM_ERROR}
_FAULTS: Final = {"failed": Fault(faults.UPSTREAM_FAILED)}


def _do_nothing() -> None:
    """The connection was not taken over."""
