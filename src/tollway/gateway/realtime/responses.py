"""One response of a realtime session, as the phases of a request see it: authorized, limited, reserved in budgets, metered, and ended once.

A session holds one such response ahead of what its engine does: nothing reaches an engine for which no ADMIT is written.
"""

import time

from tollway.domain.billing_classes import NOTHING
from tollway.domain.catalog import Guardrail
from tollway.domain.faults import ENDPOINT_UNSUPPORTED, Fault
from tollway.domain.usage import Anomaly, Outcome, UsageSource
from tollway.gateway.authenticate import authenticate
from tollway.gateway.authorize import authorize
from tollway.gateway.budgets import BudgetHold, read_max_cost
from tollway.gateway.dialects.answers import UsageReport
from tollway.gateway.dialects.engine_usage import cap_input, cap_output
from tollway.gateway.limit import Undecided, limit
from tollway.gateway.meter import UsageRecord, meter
from tollway.gateway.observe import observe
from tollway.gateway.plane import Plane
from tollway.gateway.request import Call, Permit, Request

UNCHECKED = "Realtime sessions are not checked, and the guardrail of this model is closed."


class MeteredResponse:
    """A response that is admitted. `call`: what it is to the other phases. End it by `finish`, in any case."""

    def __init__(self, plane: Plane, call: Call, permit: Permit, record: UsageRecord, hold: BudgetHold | None) -> None:
        self.call = call
        self.record = record
        self.headers = permit.headers
        self._plane = plane
        self._permit = permit
        self._hold = hold
        self._output = 0
        self._has_begun = False

    def begin(self) -> None:
        """The engine has begun it: what is measured of its time counts from now, not from when it was admitted ahead."""
        request = self.call.request
        self._has_begun = True
        request.started, request.received_at = time.monotonic(), self._plane.now_us()

    def begin_once(self) -> None:
        """Begin it, unless it was begun."""
        if not self._has_begun:
            self.begin()

    def leave_unused(self) -> None:
        """The session ends, and the engine did not begin it: no time is measured of it, and it has no span."""
        self.begin()
        self.call.request.trace = None

    def advance(self) -> None:
        """An event with output came. Each counts as one token until the engine reports, up to what a response can have."""
        most = self.call.output_tokens_max
        if most is None or self._output < most:
            self._output += 1
            self.record.advance(self._output)

    def take(self, report: UsageReport | None) -> None:
        """Take what the engine reports at the end."""
        record, call = self.record, self.call
        if report is None:
            record.anomaly = Anomaly.MISSING
            return
        used = cap_output(cap_input(report.used, call.input_tokens_max), call.output_tokens_max)
        record.anomaly = Anomaly.INFLATED if used is not report.used else report.anomaly
        if report.has_output or used.output_tokens >= self._output:
            record.note(used, UsageSource.ENGINE_FINAL)
        if record.anomaly is not None:
            self._plane.metrics.count(self._plane.metrics.anomalies, record.anomaly)

    async def finish(self, outcome: Outcome, fault: Fault | None = None) -> None:
        """Write FINAL, and return once it is durable. Await it in a driven coroutine. Raises Fault metering_unavailable."""
        record = self.record
        if record.source is UsageSource.NONE and record.used is not NOTHING:
            record.source = UsageSource.COUNTED
        try:
            await record.finish(outcome, None if fault is None else fault.kind.code)
        finally:
            self._permit.__exit__(None, None, None)
            if self._hold is not None:
                self._plane.budgets.settle(self._hold, record.final)
            observe(self.call.request, self.call, record, fault, self._plane)


async def admit(request: Request, plane: Plane, *, stream: bool = True, unchecked: str = UNCHECKED) -> MeteredResponse:
    """Return the response that a request admits. Await it in a driven coroutine. `unchecked`: what a client reads whose model has a closed
    guardrail. Raises Fault as the phases do, and then owes nothing."""
    call: Call | None = None
    permit: Permit | None = None
    hold: BudgetHold | None = None
    try:
        caller = authenticate(request.head, plane.directory, plane.digesters, request.received_at)
        call = authorize(caller, request, plane.directory, plane.media_bounds)
        if call.model.guardrail is Guardrail.CLOSED:
            raise Fault(ENDPOINT_UNSUPPORTED, param="model", message=unchecked)
        call.stream = stream
        call.prompt_bytes = 0  # the body says nothing of the conversation that is read
        admitted = limit(call, plane.limits, time.monotonic_ns, plane.metrics)
        permit = await admitted.wait() if isinstance(admitted, Undecided) else admitted
        permit.__enter__()
        if call.budgets or request.head.max_cost is not None:
            hold = plane.budgets.reserve(call, call.budgets, read_max_cost(request.head))
            await hold.waiter
        permit.record = record = meter(permit, plane.usage_sink, plane.now_us)
    except BaseException as error:
        if permit is not None:
            permit.__exit__(None, None, None)
        if hold is not None:
            plane.budgets.settle(hold, None)
        observe(request, call, None, error if isinstance(error, Fault) else None, plane)
        raise
    return MeteredResponse(plane, call, permit, record, hold)
