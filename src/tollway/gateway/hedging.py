"""Phase 5 for models that hedge: a request whose answer has not begun after a while is sent to a second deployment too.

The first of both that begins to answer (a stream by its first event, otherwise the whole answer) is the one that the client gets and pays
for; the other attempt is aborted in the same step, and nothing of it is in the record (Dean and Barroso, The Tail at Scale, 2013). At most
two attempts of a request run at a time.

A hedge is load that nobody pays for, so each model has a budget: at most `hedge_percent` of its requests are hedged, and none while no
other good deployment has a free place. An attempt that lost is neither a failure of its deployment nor a success.

`relay` keeps everything else: what an exchange is, how its answer is given, which faults may be retried. Requests with a large body, and
streams whose output budgets reserve while they run, are not hedged.
"""

import asyncio
import time
from collections.abc import Sequence

from tollway.domain import faults
from tollway.domain.faults import Fault
from tollway.domain.snapshot import ModelEntry
from tollway.gateway.blame import REFUSALS, HeldFaults, RetryBudget, may_retry
from tollway.gateway.deadlines import Active
from tollway.gateway.driver import OVER, CoroutineDriver, Waiter
from tollway.gateway.meter import UsageRecord
from tollway.gateway.ports import Client
from tollway.gateway.prefix_routing import Charge
from tollway.gateway.relay import Exchange, RelayBounds, answer_whole, begin_stream, end_stream
from tollway.gateway.request import Call, Permit
from tollway.gateway.upstreams.connection import UpstreamConnection
from tollway.gateway.upstreams.upstream import Upstream
from tollway.telemetry import Metrics

HEDGES_SAVED_MAX = 10.0
"""Hedges that a model may have saved: as many are sent at once when its engines slow down."""


class HedgeBudgets:
    """Number of requests that may still be hedged, for each model."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}

    def earn(self, model: ModelEntry) -> None:
        """A request for the model came in."""
        self._left[model.id] = min(self._left.get(model.id, 0.0) + model.hedge_percent / 100, HEDGES_SAVED_MAX)

    def spend(self, model: ModelEntry) -> bool:
        """Return whether one more request may be hedged; takes it."""
        left = self._left.get(model.id, 0.0)
        if left < 1.0:
            return False
        self._left[model.id] = left - 1.0
        return True


def may_hedge(call: Call, candidates: Sequence[Upstream]) -> bool:
    """Return whether a request is one that this module relays."""
    return call.model.hedge_after_ms is not None and len(candidates) > 1 and call.request.upload is None and call.output_hold is None


class _Try:
    """One attempt: at first the task that connects, then the exchange."""

    __slots__ = ("charge", "connecting", "exchange", "fault", "number", "started", "upstream")

    def __init__(self, upstream: Upstream, charge: Charge | None, number: int, now: float) -> None:
        self.upstream = upstream
        self.charge = charge
        self.number = number
        self.started = now
        self.connecting: asyncio.Task[UpstreamConnection] | None = None
        self.exchange: Exchange | None = None
        self.fault: Fault | None = None


class _Race:
    """The attempts at one request that are under way."""

    def __init__(
        self,
        permit: Permit,
        record: UsageRecord,
        client: Client,
        bounds: RelayBounds,
        active: Active,
        metrics: Metrics,
        driver: CoroutineDriver,
    ) -> None:
        self.call = permit.call
        self.tries: list[_Try] = []
        self.is_due = False
        self._record = record
        self._client = client
        self._bounds = bounds
        self._active = active
        self._metrics = metrics
        self._driver = driver
        self._waiter: Waiter | None = None

    # What the clock of the edge asks while nothing but connections is under way (`deadlines.Watched`).

    def interrupt(self, fault: Fault) -> None:
        """End the request with a fault."""
        self._driver.interrupt(fault)

    def tick(self, now: float) -> None:
        """Look at the client's deadline; the exchanges look at theirs."""
        request = self.call.request
        if now - request.started >= request.head.timeout_seconds:
            self._driver.interrupt(Fault(faults.DEADLINE_EXCEEDED))

    # What the coroutine does.

    def begin(self, upstream: Upstream, *, is_fresh: bool = False) -> None:
        """Begin an attempt. `is_fresh`: on a new connection."""
        call, now = self.call, time.monotonic()
        self._record.attempt(upstream.deployment.id)
        if call.request.trace is not None:
            call.request.trace.begin_attempt(self._record.attempts, upstream.deployment, now)
        charge = call.charge
        if charge is not None:
            charge = Charge(charge.chosen, charge.tokens, charge.uncached_tokens, charge.gateways)
            charge.begin(upstream.load)
        upstream.running += 1
        made = _Try(upstream, charge, self._record.attempts, now)
        self.tries.append(made)
        connection = None if is_fresh else upstream.take_idle(now)
        if connection is not None:
            self._ask(made, connection)
            return
        made.connecting = asyncio.get_running_loop().create_task(upstream.connect(self._bounds.connect_seconds))
        made.connecting.add_done_callback(lambda _: self.resume())

    def _ask(self, made: _Try, connection: UpstreamConnection) -> None:
        call, upstream = self.call, made.upstream
        translation = call.find_translation(upstream.deployment)
        exchange = Exchange(call, connection, self._client, self._record, self._bounds, self._driver, time.monotonic())
        exchange.attempt = made.number
        made.exchange = exchange
        self._active.exchanges.add(exchange)
        dialect = call.dialect if translation is None else translation.target
        try:
            body = call.upstream_body(upstream.deployment, translation)
            connection.ask(upstream.head(call.request, dialect, made.number, len(body)) + body, exchange)
        except Fault as caught:
            caught.forget_frames()
            made.fault = caught

    def wait(self) -> Waiter:
        """Await the result to sleep until an attempt has something, or `is_due` is set."""
        waiter = self._waiter = Waiter()
        for made in self.tries:
            exchange = made.exchange
            if made.fault is not None or (exchange is not None and (exchange.fault is not None or exchange.has_news())):
                return OVER
            if made.connecting is not None and made.connecting.done():
                return OVER
            if exchange is not None:
                exchange.share(waiter)
        return waiter

    def resume(self) -> None:
        """Let the coroutine look at the attempts."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.resume()

    def hedge(self) -> None:
        """The time has come in which an answer should have begun."""
        self.is_due = True
        self.resume()

    def advance(self) -> None:
        """Send the request on connections that were opened, and note which attempts failed."""
        for made in self.tries:
            task, exchange = made.connecting, made.exchange
            if task is not None and task.done():
                made.connecting = None
                error = task.exception()
                if isinstance(error, Fault):
                    made.fault = error
                elif error is not None:
                    raise error
                else:
                    self._ask(made, task.result())
            elif exchange is not None and exchange.fault is not None:
                made.fault = exchange.fault

    def find_answered(self, now: float) -> _Try | None:
        """Return the attempt that the client gets: the first that has begun to answer, or the first one once a stream has to begin in any
        case, which one of sound never has to. One whose whole answer is an error, or no stream where one was asked for, has failed."""
        for made in self.tries:
            exchange = made.exchange
            if made.fault is not None or exchange is None or not exchange.has_news():
                continue
            answer = exchange.connection.answer
            if exchange.stream is None and answer.complete and (answer.status != 200 or self.call.stream):
                made.fault = exchange.read_fault()
                continue
            return made
        oldest = self.tries[0] if self.tries else None
        if not self.call.stream or self.call.dialect.new_media is not None:
            return None
        if oldest is not None and oldest.exchange is not None and oldest.fault is None:
            return oldest if now - oldest.started >= self._bounds.commit_after_seconds else None
        return None

    def end(self, made: _Try, *, is_answered: bool = False) -> None:
        """The attempt is over, or was aborted for another one. It leaves nothing in the record."""
        self.tries.remove(made)
        if made.connecting is not None:
            made.connecting.cancel()
            made.connecting.add_done_callback(_close_connection)
        if made.exchange is not None:
            made.exchange.abandon(self._active)
        error = "" if made.fault is None else made.fault.kind.code
        self.call.request.note_trace().end_attempt(made.number, made.upstream.deployment, time.monotonic(), error)
        self.release(made, is_answered=is_answered)

    def release(self, made: _Try, *, is_answered: bool) -> None:
        """Give back the place and the charge of an attempt."""
        upstream = made.upstream
        upstream.running -= 1
        if made.charge is not None:
            made.charge.release()
        if upstream.running + 1 >= upstream.limit:
            upstream.leave_full(time.monotonic(), is_answered=is_answered)

    def has_place(self, upstream: Upstream) -> bool:
        """Return whether a hedge may go to this deployment."""
        return upstream.running < upstream.limit and upstream.health.allows(self.call.request.endpoint, time.monotonic())


async def relay_hedged(
    permit: Permit,
    candidates: Sequence[Upstream],
    record: UsageRecord,
    client: Client,
    bounds: RelayBounds,
    active: Active,
    budget: RetryBudget,
    hedges: HedgeBudgets,
    metrics: Metrics,
    driver: CoroutineDriver,
) -> Fault | None:
    """Answer the client from the first attempt that begins to answer, finishing `record` before the last byte. Returns and raises what
    `relay` does."""
    call = permit.call
    model = call.model
    budget.earn()
    hedges.earn(model)
    left = list(candidates)
    held_faults = HeldFaults(call)
    race = _Race(permit, record, client, bounds, active, metrics, driver)
    active.exchanges.add(race)
    loop = asyncio.get_running_loop()
    after_seconds = (model.hedge_after_ms or 0) / 1000
    timer = loop.call_later(after_seconds, race.hedge)
    is_counted = False
    fault: Fault | None = None
    hedge: _Try | None = None
    result = "failed"
    try:
        race.begin(left.pop(0))
        while True:
            interrupted: Fault | None = None
            try:
                await race.wait()
            except Fault as caught:
                caught.forget_frames()
                interrupted = caught
            race.advance()
            if interrupted is not None and all(made.fault is not interrupted for made in race.tries):
                race.tries[0].fault = interrupted  # a deadline, which the oldest attempt reaches first
            winner = race.find_answered(time.monotonic())
            if winner is not None:
                for made in [each for each in race.tries if each is not winner]:
                    race.end(made)
                failed = await _deliver(race, winner, permit, record, client, active, metrics)
                if failed is None:
                    held_faults.decide(is_answered=True)
                    result = "won" if winner is hedge else "lost"
                    return None
                winner.fault = failed
            for made in [each for each in race.tries if each.fault is not None]:
                fault = made.fault
                assert fault is not None
                race.end(made)
                metrics.attempted(made.upstream.deployment.id, fault.kind.code)
                held_faults.add(made.upstream, fault, has_begun=client.committed)
                if client.committed or not may_retry(fault, call):
                    raise fault
                if fault.kind is faults.UPSTREAM_STALE:  # the pool's fault: the same one again, on a fresh connection
                    race.begin(made.upstream, is_fresh=True)
            if not race.tries:
                if not left or not budget.spend():
                    break
                metrics.retries += 1
                race.begin(left.pop(0))
            elif race.is_due and hedge is None and len(race.tries) == 1 and left:
                race.is_due = False
                has_place = race.has_place(left[0])
                if has_place and hedges.spend(model):
                    race.begin(left.pop(0))
                    hedge = race.tries[-1]
                else:
                    if has_place and not is_counted:
                        metrics.count_hedge(model.id, "over_budget")
                        is_counted = True
                    timer = loop.call_later(after_seconds, race.hedge)  # the engine may hang for good
        assert fault is not None
        if fault.kind in REFUSALS:
            return fault
        raise fault
    finally:
        timer.cancel()
        active.exchanges.discard(race)
        for made in race.tries[:]:
            race.end(made)
        if result == "failed":
            held_faults.decide(is_answered=False)
        if hedge is not None:
            metrics.count_hedge(model.id, result)


async def _deliver(
    race: _Race, made: _Try, permit: Permit, record: UsageRecord, client: Client, active: Active, metrics: Metrics
) -> Fault | None:
    """Give the client the answer of the attempt that won. Return the Fault with which that failed."""
    exchange, upstream, call = made.exchange, made.upstream, permit.call
    assert exchange is not None
    endpoint = call.request.endpoint
    record.choose(upstream.deployment.id)
    if exchange.stream is not None and exchange.stream.used is not None:
        record.note(exchange.stream.used, exchange.stream.source)
    client.attend(exchange)
    is_answered = False
    failed: Fault | None = None
    try:
        if call.stream and (exchange.stream is not None or not exchange.connection.answer.complete):
            begin_stream(permit, exchange, upstream, record)
            now = time.monotonic()
            if made.charge is not None:
                if call.model.latency_goal_ms is not None:
                    upstream.first_token_times.observe(made.charge.ahead_tokens, now - exchange.started)
                made.charge.release()
            upstream.health.begin_answer(endpoint, now)
            upstream.observe_first_token(now - exchange.started, call.prompt_bytes, now)
            while not exchange.finished:
                await exchange.wait()
            await end_stream(call, exchange, client)
        else:
            await answer_whole(permit, exchange, upstream, call.find_translation(upstream.deployment), record, client)
        is_answered = True
    except Fault as caught:
        caught.forget_frames()
        failed = caught
    finally:
        exchange.close(active, metrics)
        if is_answered or failed is None:
            race.tries.remove(made)
            race.release(made, is_answered=is_answered)
    if is_answered:
        metrics.attempted(upstream.deployment.id, "ok")
        if call.request.trace is not None:
            call.request.trace.end_attempt(made.number, upstream.deployment, time.monotonic(), "")
        upstream.health.succeed(endpoint, time.monotonic())
    return failed


def _close_connection(task: "asyncio.Task[UpstreamConnection]") -> None:
    """Close a connection that was opened for an attempt that nobody waits for."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
