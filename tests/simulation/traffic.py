"""Requests through the real meter, engines that answer as engines do, and the truth about both.

The truth is kept here, by whoever plays engine and client: what was generated, what the client was given, whether it was
shown success. Nothing in it is read from what the gateway wrote.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from tests.link import samples
from tests.simulation.limits import PROMPT_BYTES
from tollway.domain import faults
from tollway.domain.billing_classes import Quantities
from tollway.domain.budgets import Budget, BudgetLevel, BudgetMode, BudgetWindow
from tollway.domain.catalog import Endpoint
from tollway.domain.credits import MINUTE_US
from tollway.domain.faults import Fault
from tollway.domain.keys import KeyType
from tollway.domain.limits import UNLIMITED, LevelLimits, LimitLevel, Limits
from tollway.domain.prices import PriceVersion
from tollway.domain.snapshot import BudgetEntry, KeyEntry, ModelEntry, OrganizationEntry, ProjectEntry
from tollway.domain.usage import Ended, Outcome, UsageSource
from tollway.gateway.dialects.table import DIALECTS
from tollway.gateway.driver import Waiter
from tollway.gateway.meter import UsageRecord, meter
from tollway.gateway.principal import principal_of_key
from tollway.gateway.request import Call, Caller, ClientGone, ModelGrant, Permit, RequestHead, new_request

Counts = tuple[int, int, int, int]
"""Input, cached input, output, reasoning."""
NONE: Counts = (0, 0, 0, 0)


@dataclass(slots=True)
class Truth:
    """True course of one request."""

    id: str
    epoch: int
    price: PriceVersion
    organization_id: str
    admitted: bool = False
    generated: Counts = NONE
    """Class by class the most that any attempt's engine reported."""
    generated_totals: tuple[int, int] = (0, 0)
    """The most input and output that any attempt's engine reported, of all classes together."""
    delivered: Counts = NONE
    """Tokens that the client had been given, or what had been counted against it, at the latest."""
    ended: Ended | None = None
    """The end that the gateway wrote, or was about to."""
    expected: tuple[Outcome, Counts] | None = None
    """End that it must have had if the gateway lived to say so: from the plan, not from the record."""
    durable: bool = False
    """Its end was reported to be on disk: nothing may take it back."""
    shown: bool = False
    """The client saw success."""
    admitted_at: int = 0
    """The instant of admission by its gateway's clock, in UTC microseconds."""
    true_admitted_at: int = 0
    """The same instant by a clock that is right."""
    power_cut: bool = False
    """The power went while its end was not yet durable: it may be forgotten."""


_ORGANIZATIONS = {"EUR": samples.ORGANIZATION, "USD": samples.OTHER_ORGANIZATION}


def _caller(organization_id: str, currency: str, project: Limits = UNLIMITED, organization: Limits = UNLIMITED) -> Caller:
    principal = principal_of_key(
        KeyEntry(id=samples.KEY, digest=b"", type=KeyType.LIVE, project_id=samples.PROJECT),
        ProjectEntry(id=samples.PROJECT, organization_id=organization_id, limits=project),
        OrganizationEntry(id=organization_id, currency=currency, limits=organization),
    )
    return Caller(principal, b"")


_CALLERS = {currency: _caller(organization_id, currency) for currency, organization_id in _ORGANIZATIONS.items()}
_MODEL = ModelEntry(id="echo", endpoints=(Endpoint.CHAT_COMPLETIONS,), created_at=0, prices=(samples.PRICE, samples.OTHER_PRICE))

INPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX = 500, 230
"""Most tokens that engines here report."""

_BUDGET = BudgetEntry(
    id="bud_" + "1" * 32,
    organization_id=samples.ORGANIZATION,
    level=BudgetLevel.ORGANIZATION,
    subject_id=samples.ORGANIZATION,
    mode=BudgetMode.HARD,
)


def budget_of(limit_pico: int) -> Budget:
    """Return a hard budget of the organization that most requests are of, which never begins anew."""
    return Budget(
        id=_BUDGET.id,
        organization_id=_BUDGET.organization_id,
        level=_BUDGET.level,
        subject_id=_BUDGET.subject_id,
        name="all",
        mode=_BUDGET.mode,
        window=BudgetWindow.TOTAL,
        amount_pico=limit_pico,
        currency="EUR",
        thresholds=(),
        is_operators=False,
        created_at=0,
        counts_from=0,
    )


BUDGET_ID = _BUDGET.id
"""The budget that gateways know, whatever control holds it to."""


FIRST_US = 180 * MINUTE_US
"""Time by which credit begins before a history: longer than a clock is wrong."""


class CreditTerms(NamedTuple):
    """A grant of credit. `begins_after_us`, `ends_after_us`: from the beginning of a history, whole minutes; None: it does not expire."""

    amount_pico: int
    begins_after_us: int
    ends_after_us: int | None


GRANTS_FIRST = 3
"""Grants with which a history begins; top-ups come to them."""


def draw_credit(chance: Random, limit_pico: int) -> tuple[CreditTerms, ...]:
    """Return grants that come to `limit_pico`: one from the beginning on, one that begins later, and one that expires meanwhile."""
    part = limit_pico // 4
    return (
        CreditTerms(limit_pico - 2 * part, -FIRST_US, None),
        CreditTerms(part, chance.choice((1, 2)) * MINUTE_US, None),
        CreditTerms(part, -FIRST_US, chance.choice((1, 1, 2)) * MINUTE_US),
    )


_HEAD = RequestHead(Endpoint.CHAT_COMPLETIONS, {})


def _grant() -> ModelGrant:
    return ModelGrant(_MODEL, {}, 0, 1, is_served=True, known_fields=frozenset(), cache_salt=b"", has_running_usage=True)


_GRANTS = {currency: _grant() for currency in _ORGANIZATIONS}
"""Grants by currency, each of another organization."""


@dataclass(slots=True)
class LimitedCaller:
    """The caller of one gateway that has limits, with a grant that no other gateway has: the counters of its process stand there."""

    caller: Caller
    grant: ModelGrant


def limited_caller(levels: Sequence[LevelLimits]) -> LimitedCaller:
    """Return the caller of the organization that most requests are of, with these limits of its project and its organization."""
    limits = {each.level: each.limits for each in levels}
    project, organization = limits[LimitLevel.PROJECT], limits[LimitLevel.ORGANIZATION]
    return LimitedCaller(_caller(samples.ORGANIZATION, "EUR", project, organization), _grant())


def _call(request_id: str, price: PriceVersion, now: int, stream: bool, limited: LimitedCaller | None) -> Call:
    request = new_request(request_id, _HEAD, b"", 0.0, now)
    return Call(
        request,
        _CALLERS[price.currency] if limited is None else limited.caller,
        _GRANTS[price.currency] if limited is None else limited.grant,
        _MODEL,
        DIALECTS[Endpoint.CHAT_COMPLETIONS],
        price,
        (),
        (),
        None,
        OUTPUT_TOKENS_MAX,
        INPUT_TOKENS_MAX,
        0 if limited is None else PROMPT_BYTES,
        stream,
        1,
        1,
        False,
        False,
    )


@dataclass(slots=True)
class Traffic:
    """All requests of a history. `requests_max` in each epoch of a gateway."""

    world: Any
    requests_max: int
    pause_seconds: float
    think_seconds: float
    stream_share: float
    checkpoints_max: int
    """After each chunk: with many, a segment is soon full."""
    truths: dict[str, Truth] = field(default_factory=dict)
    refused: int = 0
    _count: int = 0

    async def arrive(self, gateway: Any) -> None:
        """Requests, until there were enough."""
        chance: Random = self.world.chance
        for _ in range(self.requests_max):
            await asyncio.sleep(self.world.latency(self.pause_seconds))
            for _ in range(chance.choice((1, 1, 1, 3, 8))):
                self._count += 1
                price = samples.PRICE if chance.random() < 0.8 else samples.OTHER_PRICE
                truth = Truth(samples.request_id(self._count), gateway.spool.epoch.number, price, _ORGANIZATIONS[price.currency])
                gateway.process.run(self._exchange(gateway, truth))

    async def _exchange(self, gateway: Any, truth: Truth) -> None:
        chance: Random = self.world.chance
        stream = chance.random() < self.stream_share
        truth.admitted_at, truth.true_admitted_at = gateway.clock(), self.world.true_clock()
        is_limited = gateway.limiter is not None and truth.organization_id == samples.ORGANIZATION
        call = _call(truth.id, truth.price, truth.admitted_at, stream, gateway.limited_caller if is_limited else None)
        try:
            permit = await gateway.limiter.admit(call, truth) if is_limited else Permit(call, b"", None)
        except Fault:
            self.refused += 1
            return
        with permit:
            await self._meter(gateway, truth, permit)
        if is_limited and gateway.process.alive:
            used = NONE if truth.ended is None else counts_of(truth.ended.used)
            totals = totals_of(used)
            gateway.limiter.note_end(truth, (1, sum(totals), *totals))

    async def _meter(self, gateway: Any, truth: Truth, permit: Permit) -> None:
        has_budget = gateway.history.control.budget is not None and truth.organization_id == _BUDGET.organization_id
        hold = None
        record = None
        try:
            hold = gateway.budgets.reserve(permit.call, (_BUDGET,) if has_budget else (), None)
            await hold.waiter
            self.truths[truth.id] = truth  # from here on it may be on disk, even if the process dies before it knows
            permit.record = record = meter(permit, gateway.spool, gateway.clock)
            await self._serve(gateway, truth, permit, record)
        except Fault:
            if record is not None:
                raise
            self.truths.pop(truth.id, None)
            self.refused += 1
        finally:
            if hold is not None and gateway.process.alive and (record is None or record.final is not None):
                gateway.budgets.settle(hold, None if record is None else record.final)

    async def _serve(self, gateway: Any, truth: Truth, permit: Permit, record: UsageRecord) -> None:
        chance, stream = self.world.chance, permit.call.stream
        truth.admitted = True
        gateway.check_written(record.admit)
        if chance.random() < 0.02:  # whoever held it is gone without a word: the gateway's end must not forget it
            record.attempt("dep_" + "1" * 32)
            _Engine(self, gateway, truth, permit, record).reports((7, 0, 3, 0), UsageSource.ENGINE_CONTINUOUS)
            return
        engine = _Engine(self, gateway, truth, permit, record)
        gateway.running[truth.id] = engine
        try:
            async with record:
                await engine.answer(stream)
        except (Fault, ClientGone):
            pass
        finally:
            truth.ended = record.final
            gateway.running.pop(truth.id, None)
        # Left without an exception or with one that FINAL tells of: in both cases FINAL is durable now.
        self._ended(gateway, truth, record.final)

    def _ended(self, gateway: Any, truth: Truth, final: Ended | None) -> None:
        if final is None:
            self.world.fail(f"{truth.id} left the meter without FINAL")
        elif not gateway.spool.failed.is_set():
            truth.durable = True
            gateway.check_durable(final)


class _Engine:
    """One request's upstream and client."""

    def __init__(self, traffic: Traffic, gateway: Any, truth: Truth, permit: Permit, record: UsageRecord) -> None:
        self._permit = permit
        self._call = permit.call
        self._traffic, self._gateway, self._truth, self._record = traffic, gateway, truth, record
        self._chance: Random = traffic.world.chance
        self._pause = Waiter()

    def cut(self) -> None:
        """The gateway gives up on it: what it waits for ends with a fault, if it still waits for its engine."""
        self._pause.resume(Fault(faults.UPSTREAM_CUT))

    async def answer(self, stream: bool) -> None:
        chance, truth, record = self._chance, self._truth, self._record
        record.attempt("dep_" + "1" * 32)
        if chance.random() < 0.1:  # an engine that reports its prompt, and is left for another one
            self.reports((chance.randint(1, 500), 0, 0, 0), UsageSource.ENGINE_CONTINUOUS)
            await self._think()
            record.attempt("dep_" + "2" * 32)
            truth.delivered = NONE
        if stream:
            await self._stream()
        else:
            await self._whole()

    async def _whole(self) -> None:
        chance = self._chance
        await self._think()
        self._maybe_ends_early()
        used = (chance.randint(0, 300), chance.choice((0, 0, 64)), chance.randint(0, 200), chance.choice((0, 0, 30)))
        output_max = self._call.output_tokens_max or 0  # what a budget has lowered it to
        used = (used[0], used[1], min(used[2], output_max - min(used[3], output_max)), min(used[3], output_max))
        self.reports(used, UsageSource.ENGINE_FINAL)
        await self._completes()

    async def _stream(self) -> None:
        chance, truth, record = self._chance, self._truth, self._record
        used = (chance.randint(1, 300), 0, 0, 0)
        self.reports(used, UsageSource.ENGINE_CONTINUOUS)
        self._permit.reduce_input(record.input_tokens)
        for _ in range(chance.randint(0, 6)):
            await self._think()
            self._maybe_ends_early()
            used = (used[0], used[1], used[2] + chance.randint(1, 9), used[3])
            if not await self._is_reserved(used[2]):
                self._expect(Outcome.BUDGET_STOPPED)
                await record.finish(Outcome.BUDGET_STOPPED)
                return
            if chance.random() < 0.5:
                self.reports(used, UsageSource.ENGINE_CONTINUOUS)
            else:
                self._generates(used)
                record.advance(used[2])
                truth.delivered = used
            for _ in range(chance.randint(0, self._traffic.checkpoints_max)):
                record.checkpoint()
        if chance.random() < 0.05:
            self._expect(Outcome.BUDGET_STOPPED)
            await record.finish(Outcome.BUDGET_STOPPED)
            return
        if chance.random() < 0.7:  # the final report tells the classes apart
            cached, reasoning = chance.choice((0, used[0] // 2)), chance.choice((0, used[2] // 3))
            self.reports((used[0] - cached, cached, used[2] - reasoning, reasoning), UsageSource.ENGINE_FINAL)
        await self._completes()

    async def _completes(self) -> None:
        self._expect(Outcome.COMPLETED)
        await self._record.finish(Outcome.COMPLETED)
        self._truth.durable = True
        self._gateway.check_durable(self._record.final)
        self._truth.shown = True

    def _maybe_ends_early(self) -> None:
        draw = self._chance.random()
        if draw < 0.03:
            self._expect(Outcome.CLIENT_CANCELLED)
            raise ClientGone
        if draw < 0.06:
            self._expect(Outcome.UPSTREAM_ERROR)
            raise Fault(faults.UPSTREAM_CUT)
        if draw < 0.08:
            self._expect(Outcome.TIMEOUT)
            raise Fault(faults.UPSTREAM_TIMEOUT_IDLE)

    async def _think(self) -> None:
        """Wait for the engine, as the request path waits: in the callback that has the news."""
        self._pause = Waiter()
        asyncio.get_running_loop().call_later(self._traffic.world.latency(self._traffic.think_seconds), self._pause.resume)
        try:
            await self._pause
        except Fault:
            self._expect(Outcome.UPSTREAM_ERROR)
            raise

    async def _is_reserved(self, output: int) -> bool:
        """Reserve so much output of a stream before it is delivered, as `relay` does. Return whether that succeeded."""
        hold = self._call.output_hold
        if hold is None or output <= hold.covered_tokens:
            return True
        found: list[bool] = []
        pause = self._pause = Waiter()

        def decide(is_reserved: bool) -> None:
            found.append(is_reserved)
            pause.resume()

        if hold.extend(output, decide):
            return True
        try:
            await pause
        except Fault:
            hold.abandon()
            self._expect(Outcome.UPSTREAM_ERROR)
            raise
        return found[0]

    def _generates(self, used: Counts) -> None:
        truth = self._truth
        truth.generated = tuple(map(max, truth.generated, used))  # type: ignore[assignment]
        truth.generated_totals = tuple(map(max, truth.generated_totals, totals_of(used)))  # type: ignore[assignment]

    def reports(self, used: Counts, source: UsageSource) -> None:
        self._generates(used)
        self._record.note(Quantities(*used), source)
        self._truth.delivered = used

    def _expect(self, outcome: Outcome) -> None:
        self._truth.expected = (outcome, self._truth.delivered)


def counts_of(used: Quantities) -> Counts:
    """The classes as a tuple."""
    return used.input, used.cached_input, used.output, used.reasoning


def totals_of(counts: Counts) -> tuple[int, int]:
    """Input and output, of all classes together."""
    return counts[0] + counts[1], counts[2] + counts[3]
