"""Traces of requests: begun with the request, and made spans at its end from what it holds anyway.

The names of attributes are those of the OpenTelemetry semantic conventions v1.41.0 for generative AI, without those that hold content; what
these have no name for begins with `tollway.`. A span of the request has one below it for each wait in the queue, each attempt at a
deployment and each verdict of the guardrail. A realtime session is such a request, with a span below it for each response. What is kept is
decided by `spans.Sampler`.
"""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from tollway.domain.catalog import Deployment, Endpoint
from tollway.domain.faults import DRAINING, Fault
from tollway.domain.usage import Ended
from tollway.gateway.request import Call, Request
from tollway.gateway.request_traces import (
    QUEUE_SPAN,
    RequestTrace,
    find_attempt_span,
    find_interval_span,
    find_response_span,
)
from tollway.spans import SAMPLED_DIGITS, Sampler, Span, SpanAttribute, SpanKind
from tollway.telemetry import OPERATIONS

_monotonic: Final = time.monotonic
SWITCHED: Final = 101
"""Status of the answer to a handshake that opens a realtime session."""
FIRST_TOKEN: Final = "first token"
"""Event of the attempt that is answered."""
_ROUTES: Final = {Endpoint.INFER: "/v2/models/{model}/infer"}
"""Routes that are not named as their endpoints."""
_NAMES: Final = {
    endpoint: (OPERATIONS.get(endpoint, endpoint.value), _ROUTES.get(endpoint, f"/v1/{endpoint.value}")) for endpoint in Endpoint
}
"""Operation and route of each endpoint; a request by gRPC has the route of its twin."""


class Tracer:
    """The traces of one gateway. `take` receives the spans of each trace that is kept, and must not wait."""

    def __init__(self, sampler: Sampler, take: Callable[[list[Span]], None]) -> None:
        self.sampler = sampler
        self.slow_seconds = sampler.slow_seconds
        self._threshold = sampler.threshold
        self._take = take

    def begin(self, request: Request) -> None:
        """Begin the trace of a request that was just received. One that serves another as a fallback is below that."""
        head, trace = request.head, request.trace
        if trace is None and not head.trace_id and request.id[-SAMPLED_DIGITS:] >= self._threshold:
            return
        now = _monotonic()
        if trace is None:
            sampler = self.sampler
            is_sampled = sampler.samples(request.trace_id, head.trace_flags, now) if head.trace_id else sampler.spend(now)
            trace = request.trace = RequestTrace(head.parent_id, is_sampled, now, request.received_at)
        else:
            trace.started = now
        if not trace.is_sampled and head.trace_flags != "00":  # an engine is to record what is recorded here
            request.traceparent = request.traceparent[:-2] + "00"

    def end(self, request: Request, call: Call | None, final: Ended | None, fault: Fault | None, status: int, seconds: float) -> bool:
        """End the trace of a request, of which everything else has ended. Return whether it is kept. `seconds`: that the request took."""
        trace = request.trace
        now = _monotonic()
        if trace is None or not trace.is_sampled:
            if not self.sampler.keeps(is_failed=status >= 500, seconds=seconds, now=now):
                return False
            trace = request.note_trace()
        self._take(_make_spans(request, trace, call, final, fault, status, now, is_failed=status >= 500))
        return True

    def open_session(self, request: Request) -> "SessionTrace":
        """Return the trace of a realtime session that a request has opened; the request, which is the first response too, has none then."""
        opened = SessionTrace(self, request, request.note_trace())
        request.trace = None
        return opened

    def end_session(self, session: "SessionTrace", call: Call, fault: Fault | None) -> None:
        """End the trace of a session. That it took long is no reason to keep it, and a drain is no failure. `call`: of its last
        response."""
        trace, now = session.trace, _monotonic()
        is_failed = fault is not None and fault.kind.status >= 500 and fault.kind is not DRAINING
        if trace.is_sampled or self.sampler.keeps(is_failed=is_failed, seconds=0.0, now=now):
            spans = _make_spans(session.request, trace, call, None, fault, SWITCHED, now, is_failed=is_failed)
            spans[0] = msgspec.structs.replace(spans[0], attributes={**spans[0].attributes, "tollway.responses": session.responses})
            self._take(spans)


class SessionTrace:
    """The trace of a realtime session. `request`: by which it was asked for; `trace`: what that noted until the session was open;
    `responses`: how many were begun."""

    def __init__(self, tracer: Tracer, request: Request, trace: RequestTrace) -> None:
        self._tracer = tracer
        self.request = request
        self.trace = trace
        self.responses = 0

    def begin_response(self, request: Request, attempt: int, deployment: Deployment) -> None:
        """Put a response below the session, from the instant at which the request that it is has started. It is sampled if the session is,
        and counts as a trace, so that a session cannot send spans without a bound."""
        self.responses += 1
        is_sampled = self.trace.is_sampled and self._tracer.sampler.spend(_monotonic())
        span_id = find_response_span(request.id)
        trace = request.trace = RequestTrace(self.request.id[-16:], is_sampled, request.started, request.received_at, span_id)
        if is_sampled:
            trace.begin_attempt(attempt, deployment, request.started)


def _make_spans(
    request: Request,
    trace: RequestTrace,
    call: Call | None,
    final: Ended | None,
    fault: Fault | None,
    status: int,
    now: float,
    *,
    is_failed: bool,
) -> list[Span]:
    trace_id, request_id = request.trace_id, request.id
    operation, route = _NAMES[request.endpoint]
    attributes: dict[str, SpanAttribute] = {"gen_ai.operation.name": operation, "tollway.request.id": request_id}
    kind, span_id = SpanKind.INTERNAL, trace.span_id
    if not span_id:
        kind, span_id = SpanKind.SERVER, request_id[-16:]
        attributes["http.request.method"] = "GET" if request.endpoint is Endpoint.REALTIME else "POST"
        attributes["http.route"] = route
        attributes["http.response.status_code"] = status
    name = operation
    if call is not None:
        caller = call.caller
        name = f"{operation} {call.model.id}"
        attributes["gen_ai.request.model"] = call.model.id
        attributes["gen_ai.request.stream"] = call.stream
        attributes["tollway.organization.id"] = caller.organization.id
        attributes["tollway.project.id"] = caller.project.id
        attributes["tollway.key.id"] = caller.principal.id
    first_token_at: int | None = None
    answered = 0
    if final is not None:
        used = final.used
        attributes["tollway.outcome"] = final.outcome.value
        attributes["gen_ai.usage.input_tokens"] = used.input_tokens
        attributes["gen_ai.usage.output_tokens"] = used.output_tokens
        attributes["gen_ai.usage.cache_read.input_tokens"] = used.cached_input
        attributes["gen_ai.usage.reasoning.output_tokens"] = used.reasoning
        first_token_at = final.first_token_at
        if first_token_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = (first_token_at - trace.started_us) / 1e6
            answered = final.attempts
    error = "" if fault is None else fault.kind.code
    request_error = ""
    if error:
        if is_failed:
            request_error = error
        else:  # of a server a client's mistake is no error: semantic conventions for HTTP spans
            attributes["tollway.error_code"] = error
    ended_us = _instant(trace, now)
    spans = [Span(trace_id, span_id, trace.parent_id, name, kind, trace.started_us, ended_us, request_error, attributes)]
    began_us = trace.started_us
    for index, interval in enumerate(trace.intervals or ()):
        id = find_interval_span(span_id, index)
        is_queue = interval.name == QUEUE_SPAN
        interval_ended_us = _instant(trace, interval.ended)
        if is_queue:
            began_us = interval_ended_us
        interval_kind = SpanKind.INTERNAL if is_queue else SpanKind.CLIENT
        spans.append(Span(trace_id, id, span_id, interval.name, interval_kind, _instant(trace, interval.began), interval_ended_us, "", {}))
    for attempt in trace.attempts:
        if attempt.began:
            began_us = _instant(trace, attempt.began)
        until_us = _instant(trace, attempt.ended) if attempt.ended else ended_us
        deployment, number = attempt.deployment, attempt.number
        of_attempt: dict[str, SpanAttribute] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": deployment.engine.value,
            "gen_ai.request.model": deployment.upstream_model,
            "tollway.deployment.id": deployment.id,
            "tollway.attempt": number,
        }
        events: tuple[tuple[str, int], ...] = ()
        if number == answered and first_token_at is not None:
            events = ((FIRST_TOKEN, first_token_at),)
        attempt_error = attempt.error if attempt.ended else error
        attempt_name = f"{operation} {deployment.upstream_model}"
        id = find_attempt_span(span_id, number)
        spans.append(Span(trace_id, id, span_id, attempt_name, SpanKind.CLIENT, began_us, until_us, attempt_error, of_attempt, events))
        began_us = until_us
    if final is not None and final.attempts > len(trace.attempts):  # of a request that was not sampled the last one was not noted
        rest: dict[str, SpanAttribute] = {
            "gen_ai.operation.name": operation,
            "tollway.deployment.id": final.deployment_id or "",
            "tollway.attempt": final.attempts,
        }
        events = () if first_token_at is None else ((FIRST_TOKEN, first_token_at),)
        id = find_attempt_span(span_id, final.attempts)
        spans.append(Span(trace_id, id, span_id, operation, SpanKind.CLIENT, began_us, ended_us, error, rest, events))
    return spans


def _instant(trace: RequestTrace, at: float) -> int:
    """Return an instant of the monotonic clock in UTC microseconds, never before the request's beginning."""
    return trace.started_us + max(0, int((at - trace.started) * 1e6))
