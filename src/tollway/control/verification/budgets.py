"""Verification of what was spent of budgets, for `verify`: each window and each lease against the events that the archive has.

Spending is charged in the transaction that stores the events, so each lease must have drawn what the events of its gateway run come to, and
a window must have spent what its leases have drawn together.

Two things are not known afterwards: which requests of the minute in which a budget was created were ingested before it, and when requests
were ingested that came after its end. So the first minute may count or not, and an archived budget may have counted less.

What is held is a pair of numbers for each lease, of which the database has a row.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tollway.control.money.budgets import MINUTE_US, ChargeSums
from tollway.domain.budgets import Budget, BudgetLevel, BudgetWindow, find_budget_of_each, find_problem
from tollway.domain.periods import INSTANT_MAX, Bounds
from tollway.storage import budgets as storage
from tollway.storage.budgets import LeaseKey, WindowKey, WindowRow
from tollway.storage.database import PlatformTx
from tollway.storage.usage_events import EventRow

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""


@dataclass(slots=True)
class _Range:
    """The least and the most that may have been charged, in pico."""

    least: int = 0
    most: int = 0


@dataclass(slots=True)
class BudgetCharges:
    """Charges of the events that the archive has, by budget, window and gateway run."""

    budgets: Sequence[Budget]
    windows: dict[str, list[WindowRow]]
    ranges: dict[LeaseKey, _Range] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    """By budget: an instant at which requests were admitted of which it has no window."""

    @classmethod
    def read(cls, tx: PlatformTx) -> "BudgetCharges":
        """Return the budgets of all organizations and their windows, with nothing charged yet."""
        return cls(storage.list_all(tx), storage.list_window_rows(tx))

    def watch(self, rows: Iterable[EventRow], node_id: str, epoch: int) -> Iterator[EventRow]:
        """Yield the rows of events of a gateway run, and add up what they charge to budgets."""
        if not self.budgets:
            yield from rows
            return
        sums = ChargeSums(self.budgets)
        yield from sums.watch(rows)
        for budget, minutes in sums.list_charges():
            for minute_at, pico in minutes.items():
                self._charge(budget, minute_at, pico, node_id, epoch)

    def _charge(self, budget: Budget, minute_at: int, pico: int, node_id: str, epoch: int) -> None:
        is_certain = budget.archived_at is None and minute_at >= budget.counts_from + MINUTE_US
        windows = self.windows.get(budget.id, [])
        at = bisect_right(windows, minute_at, key=lambda each: each.bounds.start_at) - 1
        if at < 0 or minute_at >= windows[at].bounds.end_at:
            if is_certain:
                self.unknown.setdefault(budget.id, minute_at)
            return
        key = LeaseKey(WindowKey(budget.id, windows[at].bounds.start_at), node_id, epoch)
        charged = self.ranges.setdefault(key, _Range())
        charged.most += pico
        charged.least += pico if is_certain else 0


def compare_budgets(tx: PlatformTx, charges: BudgetCharges, add: Add) -> None:
    """Compare budgets, their windows, leases and alerts with what the events of the whole archive have charged."""
    currencies = storage.find_currencies(tx)
    for budget in charges.budgets:
        flaw = _find_flaw(budget, currencies.get(budget.organization_id))
        if flaw is not None:
            add("budgets", f"{budget.id} {flaw}")
    types = {budget.id: budget for budget in charges.budgets}
    for id, parent_id in storage.iterate_end_users(tx):
        parent = types.get(parent_id)
        if parent_id != find_budget_of_each(id) or parent is None or not (parent.is_of_each or parent.is_prepaid):
            add("budgets", f"{id} is of no budget that counts by end users or places")
    for budget_id, minute_at in charges.unknown.items():
        add("budget_windows", f"{budget_id} has no window for requests that were admitted at {minute_at}")
    windows = _compare_windows(charges, add)
    drawn = dict.fromkeys(windows, 0)
    expected = dict(charges.ranges)
    for key, pico in storage.iterate_drawn(tx):
        if key.window not in drawn:
            add("budget_leases", f"{key} is of no window")
            continue
        drawn[key.window] += pico
        charged = expected.pop(key, _Range())
        if not charged.least <= pico <= charged.most:
            add("budget_leases", f"{key} has drawn {pico}, its events come to {_shown(charged)}")
    for key, charged in expected.items():
        if charged.least:
            add("budget_leases", f"{key} is missing, its events come to {_shown(charged)}")
    for window, spent_pico in windows.items():
        if drawn[window] != spent_pico:
            add("budget_windows", f"{window} has spent {spent_pico}, its leases have drawn {drawn[window]}")
    for alert in storage.iterate_alerts(tx):
        spent_pico = windows.get(WindowKey(alert.budget_id, alert.window_start_at), -1)
        if not alert.threshold * alert.limit_pico <= alert.spent_pico * 100 <= spent_pico * 100:
            add("budget_alerts", f"{alert.budget_id} from {alert.window_start_at} did not reach {alert.threshold} %")


def _compare_windows(charges: BudgetCharges, add: Add) -> dict[WindowKey, int]:
    """Return what was spent in each window, once its bounds are checked."""
    types = {budget.id: budget.window for budget in charges.budgets}
    spent: dict[WindowKey, int] = {}
    for budget_id, rows in charges.windows.items():
        before = Bounds(0, 0)
        for row in rows:
            key = WindowKey(budget_id, row.bounds.start_at)
            spent[key] = row.spent_pico
            type = types.get(find_budget_of_each(budget_id) or budget_id)
            if type is None:
                add("budget_windows", f"{key} is of no budget")
            elif type is BudgetWindow.TOTAL and row.bounds != Bounds(0, INSTANT_MAX):
                add("budget_windows", f"{key} does not last without end")
            if row.bounds.start_at < before.end_at:
                add("budget_windows", f"{key} begins before the one before it ends")
            before = row.bounds
    return spent


def _find_flaw(budget: Budget, currency: str | None) -> str | None:
    """Return what is wrong with a budget of an organization that is billed in `currency`; None if nothing is."""
    if budget.currency != currency:
        return f"is in {budget.currency}, its organization is billed in {currency}"
    if budget.level is BudgetLevel.ORGANIZATION and budget.subject_id != budget.organization_id:
        return f"bounds {budget.subject_id}, which is not its organization"
    if budget.counts_from != budget.created_at // MINUTE_US * MINUTE_US:
        return "counts from another instant than the minute in which it was created"
    if find_problem(budget) is not None:
        return "has an amount or thresholds that no budget can have"
    return None


def _shown(charged: _Range) -> str:
    return str(charged.most) if charged.least == charged.most else f"{charged.least} to {charged.most}"
