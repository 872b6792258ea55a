"""Spend limits and spend alerts, as OpenAI's admin API has them: budgets of a calendar month with a name of their own.

The spend limit of an organization or a project is its one hard budget named `SPEND_LIMIT`; its spend alerts are its budgets of mode `alert`
named `SPEND_ALERT`, which are reached at their amount. `domain.budgets.find_terms_problem` keeps them to terms that those shapes can say.
"""

from dataclasses import dataclass

from tollway.control import publish
from tollway.control.money import budgets
from tollway.domain.budgets import SPEND_ALERT, SPEND_LIMIT, Budget, BudgetMode, BudgetWindow
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.pages import Page
from tollway.domain.quotas import QuotaSizes
from tollway.storage import budgets as storage
from tollway.storage.database import TenantTx


@dataclass(frozen=True, slots=True)
class SpendAmount:
    """An amount as a caller states it: `pico`, in `currency`, which must be the organization's."""

    pico: int
    currency: str


@dataclass(frozen=True, slots=True)
class AlertWindow:
    """A part of the spend alerts: at most `limit` that follow the id `after`, or of those before the id `before` the nearest ones; oldest
    first unless `descending`."""

    after: str | None
    before: str | None
    limit: int
    descending: bool


# ---- The spend limit ----------------------------------------------------------------------------------------------------


def get_spend_limit(tx: TenantTx, project_id: str | None) -> Budget:
    """Return the spend limit of a project, or of the organization (None). Raises RESOURCE_UNKNOWN if there is none."""
    found = _find_spend_limit(tx, project_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def put_spend_limit(
    tx: TenantTx, project_id: str | None, amount: SpendAmount, *, id: str, by_operator: bool, sizes: QuotaSizes, now: int
) -> Budget:
    """Change the spend limit of a project, or of the organization (None); create it with `id` if there is none.

    What was spent this month stays spent. `sizes`: of the quotas. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, STATE_CONFLICT,
    SCOPE_INSUFFICIENT, QUOTA_EXCEEDED.
    """
    publish.lock(tx)
    before = _find_spend_limit(tx, project_id)
    if before is None:
        return _create(tx, project_id, SPEND_LIMIT, BudgetMode.HARD, amount, id=id, by_operator=by_operator, sizes=sizes, now=now)
    return _change_amount(tx, before, amount, by_operator=by_operator, now=now)


def delete_spend_limit(tx: TenantTx, project_id: str | None, *, by_operator: bool, now: int) -> None:
    """End the spend limit of a project, or of the organization (None). Raises RESOURCE_UNKNOWN, SCOPE_INSUFFICIENT."""
    publish.lock(tx)
    budgets.archive_budget(tx, get_spend_limit(tx, project_id).id, by_operator=by_operator, now=now)


def _find_spend_limit(tx: TenantTx, project_id: str | None) -> Budget | None:
    found = storage.list_named(tx, budgets.find_subject(tx, project_id).id, SPEND_LIMIT)
    return found[0] if found else None


# ---- Spend alerts -------------------------------------------------------------------------------------------------------


def list_spend_alerts(tx: TenantTx, project_id: str | None, window: AlertWindow) -> Page[Budget]:
    """Return spend alerts of a project, or of the organization (None). There are so few of one subject that all are read."""
    found = storage.list_named(tx, budgets.find_subject(tx, project_id).id, SPEND_ALERT)
    if window.after is not None:
        found = [each for each in found if (each.id < window.after if window.descending else each.id > window.after)]
    if window.before is not None:
        found = [each for each in found if (each.id > window.before if window.descending else each.id < window.before)]
    if window.descending:
        found.reverse()
    shown = found[-window.limit :] if window.after is None and window.before is not None else found[: window.limit]
    return Page(shown, len(found) > window.limit)


def get_spend_alert(tx: TenantTx, project_id: str | None, alert_id: str) -> Budget:
    """Return a spend alert of a project, or of the organization (None). Raises RESOURCE_UNKNOWN for any other id."""
    for each in storage.list_named(tx, budgets.find_subject(tx, project_id).id, SPEND_ALERT):
        if each.id == alert_id:
            return each
    raise Fault(RESOURCE_UNKNOWN)


def create_spend_alert(
    tx: TenantTx, project_id: str | None, amount: SpendAmount, *, id: str, by_operator: bool, sizes: QuotaSizes, now: int
) -> Budget:
    """Create a spend alert of a project, or of the organization (None). `sizes`: of the quotas. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID,
    STATE_CONFLICT, QUOTA_EXCEEDED."""
    return _create(tx, project_id, SPEND_ALERT, BudgetMode.ALERT, amount, id=id, by_operator=by_operator, sizes=sizes, now=now)


def update_spend_alert(tx: TenantTx, project_id: str | None, alert_id: str, amount: SpendAmount, *, by_operator: bool, now: int) -> Budget:
    """Change the amount of a spend alert; if that much is spent already, it is reached at once.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, SCOPE_INSUFFICIENT.
    """
    publish.lock(tx)
    return _change_amount(tx, get_spend_alert(tx, project_id, alert_id), amount, by_operator=by_operator, now=now)


def delete_spend_alert(tx: TenantTx, project_id: str | None, alert_id: str, *, by_operator: bool, now: int) -> None:
    """End a spend alert. Raises RESOURCE_UNKNOWN, SCOPE_INSUFFICIENT."""
    publish.lock(tx)
    budgets.archive_budget(tx, get_spend_alert(tx, project_id, alert_id).id, by_operator=by_operator, now=now)


def _create(
    tx: TenantTx,
    project_id: str | None,
    name: str,
    mode: BudgetMode,
    amount: SpendAmount,
    *,
    id: str,
    by_operator: bool,
    sizes: QuotaSizes,
    now: int,
) -> Budget:
    return budgets.create_budget(
        tx,
        id=id,
        project_id=project_id,
        key_id=None,
        name=name,
        mode=mode,
        window=BudgetWindow.MONTH,
        amount_pico=amount.pico,
        currency=amount.currency,
        thresholds=[100] if mode is BudgetMode.ALERT else [],
        is_operators=by_operator,
        sizes=sizes,
        now=now,
    )


def _change_amount(tx: TenantTx, budget: Budget, amount: SpendAmount, *, by_operator: bool, now: int) -> Budget:
    budgets.get_currency(tx, amount.currency)
    return budgets.update_budget(
        tx, budget.id, name=None, mode=None, amount_pico=amount.pico, thresholds=None, by_operator=by_operator, now=now
    )
