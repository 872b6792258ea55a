"""Costs of serving: what operators state of deployments, what closed periods and past months cost by it, and the gross margin.

Theory of operation. The events of a frozen period never change, so they are summed outside of the closing transaction and booked in it,
once, with the revenue of the period. The time of a deployment is booked by a job, once for each past calendar month. A cost may begin in
the past, but in no time for which anything is booked: what was booked follows from the costs that there are, and `verify` computes it
again. Nothing is summed or booked before the first cost is stated. Organizations see none of it. The rules are in
`domain/serving_costs.py`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tollway.control.money.ledger import PLATFORM, REVENUE
from tollway.domain.contracts import ContractPart, LineKind
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.ids import DEPLOYMENT, is_id
from tollway.domain.ledger import Account, Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import INSTANT_MAX, Bounds, Period
from tollway.domain.serving_costs import (
    CapacityCost,
    CostLine,
    CostMovement,
    DeploymentCost,
    Margin,
    MarginGroup,
    MarginKey,
    PeriodMargin,
    RevenueKind,
    RevenueLine,
    ServedUsage,
    capacity_transaction_id,
    cost_capacity,
    cost_usage,
    find_problem,
    list_months,
    list_movements,
    month_at,
    month_bounds,
    month_of_period,
    serving_transaction_id,
    sum_margins,
    sum_revenue,
)
from tollway.storage import contracts as stored_contracts
from tollway.storage import ledger as stored_ledger
from tollway.storage import serving_costs as stored
from tollway.storage.database import Database, PlatformTx, Transaction
from tollway.storage.serving_costs import PostedCapacity, ServingCost

BACKDATED_US_MAX = 400 * 86_400 * 1_000_000
"""Longest time that a cost may begin in the past: each month since then is booked. A year in arrears is covered."""

COSTS_MAX = 1_000
"""Costs of one deployment: one a week for twenty years."""

MONTHS_MAX = 24
"""Months of one report."""

ROWS_MAX = 20_000
"""Rows of one report."""

ZONES_US = 14 * 3_600_000_000
"""Time by which a month begins earlier in the first time zone than in UTC."""

NOT_REVENUE = (LineKind.PREPAYMENT, LineKind.DRAWDOWN)
"""Lines of contracts that move revenue in time: usage is revenue when it is rated, whoever paid for it when."""

CAPACITY_SECONDS = 3_600
"""Interval of the job that books the time of deployments: a month is over once a month."""

# ---- Costs of deployments -----------------------------------------------------------------------------------------------


def add_cost(tx: PlatformTx, cost: DeploymentCost, now: int) -> DeploymentCost:
    """Store a cost of a deployment. Raises RESOURCE_UNKNOWN for a deployment that does not exist, PARAMETER_INVALID for a cost that begins
    in time for which costs are booked, and STATE_CONFLICT where one begins at the same instant, or for too many."""
    deployment = stored.lock_deployment(tx, cost.deployment_id) if is_id(DEPLOYMENT, cost.deployment_id) else None
    if deployment is None:
        raise Fault(RESOURCE_UNKNOWN)
    if deployment.is_archived:
        raise Fault(STATE_CONFLICT, message="The deployment is archived.")
    if cost.valid_from < now - BACKDATED_US_MAX:
        raise Fault(PARAMETER_INVALID, param="valid_from", message="A cost begins at most 400 days ago.")
    last_month = stored.find_last_month(tx, cost.deployment_id)
    bound_at = max(stored.find_booked_until(tx, now), 0 if last_month is None else month_bounds(last_month).end_at)
    problem = find_problem(cost, bound_at)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=problem.text)
    series = stored.read_series(tx, cost.deployment_id)
    if any(each.valid_from == cost.valid_from for each in series):
        raise Fault(STATE_CONFLICT, param="valid_from", message="A cost of the deployment begins at this instant already.")
    if len(series) >= COSTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"A deployment has at most {COSTS_MAX} costs.")
    stored.insert_cost(tx, cost)
    return cost


def list_costs(tx: PlatformTx, deployment_id: str, window: PageWindow) -> Page[DeploymentCost]:
    """Return a page of the costs of a deployment."""
    return stored.list_costs(tx, deployment_id, window)


# ---- What closed periods cost -------------------------------------------------------------------------------------------


class PeriodUsage(NamedTuple):
    """Usage that a frozen period served, and revenue of its usage and corrections; neither changes any more."""

    served: Sequence[ServedUsage]
    revenue: Sequence[RevenueLine]


def sum_usage(tx: PlatformTx, period: Period) -> PeriodUsage | None:
    """Return what the events and postings of a frozen period come to; None where no deployment has a cost before its end."""
    if not stored.has_costs_before(tx, period.end_at):
        return None
    return PeriodUsage(stored.sum_events(tx, period), list_ledger_revenue(tx, period))


def list_ledger_revenue(tx: Transaction, period: Period) -> list[RevenueLine]:
    """Return what the transactions of a period brought by model: its usage, and the corrections that are booked in it."""
    lines = []
    for each in stored_ledger.sum_period(tx, period.organization_id, period.start_at, PLATFORM):
        kind, _, name = each.account.kind.partition(":")
        model = name.rpartition(":")[0] if kind == REVENUE else name
        origin = RevenueKind.CORRECTION if each.is_correction else RevenueKind.USAGE
        lines.append(RevenueLine(model=model, kind=origin, amount_pico=-each.amount_pico))
    return lines


def book(tx: PlatformTx, period: Period, usage: PeriodUsage | None, now: int) -> None:
    """Book what serving a period cost that is closing, whose contracts are charged; nothing where no deployment has a cost."""
    if usage is None:
        return
    made = ServingCost(
        id=serving_transaction_id(period),
        organization_id=period.organization_id,
        period_at=period.start_at,
        month=month_of_period(period),
        margin=make_margin(tx, period, usage),
        booked_at=now,
    )
    stored.post_serving_cost(tx, made, entries_of(made.margin))


def make_margin(tx: PlatformTx, period: Period, usage: PeriodUsage) -> PeriodMargin:
    """Return what a period brought and what its units cost."""
    costs = stored.read_costs_by_id(tx, sorted({each.cost_id for each in usage.served if each.cost_id}))
    charged = stored_contracts.find_charge(tx, period.organization_id, period.start_at)
    by_contract = () if charged is None else _list_contract_revenue(charged.charge.parts)
    return PeriodMargin(served=cost_usage(usage.served, costs), revenue=sum_revenue([*usage.revenue, *by_contract]))


def _list_contract_revenue(parts: Iterable[ContractPart]) -> list[RevenueLine]:
    lines = [line for part in parts for line in part.lines if line.kind not in NOT_REVENUE]
    return [RevenueLine(model=line.model, kind=RevenueKind.CONTRACT, amount_pico=line.amount_pico) for line in lines]


def entries_of(margin: PeriodMargin) -> tuple[Entry, ...]:
    """Return the entries that book what the units of a period cost."""
    lines = [CostLine(line.model, line.deployment_id, line.currency, line.cost_pico) for line in margin.served if line.cost_pico]
    return _make_entries(list_movements(lines))


def _make_entries(movements: Iterable[CostMovement]) -> tuple[Entry, ...]:
    return tuple(Entry(Account(PLATFORM, each.account, each.currency), each.amount_pico) for each in movements)


# ---- What the time of deployments costs ---------------------------------------------------------------------------------


def book_due_capacity(database: Database, now: int, is_stopping: Callable[[], bool]) -> None:
    """Book the time of each deployment for the months (UTC) that are over, each once."""
    with database.platform(write=False) as tx:
        deployment_ids = stored.list_deployments_with_costs(tx)
    for deployment_id in deployment_ids:
        if is_stopping():
            return
        with database.platform(write=False) as tx:
            due = _list_due_capacity(tx, deployment_id, now)
        if due:
            with database.platform() as tx:
                deployment = stored.lock_deployment(tx, deployment_id)
                assert deployment is not None, "deployments are never deleted"
                for cost in _list_due_capacity(tx, deployment_id, now):
                    stored.post_capacity(tx, make_capacity(cost._replace(model=deployment.model)), now)


def _list_due_capacity(tx: PlatformTx, deployment_id: str, now: int) -> list[CapacityCost]:
    """Return what is not booked yet of the past months of a deployment; its model is left empty."""
    booked = stored.list_booked_months(tx, deployment_id)
    until_at = stored.list_archived(tx).get(deployment_id, INSTANT_MAX)
    costs = list_past_capacity(stored.read_series(tx, deployment_id), until_at, now)
    return [each for each in costs if (each.month, each.currency) not in booked]


def list_past_capacity(series: Sequence[DeploymentCost], until_at: int, now: int) -> list[CapacityCost]:
    """Return what the time of a deployment cost in each month (UTC) that is over; its model is left empty. `series`: its costs in order.
    `until_at`: when it was archived; INSTANT_MAX while it is active."""
    if not series or month_bounds(month_at(series[0].valid_from)).end_at > now:
        return []
    last = month_at(min(month_bounds(month_at(now)).start_at - 1, until_at))
    found = []
    for month in list_months(month_at(series[0].valid_from), last):
        bounds = month_bounds(month)
        costs = cost_capacity(series, Bounds(bounds.start_at, min(bounds.end_at, until_at)))
        found += [CapacityCost(month, series[0].deployment_id, "", currency, pico) for currency, pico in sorted(costs.items())]
    return found


def make_capacity(cost: CapacityCost) -> PostedCapacity:
    """Return what the time of a deployment cost in a month as it is booked."""
    entries = _make_entries(list_movements([CostLine(cost.model, cost.deployment_id, cost.currency, cost.amount_pico)]))
    return PostedCapacity(capacity_transaction_id(cost.deployment_id, cost.month, cost.currency), cost, entries)


# ---- Report -------------------------------------------------------------------------------------------------------------


class MarginReport(NamedTuple):
    """Margins of some months. `open_periods`: billing periods of these months that are not closed, whose revenue and cost are missing."""

    margins: Mapping[MarginKey, Margin]
    open_periods: int


def report(
    tx: PlatformTx, first: str, last: str, groups: frozenset[MarginGroup], *, organization_id: str | None, model: str | None
) -> MarginReport:
    """Return the margins of closed periods from the first to the last month (YYYY-MM), both included; of one organization or one model
    where it is named. Raises PARAMETER_INVALID for months in another order or too many, and STATE_CONFLICT for too many rows."""
    if last < first:
        raise Fault(PARAMETER_INVALID, param="until_month", message="The last month is before the first one.")
    months = list_months(first, last)
    if len(months) > MONTHS_MAX:
        raise Fault(PARAMETER_INVALID, param="until_month", message=f"A report covers at most {MONTHS_MAX} months.")
    # The time of a deployment is shared by all that it served, so nobody is left out before it is divided.
    wanted = groups | ({MarginGroup.ORGANIZATION} if organization_id else set()) | ({MarginGroup.MODEL} if model else set())
    found = sum_margins(stored.iterate_margins(tx, months), stored.list_capacity(tx, months), wanted)
    margins = {
        key: margin for key, margin in found.items() if organization_id in (None, key.organization_id) and model in (None, key.model)
    }
    if len(margins) > ROWS_MAX:
        raise Fault(STATE_CONFLICT, message=f"The report has more than {ROWS_MAX} rows: ask for less of it.")
    start_at, end_at = month_bounds(first).start_at - ZONES_US, month_bounds(last).end_at - ZONES_US
    return MarginReport(margins, stored.count_open_periods(tx, start_at, end_at))
