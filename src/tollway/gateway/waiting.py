"""Phase 4, continued: a request whose deployments are all full waits for a place at one of them, or is refused at once.

One queue for each model, kind of key and residency: those who wait in one queue may use the same deployments. Organizations share it by
their weights, counted in reserved tokens (`domain.fair_queue`); each service tier of an organization is a flow of its own. A request waits
only if it is likely to be served within the bound: what is sent beyond that is refused in the same call, with 429 if its organization has
more than its share of what waits, else with 503.

What must hold: while anything waits, no deployment that may be used has a free place, so nobody overtakes; a place is handed over before
the one who waited for it is resumed, and given back if that one has left meanwhile; a request that left waits no longer in the same call.
A request that waits is not admitted: it has no record and costs nothing.

An engine that refuses a request for its load has begun no work. The request then waits again before all others, with its record, for what
is left of its time: its turn had come, and it was the one by which the gateway found out that the engine takes fewer. Where it would
hardly be served in time, or the retries are spent, it is refused at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from math import inf, sqrt

import msgspec

from tollway.domain import faults
from tollway.domain.catalog import is_resident
from tollway.domain.fair_queue import FairQueue, Refusal, Ticket
from tollway.domain.faults import Fault
from tollway.domain.usage import ServiceTier
from tollway.gateway.blame import RetryBudget
from tollway.gateway.deadlines import Active
from tollway.gateway.driver import CoroutineDriver, Waiter
from tollway.gateway.limit import estimate_tokens
from tollway.gateway.request import Call
from tollway.gateway.request_traces import QUEUE_SPAN
from tollway.gateway.route import route
from tollway.gateway.upstreams.upstream import Upstream, Upstreams
from tollway.telemetry import Metrics

TIER_WEIGHTS = {ServiceTier.BATCH: 1, ServiceTier.FLEX: 4, ServiceTier.STANDARD: 16, ServiceTier.PRIORITY: 64}
"""Shares of service tiers. Not strict classes: whoever pays for urgency is served sooner, and cannot keep the others out."""
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 1.0, 30.0
_GAP_PART = 8
"""Part by which the mean time between two places follows the last one."""
_DEVIATIONS = 2.5
"""Margin for the wait of a request, in standard deviations. Places come free at random: the wait for the k-th has the mean of k gaps and
the deviation of sqrt(k) gaps (an Erlang distribution), so that fewer than one in a hundred of those who are let in wait in vain."""


class QueueBounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a model's queue and of what its deployments are sent at a time.

    `waiting_max`: requests that wait for one model; up to twice as many while organizations that wait already have more than their shares.
    `wait_seconds`: longest wait. `concurrency_min`, `concurrency_max`: see `upstreams.concurrency`.
    """

    waiting_max: int = 1_000
    wait_seconds: float = 2.0
    concurrency_min: int = 1
    concurrency_max: int = 10_000


class _Place:
    """A request that waits since `began`, with `tokens` reserved, until `deadline` at the latest. `candidates`: the upstreams to try, once
    the first has a place for it."""

    __slots__ = ("began", "call", "candidates", "deadline", "driver", "tokens", "waiter")

    def __init__(self, call: Call, driver: CoroutineDriver, began: float, deadline: float) -> None:
        self.call = call
        self.driver = driver
        self.tokens = max(1, estimate_tokens(call))
        self.began = began
        self.deadline = deadline
        self.waiter = Waiter()
        self.candidates: list[Upstream] = []

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        self.driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Interrupt the request once its deadline has passed; called about twice a second."""
        if now < self.deadline or self.candidates:
            return
        if now >= self.call.request.started + self.call.request.head.timeout_seconds:
            self.driver.interrupt(Fault(faults.DEADLINE_EXCEEDED))
        else:
            self.driver.interrupt(Fault(faults.MODEL_OVERLOADED, retry_after_seconds=RETRY_SECONDS_MIN, detail="waited in vain"))


class ModelQueue:
    """Requests that wait for one model."""

    def __init__(self, bounds: QueueBounds, upstreams: Upstreams, metrics: Metrics, random: Callable[[], float]) -> None:
        self._bounds = bounds
        self._upstreams = upstreams
        self._metrics = metrics
        self._random = random
        self._queue: FairQueue[_Place] = FairQueue(bounds.waiting_max)
        self._returned: deque[_Place] = deque()
        self._gap_seconds: float | None = None
        self._place_at = 0.0

    def __len__(self) -> int:
        return len(self._returned) + len(self._queue)

    def _peek(self) -> _Place | None:
        """Return the request whose turn is next; None if none waits."""
        return self._returned[0] if self._returned else self._queue.peek()

    def find_first_began(self) -> float:
        """Return since when the request waits whose turn is next; infinity if none waits."""
        place = self._peek()
        return inf if place is None else place.began

    def list_waiting(self) -> list[_Place]:
        """Return the requests that wait."""
        return [*self._returned, *self._queue]

    def join(self, place: _Place, running: int, now: float) -> Ticket[_Place]:
        """Let a request wait. `running`: at the model's upstreams. Raises Fault if it would hardly be served in time."""
        call, queue = place.call, self._queue
        tier = call.price.tier
        organization = call.caller.organization
        # Another weight is another flow: that of a flow must stay the same while anything of it waits.
        key, weight = (organization.id, tier, organization.queue_weight), organization.queue_weight * TIER_WEIGHTS[tier]
        position = len(self._returned) + queue.position(key, weight)
        gap = self._gap_seconds
        is_too_far = self._is_too_far(place, position, running, now) and position > 1  # the first one finds out how it is now
        ticket = Refusal.FULL if is_too_far else queue.join(key, weight, place.tokens, place)
        if not isinstance(ticket, Refusal):
            return ticket
        seconds = min(max(position * (gap or 0.0), RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
        if ticket is Refusal.OVER_SHARE or queue.is_over_share(key, weight):
            raise Fault(faults.SHARE_EXCEEDED, retry_after_seconds=seconds)
        raise Fault(faults.MODEL_OVERLOADED, retry_after_seconds=seconds)

    def rejoin(self, place: _Place, running: int, now: float, budget: RetryBudget) -> bool:
        """Let a request wait again, before all others. Return False if it would hardly be served in time or the retries are spent."""
        if self._is_too_far(place, len(self._returned) + 1, running, now) or not budget.spend():
            return False
        self._returned.append(place)
        return True

    def _is_too_far(self, place: _Place, position: int, running: int, now: float) -> bool:
        """Return whether a request at this position would hardly be served in time."""
        if not len(self):
            self._place_at = now
        gap = self._gap_seconds
        if gap is None:
            return position > running or now >= place.deadline
        return position + _DEVIATIONS * sqrt(position) > (place.deadline - now) / max(gap, 1e-9)

    def leave(self, place: _Place, ticket: Ticket[_Place] | None) -> bool:
        """A request waits no longer, because it was interrupted. `ticket`: None for one that waited again. Return whether it gave back a
        place, which is somebody else's now."""
        if ticket is not None:
            self._queue.leave(ticket)
        elif place in self._returned:
            self._returned.remove(place)
        if not place.candidates:
            return False
        place.candidates[0].running -= 1
        return True

    def dispatch(self, now: float) -> None:
        """Give free places to those who wait. They are resumed in the next turn of the loop: this may run inside the end of another
        request, and theirs would run inside this."""
        queue = self._queue
        while (place := self._peek()) is not None:
            try:
                candidates = route(place.call, self._upstreams, now, self._random)
            except Fault:
                return  # no deployment takes requests at the moment
            first = candidates[0]
            if first.running >= first.limit:
                return
            if self._returned:
                self._returned.popleft()
            else:
                queue.pop()
            first.running += 1
            place.candidates = candidates
            gap, self._place_at = now - self._place_at, now
            self._gap_seconds = gap if self._gap_seconds is None else self._gap_seconds + (gap - self._gap_seconds) / _GAP_PART
            asyncio.get_running_loop().call_soon(place.waiter.resume)


class Queues:
    """The queues of all models. Those of one model share its deployments: where a place is free, the queue comes first whose next request
    has waited longest."""

    def __init__(self, bounds: QueueBounds, upstreams: Upstreams, active: Active, metrics: Metrics, random: Callable[[], float]) -> None:
        self._bounds = bounds
        self._upstreams = upstreams
        self._active = active
        self._metrics = metrics
        self._random = random
        self._queues: dict[tuple[str, bool], dict[frozenset[str] | None, ModelQueue]] = {}
        upstreams.on_place = self.dispatch

    def dispatch(self, model: str, *, test: bool) -> None:
        """A deployment of a model may have a free place."""
        queues = self._queues.get((model, test))
        if queues is not None:
            for queue in sorted(queues.values(), key=ModelQueue.find_first_began):
                if len(queue):
                    queue.dispatch(time.monotonic())

    def _list_all(self) -> list[ModelQueue]:
        return [queue for queues in self._queues.values() for queue in queues.values()]

    def count_waiting(self) -> int:
        """Return how many requests wait, for all models."""
        return sum(map(len, self._list_all()))

    def count_waiting_for(self, model: str, *, test: bool) -> int:
        """Return how many requests wait for one model."""
        queues = self._queues.get((model, test))
        return 0 if queues is None else sum(map(len, queues.values()))

    def count_waiting_tokens(self) -> int:
        """Return how many tokens are reserved by the requests that wait, for all models."""
        return sum(place.tokens for queue in self._list_all() for place in queue.list_waiting())

    def find_oldest_wait_seconds(self, now: float) -> float:
        """Return for how long the request that has waited longest has done so; 0 if none waits."""
        return max((now - place.began for queue in self._list_all() for place in queue.list_waiting()), default=0.0)

    async def wait(self, call: Call, driver: CoroutineDriver) -> list[Upstream]:
        """Return the upstreams to try once the first of them has a place, which the caller must occupy in the same step.

        Raises Fault model_overloaded (503) or rate_limit_exceeded (429), and whatever interrupts `driver`.
        """
        now = time.monotonic()
        queue, running = self._find(call)
        place = self._new_place(call, driver, now, now)
        try:
            ticket = queue.join(place, running, now)
        except Fault as fault:
            metrics = self._metrics
            metrics.count(metrics.queue_results, "over_share" if fault.kind is faults.SHARE_EXCEEDED else "too_long")
            raise
        return await self._wait(queue, place, ticket)

    async def wait_again(self, call: Call, driver: CoroutineDriver, fault: Fault, budget: RetryBudget) -> list[Upstream]:
        """As `wait`, of a request that its upstreams have refused for their load, with `fault`. Raises that at once if none of them has
        others of ours to end before it, if it would hardly be served in the time that it has left, or if the retries are spent."""
        now = time.monotonic()
        queue, running = self._find(call)
        first = route(call, self._upstreams, now, self._random)[0]
        place = self._new_place(call, driver, call.request.started, now)
        if not first.running or first.running < first.limit or not queue.rejoin(place, running, now, budget):
            raise fault
        return await self._wait(queue, place, None)

    def _find(self, call: Call) -> tuple[ModelQueue, int]:
        """Return the queue in which a request waits, and how many run at the upstreams that it may use."""
        key = call.model.id, call.caller.is_test
        residency = call.caller.residency
        queues = self._queues.setdefault(key, {})
        queue = queues.get(residency)
        if queue is None:
            for empty in [each for each, left in queues.items() if not len(left)]:
                del queues[empty]  # residencies change; what is learned of one is soon learned again
            queue = queues[residency] = ModelQueue(self._bounds, self._upstreams, self._metrics, self._random)
        return queue, sum(each.running for each in self._upstreams.of(key[0], test=key[1]) if is_resident(each.deployment, residency))

    def _new_place(self, call: Call, driver: CoroutineDriver, began: float, now: float) -> _Place:
        request = call.request
        return _Place(call, driver, now, min(began + self._bounds.wait_seconds, request.started + request.head.timeout_seconds))

    async def _wait(self, queue: ModelQueue, place: _Place, ticket: Ticket[_Place] | None) -> list[Upstream]:
        """Wait in a queue that the request has joined."""
        metrics, call = self._metrics, place.call
        self._active.exchanges.add(place)
        result = "left"
        try:
            await place.waiter
            result = "served"
        except Fault as fault:
            result = "waited_in_vain" if fault.kind in (faults.MODEL_OVERLOADED, faults.DEADLINE_EXCEEDED) else "interrupted"
            raise
        finally:
            metrics.count(metrics.queue_results, result)
            now = time.monotonic()
            waited_seconds = now - place.began
            metrics.queue_seconds.observe(waited_seconds)
            call.request.waited_ms += int(waited_seconds * 1e6) / 1000
            call.request.note_trace().add_interval(QUEUE_SPAN, place.began, now)
            self._active.exchanges.discard(place)
            if result != "served" and queue.leave(place, ticket):
                self.dispatch(call.model.id, test=call.caller.is_test)  # in whatever queue of the model the next one waits
        place.candidates[0].running -= 1  # whoever relays takes it again before anybody else runs
        return place.candidates
