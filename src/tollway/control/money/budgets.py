"""Budgets: how tenants and operators manage them, how gateways are granted parts of them, and how rated events are charged to them.

Theory of operation. A budget's window has one row. Its lock orders the grants of leases (`renew_leases`) and the charges of the collector
(`charge`), so each grant sees all that was spent and granted before. What must hold is that the spent amount and what open leases still
allow are together at most the limit:

- A grant adds at most what is free (`domain.budgets.extend_lease`).
- A charge moves the cost of events from the lease of their gateway run to the spent amount, in the transaction that stores the events.
- A lease counts until its epoch is closed or declared lost. Nothing has to be done then: `storage.budgets.list_leases` leaves it out.

The limit of a prepaid budget is what it has spent and what the organization's credit still allows. The collector draws on that credit in
the transaction that charges the budget, so its limit and what it has spent grow together. Where grants with a scope can be used, requests
of each place (project and model) are counted by a part of the budget of their own, with leases of its own: what may be leased at one place
depends on the leases at all (`domain.credits.find_leasable`), so the lock of the budget's own window comes before those of its parts.

A budget of mode `alert` is charged in the same way, but it is not published to gateways and nothing of it is leased.

A gateway states its lease's total with each request. Control takes it over, because no later answer than the last can have changed it: a
request whose number is not above the last one's changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from tollway.control import publish
from tollway.control.bounds import limits, quotas
from tollway.control.money import credits
from tollway.control.money.credits import GrantStanding, OpenCredit, WantedGrant
from tollway.domain import ids
from tollway.domain.budgets import (
    END_USERS_MAX,
    PLAN_BUDGET,
    PREPAID_BUDGET,
    SPEND_LIMIT,
    SUBJECT_BUDGETS_MAX,
    Budget,
    BudgetAlert,
    BudgetLevel,
    BudgetMode,
    BudgetRaise,
    BudgetStanding,
    BudgetWindow,
    LeaseGrant,
    LeaseRequest,
    Limit,
    check_amount,
    cut_window,
    extend_lease,
    find_budget_of_each,
    find_limit,
    find_problem,
    find_reached,
    name_end_user_budget,
)
from tollway.domain.credits import CreditGrant, CreditPlace, find_leasable
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, SCOPE_INSUFFICIENT, STATE_CONFLICT, Fault
from tollway.domain.limits import LimitSubject
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import INSTANT_MAX, Bounds
from tollway.domain.plans import Plan
from tollway.domain.quotas import Quota, QuotaSizes
from tollway.domain.snapshot import BudgetEntry
from tollway.storage import budgets as storage
from tollway.storage import epochs as stored_epochs
from tollway.storage import tenants as stored_tenants
from tollway.storage.budgets import LeaseRow
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.usage_events import EventRow

MINUTE_US = 60_000_000

ALWAYS = Bounds(0, INSTANT_MAX)
"""The one window of a prepaid budget."""

WINDOW_US_MAX = 40 * 86_400_000_000
"""No window that ends, ends later than this before another one that follows it after a change of the time zone."""

RAISE_US_MAX = 366 * 86_400_000_000
"""Longest raise; what lasts longer is another amount."""

# ---- Management ---------------------------------------------------------------------------------------------------------


def create_budget(
    tx: TenantTx,
    *,
    id: str,
    project_id: str | None,
    key_id: str | None,
    name: str,
    mode: BudgetMode,
    window: BudgetWindow,
    amount_pico: int,
    currency: str | None,
    thresholds: Sequence[int],
    is_operators: bool,
    sizes: QuotaSizes,
    now: int,
    model: str = "",
    tag: str = "",
    fallback_model: str = "",
    end_user: str = "",
    throttle_requests_per_minute: int = 0,
) -> Budget:
    """Create a budget of a key of a project, of a project, or of the organization (neither is named).

    It counts requests that are admitted from the beginning of this minute on. `model`: a model or a group of models whose requests alone
    are counted; empty for all. `tag`: one that requests carry that alone are counted; empty for all.
    `fallback_model`: that serves requests which the budget would refuse; empty for none. `end_user`, `throttle_requests_per_minute`: as
    `domain.budgets.Budget` has them. `sizes`: of the quotas. Raises
    RESOURCE_UNKNOWN, MODEL_UNKNOWN, PARAMETER_INVALID, STATE_CONFLICT, QUOTA_EXCEEDED.
    """
    publish.lock(tx)
    subject = find_subject(tx, project_id, key_id)
    limits.check_scopes(tx, {model}, "model")
    limits.check_scopes(tx, {fallback_model}, "fallback_model")
    billed_in = get_currency(tx, currency)
    quotas.require_creation(tx, sizes, Quota.BUDGETS, now)
    budget = Budget(
        id=id,
        organization_id=tx.organization_id,
        level=BudgetLevel(subject.level),
        subject_id=subject.id,
        name=name,
        mode=mode,
        window=window,
        amount_pico=amount_pico,
        currency=billed_in,
        thresholds=tuple(thresholds),
        is_operators=is_operators,
        created_at=now,
        counts_from=now // MINUTE_US * MINUTE_US,
        model=model,
        tag=tag,
        fallback_model=fallback_model,
        end_user=end_user,
        throttle_requests_per_minute=throttle_requests_per_minute,
    )
    _check_terms(tx, budget)
    there = storage.list_of_subjects(tx, [subject.id])
    alike = [each for each in there if each.binds == budget.binds and each.plan_id is None and not each.is_prepaid]
    if len(alike) >= SUBJECT_BUDGETS_MAX:
        kind = "budgets that bind" if budget.binds else "budgets that only alert"
        raise Fault(STATE_CONFLICT, message=f"A {subject.level.replace('_', ' ')} may have {SUBJECT_BUDGETS_MAX} {kind} at a time.")
    storage.insert_budget(tx, budget)
    _publish(tx, budget, now)
    return budget


def get_currency(tx: TenantTx, stated: str | None = None) -> str:
    """Return the currency in which the organization is billed. Raises PARAMETER_INVALID if another one is stated, RESOURCE_UNKNOWN."""
    organization = stored_tenants.find_organization(tx)
    if organization is None:
        raise Fault(RESOURCE_UNKNOWN)
    if stated is not None and stated != organization.currency:
        raise Fault(PARAMETER_INVALID, param="currency", message=f"The organization is billed in {organization.currency}, not {stated}.")
    return organization.currency


def find_subject(tx: TenantTx, project_id: str | None, key_id: str | None = None) -> LimitSubject:
    """Return the key of a project, the project, or the organization (neither is named) whose spending a budget bounds.

    Raises RESOURCE_UNKNOWN for what does not exist or cannot act, PARAMETER_INVALID for a key without its project.
    """
    if project_id is None:
        if key_id is not None:
            raise Fault(PARAMETER_INVALID, param="project_id", message="Name the project of the key.")
        subject = limits.organization(tx)
    else:
        subject = limits.project(project_id) if key_id is None else limits.api_key(project_id, key_id)
    limits.get_limits(tx, subject)
    return subject


def update_budget(
    tx: TenantTx,
    budget_id: str,
    *,
    name: str | None,
    mode: BudgetMode | None,
    amount_pico: int | None,
    thresholds: Sequence[int] | None,
    by_operator: bool,
    now: int,
) -> Budget:
    """Change what is not None. Thresholds that spending has reached by the new terms are alerted at once.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, STATE_CONFLICT, SCOPE_INSUFFICIENT.
    """
    publish.lock(tx)
    before = _get_changeable(tx, budget_id, by_operator)
    _refuse_budget_of_plan(before)
    budget = msgspec.structs.replace(
        before,
        name=before.name if name is None else name,
        mode=before.mode if mode is None else mode,
        amount_pico=before.amount_pico if amount_pico is None else amount_pico,
        thresholds=before.thresholds if thresholds is None else tuple(thresholds),
    )
    if budget.binds is not before.binds:
        message = "A budget cannot begin or cease to be of mode 'alert': create another one, and archive this one."
        raise Fault(PARAMETER_INVALID, param="mode", message=message)
    _check_terms(tx, budget)
    storage.update_budget(tx, budget)
    (standing,) = describe(tx, [budget], now)
    storage.insert_alerts(tx, _find_alerts(budget, standing.window, standing.limit.pico, standing.spent_pico, now))
    _publish(tx, budget, now)
    return budget


def archive_budget(tx: TenantTx, budget_id: str, *, by_operator: bool, now: int) -> None:
    """End a budget: it binds no request any more. Raises as `update_budget`."""
    publish.lock(tx)
    budget = _get_changeable(tx, budget_id, by_operator)
    _refuse_budget_of_plan(budget)
    storage.update_budget(tx, msgspec.structs.replace(budget, archived_at=now))
    _publish(tx, budget, now)


def _publish(tx: TenantTx, budget: Budget, now: int) -> None:
    """Tell gateways what has become of a budget, unless it never concerned them."""
    if budget.concerns_gateways:
        publish.publish(tx, BudgetEntry, [budget.id], now)


def raise_budget(
    tx: TenantTx,
    budget_id: str,
    *,
    id: str,
    amount_pico: int,
    starts_at: int | None,
    ends_at: int,
    by_operator: bool,
    sizes: QuotaSizes,
    now: int,
) -> BudgetRaise:
    """Raise a budget from `starts_at` (None: now) until `ends_at`. `sizes`: of the quotas. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID,
    SCOPE_INSUFFICIENT, QUOTA_EXCEEDED."""
    problem = check_amount(amount_pico)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param="amount", message=f"'amount' is out of range: {problem}.")
    begins_at = now if starts_at is None else starts_at
    if ends_at <= max(begins_at, now) or ends_at - begins_at > RAISE_US_MAX:
        raise Fault(PARAMETER_INVALID, param="ends_at", message="A raise ends after it begins, in the future, and within a year.")
    publish.lock(tx)
    budget = _get_changeable(tx, budget_id, by_operator)
    if budget.is_prepaid:
        _refuse_budget_of_plan(budget)
    quotas.require_creation(tx, sizes, Quota.BUDGET_RAISES, now)
    more = BudgetRaise(id=id, budget_id=budget_id, amount_pico=amount_pico, starts_at=begins_at, ends_at=ends_at, created_at=now)
    storage.insert_raise(tx, more)
    _publish(tx, budget, now)
    return more


def get_budget(tx: TenantTx, budget_id: str) -> Budget:
    """Return a budget, archived or not. Raises RESOURCE_UNKNOWN."""
    budget = storage.find_budget(tx, budget_id) if ids.is_id(ids.BUDGET, budget_id) else None
    if budget is None:
        raise Fault(RESOURCE_UNKNOWN)
    return budget


def _get_changeable(tx: TenantTx, budget_id: str, by_operator: bool) -> Budget:
    budget = get_budget(tx, budget_id)
    if budget.archived_at is not None:
        raise Fault(RESOURCE_UNKNOWN)
    if budget.is_operators and not by_operator:
        raise Fault(SCOPE_INSUFFICIENT, message="Only the platform's operator may change this budget.")
    return budget


def _refuse_budget_of_plan(budget: Budget) -> None:
    if budget.is_prepaid:
        raise Fault(STATE_CONFLICT, message="The limit of this budget is the organization's credit: grant some, or end prepayment.")
    if budget.plan_id is not None:
        raise Fault(STATE_CONFLICT, message="The organization has this budget by its plan: change the plan, or raise the budget.")


def _check_terms(tx: TenantTx, budget: Budget) -> None:
    """Raise PARAMETER_INVALID for terms that no budget can have, STATE_CONFLICT for a second spend limit of the same subject."""
    problem = find_problem(budget)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=f"'{problem.field}' cannot be used: {problem.reason}.")
    if budget.name == SPEND_LIMIT:
        alike = storage.list_named(tx, budget.subject_id, SPEND_LIMIT)
        if any(each.id != budget.id for each in alike):
            raise Fault(STATE_CONFLICT, message=f"There is a budget named '{SPEND_LIMIT}' already: change that one.")


# ---- Budgets of plans ---------------------------------------------------------------------------------------------------


def follow_plan(tx: Transaction, organizations: Mapping[str, str], plan: Plan | None, *, new_id: Callable[[], str], now: int) -> None:
    """Give organizations the monthly budget of their plan, in place of the one that they had by a plan. What was spent stays spent.

    `organizations`: currencies by id. `plan`: None for no plan. `new_id`: makes ids of budgets. A plan without a budget in a currency ends
    the budgets in it.
    """
    there = storage.find_plan_budgets(tx, organizations)
    changed: list[Budget] = []
    for organization_id, currency in organizations.items():
        before = there.get(organization_id)
        amount_pico = None if plan is None else plan.monthly_budgets.get(currency)
        if plan is None or amount_pico is None:
            if before is not None:
                changed.append(msgspec.structs.replace(before, archived_at=now))
        elif before is None:
            changed.append(_make_plan_budget(organization_id, currency, plan, amount_pico, new_id(), now))
        elif (before.amount_pico, before.plan_id) != (amount_pico, plan.id):
            changed.append(msgspec.structs.replace(before, amount_pico=amount_pico, plan_id=plan.id))
    for budget in changed:
        storage.put_plan_budget(tx, budget)
    publish.publish(tx, BudgetEntry, [each.id for each in changed], now)


def _make_plan_budget(organization_id: str, currency: str, plan: Plan, amount_pico: int, id: str, now: int) -> Budget:
    return Budget(
        id=id,
        organization_id=organization_id,
        level=BudgetLevel.ORGANIZATION,
        subject_id=organization_id,
        name=PLAN_BUDGET,
        mode=BudgetMode.HARD,
        window=BudgetWindow.MONTH,
        amount_pico=amount_pico,
        currency=currency,
        thresholds=(),
        is_operators=True,
        created_at=now,
        counts_from=now // MINUTE_US * MINUTE_US,
        plan_id=plan.id,
    )


# ---- Restriction --------------------------------------------------------------------------------------------------------


def restrict(tx: TenantTx, *, id: str, name: str, now: int) -> Budget:
    """Refuse the requests of the organization that cost anything, by a hard budget of operators that nothing fits in, until it is archived.
    No number of budgets that tenants or operators may have stands against it. Raises RESOURCE_UNKNOWN."""
    publish.lock(tx)
    return _insert_whole(tx, name, get_currency(tx), is_prepaid=False, id=id, now=now)


def _insert_whole(tx: TenantTx, name: str, currency: str, *, is_prepaid: bool, id: str, now: int) -> Budget:
    """Store a hard budget of operators over all of the organization, in which nothing fits. `is_prepaid`: but what its credit pays."""
    budget = Budget(
        id=id,
        organization_id=tx.organization_id,
        level=BudgetLevel.ORGANIZATION,
        subject_id=tx.organization_id,
        name=name,
        mode=BudgetMode.HARD,
        window=BudgetWindow.TOTAL,
        amount_pico=1,
        currency=currency,
        thresholds=(),
        is_operators=True,
        created_at=now,
        counts_from=now // MINUTE_US * MINUTE_US,
        is_prepaid=is_prepaid,
    )
    storage.insert_budget(tx, budget)
    _publish(tx, budget, now)
    return budget


# ---- Prepayment ---------------------------------------------------------------------------------------------------------


def set_prepaid(tx: TenantTx, *, is_prepaid: bool, id: str, now: int) -> Budget | None:
    """Hold the requests of the organization to its credit, or not any more. `id`: of a new budget. Returns the budget that does it.

    Raises RESOURCE_UNKNOWN.
    """
    publish.lock(tx)
    currency = get_currency(tx)
    there = find_prepaid(tx)
    if is_prepaid is (there is not None):
        return there
    if there is not None:
        storage.update_budget(tx, msgspec.structs.replace(there, archived_at=now))
        _publish(tx, there, now)
        return None
    return _insert_whole(tx, PREPAID_BUDGET, currency, is_prepaid=True, id=id, now=now)


def find_prepaid(tx: TenantTx) -> Budget | None:
    """Return the budget that holds the requests of the organization to its credit; None if none does."""
    return next((each for each in storage.list_of_subjects(tx, [tx.organization_id]) if each.is_prepaid), None)


def void_credit(tx: PlatformTx, organization_id: str, grant_id: str, now: int) -> GrantStanding:
    """End a grant, and let gateways ask anew what the organization's credit allows. Raises as `credits.void_grant` does."""
    publish.lock(tx)
    standing = credits.void_grant(tx, organization_id, grant_id, now)
    held = [each.id for each in storage.list_active(tx, [organization_id]) if each.is_prepaid]
    if held:
        publish.publish(tx, BudgetEntry, held, now)
    return standing


def create_credit(tx: PlatformTx, organization_id: str, wanted: WantedGrant, *, id: str, now: int) -> CreditGrant:
    """Grant credit to an organization, and tell gateways for which requests it is, where they are held to it. Raises as
    `credits.create_grant` does."""
    publish.lock(tx)
    grant = credits.create_grant(tx, organization_id, wanted, id=id, now=now)
    held = [each.id for each in storage.list_active(tx, [organization_id]) if each.is_prepaid]
    if held and grant.is_scoped:
        publish.publish(tx, BudgetEntry, held, now)
    return grant


class _Covered(NamedTuple):
    """Leases of a prepaid budget and its parts, as what each place may still use, and the credit that covers them. The lock of the window
    of the whole budget holds both as they are, so one reading serves all requests of a call."""

    leased: dict[CreditPlace, int]
    credit: OpenCredit

    def find_limit(self, budget: Budget, window: Bounds, at: int, spent_pico: int, leased_pico: int) -> Limit:
        """Return the limit of the budget, or of a part of it, where so much is spent and leased: what may still be leased comes on top."""
        self.leased[budget.place] = leased_pico
        usable = find_leasable(self.credit.grants, self.credit.left, self.leased, budget.place, at)
        return Limit(spent_pico + leased_pico + usable.pico, min(window.end_at, usable.until_at))


def _read_covered(tx: PlatformTx, budget: Budget, window: Bounds) -> _Covered:
    leased = storage.list_outstanding(tx, find_budget_of_each(budget.id) or budget.id, window.start_at)
    return _Covered(leased, credits.read_open_credit(tx, budget.organization_id))


# ---- How budgets stand --------------------------------------------------------------------------------------------------


def list_standings(tx: TenantTx, window: PageWindow, *, include_archived: bool, now: int) -> Page[BudgetStanding]:
    """Return how the budgets of the organization stand now."""
    page = storage.list_budgets(tx, window, include_archived=include_archived)
    return Page(describe(tx, page.items, now), page.has_more)


class EndUser(NamedTuple):
    """An end user, as requests name it, and the key by which budgets of each end user count it."""

    name: str
    key: bytes


def list_binding(
    tx: TenantTx, project_id: str | None, key_id: str | None, now: int, end_user: EndUser | None = None
) -> list[BudgetStanding]:
    """Return how the budgets stand that bind a key, a project or the whole organization, innermost level first; with those of an end user,
    if one is named."""
    subjects = [each for each in (key_id, project_id, tx.organization_id) if each is not None]
    found = [each for each in storage.list_of_subjects(tx, subjects) if each.binds]
    if end_user is not None:
        found = _bind_end_user(found, end_user)
    return describe(tx, sorted(found, key=lambda each: (subjects.index(each.subject_id), each.id)), now)


def _bind_end_user(found: Sequence[Budget], end_user: EndUser) -> list[Budget]:
    """Return those of these budgets that bind an end user, as gateways find them (`gateway.request.Call.count_in`)."""
    named = {each.subject_id for each in found if each.end_user == end_user.name}
    bound = []
    for each in found:
        if each.is_of_each:
            if each.subject_id not in named:
                bound.append(msgspec.structs.replace(each, id=name_end_user_budget(each.id, end_user.name, end_user.key)))
        elif each.end_user in ("", end_user.name):
            bound.append(each)
    return bound


def describe(tx: TenantTx, budgets: Sequence[Budget], now: int) -> list[BudgetStanding]:
    """Return how budgets of the organization stand at instant `now`. Of a budget of each end user `spent_pico` is what all have spent
    together; what gateways lease of it they lease for single end users."""
    organization = stored_tenants.find_organization(tx)
    if organization is None:
        raise Fault(RESOURCE_UNKNOWN)
    budget_ids = [each.id for each in budgets]
    raises = _list_raises(tx, budget_ids, now)
    existing = _list_windows(tx, budget_ids, now)
    found = []
    for budget in budgets:
        bounds = cut_window(budget.window, now, organization.time_zone, existing.get(budget.id, []))
        spent_pico = 0 if budget.is_of_each else storage.find_spent(tx, budget.id, bounds.start_at)
        leased_pico = sum(each.outstanding_pico for each in storage.list_leases(tx, budget.id, bounds.start_at))
        limit = find_limit(budget, raises.get(find_budget_of_each(budget.id) or budget.id, []), bounds, now)
        if budget.is_of_each or budget.is_prepaid:
            spent_pico += storage.find_spent_of_each(tx, budget.id, bounds.start_at)
        if budget.is_prepaid:
            leased_pico = sum(storage.list_outstanding(tx, budget.id, bounds.start_at).values())
            credit = credits.find_credit_in_force(tx, budget.organization_id, now)
            limit = Limit(spent_pico + credit.pico, min(bounds.end_at, credit.until_at))
        found.append(BudgetStanding(budget=budget, window=bounds, limit=limit, spent_pico=spent_pico, leased_pico=leased_pico))
    return found


def _list_raises(tx: Transaction, budget_ids: Iterable[str], now: int) -> dict[str, list[BudgetRaise]]:
    """Return the raises of budgets that have not ended, by budget: for end users those of the budget of each."""
    return storage.list_raises(tx, sorted({find_budget_of_each(each) or each for each in budget_ids}), ends_after=now)


def _list_windows(tx: Transaction, budget_ids: Sequence[str], at: int) -> dict[str, list[Bounds]]:
    """Return the windows of budgets that `cut_window` has to know for instants from `at` on."""
    return storage.list_windows(tx, budget_ids, from_at=at - WINDOW_US_MAX)


def list_raises(tx: TenantTx, budget_id: str, now: int) -> list[BudgetRaise]:
    """Return the raises of a budget that have not ended. Raises RESOURCE_UNKNOWN."""
    get_budget(tx, budget_id)
    return storage.list_raises(tx, [budget_id], ends_after=now).get(budget_id, [])


def list_alerts(tx: TenantTx, budget_id: str) -> list[BudgetAlert]:
    """Return the thresholds that were reached, the latest first. Raises RESOURCE_UNKNOWN."""
    get_budget(tx, budget_id)
    return storage.list_alerts(tx, budget_id)


# ---- Leases -------------------------------------------------------------------------------------------------------------


def renew_leases(
    tx: PlatformTx, *, node_id: str, epoch: int, sequence: int, requests: Sequence[LeaseRequest], now: int
) -> list[LeaseGrant]:
    """Take over what a gateway run says of its leases, and grant what it asks for as far as it is there. Commit to make it so.

    `sequence`: number of the request, which grows in each run. An answer is left out where a later request was served already. Raises
    STATE_CONFLICT for an epoch that is closed or declared lost: its leases have ended.
    """
    run = stored_epochs.find_epoch(tx, node_id, epoch)
    if run is not None and (run.closed_at is not None or run.lost is not None):
        raise Fault(STATE_CONFLICT, message="The epoch has ended, and its leases with it.")
    known = storage.find_active(tx, sorted({each.budget_id for each in requests}))
    zones = storage.find_time_zones(tx, sorted({each.organization_id for each in known.values()}))
    raises = _list_raises(tx, known, now)
    grants = [_refuse_unknown(each) for each in requests if each.budget_id not in known]
    covered: dict[str, _Covered] = {}
    for request in sorted((each for each in requests if each.budget_id in known), key=lambda each: (each.budget_id, each.at)):
        budget = known[request.budget_id]
        existing = _list_windows(tx, [budget.id], request.at).get(budget.id, [])
        window = cut_window(budget.window, request.at, zones[budget.organization_id], existing)
        parent_id = find_budget_of_each(budget.id)
        if budget.is_prepaid and parent_id is not None:
            budget = msgspec.structs.replace(budget, id=parent_id).at_place(CreditPlace(request.project_id, request.model))
            if budget.id != request.budget_id:
                grants.append(_refuse_unknown(request))
                continue
            if parent_id not in covered:
                storage.lock_window(tx, parent_id, window)
        if parent_id is not None and not storage.has_end_user(tx, budget.id):
            if storage.count_end_users(tx, parent_id) >= END_USERS_MAX:
                grants.append(_grant_nothing(request, window))
                continue
            storage.put_end_user(tx, budget)
        own = raises.get(parent_id or budget.id, [])
        grant = _renew(tx, budget, window, own, LeaseRow(node_id, epoch, 0, 0, sequence, True), request, covered, now)
        if grant is not None:
            grants.append(grant)
    return grants


def _renew(
    tx: PlatformTx,
    budget: Budget,
    window: Bounds,
    raises: Sequence[BudgetRaise],
    run: LeaseRow,
    request: LeaseRequest,
    covered: dict[str, _Covered],
    now: int,
) -> LeaseGrant | None:
    """`covered`: by prepaid budget, what was read for the requests before."""
    spent_pico = storage.lock_window(tx, budget.id, window)
    leases = storage.list_leases(tx, budget.id, window.start_at)
    own = next((each for each in leases if (each.node_id, each.epoch) == (run.node_id, run.epoch)), None)
    if own is None:
        own = replace(run, sequence=0)
    elif run.sequence <= own.sequence:
        return None
    others = [each for each in leases if (each.node_id, each.epoch) != (run.node_id, run.epoch)]
    is_recalled = request.current_pico is None
    stated = replace(own, granted_pico=own.granted_pico if request.current_pico is None else request.current_pico, sequence=run.sequence)
    at = max(min(now, window.end_at - 1), window.start_at)
    leased_pico = stated.outstanding_pico + sum(each.outstanding_pico for each in others)
    own_credit: _Covered | None = None
    if budget.is_prepaid:
        whole_id = find_budget_of_each(budget.id) or budget.id
        own_credit = covered[whole_id] = covered.get(whole_id) or _read_covered(tx, budget, window)
        limit = own_credit.find_limit(budget, window, at, spent_pico, leased_pico)
    else:
        limit = find_limit(budget, raises, window, at)
    free_pico = limit.pico - spent_pico - leased_pico
    holders = 1 + sum(1 for each in others if each.outstanding_pico)
    grown = 0 if is_recalled else extend_lease(free_pico, request.need_pico, request.target_pico, holders)
    granted = replace(stated, granted_pico=stated.granted_pico + grown)
    if own_credit is not None:
        own_credit.leased[budget.place] += grown
    storage.put_lease(tx, budget.id, window.start_at, granted, now)
    return LeaseGrant(
        budget_id=budget.id,
        start_at=window.start_at,
        end_at=window.end_at,
        until_at=limit.until_at,
        granted_pico=granted.granted_pico,
        limit_pico=limit.pico,
        spent_pico=spent_pico,
        free_pico=free_pico - grown,
        is_recalled=is_recalled,
    )


def _grant_nothing(request: LeaseRequest, window: Bounds) -> LeaseGrant:
    """Return the answer for an end user whom a budget of each does not count, because there are too many of them: nothing may be spent."""
    return LeaseGrant(
        budget_id=request.budget_id,
        start_at=window.start_at,
        end_at=window.end_at,
        until_at=window.end_at,
        granted_pico=0,
        limit_pico=0,
        spent_pico=0,
        free_pico=0,
    )


def _refuse_unknown(request: LeaseRequest) -> LeaseGrant:
    """Return the answer for a budget that does not exist or is archived."""
    return LeaseGrant(
        budget_id=request.budget_id,
        start_at=request.at,
        end_at=request.at,
        until_at=request.at,
        granted_pico=0,
        limit_pico=0,
        spent_pico=0,
        free_pico=0,
        exists=False,
    )


# ---- Charges ------------------------------------------------------------------------------------------------------------


class _ChargeKey(NamedTuple):
    """Key of events that are charged to the same budgets. `budgets`: those that their records name; `model`: empty where they name none."""

    organization_id: str
    project_id: str
    key_id: str
    budgets: tuple[str, ...]
    model: str


class ChargeSums:
    """The costs of the events of a batch, summed as budgets need them while the events are stored."""

    def __init__(self, budgets: Sequence[Budget]) -> None:
        self._budgets = budgets
        self._by_key: dict[_ChargeKey, dict[int, int]] = {}
        self._organizations = {each.organization_id for each in budgets}

    def watch(self, rows: Iterable[EventRow]) -> Iterator[EventRow]:
        """Yield the rows of events, and add up those of organizations that have budgets."""
        organizations = self._organizations
        for row in rows:
            yield row
            _, _, organization_id, project_id, key_id, model, *_ = row.template.values
            if organization_id in organizations and row.amounts.bits:
                named = row.template.budgets
                key = _ChargeKey(str(organization_id), str(project_id), str(key_id), named, str(model) if named else "")
                minutes = self._by_key.setdefault(key, {})
                minute_at = row.admitted_at // MINUTE_US * MINUTE_US
                minutes[minute_at] = minutes.get(minute_at, 0) + row.amounts.total

    def list_charges(self) -> Iterator[tuple[Budget, Mapping[int, int]]]:
        """Yield the budgets that are charged, in their order, each with the costs by the minute of admission.

        A budget on all models counts the requests of its subject. Another one counts those of them whose records name it; one of each end
        user under the ids of its end users. A prepaid one counts under the ids of its places what names those, and the rest itself.
        """
        by_subject: dict[tuple[str, str], dict[int, int]] = {}
        for key, minutes in self._by_key.items():
            for subject_id in (key.organization_id, key.project_id, key.key_id):
                for budget_id in ("", *key.budgets):
                    sums = by_subject.setdefault((subject_id, budget_id), {})
                    for minute_at, pico in minutes.items():
                        sums[minute_at] = sums.get(minute_at, 0) + pico
        end_users: dict[str, list[str]] = {}
        for id in sorted({named for key in self._by_key for named in key.budgets}):
            end_users.setdefault(find_budget_of_each(id) or "", []).append(id)
        for budget in self._budgets:
            if budget.is_prepaid:
                yield from self._list_prepaid_charges(budget)
                continue
            of_end_users = end_users.get(budget.id, []) if budget.is_of_each else [budget.id]
            for id in of_end_users:
                charged = by_subject.get((budget.subject_id, id if budget.is_partial else ""), {})
                counted = {at: pico for at, pico in charged.items() if at >= budget.counts_from}
                if counted:
                    yield msgspec.structs.replace(budget, id=id) if budget.is_of_each else budget, counted

    def _list_prepaid_charges(self, budget: Budget) -> Iterator[tuple[Budget, Mapping[int, int]]]:
        parts: dict[str, Budget] = {budget.id: budget}
        charged: dict[str, dict[int, int]] = {}
        for key, minutes in self._by_key.items():
            if key.organization_id != budget.subject_id:
                continue
            part = budget
            if any(find_budget_of_each(each) == budget.id for each in key.budgets):
                part = budget.at_place(CreditPlace(key.project_id, key.model))
            parts[part.id] = part
            sums = charged.setdefault(part.id, {})
            for at, pico in minutes.items():
                if at >= budget.counts_from:
                    sums[at] = sums.get(at, 0) + pico
        for id, sums in sorted(charged.items()):
            if sums:
                yield parts[id], sums


def open_charges(tx: PlatformTx, organization_ids: Iterable[str]) -> ChargeSums | None:
    """Return where the costs of events of these organizations are summed; None if none of them has a budget."""
    found = storage.list_active(tx, sorted(organization_ids))
    return ChargeSums(found) if found else None


def charge(tx: PlatformTx, sums: ChargeSums, *, node_id: str, epoch: int, now: int) -> None:
    """Charge the costs of events of one epoch to the windows in which they were admitted, and to the leases of that epoch."""
    charges = list(sums.list_charges())
    if not charges:
        return
    zones = storage.find_time_zones(tx, sorted({each.organization_id for each, _ in charges}))
    raises = _list_raises(tx, [each.id for each, _ in charges], now)
    for budget, minutes in charges:
        parent_id = find_budget_of_each(budget.id)
        if parent_id is not None:
            if budget.is_prepaid:
                storage.lock_window(tx, parent_id, ALWAYS)
            storage.put_end_user(tx, budget)
        existing = _list_windows(tx, [budget.id], min(minutes)).get(budget.id, [])
        by_window: dict[Bounds, int] = {}
        for minute_at in sorted(minutes):
            window = cut_window(budget.window, minute_at, zones[budget.organization_id], [*existing, *by_window])
            by_window[window] = by_window.get(window, 0) + minutes[minute_at]
        for window in sorted(by_window):
            _charge_window(tx, budget, window, by_window[window], raises.get(parent_id or budget.id, []), node_id, epoch, now)


def _charge_window(
    tx: PlatformTx, budget: Budget, window: Bounds, pico: int, raises: Sequence[BudgetRaise], node_id: str, epoch: int, now: int
) -> None:
    spent_pico = storage.lock_window(tx, budget.id, window) + pico
    storage.put_spent(tx, budget.id, window.start_at, spent_pico)
    lease = storage.find_lease(tx, budget.id, window.start_at, node_id, epoch) or LeaseRow(node_id, epoch, 0, 0, 0, True)
    storage.put_lease(tx, budget.id, window.start_at, replace(lease, drawn_pico=lease.drawn_pico + pico), now)
    limit_pico = find_limit(budget, raises, window, max(min(now, window.end_at - 1), window.start_at)).pico
    storage.insert_alerts(tx, _find_alerts(budget, window, limit_pico, spent_pico, now))


def _find_alerts(budget: Budget, window: Bounds, limit_pico: int, spent_pico: int, now: int) -> list[BudgetAlert]:
    """Return an alert for each threshold of a budget that spending has reached in a window, whether or not it was alerted before."""
    return [
        BudgetAlert(
            budget_id=budget.id,
            window_start_at=window.start_at,
            threshold=each,
            spent_pico=spent_pico,
            limit_pico=limit_pico,
            crossed_at=now,
        )
        for each in find_reached(budget.thresholds, spent_pico, limit_pico)
    ]
