"""The end of a request as operators see it: its metrics and its one log line, whatever happened to it.

A request that was admitted is counted by its outcome, by model, and logged once with what its FINAL says. A refusal before admission is
a counter and a sampled log line, so that a flood of 401s costs no disk; so is an answer that was given again. No bill is computed from any
of this.
"""

import time
from typing import Final

from tollway.domain.billing_classes import NOTHING
from tollway.domain.faults import Fault
from tollway.domain.usage import Ended
from tollway.gateway.meter import UsageRecord, find_amount
from tollway.gateway.plane import Plane
from tollway.gateway.request import Call, Request
from tollway.log_lines import RequestLine, new_request_line
from tollway.telemetry import timestamp

CLIENT_GONE_STATUS = 499
"""Status in the log of a request whose client left before its answer began."""

_monotonic: Final = time.monotonic
_NOTHING_USED = ("", 0, "", 0.0, *NOTHING.text_quantities(), 0, False, "")
"""The fields of a line, from `upstream` to `usage_source`, of a request that no engine received."""


def observe(
    request: Request, call: Call | None, record: UsageRecord | None, fault: Fault | None, plane: Plane, *, is_answered: bool = False
) -> None:
    """Record the end of a request. `call`, `record`: as far as it came; `fault`: what the client was answered with, None for success.
    `is_answered`: it was answered without a record, which is made of it later (`background_responses`)."""
    duration = _monotonic() - request.started
    final = record.final if record is not None else None
    if call is not None and final is not None:
        _observe_final(request, call, final, fault, duration, plane)
        return
    is_replayed = call is not None and call.answer_recorder is not None and call.answer_recorder.is_replayed
    is_success = is_replayed or is_answered
    status = 200 if is_success else fault.kind.status if fault is not None else CLIENT_GONE_STATUS
    if plane.tracer is not None and (request.trace is not None or status >= 500 or duration >= plane.tracer.slow_seconds):
        plane.tracer.end(request, call, None, fault, status, duration)
    if fault is not None:
        plane.metrics.count(plane.metrics.refusals, fault.kind.code)
    elif is_replayed:
        plane.metrics.replays += 1
    if plane.refusal_lines <= 0:
        return
    plane.refusal_lines -= 1
    caller = call.caller if call is not None else None
    line = new_request_line(
        timestamp(request.received_at),
        "info" if is_success else "warning",
        "request",
        request.id,
        request.trace_id,
        status,
        int(duration * 1e6) / 1000,
        request.endpoint,
        caller.organization.id if caller is not None else "",
        caller.project.id if caller is not None else "",
        caller.principal.id if caller is not None else "",
        call.model.id if call is not None else "",
        *_NOTHING_USED,
    )
    line.replayed = is_replayed
    if call is not None and call.guard is not None:
        line.guardrail_ms = call.guard.checked_ms
    _write(line, request, fault, plane)


def _observe_final(request: Request, call: Call, final: Ended, fault: Fault | None, duration: float, plane: Plane) -> None:
    """Record the end of an admitted request: what its FINAL says."""
    model = call.model.id
    status = fault.kind.status if fault is not None else 200
    first_token_at, outcome = final.first_token_at, final.outcome
    ttft_ms = 0.0 if first_token_at is None else (first_token_at - request.received_at) / 1000
    metrics = plane.metrics
    metrics.count(metrics.outcomes, outcome)
    found = metrics.of_model(request.endpoint, model)
    found.statuses[status] = found.statuses.get(status, 0) + 1
    used, tokens = final.used, found.tokens
    input, cached_input, output, reasoning, other = used.input, used.cached_input, used.output, used.reasoning, used.other
    tokens[0] += input
    tokens[1] += cached_input
    tokens[2] += output
    tokens[3] += reasoning
    if other is not None:
        found.add_other(other)
    found.duration.observe(duration)
    if first_token_at is not None:
        found.first_token.observe(ttft_ms / 1000)
        if call.stream and (output_tokens := used.output_tokens) > 1:
            found.output_token.observe((duration - ttft_ms / 1000) / (output_tokens - 1))
    tracer = plane.tracer
    if (
        tracer is not None
        and (request.trace is not None or status >= 500 or duration >= tracer.slow_seconds)
        and tracer.end(request, call, final, fault, status, duration)
    ):
        found.name_example(duration, None if first_token_at is None else ttft_ms / 1000, request.trace_id, request.received_at)
    caller = call.caller
    line = new_request_line(  # by position: names cost 11 thousand instructions more
        timestamp(request.received_at),
        "info" if status < 500 else "error",
        "request",
        request.id,
        request.trace_id,
        status,
        int(duration * 1e6) / 1000,
        request.endpoint,
        caller.organization.id,
        caller.project.id,
        caller.principal.id,
        model,
        final.deployment_id or "",
        final.attempts,
        outcome,
        ttft_ms,
        input,
        cached_input,
        output,
        reasoning,
        find_amount(call, final),
        call.stream,
        final.source,
    )
    if other is not None:
        line.other_usage = other
    if call.guard is not None:
        line.guardrail_ms = call.guard.checked_ms
    _write(line, request, fault, plane)


def _write(line: RequestLine, request: Request, fault: Fault | None, plane: Plane) -> None:
    """Log the line, with the fields that few requests have."""
    if fault is not None:
        line.error_code = fault.kind.code
        line.detail = fault.detail
    if request.peer:
        line.peer = request.peer
    if request.head.client_request_id:
        line.client_request_id = request.head.client_request_id
    if request.waited_ms:
        line.waited_ms = request.waited_ms
    plane.log.take(line)
