"""Budgets at rest: what may be spent, what was spent in each window, and what gateways were granted.

A budget of each end user has its windows and leases by end user. Their rows refer to one of the table of budgets that stands for the end
user (`put_end_user`): its id is `domain.budgets.name_end_user_budget`, and only its `parent_id` counts, since the terms are those of the
budget of each. No query returns such rows as budgets, but `find_active` for the ids that it is asked for.

`lock_window` comes before a grant and before a charge. Its lock lasts to the end of the transaction, so that of two grants, or of a grant
and a charge, the second sees what the first did. A transaction that locks several windows does it in the order of budget and start.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.budgets import (
    Budget,
    BudgetAlert,
    BudgetLevel,
    BudgetMode,
    BudgetRaise,
    BudgetWindow,
    find_budget_of_each,
)
from tollway.domain.credits import EVERYWHERE, CreditPlace
from tollway.domain.events import EventType, new_event
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Bounds
from tollway.storage import outbox
from tollway.storage.bulk_statements import any_of
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page, split_ids
from tollway.storage.schema import organizations
from tollway.storage.schema_budgets import budget_alerts, budget_leases, budget_raises, budget_windows, budgets
from tollway.storage.schema_money import epochs
from tollway.storage.schema_periods import lost_declarations

ALERTS_KEPT_MAX = 1000
"""Alerts of one budget that are kept and listed, the latest: years of them, unless somebody changes the limit all the time."""

ROWS_FETCHED = 1000
"""Rows that are read at once where there may be many."""

IS_BUDGET = budgets.c.parent_id.is_(None)
"""Selects the rows that are budgets, and do not stand for an end user of one."""

BINDS = sa.and_(budgets.c.archived_at.is_(None), budgets.c.mode != BudgetMode.ALERT, IS_BUDGET)
"""Selects the budgets that bind requests: gateways lease parts of them."""

CONCERNS_GATEWAYS = sa.and_(
    budgets.c.archived_at.is_(None),
    IS_BUDGET,
    sa.or_(
        budgets.c.mode != BudgetMode.ALERT,
        budgets.c.model.is_not(None),
        budgets.c.tag.is_not(None),
        budgets.c.end_user.is_not(None),
    ),
)
"""Selects the budgets that gateways receive (`Budget.concerns_gateways`)."""

_IS_OPEN = (epochs.c.closed_at.is_(None), lost_declarations.c.declared_at.is_(None))
"""Selects leases of epochs that are neither closed nor declared lost."""

# ---- What may be spent --------------------------------------------------------------------------------------------------


def insert_budget(tx: TenantTx, budget: Budget) -> None:
    """Store a new budget of the organization."""
    assert budget.organization_id == tx.organization_id
    tx.connection.execute(budgets.insert().values(**_columns(budget)))


def put_plan_budget(tx: Transaction, budget: Budget) -> None:
    """Store the budget that an organization has by its plan, in place of the one with its id."""
    changed = {**_terms(budget), "archived_at": budget.archived_at, "plan_id": budget.plan_id}
    insert = tx.insert(budgets).values(**_columns(budget))
    tx.connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))


def find_plan_budgets(tx: Transaction, organization_ids: Iterable[str]) -> dict[str, Budget]:
    """Return the budgets that organizations have by their plans, by organization."""
    found: dict[str, Budget] = {}
    for part in split_ids(organization_ids):
        query = sa.select(budgets).where(
            budgets.c.organization_id.in_(part), budgets.c.plan_id.is_not(None), budgets.c.archived_at.is_(None)
        )
        found |= {row.organization_id: read_budget(row) for row in tx.connection.execute(query)}
    return found


def update_budget(tx: TenantTx, budget: Budget) -> None:
    """Store another name, mode, amount, thresholds or end of a budget."""
    own = budgets.update().where(budgets.c.organization_id == tx.organization_id, budgets.c.id == budget.id)
    tx.connection.execute(own.values(archived_at=budget.archived_at, **_terms(budget)))


def _columns(budget: Budget) -> dict[str, Any]:
    return {
        "id": budget.id,
        "organization_id": budget.organization_id,
        "level": budget.level,
        "subject_id": budget.subject_id,
        "created_at": budget.created_at,
        "counts_from": budget.counts_from,
        "window_type": budget.window,
        "currency": budget.currency,
        "is_operators": budget.is_operators,
        "model": budget.model or None,
        "tag": budget.tag or None,
        "fallback_model": budget.fallback_model or None,
        "plan_id": budget.plan_id,
        "end_user": budget.end_user or None,
        "throttle_requests_per_minute": budget.throttle_requests_per_minute or None,
        "is_prepaid": budget.is_prepaid or None,
        "place_project_id": budget.place_project_id or None,
        "archived_at": budget.archived_at,
        **_terms(budget),
    }


def _terms(budget: Budget) -> dict[str, Any]:
    return {
        "name": budget.name,
        "mode": budget.mode,
        "amount_pico": budget.amount_pico,
        "thresholds": json.dumps(budget.thresholds),
    }


def find_budget(tx: TenantTx, budget_id: str) -> Budget | None:
    """Return a budget of the organization, archived or not."""
    query = sa.select(budgets).where(budgets.c.organization_id == tx.organization_id, budgets.c.id == budget_id, IS_BUDGET)
    row = tx.connection.execute(query).one_or_none()
    return None if row is None else read_budget(row)


def list_budgets(tx: TenantTx, window: PageWindow, *, include_archived: bool) -> Page[Budget]:
    """Return budgets of the organization."""
    query = sa.select(budgets).where(budgets.c.organization_id == tx.organization_id, IS_BUDGET)
    if not include_archived:
        query = query.where(budgets.c.archived_at.is_(None))
    return fetch_page(tx, query, budgets.c.id, window, read_budget)


def list_of_subjects(tx: TenantTx, subject_ids: Sequence[str]) -> list[Budget]:
    """Return the budgets of these keys, projects or organizations that are not archived, by id."""
    query = sa.select(budgets).where(
        budgets.c.organization_id == tx.organization_id,
        budgets.c.archived_at.is_(None),
        budgets.c.subject_id.in_(subject_ids),
        IS_BUDGET,
    )
    return [read_budget(row) for row in tx.connection.execute(query.order_by(budgets.c.id))]


def list_named(tx: TenantTx, subject_id: str, name: str) -> list[Budget]:
    """Return the budgets of a key, project or organization that have a name and are not archived, by id."""
    return [each for each in list_of_subjects(tx, [subject_id]) if each.name == name]


def list_restricted(tx: PlatformTx, name: str) -> list[str]:
    """Return the organizations that have a budget of operators with a name that is not archived, by id."""
    query = sa.select(budgets.c.organization_id).where(budgets.c.name == name, budgets.c.is_operators, budgets.c.archived_at.is_(None))
    return sorted(set(tx.connection.execute(query.where(IS_BUDGET)).scalars()))


def list_active(tx: PlatformTx, organization_ids: Sequence[str]) -> list[Budget]:
    """Return the budgets of these organizations that are not archived, by id."""
    own = any_of(tx, budgets.c.organization_id, organization_ids)
    query = sa.select(budgets).where(own, budgets.c.archived_at.is_(None), IS_BUDGET)
    return [read_budget(row) for row in tx.connection.execute(query.order_by(budgets.c.id))]


def find_active(tx: PlatformTx, budget_ids: Sequence[str]) -> dict[str, Budget]:
    """Return those of these budgets that bind requests, by id, whichever organization has them: for an end user of a budget of each, or a
    place of a prepaid one, that budget under its id."""
    of_each = {id: find_budget_of_each(id) or id for id in budget_ids}
    query = sa.select(budgets).where(budgets.c.id.in_(sorted(set(of_each.values()))), BINDS)
    found = {row.id: read_budget(row) for row in tx.connection.execute(query)}
    shown = {id: found[parent_id] for id, parent_id in of_each.items() if parent_id in found}
    return {id: _of_end_user(each, id) for id, each in shown.items() if each.is_prepaid or each.is_of_each is (id != each.id)}


def _of_end_user(budget: Budget, id: str) -> Budget:
    return budget if budget.id == id else msgspec.structs.replace(budget, id=id)


def count_end_users(tx: PlatformTx, budget_id: str) -> int:
    """Return how many end users a budget of each counts."""
    query = sa.select(sa.func.count()).select_from(budgets).where(budgets.c.parent_id == budget_id)
    return tx.connection.execute(query).scalar_one()


def has_end_user(tx: PlatformTx, id: str) -> bool:
    """Return whether an end user of a budget of each, by `name_end_user_budget`, is counted already."""
    return tx.connection.execute(sa.select(budgets.c.id).where(budgets.c.id == id)).one_or_none() is not None


def put_end_user(tx: PlatformTx, budget: Budget) -> None:
    """Store that an end user is counted by a budget of each, or a place by a prepaid one (`find_active`), so that its windows can refer to
    it. Repeating it changes nothing."""
    parent_id = find_budget_of_each(budget.id)
    insert = tx.insert(budgets).values(**_columns(budget), parent_id=parent_id)
    tx.connection.execute(insert.on_conflict_do_nothing())


def find_spent_of_each(tx: Transaction, budget_id: str, start_at: int) -> int:
    """Return what all end users of a budget of each, or all places of a prepaid one, have spent in a window together."""
    own = sa.select(budgets.c.id).where(budgets.c.parent_id == budget_id)
    query = sa.select(budget_windows.c.spent_pico).where(budget_windows.c.budget_id.in_(own), budget_windows.c.start_at == start_at)
    return sum(tx.connection.execute(query).scalars())


def list_outstanding(tx: Transaction, budget_id: str, start_at: int) -> dict[CreditPlace, int]:
    """Return what leases of a prepaid budget and its parts still allow in a window, by place."""
    lease = budget_leases.c
    own = sa.select(budgets.c.place_project_id, budgets.c.model, lease.granted_pico, lease.drawn_pico).select_from(
        _join_epochs(budget_leases.join(budgets, budgets.c.id == lease.budget_id))
    )
    query = own.where(
        sa.or_(budgets.c.id == budget_id, budgets.c.parent_id == budget_id),
        lease.start_at == start_at,
        lease.granted_pico != lease.drawn_pico,  # most of those that there have been are used up or were returned
        *_IS_OPEN,
    )
    found: dict[CreditPlace, int] = {}
    for project_id, model, granted_pico, drawn_pico in tx.connection.execute(query).all():
        if granted_pico > drawn_pico:
            place = CreditPlace(project_id, model) if project_id else EVERYWHERE
            found[place] = found.get(place, 0) + granted_pico - drawn_pico
    return found


def find_time_zones(tx: PlatformTx, organization_ids: Sequence[str]) -> dict[str, str]:
    """Return the time zones of organizations."""
    query = sa.select(organizations.c.id, organizations.c.time_zone).where(organizations.c.id.in_(organization_ids))
    return {row.id: row.time_zone for row in tx.connection.execute(query)}


def read_budget(row: Any) -> Budget:
    """Return the budget of a row."""
    return Budget(
        id=row.id,
        organization_id=row.organization_id,
        level=BudgetLevel(row.level),
        subject_id=row.subject_id,
        name=row.name,
        mode=BudgetMode(row.mode),
        window=BudgetWindow(row.window_type),
        amount_pico=row.amount_pico,
        currency=row.currency,
        thresholds=tuple(json.loads(row.thresholds)),
        is_operators=row.is_operators,
        created_at=row.created_at,
        counts_from=row.counts_from,
        archived_at=row.archived_at,
        model=row.model or "",
        tag=row.tag or "",
        fallback_model=row.fallback_model or "",
        plan_id=row.plan_id,
        end_user=row.end_user or "",
        throttle_requests_per_minute=row.throttle_requests_per_minute or 0,
        is_prepaid=row.is_prepaid or False,
        place_project_id=row.place_project_id or "",
    )


def insert_raise(tx: TenantTx, more: BudgetRaise) -> None:
    """Store a raise of a budget of the organization."""
    tx.connection.execute(
        budget_raises.insert().values(
            id=more.id,
            organization_id=tx.organization_id,
            budget_id=more.budget_id,
            amount_pico=more.amount_pico,
            starts_at=more.starts_at,
            ends_at=more.ends_at,
            created_at=more.created_at,
        )
    )


def list_raises(tx: Transaction, budget_ids: Sequence[str], *, ends_after: int) -> dict[str, list[BudgetRaise]]:
    """Return the raises of budgets that end after an instant, by budget, in the order of their ends."""
    found: dict[str, list[BudgetRaise]] = {}
    query = sa.select(budget_raises).where(budget_raises.c.budget_id.in_(budget_ids), budget_raises.c.ends_at > ends_after)
    for row in tx.connection.execute(query.order_by(budget_raises.c.ends_at, budget_raises.c.id)):
        more = BudgetRaise(
            id=row.id,
            budget_id=row.budget_id,
            amount_pico=row.amount_pico,
            starts_at=row.starts_at,
            ends_at=row.ends_at,
            created_at=row.created_at,
        )
        found.setdefault(row.budget_id, []).append(more)
    return found


# ---- Windows ------------------------------------------------------------------------------------------------------------


def list_windows(tx: Transaction, budget_ids: Sequence[str], *, from_at: int) -> dict[str, list[Bounds]]:
    """Return the windows of budgets that end after an instant, by budget and in order."""
    found: dict[str, list[Bounds]] = {}
    columns = budget_windows.c
    query = sa.select(columns.budget_id, columns.start_at, columns.end_at).where(
        columns.budget_id.in_(budget_ids), columns.end_at > from_at
    )
    for row in tx.connection.execute(query.order_by(columns.budget_id, columns.start_at)):
        found.setdefault(row.budget_id, []).append(Bounds(row.start_at, row.end_at))
    return found


def lock_window(tx: PlatformTx, budget_id: str, window: Bounds) -> int:
    """Return what was spent in a window, created if it is new, under a lock that lasts until the transaction ends."""
    new = tx.insert(budget_windows).values(budget_id=budget_id, start_at=window.start_at, end_at=window.end_at, spent_pico=0)
    tx.connection.execute(new.on_conflict_do_nothing())
    own = _of_window(budget_windows, budget_id, window.start_at)
    spent_pico: int = tx.connection.execute(sa.select(budget_windows.c.spent_pico).where(own).with_for_update()).scalar_one()
    return spent_pico


def put_spent(tx: PlatformTx, budget_id: str, start_at: int, spent_pico: int) -> None:
    """Store what was spent in a locked window."""
    tx.connection.execute(budget_windows.update().where(_of_window(budget_windows, budget_id, start_at)).values(spent_pico=spent_pico))


def find_spent(tx: Transaction, budget_id: str, start_at: int) -> int:
    """Return what was spent in a window; 0 if there is none."""
    query = sa.select(budget_windows.c.spent_pico).where(_of_window(budget_windows, budget_id, start_at))
    return tx.connection.execute(query).scalar_one_or_none() or 0


# ---- Leases -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The lease of one gateway run. `is_open`: its epoch is neither closed nor declared lost, so it may still be spent."""

    node_id: str
    epoch: int
    granted_pico: int
    drawn_pico: int
    sequence: int
    is_open: bool

    @property
    def outstanding_pico(self) -> int:
        """Return what may still be spent of it."""
        return max(self.granted_pico - self.drawn_pico, 0) if self.is_open else 0


def list_leases(tx: Transaction, budget_id: str, start_at: int) -> list[LeaseRow]:
    """Return the leases of a window that may count, by node and epoch: those of open epochs."""
    query = (
        sa.select(budget_leases).select_from(_join_epochs(budget_leases)).where(_of_window(budget_leases, budget_id, start_at), *_IS_OPEN)
    )
    ordered = query.order_by(budget_leases.c.node_id, budget_leases.c.epoch)
    return [_lease(row, is_open=True) for row in tx.connection.execute(ordered)]


def _join_epochs(leases: sa.FromClause) -> sa.FromClause:
    """Return leases with the epochs that they are of, of which _IS_OPEN asks."""
    lease, epoch, lost = budget_leases.c, epochs.c, lost_declarations.c
    return leases.outerjoin(epochs, sa.and_(epoch.node_id == lease.node_id, epoch.epoch == lease.epoch)).outerjoin(
        lost_declarations, sa.and_(lost.node_id == lease.node_id, lost.epoch == lease.epoch)
    )


def find_lease(tx: PlatformTx, budget_id: str, start_at: int, node_id: str, epoch: int) -> LeaseRow | None:
    """Return the lease of a gateway run, whatever its state."""
    own = _of_run(budget_id, start_at, node_id, epoch)
    row = tx.connection.execute(sa.select(budget_leases).where(own)).one_or_none()
    return None if row is None else _lease(row, is_open=False)


def put_lease(tx: PlatformTx, budget_id: str, start_at: int, lease: LeaseRow, now: int) -> None:
    """Store the lease of a run in a locked window."""
    values = {
        "granted_pico": lease.granted_pico,
        "drawn_pico": lease.drawn_pico,
        "sequence": lease.sequence,
        "renewed_at": now,
    }
    key = {"budget_id": budget_id, "start_at": start_at, "node_id": lease.node_id, "epoch": lease.epoch}
    insert = tx.insert(budget_leases).values(**key, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=values))


def _lease(row: Any, *, is_open: bool) -> LeaseRow:
    return LeaseRow(row.node_id, row.epoch, row.granted_pico, row.drawn_pico, row.sequence, is_open)


# ---- Alerts -------------------------------------------------------------------------------------------------------------


def insert_alerts(tx: Transaction, alerts: Sequence[BudgetAlert]) -> None:
    """Store that thresholds were reached; those that were reached before in their windows, of the same limit, are left out. Of each budget
    the latest ALERTS_KEPT_MAX are kept."""
    rows = [
        {
            "budget_id": each.budget_id,
            "start_at": each.window_start_at,
            "threshold": each.threshold,
            "spent_pico": each.spent_pico,
            "limit_pico": each.limit_pico,
            "crossed_at": each.crossed_at,
        }
        for each in alerts
    ]
    if rows:
        stored = tx.connection.execute(tx.insert(budget_alerts).values(rows).on_conflict_do_nothing().returning(budget_alerts)).all()
        for budget_id in sorted({row.budget_id for row in stored}):
            _tell_of_alerts(tx, budget_id, [_alert(row) for row in stored if row.budget_id == budget_id])
            _remove_old_alerts(tx, budget_id)


def _tell_of_alerts(tx: Transaction, budget_id: str, alerts: Sequence[BudgetAlert]) -> None:
    """Store events of alerts of a budget. One of an end user is stored as the budget that it belongs to."""
    row = tx.connection.execute(sa.select(budgets.c.organization_id, budgets.c.parent_id).where(budgets.c.id == budget_id)).one()
    events = []
    for each in alerts:
        said = {
            "id": row.parent_id or budget_id,
            "threshold_percent": each.threshold,
            "window_start_at": each.window_start_at // 1_000_000,
        }
        key = f"{budget_id} {each.window_start_at} {each.threshold} {each.limit_pico}"
        events.append(new_event(EventType.BUDGET_THRESHOLD_REACHED, row.organization_id, at=each.crossed_at, data=said, key=key))
    outbox.append(tx, events)


def _remove_old_alerts(tx: Transaction, budget_id: str) -> None:
    alert = budget_alerts.c
    latest = sa.select(alert.crossed_at).where(alert.budget_id == budget_id).order_by(alert.crossed_at.desc())
    last_to_go = latest.offset(ALERTS_KEPT_MAX).limit(1).scalar_subquery()
    tx.connection.execute(budget_alerts.delete().where(alert.budget_id == budget_id, alert.crossed_at <= last_to_go))


def list_alerts(tx: TenantTx, budget_id: str) -> list[BudgetAlert]:
    """Return the alerts of a budget of the organization, and of its end users, the latest first; at most ALERTS_KEPT_MAX."""
    columns = budget_alerts.c
    query = (
        sa.select(budget_alerts)
        .join(budgets, budgets.c.id == columns.budget_id)
        .where(budgets.c.organization_id == tx.organization_id, sa.or_(budgets.c.id == budget_id, budgets.c.parent_id == budget_id))
        .order_by(columns.crossed_at.desc(), columns.threshold.desc())
        .limit(ALERTS_KEPT_MAX)
    )
    return [_alert(row) for row in tx.connection.execute(query)]


def _alert(row: Any) -> BudgetAlert:
    return BudgetAlert(
        budget_id=row.budget_id,
        window_start_at=row.start_at,
        threshold=row.threshold,
        spent_pico=row.spent_pico,
        limit_pico=row.limit_pico,
        crossed_at=row.crossed_at,
    )


def _of_window(table: sa.Table, budget_id: str, start_at: int) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.budget_id == budget_id, table.c.start_at == start_at)


def _of_run(budget_id: str, start_at: int, node_id: str, epoch: int) -> sa.ColumnElement[bool]:
    columns = budget_leases.c
    return sa.and_(_of_window(budget_leases, budget_id, start_at), columns.node_id == node_id, columns.epoch == epoch)


# ---- For verification ---------------------------------------------------------------------------------------------------


class WindowKey(NamedTuple):
    """A window of a budget, by its start."""

    budget_id: str
    start_at: int


class LeaseKey(NamedTuple):
    """The lease of a gateway run for a window."""

    window: WindowKey
    node_id: str
    epoch: int


class WindowRow(NamedTuple):
    """A window, and what was spent in it."""

    bounds: Bounds
    spent_pico: int


def list_all(tx: PlatformTx) -> list[Budget]:
    """Return the budgets of all organizations, archived or not, by id."""
    return [read_budget(row) for row in tx.connection.execute(sa.select(budgets).where(IS_BUDGET).order_by(budgets.c.id))]


def iterate_end_users(tx: PlatformTx) -> Iterator[tuple[str, str]]:
    """Yield the rows that stand for end users of budgets of each, or places of prepaid ones: their id, and the id of the budget."""
    query = sa.select(budgets.c.id, budgets.c.parent_id).where(budgets.c.parent_id.is_not(None))
    for row in tx.connection.execute(query.execution_options(yield_per=ROWS_FETCHED)):
        yield row.id, row.parent_id


def find_currencies(tx: PlatformTx) -> dict[str, str]:
    """Return the currencies of all organizations that have budgets."""
    query = sa.select(organizations.c.id, organizations.c.currency).where(organizations.c.id.in_(sa.select(budgets.c.organization_id)))
    return {row.id: row.currency for row in tx.connection.execute(query)}


def list_window_rows(tx: PlatformTx) -> dict[str, list[WindowRow]]:
    """Return the windows of all budgets, by budget, in order."""
    found: dict[str, list[WindowRow]] = {}
    for row in tx.connection.execute(sa.select(budget_windows).order_by(budget_windows.c.budget_id, budget_windows.c.start_at)):
        found.setdefault(row.budget_id, []).append(WindowRow(Bounds(row.start_at, row.end_at), row.spent_pico))
    return found


def iterate_drawn(tx: PlatformTx) -> Iterator[tuple[LeaseKey, int]]:
    """Yield what was drawn of each lease, whether or not its epoch is open."""
    for row in tx.connection.execute(sa.select(budget_leases).execution_options(yield_per=ROWS_FETCHED)):
        yield LeaseKey(WindowKey(row.budget_id, row.start_at), row.node_id, row.epoch), row.drawn_pico


def iterate_alerts(tx: PlatformTx) -> Iterator[BudgetAlert]:
    """Yield the alerts of all budgets."""
    for row in tx.connection.execute(sa.select(budget_alerts).execution_options(yield_per=ROWS_FETCHED)):
        yield _alert(row)
