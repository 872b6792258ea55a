"""Phase 5: ask an upstream and carry its answer, to the last byte or to a fault.

An exchange is one attempt at one upstream. Bytes arrive by callback and leave in the same call: per chunk there is one read, one look at
each event, one store of the tokens so far, one write. The coroutine sleeps meanwhile and wakes three times at most: when there is
something to commit to (a whole answer, or the first event of a stream), when the stream ended, when FINAL is durable. It goes on inside
the callback that woke it (`running`), so a callback sets its own state first and wakes last.

Until the status line has left (`client.committed`) a fault may be retried at the next candidate, if its kind and the model allow it.
The status line waits for the first event because engines report overload and death inside a 200 stream; after `commit_after_seconds`
it leaves anyway, comments keep the client patient, and from there on faults are events.

What must hold: nothing reaches the client before what it cost is noted; [DONE] or the end of a body leaves only after FINAL is
durable; a stream ends cleanly only if the upstream's own terminator was seen, or if its budgets are spent; a client that left has its
upstream aborted in the same call that reported it.

Where budgets reserve the output of a stream while it runs, `AnswerStream` calls no event regular that goes beyond what is reserved, so
that the usual chunk costs nothing more. Such an event is withheld, and the engine is not read, until the reservation has grown or is
known not to: then the stream is ended as its API ends one of full length.
"""

import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, cast

import msgspec

from tollway.domain import faults
from tollway.domain.billing_classes import NOTHING, Quantities
from tollway.domain.catalog import Deployment
from tollway.domain.faults import Fault, FaultKind
from tollway.domain.usage import Anomaly, Outcome, UsageSource
from tollway.engines.table import ENGINES
from tollway.gateway.blame import REFUSALS, HeldFaults, RetryBudget, may_retry
from tollway.gateway.buffers import LARGE_BYTES, BufferHold
from tollway.gateway.deadlines import Active
from tollway.gateway.dialects.dialect import AnswerStream, BoundedStream, MeasuredStream, Translation
from tollway.gateway.dialects.engine_errors import read_answer_fault
from tollway.gateway.dialects.engine_usage import cap_to_delivered
from tollway.gateway.dialects.speech import SoundReader, is_sound
from tollway.gateway.driver import OVER, CoroutineDriver, Waiter
from tollway.gateway.meter import UsageRecord, show_cost
from tollway.gateway.ports import Client, OutputHold
from tollway.gateway.request import INFINITE, Call, Permit
from tollway.gateway.uploads import Upload
from tollway.gateway.upstreams.connection import ConnectionState, Pool, UpstreamConnection
from tollway.gateway.upstreams.upstream import Upstream, find_attempt_id
from tollway.native import EventTemplate
from tollway.telemetry import Metrics
from tollway.wire import sse
from tollway.wire.http import ReceivedAnswer, chunk_size

CHECKPOINT_SECONDS: Final = 1.0
ANSWER_GROWTH_BYTES = 1024 * 1024
"""Steps in which an answer that is held until it is whole is counted."""
_LF: Final = ord("\n")
_JSON: Final = b"content-type: application/json\r\n"
_COMPLETED: Final = Outcome.COMPLETED  # a member of an enumeration costs a call in the interpreter each time it is looked up
_COUNTED: Final = UsageSource.COUNTED
_monotonic: Final = time.monotonic
_EVENTS: Final = b"content-type: text/event-stream; charset=utf-8\r\nx-accel-buffering: no\r\n"

ComposeBody = Callable[[Call, Deployment, Translation | None], Coroutine[Any, Any, list[bytes]]]
"""Makes what a deployment is sent in place of a large body, without holding the event loop (`BodyReaders.compose`)."""


class RelayBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Timeouts and size limits of an upstream.

    `connect_seconds`: engines are near. `first_token_seconds`: a long prompt behind a long queue. `idle_seconds`: between tokens; an engine
    that drains badly keeps the socket open indefinitely. `total_seconds`: one attempt in all, its answer included. `commit_after_seconds`:
    see above. `heartbeat_seconds`: below the idle timeouts of proxies on the way. `answer_bytes_max`: a non-streaming answer, which is held
    until its usage is durable. `stream_bytes_max`: all events of one stream. `event_bytes_max`: one event, which is held until it is whole.
    An answer beyond these bounds is a fault of the gateway's, not of the engine: it is tried nowhere else. `probe_seconds`: between two
    probes of an engine (`upstreams.probes`), `load_seconds`: between two reports of its load (`upstreams.load_reports`); 0 for none.
    `cache_events`: whether the events of its prefix cache are followed (`upstreams.cache_events`).
    """

    connect_seconds: float = 2.0
    first_token_seconds: float = 120.0
    idle_seconds: float = 60.0
    total_seconds: float = 900.0
    commit_after_seconds: float = 10.0
    heartbeat_seconds: float = 10.0
    answer_bytes_max: int = 64 * 1024 * 1024
    stream_bytes_max: int = 64 * 1024 * 1024
    event_bytes_max: int = sse.EVENT_BYTES_MAX
    probe_seconds: float = 2.0
    load_seconds: float = 0.25
    cache_events: bool = False


class Exchange:
    """One attempt at one upstream: its callbacks, its deadlines, and what the coroutine waits for. `attempt`: its number, from 1. `fault`:
    with which it ended, if it did."""

    __slots__ = (
        "_bounds",
        "_buffer",
        "_checkpointed",
        "_client",
        "_deadline",
        "_driver",
        "_events",
        "_fed",
        "_fed_at",
        "_in_event",
        "_is_client_slow",
        "_next_bytes",
        "_output_hold",
        "_pending",
        "_record",
        "_sent_at",
        "_stream_bytes_max",
        "_template",
        "_waiter",
        "_withheld",
        "attempt",
        "call",
        "connection",
        "fault",
        "finished",
        "headers",
        "is_cut",
        "started",
        "stream",
        "stream_bytes",
        "terminator",
    )

    def __init__(
        self,
        call: Call,
        connection: UpstreamConnection,
        client: Client,
        record: UsageRecord,
        bounds: RelayBounds,
        driver: CoroutineDriver,
        now: float,
    ) -> None:
        self.call = call
        self.connection = connection
        self._client = client
        self._record = record
        self._bounds = bounds
        self._stream_bytes_max = bounds.stream_bytes_max
        self._driver = driver
        self.attempt = record.attempts
        self._pending = b""
        self._buffer: BufferHold | None = None
        self._next_bytes = LARGE_BYTES
        self._events: sse.EventReader | SoundReader | None = None
        self._in_event = False
        self._template: EventTemplate | None = None
        self.stream: AnswerStream | None = None
        self.stream_bytes = 0
        self.headers = _EVENTS
        self.fault: Fault | None = None
        self._waiter: Waiter | None = None
        self.finished = False
        self.terminator = b""
        self._output_hold = call.output_hold
        self._withheld: tuple[bytes, Iterator[bytes]] | None = None
        self._is_client_slow = self.is_cut = False
        self.started = self._fed_at = self._sent_at = self._checkpointed = now
        request = call.request
        self._deadline = request.started + request.head.timeout_seconds
        self._fed = False

    # What the coroutine does.

    def wait(self) -> Waiter:
        """Await the result to sleep until there is a whole answer, a first event, the end, a fault of the upstream, or the time to commit.
        Raises that Fault here or there, and there whatever interrupts the request."""
        if self.fault is not None:
            raise self.fault
        if self.has_news():
            return OVER
        self._waiter = Waiter()
        return self._waiter

    def share(self, waiter: Waiter) -> None:
        """Resume `waiter`, which others do too, in place of `wait`."""
        self._waiter = waiter

    def has_news(self) -> bool:
        """Return whether there is something to commit to, or the end."""
        if self._client.committed:
            return self.finished
        return bool(self._pending) or self.finished or (self.stream is None and self.connection.answer.complete)

    def hold(self, size: int) -> FaultKind | None:
        """Hold `size` bytes more of a large message for the upstream. Return the fault if the budget does not suffice."""
        buffer = self._buffer
        if buffer is None:
            account = self.connection.upstream.account
            buffer = self._buffer = BufferHold(account.buffers, account)
        return buffer.grow_to(buffer.bytes + size)

    def _release_buffer(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()

    def commit(self, headers: bytes) -> None:
        """Send the status line and what has gathered; from now on events leave as they come. What only another try or an irregular
        read would need is released."""
        if not self.call.request.head.bounds_whole_answer:
            self._deadline = INFINITE
        self.call.release()
        self._release_buffer()
        self.connection.release_parser()
        client = self._client
        client.begin_stream(headers)
        if self._pending:
            client.send(self._pending)
            self._pending = b""
        self._take_template()

    def finish(self) -> Waiter:
        """The stream ended as it should, or its budgets are spent: write its FINAL. Awaited: until that is durable."""
        stream = self.stream
        assert stream is not None
        upstream = self.connection.upstream
        if self.is_cut:
            _note_cut(self._record, self.call, upstream, stream, self.stream_bytes)
            return self._record.finish(Outcome.BUDGET_STOPPED)
        self.terminator = stream.terminator
        _note_completed(self._record, self.call, upstream, stream.used, stream.source, stream.anomaly, self.stream_bytes)
        return self._record.finish(_COMPLETED)

    def close(self, active: Active, metrics: Metrics) -> None:
        """The exchange is over, however it ended: its connection is given back or ended."""
        record, client = self._record, self._client
        if record.final is None and self.stream is not None:
            _note_cut(record, self.call, self.connection.upstream, self.stream, self.stream_bytes)
        if record.anomaly is not None:
            metrics.count(metrics.anomalies, record.anomaly)
        active.exchanges.discard(self)
        if self._buffer is not None:
            self._release_buffer()
        client.attend(None)
        if self._withheld is not None:
            self._withheld = None
            assert self._output_hold is not None
            self._output_hold.abandon()
        if self.finished and not self.is_cut:
            self.connection.settle(_monotonic())
        else:
            self.connection.close()

    def abandon(self, active: Active) -> None:
        """The exchange is over and counts for nothing: another attempt is answered, or takes its place."""
        active.exchanges.discard(self)
        self._release_buffer()
        if self.connection.state is not ConnectionState.CLOSED:
            self.connection.close()

    def read_fault(self) -> Fault:
        """Return the fault of a whole answer with another status than 200."""
        answer = self.connection.answer
        if answer.status == 408 and self.connection.requests > 1:
            return Fault(faults.UPSTREAM_STALE, detail="the engine closed an idle connection with 408")
        engine = ENGINES[self.connection.upstream.deployment.engine]
        return read_answer_fault(answer.status, b"".join(answer.body), engine, answer.retry_after, self._record.now_us())

    def _resume(self, error: Exception | None = None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.resume(error)

    def fail(self, fault: Fault) -> None:
        """End the exchange with a fault; the first one counts."""
        if self.fault is None and not self.finished:
            self.fault = fault
            self.connection.close()
            self._resume(fault)

    # Events of the upstream's connection.

    def received_chunk(self, data: bytes) -> bool:
        """Take whole chunks that hold one regular event each, as nearly every read of a stream does."""
        template = self._template
        if template is not None and self.stream_bytes + len(data) <= self._stream_bytes_max:
            chunks = template.relay(data)
            if chunks is not None:
                self._fed = True
                self.stream_bytes += template.event_bytes
                self._record.advance(template.output)
                self._client.send_chunks(chunks)
                return True
        stream, client = self.stream, self._client
        if stream is None or self._in_event or not client.committed:
            return False
        end = len(data) - 2
        if end < 8:
            return False
        start = 5 if data[4] == _LF else data.find(b"\n", 0, 8) + 1
        size, stated = chunk_size(end - start), data[:start]
        if (stated != size and stated.lower() != size) or not data.endswith(b"\r\n"):
            return False
        if self.stream_bytes + end > self._stream_bytes_max:
            return False
        relayed = stream.read_regular(data, start, end)
        if relayed is None:
            return False
        self._fed = True
        self.stream_bytes += end - start
        self._record.advance(stream.output)
        client.send(relayed)
        self._take_template()
        return True

    def _take_template(self) -> None:
        """Look, after the stream has read something, whether whole chunks can be compared with its template now."""
        stream, client = self.stream, self._client
        self._template = stream.template if stream is not None and not self._in_event and client.committed and client.chunked else None

    def received(self, answer: ReceivedAnswer) -> None:
        self._fed = True
        if self.stream is None:
            if not answer.has_head:
                if answer.broken:
                    self.fail(Fault(faults.UPSTREAM_INVALID, detail="no HTTP answer"))
                return
            if answer.request_id is not None and self._is_of_another(answer.request_id):
                return
            if not self._is_stream(answer.status, answer.content_type):
                if answer.broken:
                    self.fail(Fault(faults.UPSTREAM_INVALID, detail="broken framing"))
                elif answer.body_bytes > self._bounds.answer_bytes_max:
                    self.fail(Fault(faults.ANSWER_TOO_LARGE, detail="the answer exceeds answer_bytes_max"))
                elif answer.body_bytes > self._next_bytes and self._is_over_budget(answer.body_bytes):
                    self.fail(Fault(faults.OVERLOADED, retry_after_seconds=1, detail="budget for buffered bytes"))
                elif answer.complete:
                    if self._client.committed:
                        self.fail(self.read_fault())
                    else:
                        self._resume()
                elif answer.body_bytes > LARGE_BYTES and not self.connection.paused:
                    self.connection.pause()
                    self.connection.upstream.account.buffers.turns.wait(self)
                return
            self.stream = self._new_stream(answer.content_type)
            if self._output_hold is not None:
                self._bound_output(self._output_hold)
            self._events = SoundReader() if self.call.request.sends_media else sse.EventReader(self._bounds.event_bytes_max)
        if self._withheld is None:
            self._relay_events(answer)

    def _is_of_another(self, id: bytes) -> bool:
        """Return whether an answer with this id of a request is that of another one: then the attempt has failed, and the engine confuses
        answers."""
        upstream = self.connection.upstream
        if id == find_attempt_id(self.call.request, self.attempt).encode():
            upstream.echoes_ids = True
            return False
        if not upstream.echoes_ids:
            return False
        upstream.count_unsolicited()
        self.fail(Fault(faults.UPSTREAM_INVALID, detail="the answer to another request"))
        return True

    def _is_over_budget(self, body_bytes: int) -> bool:
        """Count more of an answer that is held until it is whole. Return whether the budget does not suffice."""
        more = max(body_bytes - self._next_bytes, ANSWER_GROWTH_BYTES)
        self._next_bytes += more
        return self.hold(more) is not None

    def _is_stream(self, status: int, content_type: bytes) -> bool:
        if not self.call.stream or status != 200:
            return False
        if self.call.dialect.new_media is not None and is_sound(content_type):
            return True
        return not content_type or content_type.lower().startswith(b"text/event-stream")

    def _new_stream(self, content_type: bytes) -> AnswerStream:
        call = self.call
        new_media = call.dialect.new_media
        if new_media is not None:
            call.request.sends_media = is_sound(content_type)
        if new_media is not None and call.request.sends_media:
            self.headers = b"content-type: %b\r\n" % content_type
            return new_media(call.answer_context(self.connection.upstream.deployment))
        deployment = self.connection.upstream.deployment
        translation = call.find_translation(deployment)
        new_stream = call.dialect.new_stream if translation is None else translation.new_stream
        return new_stream(call.answer_context(deployment))

    def _relay_events(self, answer: ReceivedAnswer) -> None:
        stream, events = self.stream, self._events
        assert stream is not None and events is not None
        pieces = answer.body
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        fault: Fault | None = None
        out = b""
        if data and not self.finished:
            self.stream_bytes += len(data)
            if self._output_hold is not None:
                self._relay_reserved(self._output_hold, stream, data, iter(()))
                return
            try:
                for event in events.feed(data):
                    relayed = stream.read(event)
                    if relayed is not None:
                        out = out + relayed if out else relayed
            except Fault as caught:
                caught.forget_frames()
                fault = caught
            except sse.EventTooLong:
                fault = Fault(faults.ANSWER_TOO_LARGE, detail="an event exceeds event_bytes_max")
            self._in_event = events.has_rest
            self._take_template()
            if self.stream_bytes > self._stream_bytes_max:
                fault = fault or Fault(faults.ANSWER_TOO_LARGE, detail="the stream exceeds stream_bytes_max")
            used = stream.used
            if used is not None:
                self._record.note(used, stream.source)
        if self.call.request.sends_media and answer.complete and not answer.broken:
            stream.terminated = self.stream_bytes > 0
        if out:
            self._send(out)
        if fault is not None or stream.terminated or answer.complete or answer.broken:
            self._conclude(fault)

    def _conclude(self, fault: Fault | None) -> None:
        """End the exchange, after the last event of its stream or a fault."""
        if self.finished:
            return
        if fault is not None:
            self.fail(fault)
        elif self.stream is not None and self.stream.terminated:
            self.finished = True
            self._resume()
        else:
            self.fail(Fault(faults.UPSTREAM_CUT, detail="the stream ended without its terminator"))

    def _relay_reserved(self, hold: OutputHold, stream: AnswerStream, data: bytes, waiting: Iterator[bytes]) -> None:
        """Relay events of a stream whose output budgets reserve while it runs, each once its output is reserved: those that wait already,
        and those of `data`."""
        answer, events = self.connection.answer, self._events
        assert events is not None
        fault: Fault | None = None
        out = b""
        used, source = stream.used, stream.source
        try:
            incoming = chain(waiting, events.feed(data))
            for event in incoming:
                used, source = stream.used, stream.source
                relayed = stream.read(event) or b""
                if stream.output > hold.covered_tokens:
                    if not hold.extend(stream.output, self._go_on):
                        self._withheld = relayed, incoming
                        break
                    self._bound_output(hold)
                out += relayed
        except Fault as caught:
            caught.forget_frames()
            fault = caught
        except sse.EventTooLong:
            fault = Fault(faults.ANSWER_TOO_LARGE, detail="an event exceeds event_bytes_max")
        if self.stream_bytes > self._stream_bytes_max:
            fault = fault or Fault(faults.ANSWER_TOO_LARGE, detail="the stream exceeds stream_bytes_max")
        is_withheld = self._withheld is not None
        if is_withheld:
            self._in_event = True  # what follows waits behind it
            self.connection.pause()
        else:
            self._in_event = events.has_rest
            used, source = stream.used, stream.source
        self._take_template()
        if used is not None:
            self._record.note(used, source)
        if out:
            self._send(out)
        if fault is not None or (not is_withheld and (stream.terminated or answer.complete or answer.broken)):
            self._conclude(fault)

    def _send(self, out: bytes) -> None:
        if self._client.committed:
            self._client.send(out)
        else:
            self._pending += out
            self._resume()

    def _bound_output(self, hold: OutputHold) -> None:
        cast(BoundedStream, self.stream).bound_output(hold.covered_tokens)
        self._take_template()

    def _go_on(self, is_covered: bool) -> None:
        """Relay the event that was withheld and what follows, if its output is reserved by now; if not, end the stream."""
        withheld, self._withheld = self._withheld, None
        if withheld is None or self.finished or self.fault is not None:
            return
        out, incoming = withheld
        stream, connection, hold = self.stream, self.connection, self._output_hold
        assert stream is not None and hold is not None
        if not is_covered:
            self.terminator = cast(BoundedStream, stream).end_early(out, self._record.used)
            self.is_cut = self.finished = True
            connection.close()
            self._resume()
            return
        self._bound_output(hold)
        if stream.used is not None:
            self._record.note(stream.used, stream.source)
        if out:
            self._send(out)
        if not self._is_client_slow:
            connection.resume()
        data = b"".join(connection.answer.body)
        connection.answer.body.clear()
        self.stream_bytes += len(data)
        self._relay_reserved(hold, stream, data, incoming)

    def lost(self) -> None:
        if self.finished:
            return
        connection, answer = self.connection, self.connection.answer
        if answer.complete and not answer.broken and not self.call.request.sends_media:  # of sound nobody knows whether it is whole
            self.received(answer)
            return
        if answer.has_head:
            fault = Fault(faults.UPSTREAM_CUT, detail="the connection was cut")
        elif connection.requests > 1 and answer.is_untouched:
            fault = Fault(faults.UPSTREAM_STALE)
        else:
            fault = Fault(faults.UPSTREAM_FAILED, detail="the connection was closed before an answer")
        self.fail(fault)

    # Events of the client's end.

    def pause(self) -> None:
        self._is_client_slow = True
        self.connection.pause()

    def resume(self) -> None:
        self._is_client_slow = False
        if self._withheld is None:
            self.connection.resume()

    def read_on(self) -> None:
        """Read the next part of a large answer (`buffers.Paused`)."""
        if not self._is_client_slow and self.fault is None and not self.finished:
            self.connection.resume()

    # Events of the server's clock.

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        self._driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Look at the deadlines; called about twice a second, so they hold to half a second."""
        if self._fed or self.connection.paused:  # while paused, the silence is the client's
            self._fed = False
            self._fed_at = self._sent_at = now
        bounds = self._bounds
        if self.finished or self.fault is not None:
            return
        kind = self._find_timeout(now)
        if kind is not None:
            self._driver.interrupt(Fault(kind))
            return
        if self._client.committed:
            self.connection.release_parser()
            if now - self._sent_at > bounds.heartbeat_seconds and not self.call.request.sends_media:
                self._sent_at = now
                self._client.send(sse.HEARTBEAT)
            if now - self._checkpointed >= CHECKPOINT_SECONDS and self._record.used is not NOTHING:
                self._checkpointed = now
                self._record.checkpoint()
        elif self.call.stream and self.call.dialect.new_media is None and now - self.started >= bounds.commit_after_seconds:
            self._resume()

    def _find_timeout(self, now: float) -> FaultKind | None:
        """The deadline that has passed, if any."""
        bounds = self._bounds
        if now >= self._deadline:
            return faults.DEADLINE_EXCEEDED
        if now - self.started > bounds.total_seconds:
            return faults.UPSTREAM_TIMEOUT_TOTAL
        if self.stream is None:
            return faults.UPSTREAM_TIMEOUT_FIRST if self.call.stream and now - self.started > bounds.first_token_seconds else None
        if self._record.first_token_at is None:
            return faults.UPSTREAM_TIMEOUT_FIRST if now - self._fed_at > bounds.first_token_seconds else None
        return faults.UPSTREAM_TIMEOUT_IDLE if now - self._fed_at > bounds.idle_seconds else None


class _Connecting:
    """A request that waits for a new connection. Connecting has its own deadline; here that of the whole attempt applies."""

    __slots__ = ("_deadline", "_driver", "call")

    def __init__(self, call: Call, driver: CoroutineDriver, deadline: float) -> None:
        self.call = call
        self._driver = driver
        self._deadline = deadline

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        self._driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Interrupt the request once its deadline has passed."""
        if now > self._deadline:
            self._driver.interrupt(Fault(faults.UPSTREAM_TIMEOUT_TOTAL))


async def relay(
    permit: Permit,
    candidates: Iterable[Upstream],
    record: UsageRecord,
    client: Client,
    bounds: RelayBounds,
    active: Active,
    budget: RetryBudget,
    metrics: Metrics,
    driver: CoroutineDriver,
    compose: ComposeBody | None,
) -> Fault | None:
    """Answer the client from the first candidate that can, finishing `record` before the last byte; then return None. Return the fault of
    the last candidate where that refused the request for its load, so that it may be sent again later.

    Raises Fault if no candidate could otherwise (or the stream broke after it was committed), and whatever interrupts `driver`. Unless the
    client is answered the record is unfinished, and nothing that reads as success was sent.
    """
    fault: Fault | None = None
    held_faults: HeldFaults | None = None
    call = permit.call
    request, charge = call.request, call.charge
    endpoint, trace = request.endpoint, request.trace
    budget.earn()
    for upstream in candidates:
        if fault is not None:
            if _monotonic() - request.started >= request.head.timeout_seconds:
                fault = Fault(faults.DEADLINE_EXCEEDED)
                break
            if not budget.spend():
                break
        while True:
            if fault is not None:
                metrics.retries += 1
            upstream.running += 1
            failed: Fault | None = None
            is_answered = False
            if charge is not None:
                charge.begin(upstream.load)
            try:
                exchange = await _attempt(permit, upstream, record, client, bounds, active, metrics, driver, compose, fault)
                if exchange is not None:
                    now = _monotonic()
                    if charge is not None:
                        if call.model.latency_goal_ms is not None:
                            upstream.first_token_times.observe(charge.ahead_tokens, now - exchange.started)
                        charge.release()
                    upstream.health.begin_answer(endpoint, now)
                    upstream.observe_first_token(now - exchange.started, call.prompt_bytes, now)
                    if held_faults is not None:
                        held_faults.begin_answer()
                    try:
                        while not exchange.finished:
                            await exchange.wait()
                        await end_stream(call, exchange, client)
                    finally:
                        exchange.close(active, metrics)
                is_answered = True
            except Fault as caught:
                caught.forget_frames()
                failed = fault = caught
                metrics.attempted(upstream.deployment.id, caught.kind.code)
                request.note_trace().end_attempt(record.attempts, upstream.deployment, _monotonic(), caught.kind.code)
                if held_faults is None:
                    held_faults = HeldFaults(call)
                held_faults.add(upstream, caught, has_begun=client.committed)
            finally:
                upstream.running -= 1
                if charge is not None:
                    charge.release()
                if upstream.running + 1 >= upstream.limit:
                    upstream.leave_full(_monotonic(), is_answered=is_answered)
            if failed is None:
                metrics.attempted(upstream.deployment.id, "ok")
                if trace is not None and trace.is_sampled:
                    trace.end_attempt(record.attempts, upstream.deployment, _monotonic(), "")
                upstream.health.succeed(endpoint, _monotonic())
                if held_faults is not None:
                    held_faults.decide(is_answered=True)
                return None
            if client.committed or not may_retry(failed, call):
                if held_faults is not None:
                    held_faults.decide(is_answered=False)
                raise failed
            if failed.kind is not faults.UPSTREAM_STALE:
                break
            # The pool's fault, not the upstream's: the same one again, on a fresh connection, and no load to budget.
    if held_faults is not None:
        held_faults.decide(is_answered=False)
    if fault is None:
        raise Fault(faults.UPSTREAM_NONE)
    if fault.kind in REFUSALS:
        return fault
    raise fault


async def _attempt(
    permit: Permit,
    upstream: Upstream,
    record: UsageRecord,
    client: Client,
    bounds: RelayBounds,
    active: Active,
    metrics: Metrics,
    driver: CoroutineDriver,
    compose: ComposeBody | None,
    before: Fault | None,
) -> Exchange | None:
    """One attempt. A whole answer is given here, to its end; of a stream only the beginning: it returns the exchange, which the caller
    carries on and closes, so that this frame is not held while it lasts."""
    call, deployment = permit.call, upstream.deployment
    request, upload = call.request, call.request.upload
    now = _monotonic()
    record.attempt(deployment.id)
    if request.trace is not None:
        request.trace.begin_attempt(record.attempts, deployment, now)
    translation = None if call.dialect.translation is None else call.find_translation(deployment)
    pieces: Sequence[bytes] = ()
    if upload is not None:
        pieces = await _compose_upload(call, upload, deployment, translation, compose, driver)
        now = _monotonic()
    fresh = before is not None and before.kind is faults.UPSTREAM_STALE
    connection = None if fresh else upstream.take_idle(now)
    if connection is None:
        connecting = _Connecting(call, driver, now + bounds.total_seconds)
        active.exchanges.add(connecting)
        try:
            connection = await driver.in_task(upstream.connect(bounds.connect_seconds), UpstreamConnection.close)
        finally:
            active.exchanges.discard(connecting)
        now = _monotonic()
    exchange = Exchange(call, connection, client, record, bounds, driver, now)
    active.exchanges.add(exchange)
    client.attend(exchange)
    has_begun = False
    try:
        dialect = call.dialect if translation is None else translation.target
        if upload is None:
            body = call.upstream_body(deployment, translation)
            connection.ask(upstream.head(request, dialect, record.attempts, len(body)) + body, exchange)
            del body
        else:
            size = sum(map(len, pieces))
            kind = exchange.hold(size)
            if kind is not None:
                raise Fault(kind, retry_after_seconds=1, detail="budget for buffered bytes")
            connection.ask(upstream.head(request, dialect, record.attempts, size), exchange, pieces)
            del pieces
        await exchange.wait()
        if call.stream and (exchange.stream is not None or not connection.answer.complete):
            begin_stream(permit, exchange, upstream, record)
            has_begun = True
            return exchange
        await answer_whole(permit, exchange, upstream, translation, record, client)
        return None
    finally:
        if not has_begun:
            exchange.close(active, metrics)


def begin_stream(permit: Permit, exchange: Exchange, upstream: Upstream, record: UsageRecord) -> None:
    """Send the client the head of a stream, and what has gathered of it."""
    if permit.call.answer_recorder is not None:
        permit.call.answer_recorder.describe_stream(exchange.headers)
    exchange.commit(exchange.headers + _explain(exchange, upstream) + permit.headers)
    permit.headers = b""
    permit.reduce_input(record.input_tokens)


async def end_stream(call: Call, exchange: Exchange, client: Client) -> None:
    """End a stream whose last event has come. Raises Fault metering_unavailable, or as those do that store the answer."""
    stream = exchange.stream
    assert stream is not None
    if call.guard is not None:
        await call.guard.check_rest(exchange.terminator if exchange.is_cut else stream.terminator)
    if call.response_keeper is not None and not exchange.is_cut:
        stream.terminator = await call.response_keeper.keep_stream(stream.terminator)
    if call.answer_recorder is not None and not exchange.is_cut:
        await call.answer_recorder.keep_stream(stream.terminator)
    await exchange.finish()
    client.end_stream(exchange.terminator)


async def answer_whole(
    permit: Permit, exchange: Exchange, upstream: Upstream, translation: Translation | None, record: UsageRecord, client: Client
) -> None:
    """Give the client the whole answer that an exchange has received. `translation`: of the call for this upstream. Raises Fault for one
    that is none."""
    call, received = permit.call, exchange.connection.answer
    if call.stream or received.status != 200:
        raise exchange.read_fault()
    body = b"".join(received.body)
    answer = (call.dialect if translation is None else translation).read_answer(body, call.answer_context(upstream.deployment))
    exchange.finished = True
    content, content_type = answer.body, answer.content_type
    described = b"content-type: %b\r\n" % content_type if content_type else _JSON
    recorder, fault = call.answer_recorder, answer.fault
    notes_first = call.guard is not None or fault is not None or (recorder is not None and recorder.keeps_last)
    if notes_first:  # billed if it is denied, or if it was stored
        _note_completed(record, call, upstream, answer.used, answer.source, answer.anomaly, len(body))
    if fault is not None:
        raise fault
    if call.guard is not None:
        await call.guard.check_body(content_type, answer.checked or content)
    if call.response_keeper is not None:
        content = await call.response_keeper.keep_body(content)
    if recorder is not None:
        try:
            await recorder.keep_body(described, content)
        except BaseException:
            if recorder.keeps_last:  # what was noted counts only if it was stored
                record.choose(upstream.deployment.id)
            raise
    if not notes_first:
        _note_completed(record, call, upstream, answer.used, answer.source, answer.anomaly, len(body))
    await record.finish(_COMPLETED)
    shown = show_cost(call, record) if call.request.head.shows_cost else b""
    client.answer(200, described + shown + _explain(exchange, upstream) + permit.headers, content)


async def _compose_upload(
    call: Call,
    upload: Upload,
    deployment: Deployment,
    translation: Translation | None,
    compose: ComposeBody | None,
    driver: CoroutineDriver,
) -> Sequence[bytes]:
    """Return a large body as one deployment is sent it, in pieces. Raises Fault as `compose` does."""
    pieces = call.edit_upload(upload, deployment, translation)
    if pieces is not None:
        return pieces
    if compose is None:
        return [call.upstream_body(deployment, translation)]
    return await driver.in_task(compose(call, deployment, translation))


def _explain(exchange: Exchange, upstream: Upstream) -> bytes:
    """Return header lines that say what served a request, at which attempt, and how many milliseconds after its receipt it was sent."""
    tenths = int((exchange.started - exchange.call.request.started) * 10_000 + 0.5)
    attempt = f"x-tollway-attempts: {exchange.attempt}\r\nx-tollway-overhead-ms: {tenths // 10}.{tenths % 10}\r\n"
    return upstream.explanation + attempt.encode()


def _note_completed(
    record: UsageRecord,
    call: Call,
    upstream: Pool,
    used: Quantities | None,
    source: UsageSource,
    anomaly: Anomaly | None,
    delivered_bytes: int,
) -> None:
    """Note what a completed request used, and learn from it. An engine that reports nothing believable bills what was counted on the way,
    and an estimate of the input, unless it is asked for images, of which few engines report any."""
    if anomaly is None and (used is None or (source is _COUNTED and call.measure is None)):
        anomaly = Anomaly.MISSING
    record.anomaly = anomaly
    if used is not None:
        held = cap_to_delivered(used, call.output_tokens_max, delivered_bytes)
        if held is not used:
            record.anomaly = Anomaly.INFLATED
        record.note(held, source)
    tokens = 0 if used is None else used.input_tokens
    if record.anomaly is None:
        if tokens and call.prompt_bytes:
            upstream.learn_input(call.prompt_bytes, tokens)
    elif not tokens and not call.dialect.counts_images and call.measure is None:
        record.input_estimate = min(upstream.estimate_input(call.prompt_bytes), call.input_tokens_max)


def _note_cut(record: UsageRecord, call: Call, upstream: Pool, stream: AnswerStream, delivered_bytes: int) -> None:
    """Note the usage of a stream that was cut: what was noted on the way stands, as far as it can be true."""
    record.anomaly = stream.anomaly
    if call.measure is not None:
        record.note(cast(MeasuredStream, stream).find_used_if_cut(), UsageSource.ESTIMATED)
        return
    used = record.used
    held = cap_to_delivered(used, call.output_tokens_max, delivered_bytes)
    if held is not used:
        record.anomaly = Anomaly.INFLATED
        record.note(held, record.source)
    if held.output_tokens and not held.input_tokens:
        record.input_estimate = min(upstream.estimate_input(call.prompt_bytes), call.input_tokens_max)
