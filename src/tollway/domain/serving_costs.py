"""Costs of serving: what a deployment costs whoever runs it, and what that leaves of revenue, the gross margin.

Theory of operation. A deployment has a series of costs, each valid from an instant until the next one. A cost has two parts. Units that its
engine counted cost a price each, as at a provider that sells tokens: this follows from the events of a billing period, so it is booked once
when the period closes. Time costs a price per hour, whether the deployment serves or not: this is booked once for each calendar month
(UTC). In a report the cost of the time of a month is divided among the organizations that a deployment served in it, in the ratio of the
time that their requests took; what it costs in a month in which it served nobody belongs to no organization.

All amounts are integers of pico-currency. Costs and revenue of different currencies are never added. docs/margins.md explains the whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

import msgspec

from tollway.domain.billing_classes import BillingClass, Quantities, UnitPrices
from tollway.domain.ids import TRANSACTION, derive_id
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.periods import INSTANT_MAX, Bounds, Period, find_zone

HOUR_US: Final = 3_600_000_000

COST_OF_SERVING: Final = "cost_of_serving"
"""Kind of the platform's accounts of what serving a model costs: "cost_of_serving:<model>"."""

ACCRUED_COST: Final = "accrued_cost"
"""Kind of the platform's accounts of what a deployment has cost and nobody has paid by them yet: "accrued_cost:<deployment>"."""


class DeploymentCost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of a deployment from `valid_from` (inclusive, UTC microseconds) until the next one's. `hour_pico`: of each hour, in
    pico-currency; `unit_costs`: of each unit that its engine counts, by class. A class that is added later costs nothing until it is
    stated."""

    id: str
    deployment_id: str
    valid_from: int
    created_at: int
    currency: str
    hour_pico: int
    unit_costs: UnitPrices


class CostProblem(NamedTuple):
    """Defect of a cost: the field, and a sentence for whoever wrote it."""

    field: str
    text: str


def find_problem(cost: DeploymentCost, bound_at: int) -> CostProblem | None:
    """Return why a cost cannot be stored; None if it can. `bound_at`: the end of the time for which costs are booked."""
    if not 0 <= cost.hour_pico <= AMOUNT_PICO_MAX // (31 * 24):
        return CostProblem("per_hour", "The cost of an hour is from zero to the 744th part of the highest amount.")
    if cost.valid_from < bound_at:
        return CostProblem("valid_from", f"Costs are booked up to {format_instant(bound_at)}: a cost begins then or later.")
    if cost.valid_from > INSTANT_MAX:
        return CostProblem("valid_from", "The instant lies beyond every calendar.")
    return None


def format_instant(at: int) -> str:
    """Return an instant as a person reads it, in UTC."""
    return (_EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# ---- Months -------------------------------------------------------------------------------------------------------------


def month_bounds(month: str) -> Bounds:
    """Return the time of a calendar month (YYYY-MM) in UTC. Raises ValueError for what is none."""
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    end = (start + timedelta(days=31)).replace(day=1)
    return Bounds(_instant_of(start), _instant_of(end))


def month_at(at: int) -> str:
    """Return the calendar month (YYYY-MM) of an instant in UTC."""
    return (_EPOCH + timedelta(microseconds=at)).strftime("%Y-%m")


def month_of_period(period: Period) -> str:
    """Return the calendar month (YYYY-MM) in whose middle a billing period lies, in its time zone: one that was cut short at a change of
    zone counts in the month that it is a part of."""
    middle_at = (period.start_at + period.end_at) // 2
    return (_EPOCH + timedelta(microseconds=middle_at)).astimezone(find_zone(period.time_zone) or UTC).strftime("%Y-%m")


def list_months(first: str, last: str) -> list[str]:
    """Return the calendar months from the first to the last one, both included."""
    months, at, until_at = [], month_bounds(first).start_at, month_bounds(last).start_at
    while at <= until_at:
        months.append(month_at(at))
        at = month_bounds(months[-1]).end_at
    return months


def _instant_of(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)


# ---- What is booked -----------------------------------------------------------------------------------------------------


class ServedUsage(NamedTuple):
    """Usage that one deployment served of one model in a billing period, under one cost. `deployment_id` and `cost_id` are empty where
    there is none. `busy_us`: the time of its requests from admission to end, summed, in microseconds. `used`: units that its engine
    counted."""

    model: str
    deployment_id: str
    cost_id: str
    requests: int
    busy_us: int
    used: Quantities


class ServedLine(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that a deployment served of a model in a billing period, and the cost of their units. `currency` is empty where there is
    none."""

    model: str
    deployment_id: str
    cost_id: str
    requests: int
    busy_us: int
    currency: str
    cost_pico: int


class RevenueKind(StrEnum):
    """Origin of revenue."""

    USAGE = "usage"
    CORRECTION = "correction"
    CONTRACT = "contract"


class RevenueLine(msgspec.Struct, frozen=True, kw_only=True):
    """Revenue of a billing period from one model; `model` is empty for what a contract adds to the whole period."""

    model: str
    kind: RevenueKind
    amount_pico: int


class PeriodMargin(msgspec.Struct, frozen=True, kw_only=True):
    """Revenue of a closed billing period, in the currency of its organization, and what serving it cost."""

    served: tuple[ServedLine, ...]
    revenue: tuple[RevenueLine, ...]


def cost_usage(usages: Iterable[ServedUsage], costs: Mapping[str, DeploymentCost]) -> tuple[ServedLine, ...]:
    """Return the lines of what was served, in order. `costs`: by id."""
    lines = []
    for each in sorted(usages, key=lambda usage: usage[:3]):
        cost = costs.get(each.cost_id)
        pico = 0 if cost is None else sum(map(_multiply, each.used.values(), cost.unit_costs.values()))
        lines.append(
            ServedLine(
                model=each.model,
                deployment_id=each.deployment_id,
                cost_id=each.cost_id,
                requests=each.requests,
                busy_us=each.busy_us,
                currency="" if cost is None else cost.currency,
                cost_pico=pico,
            )
        )
    return tuple(lines)


def _multiply(quantity: int, unit_pico: int) -> int:
    return quantity * unit_pico


def sum_revenue(found: Iterable[RevenueLine]) -> tuple[RevenueLine, ...]:
    """Return one line for each model and kind, in order, without those of nothing."""
    sums: dict[tuple[str, RevenueKind], int] = {}
    for each in found:
        sums[each.model, each.kind] = sums.get((each.model, each.kind), 0) + each.amount_pico
    return tuple(RevenueLine(model=model, kind=kind, amount_pico=pico) for (model, kind), pico in sorted(sums.items()) if pico)


class CostMovement(NamedTuple):
    """Amount that a cost books on one of the platform's accounts. Debits are above zero."""

    account: str
    currency: str
    amount_pico: int


class CostLine(NamedTuple):
    """An amount that serving a model by a deployment cost."""

    model: str
    deployment_id: str
    currency: str
    amount_pico: int


def list_movements(lines: Iterable[CostLine]) -> tuple[CostMovement, ...]:
    """Return what costs book, which sums to zero in each currency."""
    sums: dict[tuple[str, str], int] = {}
    for line in lines:
        movements = ((f"{COST_OF_SERVING}:{line.model}", line.amount_pico), (f"{ACCRUED_COST}:{line.deployment_id}", -line.amount_pico))
        for account, pico in movements:
            sums[account, line.currency] = sums.get((account, line.currency), 0) + pico
    return tuple(CostMovement(account, currency, pico) for (account, currency), pico in sorted(sums.items()) if pico)


def serving_transaction_id(period: Period) -> str:
    """Return the id of the transaction of what serving a billing period cost: it follows from its cause, so it is booked once."""
    return derive_id(TRANSACTION, max(period.start_at, 0), f"serving/{period.organization_id}/{period.start_at}")


def capacity_transaction_id(deployment_id: str, month: str, currency: str) -> str:
    """Return the id of the transaction of what the time of a deployment cost in a month."""
    return derive_id(TRANSACTION, max(month_bounds(month).start_at, 0), f"capacity/{deployment_id}/{month}/{currency}")


def cost_capacity(costs: Sequence[DeploymentCost], span: Bounds) -> dict[str, int]:
    """Return what the time of a deployment costs in a span, by currency, without those in which it costs nothing. `costs`: its series, in
    order of time. A part of an hour costs its share, rounded down once for each cost of the series."""
    found: dict[str, int] = {}
    starts = [*(cost.valid_from for cost in costs), INSTANT_MAX]
    for cost, (from_at, until_at) in zip(costs, pairwise(starts), strict=True):
        length_us = min(until_at, span.end_at) - max(from_at, span.start_at)
        if length_us > 0 and (pico := cost.hour_pico * length_us // HOUR_US):
            found[cost.currency] = found.get(cost.currency, 0) + pico
    return found


# ---- Margin -------------------------------------------------------------------------------------------------------------


class CapacityCost(NamedTuple):
    """Cost of the time of a deployment in a month."""

    month: str
    deployment_id: str
    model: str
    currency: str
    amount_pico: int


class MarginGroup(StrEnum):
    """Field by which margins can be summed."""

    MONTH = "month"
    ORGANIZATION = "organization"
    MODEL = "model"


class MarginKey(NamedTuple):
    """Subject of a margin. A field by which the report does not group is None. `organization_id` is empty for the time of deployments that
    served nobody, and `model` for what contracts add to a whole period."""

    month: str | None
    organization_id: str | None
    model: str | None
    currency: str


class Margin(NamedTuple):
    """Revenue, and what serving it cost: `unit_cost_pico` for what engines counted, `time_cost_pico` for the time of deployments."""

    revenue_pico: int = 0
    unit_cost_pico: int = 0
    time_cost_pico: int = 0

    @property
    def margin_pico(self) -> int:
        """Return what is left of revenue."""
        return self.revenue_pico - self.unit_cost_pico - self.time_cost_pico

    @property
    def margin_bp(self) -> int | None:
        """Return the margin in basis points of revenue, rounded down; None without revenue."""
        return self.margin_pico * 10_000 // self.revenue_pico if self.revenue_pico > 0 else None


class BookedMargin(NamedTuple):
    """The margin of a closed billing period, as it was booked."""

    month: str
    organization_id: str
    currency: str
    margin: PeriodMargin


def sum_margins(
    booked: Iterable[BookedMargin], capacity: Iterable[CapacityCost], groups: frozenset[MarginGroup]
) -> dict[MarginKey, Margin]:
    """Return margins by the fields of `groups` and by currency, in order."""
    sums: dict[MarginKey, Margin] = {}
    busy: dict[tuple[str, str], dict[str, int]] = {}

    def add(key: MarginKey, added: Margin) -> None:
        cut = MarginKey(
            key.month if MarginGroup.MONTH in groups else None,
            key.organization_id if MarginGroup.ORGANIZATION in groups else None,
            key.model if MarginGroup.MODEL in groups else None,
            key.currency,
        )
        before = sums.get(cut, Margin())
        sums[cut] = Margin(*map(sum, zip(before, added, strict=True)))

    for each in booked:
        for revenue in each.margin.revenue:
            add(MarginKey(each.month, each.organization_id, revenue.model, each.currency), Margin(revenue_pico=revenue.amount_pico))
        for line in each.margin.served:
            if line.cost_pico:
                add(MarginKey(each.month, each.organization_id, line.model, line.currency), Margin(unit_cost_pico=line.cost_pico))
            if line.deployment_id:
                of_deployment = busy.setdefault((each.month, line.deployment_id), {})
                of_deployment[each.organization_id] = of_deployment.get(each.organization_id, 0) + line.busy_us
    for cost in capacity:
        shares = share_out(cost.amount_pico, busy.get((cost.month, cost.deployment_id), {}))
        for organization_id, pico in shares.items():
            add(MarginKey(cost.month, organization_id, cost.model, cost.currency), Margin(time_cost_pico=pico))
    return dict(sorted(sums.items(), key=_order))


def _order(row: tuple[MarginKey, Margin]) -> tuple[str, ...]:
    return tuple(each or "" for each in row[0])


def share_out(amount_pico: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Return the shares of an amount in the ratio of weights, which come to the whole to the last digit; all of it under an empty name
    where there is no weight."""
    whole = sum(weights.values())
    if whole <= 0:
        return {"": amount_pico}
    shares, before = {}, 0
    for name in sorted(weights):
        after = before + weights[name]
        shares[name] = amount_pico * after // whole - amount_pico * before // whole
        before = after
    return shares


def stated_costs(unit_costs: UnitPrices) -> dict[str, str]:
    """Return the costs of units that are above zero, by class, in pico-currency as text: as they are stored."""
    return {str(billing_class): str(pico) for billing_class, pico in unit_costs.items()}


def read_costs(stated: Mapping[str, str]) -> UnitPrices:
    """Return the costs of units that `stated_costs` wrote. Raises ValueError for what it did not."""
    return UnitPrices.from_values(int(stated.get(billing_class, "0")) for billing_class in BillingClass)
