"""One request from the moment it reaches the engine to its truth record: where engine, dialect, faults and log
meet.

Theory of operation. The generation makes tokens at its own pace; the exchange renders and sends what is made,
unless the client does not read: then it sends nothing, and renders the rest when the client reads again (memory
stays flat, the engine is not slowed, as with vLLM's output queue). Exactly one end record is written, by `_record`,
and always before the bytes that complete the answer are handed to the socket.
"""

import time
from collections.abc import Callable

from tollway.simulator.dialects import DONE, JSON, Script, Stream, error_body, stream_of, whole_of
from tollway.simulator.engine import Engine, Generation, Wheel
from tollway.simulator.faults import HEALTHY, dress, spoil
from tollway.simulator.outlet import Line, Outlet, content_type, head
from tollway.simulator.truth import Ended, StartRecord, TruthLog, TruthRecord

_EVENT_STREAM = b"text/event-stream; charset=utf-8"
# A reset throws away what the peer has not read yet. So much later it has read what was meant to arrive.
_BEFORE_RESET_SECONDS = 0.010
_WRONG_LENGTH_BYTES = 4  # enough to be noticed, small enough to leave a body
_ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class Exchange:
    """One request that reached the engine. It is the watcher of its generation."""

    def __init__(
        self,
        line: Line,
        script: Script,
        attempt_id: str,
        engine: Engine,
        truth: TruthLog,
        wheel: Wheel,
        clock: Callable[[], float],
    ) -> None:
        self._line = line
        self._script = script
        self._plan = script.plan
        self._attempt_id = attempt_id
        self._engine = engine
        self._truth = truth
        self._wheel = wheel
        self._clock = clock
        self._started_at_us = time.time_ns() // 1000
        self._generation = Generation(script.order, script.answer, script.plan, self, script.tokens_per_chunk)
        self._stream: Stream | None = stream_of(script) if script.order.stream else None
        framed = self._stream is not None and line.chunked
        self._outlet = Outlet(line, script.plan, wheel, clock, self._cut, framed=framed)
        self._recorded = False
        self._made_all = False
        self._closing = False  # the last bytes are with the outlet
        self._steps_sent = 0
        self._rendered_tokens = 0
        self._opened = False
        self._batch: list[bytes] = []
        self._batch_tokens = 0

    # How it begins

    def begin(self) -> bool:
        """Puts the request into the engine, or does at once what its fault says. False if the queue is full:
        nothing was sent.
        """
        plan, script = self._plan, self._script
        if plan.head == "drop":
            self._record("cut")
            self._line.hang_up(reset=not plan.cut_fin)
            return True
        if plan.status is not None:
            self._record("rejected")
            body, kind = error_body(script.order.endpoint, plan.status_body, plan.status, "Injected by the simulator.")
            fields = content_type(kind)
            if plan.retry_after_seconds is not None:
                fields += b"retry-after: %s\r\n" % plan.retry_after_seconds.encode()
            self._line.write(self._head(plan.status, fields, len(body)) + body)
            self._answered()
            return True
        started = StartRecord(
            request_id=script.answer_id,
            attempt_id=self._attempt_id,
            model=script.model,
            endpoint=script.order.endpoint,
            prompt_tokens=script.order.prompt_tokens,
            started_at_us=self._started_at_us,
        )
        if not self._engine.admit(self._generation):
            self._record("rejected")
            return False
        self._truth.append(started)
        if self._stream is not None and plan.head != "hang":
            # vLLM sends the status line before the request has a slot: the first event may be long in coming.
            framing = b"transfer-encoding: chunked\r\n" if self._line.chunked else b"connection: close\r\n"
            self._line.write(self._head(200, self._type(_EVENT_STREAM) + framing, None))
        return True

    def refuse(self) -> None:
        """Records a request that a draining engine does not take. The caller answers."""
        self._record("rejected")

    # What the engine says

    def advanced(self) -> None:
        if self._stream is not None:
            self._send_made(self._stream)

    def ended(self) -> None:
        self._made_all = True
        if self._stream is not None:
            self._send_made(self._stream)
        elif self._plan.halt is None:
            self._finish_whole(None, "completed")
        elif self._plan.halt == "abort":
            self._finish_whole("abort", "error")
        elif self._plan.halt == "error":
            self._fail_whole()
        elif self._plan.halt == "cut":
            self._cut()

    # What the connection says

    def writable(self) -> None:
        """The client reads again."""
        if self._stream is not None:
            self._send_made(self._stream)

    def left(self, ended: Ended) -> None:
        """The connection is gone: stop the engine and say so in the log."""
        stalled = self._stalled
        self._outlet.forget()
        self._engine.leave(self._generation)
        self._record("stall" if stalled else ended)

    def break_off(self) -> None:
        """The engine goes down: what it was making ends with finish_reason "abort", as in vLLM; what cannot be
        ended is hung up.
        """
        stalled = self._stalled
        self._engine.leave(self._generation)
        if stalled or self._closing or self._line.paused or self._outlet.dripping:
            self._outlet.forget()
            self._record("stall" if stalled else "cut")
            self._line.hang_up(reset=False)
        elif self._stream is None:
            self._finish_whole("abort", "error")
        else:
            self._send_steps(self._stream)
            self._finish_stream(self._stream, "abort", "error")

    @property
    def _stalled(self) -> bool:
        return self._plan.halt == "stall" and self._made_all

    # Streams

    def _send_made(self, stream: Stream) -> None:
        if self._closing:
            return
        self._send_steps(stream)
        if not self._made_all or self._steps_sent < self._generation.steps:
            return
        halt = self._plan.halt
        if halt is None:
            self._finish_stream(stream, None, "completed")
        elif halt == "abort":
            self._finish_stream(stream, "abort", "error")
        elif halt == "error":
            self._fail_stream(stream)
        else:
            self._flush()
            if halt == "cut" and not self._closing:
                self._cut()

    def _send_steps(self, stream: Stream) -> None:
        answer, each = self._script.answer, self._script.tokens_per_chunk
        while self._steps_sent < self._generation.steps and not self._line.paused and not self._closing:
            first = self._steps_sent * each
            self._steps_sent += 1
            events = stream.tokens(first, first + each)
            rendered = answer.generated(first + each)
            tokens, self._rendered_tokens = rendered - self._rendered_tokens, rendered
            if self._plan is not HEALTHY:
                self._distort(stream, events, tokens)
            elif self._opened:
                self._outlet.send(b"".join(events), tokens)
            else:
                self._opened = True
                self._outlet.send(b"".join(stream.opening() + events), tokens)

    def _distort(self, stream: Stream, events: list[bytes], tokens: int) -> None:
        """Sends the events of a chunk with the faults of the plan."""
        plan = self._plan
        events = [spoil(event, plan, self._steps_sent) for event in events]
        if not self._opened:
            self._opened = True
            events = stream.opening() + events
        self._batch += [dress(event, plan) for event in events]
        self._batch_tokens += tokens
        if self._steps_sent % plan.batch == 0:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._outlet.send(b"".join(self._batch), self._batch_tokens)
            self._batch, self._batch_tokens = [], 0

    def _finish_stream(self, stream: Stream, finish_reason: str | None, ended: Ended) -> None:
        """Sends what comes after the last token, and ends the body."""
        self._flush()
        if self._closing:
            return
        self._closing = True
        generation, plan = self._generation, self._plan
        events = [] if self._opened else stream.opening()
        events += stream.closing(generation.cached_tokens, generation.made_each, finish_reason)
        last = [] if plan.no_done else [stream.terminator()]
        if plan.junk:
            last.append(b"data: junk after the end\n\n")
        if plan is not HEALTHY:
            events = [dress(event, plan) for event in events]
            last = [dress(event, plan) for event in last]
        reason = finish_reason or self._script.answer.finish_reasons[0]
        end = b"".join(last)
        self._outlet.send_last(
            b"".join(events) + end,
            0,
            lambda: self._record(ended, reason, terminator_sent=not plan.no_done),
            self._answered,
            kept=len(end),
        )

    def _fail_stream(self, stream: Stream) -> None:
        self._flush()
        if self._closing:
            return
        self._closing = True
        events = stream.error(self._plan.error_code, _ENGINE_DEAD)
        done = events[-1] is DONE
        self._outlet.send_last(
            b"".join(dress(event, self._plan) for event in events),
            0,
            lambda: self._record("error", terminator_sent=done),
            self._answered,
        )

    # JSON

    def _finish_whole(self, finish_reason: str | None, ended: Ended) -> None:
        self._closing = True
        generation, plan, answer = self._generation, self._plan, self._script.answer
        body = whole_of(self._script).body(generation.cached_tokens, generation.made_each, finish_reason)
        if plan is not HEALTHY:
            body = spoil(body, plan, 1)
        reason = finish_reason or (answer.finish_reasons[0] if answer.finish_reasons else None)
        wrong = {"": 0, "long": _WRONG_LENGTH_BYTES, "short": -_WRONG_LENGTH_BYTES}[plan.length]
        self._outlet.send_last(
            body,
            generation.made,
            lambda: self._record(ended, reason, terminator_sent=plan.length != "long"),
            self._answered,
            prefix=self._head(200, self._type(JSON), len(body) + wrong),
        )

    def _fail_whole(self) -> None:
        self._closing = True
        self._record("error")
        body, kind = error_body(self._script.order.endpoint, "nested", self._plan.error_code, _ENGINE_DEAD)
        self._line.write(self._head(self._plan.error_code, content_type(kind), len(body)) + body)
        self._answered()

    # How it ends

    def _cut(self) -> None:
        self._closing = True
        self._engine.leave(self._generation)
        self._record("cut")
        if self._plan.cut_fin:
            self._line.hang_up(reset=False)
        else:
            self._wheel.at(self._clock() + _BEFORE_RESET_SECONDS, lambda: self._line.hang_up(reset=True))

    def _answered(self) -> None:
        close = (self._stream is not None and not self._line.chunked) or self._plan.length == "long"
        self._line.answered(self._plan.stale_seconds, close=close)

    def _record(self, ended: Ended, finish_reason: str | None = None, *, terminator_sent: bool = False) -> None:
        if self._recorded:
            return
        self._recorded = True
        script, generation = self._script, self._generation
        self._engine.counters.end(ended, finish_reason)
        self._truth.append(
            TruthRecord(
                request_id=script.answer_id,
                attempt_id=self._attempt_id,
                model=script.model,
                endpoint=script.order.endpoint,
                prompt_tokens=script.order.prompt_tokens,
                cached_tokens=generation.cached_tokens,
                completion_tokens=generation.made,
                reasoning_tokens=script.answer.reasoned(generation.made_each),
                delivered_tokens=self._outlet.delivered_tokens,
                ended=ended,
                finish_reason=finish_reason,
                terminator_sent=terminator_sent,
                started_at_us=self._started_at_us,
                ended_at_us=time.time_ns() // 1000,
            )
        )

    def _type(self, kind: bytes) -> bytes:
        return b"" if self._plan.no_type else content_type(kind)

    def _head(self, status: int, fields: bytes, content_length: int | None) -> bytes:
        if self._plan.header_bytes:
            fields += b"x-sim-padding: %s\r\n" % (b"x" * self._plan.header_bytes)
        return head(status, fields, content_length, int(time.time()))
