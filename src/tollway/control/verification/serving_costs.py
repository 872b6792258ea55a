"""Verification of costs of serving, for `verify`: costs of deployments, and what closed periods and past months were booked at by them.

Events have been compared with the archive before, and contracts with these; here they are taken as the database has them. What a period
served whose events retention has removed is taken as it was booked.
"""

from collections.abc import Callable, Mapping, Sequence

from tollway.control.money.periods import is_kept
from tollway.control.money.serving_costs import (
    PeriodUsage,
    entries_of,
    list_ledger_revenue,
    list_past_capacity,
    make_capacity,
    make_margin,
)
from tollway.domain.ledger import Entry
from tollway.domain.periods import INSTANT_MAX, Period, PeriodState
from tollway.domain.serving_costs import (
    CapacityCost,
    DeploymentCost,
    PeriodMargin,
    find_problem,
    month_bounds,
    month_of_period,
    serving_transaction_id,
)
from tollway.storage import periods as stored_periods
from tollway.storage import serving_costs as stored
from tollway.storage.database import PlatformTx
from tollway.storage.serving_costs import BookedServingCost

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Sums = dict[str, int]
"""Sums of entries by account."""


def compare_serving_costs(tx: PlatformTx, periods: Mapping[str, Sequence[Period]], add: Add) -> tuple[Sums, Sums]:
    """Compare what was booked with what events and costs say. Returns what the entries come to by account, and what they should.
    `periods`: by organization, in order."""
    series = _read_series(tx, add)
    replayed, owed = Sums(), Sums()
    first_at = min((each[0].valid_from for each in series.values()), default=INSTANT_MAX)
    closed = {
        (period.organization_id, period.start_at): period
        for of_organization in periods.values()
        for period in of_organization
        if period.state is PeriodState.CLOSED
    }
    due = {place for place, period in closed.items() if first_at < period.end_at}
    for found in stored.iterate_serving_costs(tx):
        _sum(replayed, found.entries)
        place = (found.cost.organization_id, found.cost.period_at)
        if place not in due:
            add("serving_costs", f"{found.cost.id} is of a period that is not closed, or before any cost")
            continue
        due.remove(place)
        _sum(owed, _compare_period(tx, closed[place], found, add))
    for place in sorted(due):
        add("serving_costs", f"what {closed[place].id} cost is not booked")
    _compare_capacity(tx, series, replayed, owed, add)
    return replayed, owed


def _sum(sums: Sums, entries: Sequence[Entry]) -> None:
    for entry in entries:
        sums[entry.account.id] = sums.get(entry.account.id, 0) + entry.amount_pico


def _read_series(tx: PlatformTx, add: Add) -> dict[str, list[DeploymentCost]]:
    """Return the costs of each deployment in order of time, and note those that there cannot be."""
    series: dict[str, list[DeploymentCost]] = {}
    for id, cost in stored.iterate_costs(tx):
        if cost is None or find_problem(cost, 0) is not None:
            add("deployment_costs", f"{id} cannot be a cost")
        if cost is not None:
            series.setdefault(cost.deployment_id, []).append(cost)
    return series


def _compare_period(tx: PlatformTx, period: Period, found: BookedServingCost, add: Add) -> Sequence[Entry]:
    """Compare what a closed period was booked at with what it should be. Returns the entries that should book it."""
    assert period.closed is not None
    made, margin = found.cost, found.cost.margin
    if is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))):
        margin = make_margin(tx, period, PeriodUsage(stored.sum_events(tx, period), list_ledger_revenue(tx, period)))
    elif _sum_usage(margin) != sum(period.closed.amounts.values()):
        add("serving_costs", f"the usage of {period.id} does not come to what was closed")
    if made.margin != margin or not found.is_canonical:
        add("serving_costs", f"{period.id} does not come to what was booked")
    is_right = made.id == serving_transaction_id(period) and made.month == month_of_period(period)
    if not is_right or made.booked_at != period.closed.closed_at:
        add("serving_costs", f"{made.id} does not follow from {period.id}")
    right = entries_of(margin)
    if found.entries != right:
        add("ledger_entries", f"{made.id} does not book what serving {period.id} cost")
    return right


def _sum_usage(margin: PeriodMargin) -> int:
    return sum(each.amount_pico for each in margin.revenue if each.kind == "usage")


def _compare_capacity(tx: PlatformTx, series: Mapping[str, Sequence[DeploymentCost]], replayed: Sums, owed: Sums, add: Add) -> None:
    """Compare what the time of deployments was booked at with their costs. A month of which nothing is booked may be the job's to come, if
    no later one is."""
    latest, archived = dict[str, str](), stored.list_archived(tx)
    booked = set[CapacityCost]()
    for found in stored.iterate_capacity(tx):
        _sum(replayed, found.entries)
        right = make_capacity(found.cost)
        if found.id != right.id:
            add("capacity_costs", f"{found.id} does not follow from its deployment and month")
        if found.entries != right.entries:
            add("ledger_entries", f"{found.id} does not book what its deployment cost")
        deployment_id = found.cost.deployment_id
        latest[deployment_id] = max(latest.get(deployment_id, ""), found.cost.month)
        booked.add(found.cost._replace(model=""))
        _sum(owed, right.entries)
    for deployment_id, costs in series.items():
        last, until_at = latest.get(deployment_id, ""), archived.get(deployment_id, INSTANT_MAX)
        for right_cost in list_past_capacity(costs, until_at, month_bounds(last).end_at if last else 0):
            if right_cost in booked:
                booked.remove(right_cost)
            else:
                add("capacity_costs", f"the time of {deployment_id} in {right_cost.month} is not booked at what it costs")
    for each in sorted(booked):
        add("capacity_costs", f"the time of {each.deployment_id} in {each.month} costs something else")
