"""Credits: how operators grant them, how usage burns them, and how that is booked.

Theory of operation. While a period is open, the collector draws the cost of each batch on the grants in burn order, under a lock of the
organization's open grants: that is provisional, because what arrives first burns first. It is what balances show, and what a prepaid budget
goes by. When the period closes, no usage can be added to it: what it burns is computed again from its events in the canonical order
(`domain.credits.burn`), takes the place of the provisional draws, and is booked: the grant's account pays what the organization would owe.
If that is not what was drawn, the draws of later periods are made anew from their events, by a job and in steps that hold no lock while
they read. Until then what those periods drew beyond what is left counts against every grant, so that no credit is usable twice.
A grant that ended before a period began can get no more usage once that period is closed; what is left of it is booked then, to the
platform's account of breakage, or back to where it came from if it was voided. A transaction's id derives from what it books.

Credit that is granted is a debt of the platform: its account is credited, and the account of its category debited, which for paid credit is
what the payment of it will settle.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from tollway.control.bounds import limits
from tollway.control.money.ledger import PLATFORM, UNBILLED
from tollway.domain import ids
from tollway.domain.catalog import find_group
from tollway.domain.credits import (
    COST_BASIS_BP_MAX,
    GRANTS_MAX,
    MINUTE_US,
    CreditGrant,
    CreditMove,
    CreditTransaction,
    CreditUsage,
    GrantCategory,
    Topup,
    TopupRule,
    UsableCredit,
    burn,
    burn_order,
    find_first_topup,
    find_next_topup,
    find_problem,
    find_rule_problem,
    find_uncovered,
    find_usable,
    is_topup_due,
)
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.ledger import Account, Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Period
from tollway.storage import budgets as stored_budgets
from tollway.storage import catalog as stored_catalog
from tollway.storage import credits as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import tenants as stored_tenants
from tollway.storage import topups as stored_topups
from tollway.storage.credits import DrawRow, Redraw
from tollway.storage.database import Database, PlatformTx, Transaction
from tollway.storage.usage_events import EventRow

CREDIT = "credit"
"""Kind of an organization's account of one grant: "credit:<grant>"."""

FUNDING: Mapping[GrantCategory, str] = {
    GrantCategory.PAID: "prepayments",
    GrantCategory.PROMOTIONAL: "promotional_expense",
    GrantCategory.GOODWILL: "goodwill_expense",
}
"""Kind of the platform's account that bears credit of a category. Payments settle `prepayments`."""

BREAKAGE = "breakage"
"""Kind of the platform's account of credit that ended unused."""


class GrantStanding(NamedTuple):
    """A grant, and what is left of it: provisional, as long as periods are open whose usage burns it."""

    grant: CreditGrant
    left_pico: int


# ---- Grants -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedGrant:
    """Credit that an operator grants. `cost_basis_bp`, `effective_at`: None for what is usual. `topup_id`: of the top-up answered."""

    category: GrantCategory
    amount_pico: int
    currency: str | None
    cost_basis_bp: int | None
    priority: int
    effective_at: int | None
    expires_at: int | None
    reference: str
    project_id: str | None
    model: str
    topup_id: str | None = None


def create_grant(tx: PlatformTx, organization_id: str, wanted: WantedGrant, *, id: str, now: int) -> CreditGrant:
    """Grant credit to an organization, and book it. It is used from the beginning of this minute on, unless it says later.

    Raises RESOURCE_UNKNOWN, MODEL_UNKNOWN, PARAMETER_INVALID, STATE_CONFLICT.
    """
    currency = _get_currency(tx, organization_id)
    if wanted.currency is not None and wanted.currency != currency:
        message = f"The organization is billed in {currency}, not {wanted.currency}."
        raise Fault(PARAMETER_INVALID, param="currency", message=message)
    if (
        wanted.project_id is not None
        and stored_tenants.find_project_owners(tx, [wanted.project_id]).get(wanted.project_id) != organization_id
    ):
        raise Fault(PARAMETER_INVALID, param="project_id", message="The organization has no such project.")
    limits.check_scopes(tx, {wanted.model}, "model")
    is_paid = wanted.category is GrantCategory.PAID
    grant = CreditGrant(
        id=id,
        organization_id=organization_id,
        category=wanted.category,
        amount_pico=wanted.amount_pico,
        currency=currency,
        cost_basis_bp=wanted.cost_basis_bp if wanted.cost_basis_bp is not None else COST_BASIS_BP_MAX if is_paid else 0,
        priority=wanted.priority,
        effective_at=now // MINUTE_US * MINUTE_US if wanted.effective_at is None else wanted.effective_at,
        expires_at=wanted.expires_at,
        created_at=now,
        reference=wanted.reference,
        project_id=wanted.project_id,
        model=wanted.model,
        models=_list_models(tx, wanted.model),
    )
    problem = find_problem(grant)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=f"'{problem.field}' cannot be used: {problem.reason}.")
    if len(stored.list_open(tx, organization_id)) >= GRANTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"An organization may have {GRANTS_MAX} grants of which something is left.")
    stored.insert_grant(tx, grant)
    if wanted.topup_id is not None and not stored_topups.answer_topup(tx, organization_id, wanted.topup_id, grant.id):
        raise Fault(STATE_CONFLICT, param="topup_id", message="The organization has no such top-up, or it was granted already.")
    stored.post(tx, [_book(grant, CreditMove.GRANT, None, grant.amount_pico, now)], now)
    return grant


def _get_currency(tx: PlatformTx, organization_id: str) -> str:
    terms = stored_prices.read_terms(tx, [organization_id]).get(organization_id)
    if terms is None:
        raise Fault(RESOURCE_UNKNOWN)
    return terms.currency


def _list_models(tx: PlatformTx, model: str) -> tuple[str, ...]:
    """Return the models that a scope covers now: a group keeps them for this grant whatever joins or leaves it."""
    group = find_group(model)
    if not model or group is None:
        return (model,) if model else ()
    return tuple(stored_catalog.list_models_of_group(tx, group))


def void_grant(tx: PlatformTx, organization_id: str, grant_id: str, now: int) -> GrantStanding:
    """End a grant: requests that are admitted from the next minute on use nothing more of it. What usage burned of it stays burned.

    Raises RESOURCE_UNKNOWN, STATE_CONFLICT.
    """
    stored.lock_open(tx, organization_id)
    grant = stored.find_grant(tx, organization_id, grant_id) if ids.is_id(ids.CREDIT_GRANT, grant_id) else None
    if grant is None:
        raise Fault(RESOURCE_UNKNOWN)
    if grant.voided_at is not None or grant.ends_at <= now:
        raise Fault(STATE_CONFLICT, message="The grant has ended already.")
    at = now // MINUTE_US * MINUTE_US + MINUTE_US
    stored.void_grant(tx, grant, at)
    voided = msgspec.structs.replace(grant, voided_at=at)
    return GrantStanding(voided, _find_left([voided], stored.list_draws(tx, [grant.id]))[grant.id])


# ---- How they stand -----------------------------------------------------------------------------------------------------


def list_standings(tx: Transaction, organization_id: str) -> list[GrantStanding]:
    """Return the open grants of an organization, in the order in which they burn."""
    grants = stored.list_open(tx, organization_id)
    left = _find_left(grants, stored.list_draws(tx, [each.id for each in grants]))
    return [GrantStanding(each, left[each.id]) for each in sorted(grants, key=burn_order)]


def find_usable_credit(tx: Transaction, organization_id: str, at: int) -> UsableCredit:
    """Return what any request of an organization can burn at an instant, and until when that is certain."""
    return find_usable(*read_open_credit(tx, organization_id), at)


def find_credit_in_force(tx: Transaction, organization_id: str, at: int) -> UsableCredit:
    """Return what some request of an organization can burn at an instant, that of grants with a scope included."""
    grants, left = read_open_credit(tx, organization_id)
    return find_usable([msgspec.structs.replace(each, project_id=None, model="") for each in grants], left, at)


def list_transactions(tx: Transaction, organization_id: str, window: PageWindow) -> Page[CreditTransaction]:
    """Return what was booked on the grants of an organization: granted, burned by closed periods, expired, voided."""
    return stored.list_transactions(tx, organization_id, window)


def _find_left(grants: Iterable[CreditGrant], draws: Mapping[tuple[str, int], int]) -> dict[str, int]:
    """Return what is left of grants: nothing of one of which more is drawn than there is, until those draws are made anew."""
    left = {each.id: each.amount_pico for each in grants}
    for (grant_id, _), pico in draws.items():
        left[grant_id] -= pico
    return {grant_id: max(pico, 0) for grant_id, pico in left.items()}


class OpenCredit(NamedTuple):
    """The open grants of an organization, and what can be used of each."""

    grants: Sequence[CreditGrant]
    left: Mapping[str, int]


def read_open_credit(tx: Transaction, organization_id: str) -> OpenCredit:
    """Return the open grants of an organization. While draws are to be made anew, what they have to find elsewhere may be any of what is
    left."""
    standings = list_standings(tx, organization_id)
    uncovered_pico = sum(each.uncovered_pico for each in stored.list_redraws(tx, organization_id).values())
    left = {each.grant.id: max(each.left_pico - uncovered_pico, 0) for each in standings}
    return OpenCredit([each.grant for each in standings], left)


# ---- Usage of open periods ----------------------------------------------------------------------------------------------


class UsageSums:
    """The costs of the events of a batch, summed as credits need them while the events are stored. `organizations`: those with open
    grants."""

    def __init__(self, organizations: set[str]) -> None:
        self._organizations = organizations
        self._usage: dict[tuple[str, int], dict[CreditUsage, int]] = {}

    def watch(self, rows: Iterable[EventRow]) -> Iterator[EventRow]:
        """Yield the rows of events, and add up those of organizations that have credit."""
        organizations = self._organizations
        for row in rows:
            yield row
            _, _, organization_id, project_id, _, model, *_ = row.template.values
            if organization_id in organizations and row.amounts.bits:
                usage = self._usage.setdefault((str(organization_id), row.period_at), {})
                place = CreditUsage(row.admitted_at // MINUTE_US * MINUTE_US, str(project_id), str(model))
                usage[place] = usage.get(place, 0) + row.amounts.total

    def list_periods(self) -> list[tuple[str, int]]:
        """Return the organizations and periods that were used in, in order."""
        return sorted(self._usage)

    def get_usage(self, organization_id: str, period_at: int) -> Mapping[CreditUsage, int]:
        """Return the usage of an organization that is booked in a period."""
        return self._usage[organization_id, period_at]


def open_usage(tx: PlatformTx, organization_ids: Iterable[str]) -> UsageSums | None:
    """Return where the costs of events of these organizations are summed; None if none of them has open grants."""
    ids_ = set(organization_ids)
    holders = stored.find_holders(tx, ids_) | stored_topups.find_rules(tx, ids_).keys()
    return UsageSums(holders) if holders else None


def draw(tx: PlatformTx, sums: UsageSums, now: int) -> None:
    """Draw usage on grants, provisionally: in the order in which it arrives. Where it leaves less than a rule allows, ask for a top-up."""
    periods = sums.list_periods()
    organization_ids = sorted({organization_id for organization_id, _ in periods})
    by_organization = stored.lock_open_of(tx, organization_ids)
    drawn: dict[str, dict[int, int]] = {}
    for (grant_id, period_at), pico in stored.list_draws(tx, [grant.id for each in by_organization.values() for grant in each]).items():
        drawn.setdefault(grant_id, {})[period_at] = pico
    redraws, changed = stored.lock_redraws_of(tx, organization_ids), list[DrawRow]()
    for organization_id, period_at in periods:
        grants, usage = by_organization.get(organization_id, []), sums.get_usage(organization_id, period_at)
        if period_at in redraws.get(organization_id, {}):
            stored.insert_redraw_usage(tx, organization_id, period_at, usage)
        draws = {(each.id, at): pico for each in grants for at, pico in drawn.get(each.id, {}).items()}
        for grant_id, pico in burn(grants, _find_left(grants, draws), usage).items():
            by_period = drawn.setdefault(grant_id, {})
            by_period[period_at] = by_period.get(period_at, 0) + pico
            changed.append(DrawRow(organization_id, grant_id, period_at, by_period[period_at], is_final=False))
    stored.put_draw_rows(tx, changed)
    for organization_id, rule in stored_topups.lock_rules(tx, organization_ids).items():
        usable, latest = find_usable_credit(tx, organization_id, now), stored_topups.find_latest(tx, organization_id)
        if is_topup_due(rule, usable.pico, latest, now):
            cause = f"topup/{organization_id}/{None if latest is None else latest.id}"  # the one after the latest
            stored_topups.insert_topup(tx, _make_topup(organization_id, rule, usable.pico, cause, now))


def _make_topup(organization_id: str, rule: TopupRule, usable_pico: int, cause: str, now: int, period_at: int | None = None) -> Topup:
    """Return a top-up. Its id derives from its cause and the instant: the start of its period if it has one, or else now."""
    at = now if period_at is None else period_at
    return Topup(
        id=ids.derive_id(ids.CREDIT_TOPUP, at, cause),
        organization_id=organization_id,
        amount_pico=rule.amount_pico,
        usable_pico=usable_pico,
        requested_at=now,
        period_at=period_at,
    )


# ---- Top-ups ------------------------------------------------------------------------------------------------------------


def put_topup_rule(tx: PlatformTx, organization_id: str, rule: TopupRule, now: int) -> TopupRule:
    """Let an organization's credit be topped up by a rule. Returns it with the start of its next period, if it has an interval: of the next
    one from now, or, if it takes the place of another with the same interval, of the one that is due.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID.
    """
    _get_currency(tx, organization_id)
    problem = find_rule_problem(rule)
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=f"'{problem.field}' cannot be used: {problem.reason}.")
    before = stored_topups.lock_rules(tx, [organization_id]).get(organization_id)
    if rule.every is not None:
        is_same = before is not None and before.every is rule.every
        next_at = before.next_at if is_same and before else find_first_topup(rule.every, now, _get_time_zone(tx, organization_id))
        rule = rule._replace(next_at=next_at)
    stored_topups.put_rule(tx, organization_id, rule, now)
    return rule


def delete_topup_rule(tx: PlatformTx, organization_id: str) -> None:
    """Ask for no more credit of an organization. Raises RESOURCE_UNKNOWN."""
    _get_currency(tx, organization_id)
    stored_topups.delete_rule(tx, organization_id)


def _get_time_zone(tx: PlatformTx, organization_id: str) -> str:
    return stored_budgets.find_time_zones(tx, [organization_id])[organization_id]


def ask_for_due_topup(database: Database, now: int) -> bool:
    """Ask for credit for one period of one rule whose period has begun; False if none is due. What was not asked for in time, because no
    control process ran, is asked for then, once for each period. Two processes that do it at once ask once."""
    with database.platform(write=False) as tx:
        organization_id = stored_topups.find_due(tx, now)
    if organization_id is None:
        return False
    with database.platform() as tx:
        rule = stored_topups.lock_rules(tx, [organization_id]).get(organization_id)
        if rule is None or rule.every is None or rule.next_at is None or rule.next_at > now:
            return True  # it was changed or asked for meanwhile
        usable = find_usable_credit(tx, organization_id, now)
        cause = f"topup/{organization_id}/period/{rule.next_at}"
        stored_topups.insert_topup(tx, _make_topup(organization_id, rule, usable.pico, cause, now, rule.next_at))
        next_at = find_next_topup(rule.every, rule.next_at, _get_time_zone(tx, organization_id))
        stored_topups.put_next(tx, organization_id, next_at)
    return True


def find_topup_rule(tx: Transaction, organization_id: str) -> TopupRule | None:
    """Return the rule by which an organization's credit is topped up; None for none."""
    return stored_topups.find_rules(tx, [organization_id]).get(organization_id)


def list_topups(tx: PlatformTx, window: PageWindow, *, only_open: bool) -> Page[Topup]:
    """Return the top-ups that rules asked for; those alone that no grant has answered, if `only_open`."""
    return stored_topups.list_topups(tx, window, only_open=only_open)


# ---- Closed periods -----------------------------------------------------------------------------------------------------


class Settlement(NamedTuple):
    """Effect of the close of a period on grants: what its usage burns, by grant, and what is left of grants that ended before it."""

    burned: dict[str, int]
    ended: dict[str, int]


def settle(grants: Sequence[CreditGrant], left: Mapping[str, int], usage: Mapping[CreditUsage, int], period_at: int) -> Settlement:
    """Return what the close of the period that begins at `period_at` does to grants. `left`: of each, before its usage. Pure."""
    burned = burn(grants, left, usage)
    ended = {each.id: left[each.id] - burned.get(each.id, 0) for each in grants if each.ends_at <= period_at}
    return Settlement(burned, {grant_id: pico for grant_id, pico in ended.items() if pico})


def sum_usage(tx: Transaction, period: Period) -> Mapping[CreditUsage, int]:
    """Return what the events of a frozen period cost, for `settle_period`; nothing if the organization has no open grants. Grants that it
    gets from now on begin after the period, so they pay none of it."""
    return stored.sum_usage(tx, period.organization_id, period.start_at) if stored.find_holders(tx, [period.organization_id]) else {}


def settle_period(tx: PlatformTx, period: Period, usage: Mapping[CreditUsage, int], now: int) -> None:
    """Burn the usage of a period that takes no more bookings, in the canonical order, and book it with what has ended before the period.
    The periods before it are settled, and the organization is locked, so nothing is booked meanwhile. `usage`: by `sum_usage`."""
    grants = stored.lock_open(tx, period.organization_id)
    stored.delete_redraw(tx, period.organization_id, period.start_at)
    if not grants:
        return
    draws = stored.list_draws(tx, [each.id for each in grants])
    before = {place: pico for place, pico in draws.items() if place[1] < period.start_at}
    left = _find_left(grants, before)
    settlement = settle(grants, left, usage, period.start_at)
    provisional = {grant_id: pico for (grant_id, at), pico in draws.items() if at == period.start_at}
    stored.put_draws(tx, period.organization_id, period.start_at, {**dict.fromkeys(provisional, 0), **settlement.burned}, is_final=True)
    by_id = {each.id: each for each in grants}
    booked = [_book(by_id[grant_id], CreditMove.BURN, period.start_at, pico, now) for grant_id, pico in sorted(settlement.burned.items())]
    for grant_id, pico in sorted(settlement.ended.items()):
        booked.append(_book(by_id[grant_id], find_end(by_id[grant_id]), period.start_at, pico, now))
    stored.post(tx, booked, now)
    left = {grant_id: pico - settlement.burned.get(grant_id, 0) for grant_id, pico in left.items()}
    over = {each.id for each in grants if each.ends_at <= period.start_at or left[each.id] == 0}
    if over:
        stored.close_grants(tx, sorted(over), now)
    later = stored.list_provisional(tx, period.organization_id, period.start_at)
    is_as_drawn = settlement.burned == {grant_id: pico for grant_id, pico in provisional.items() if pico}
    there = {grant_id: pico for grant_id, pico in left.items() if grant_id not in over}
    is_pending = bool(stored.list_redraws(tx, period.organization_id))  # then whoever reads for it began before this close, and begins anew
    if is_pending or not is_as_drawn or any(grant_id not in there for grant_id, _ in later):
        uncovered = find_uncovered(there, later)
        for start_at in stored_periods.list_starts_after(tx, period):
            redraw = Redraw(period.start_at, uncovered.get(start_at, 0))
            stored.put_redraw(tx, period.organization_id, start_at, redraw)


# ---- Draws that are made anew -------------------------------------------------------------------------------------------


def redraw_one(database: Database, is_stopping: Callable[[], bool]) -> bool:
    """Draw anew, from their events, what the usage of the open periods of one organization burns so far; False if nothing is to be drawn
    anew. Two processes that do it at once do it once.

    The events are read as they were at one instant, in statements that lock nothing. What arrives meanwhile, the collector keeps with the
    draws that it makes of it (`draw`); it is added under the locks of `draw`, which are held for as long as those few batches take.
    """
    with database.platform(write=False) as tx:
        organization_id = stored.find_redraw(tx)
        if organization_id is None:
            return False
        pending = stored.list_redraws(tx, organization_id)
        last_number = stored.find_last_number(tx, organization_id)
        usage: dict[int, dict[CreditUsage, int]] = {period_at: {} for period_at in pending}
        for period_at, summed in usage.items():
            for part in stored.iterate_usage(tx, organization_id, period_at):
                if is_stopping():
                    return False
                stored.add_usage(summed, part)
    with database.platform() as tx:
        _redraw(tx, organization_id, pending, usage, last_number)
    return True


def _redraw(
    tx: PlatformTx,
    organization_id: str,
    pending: Mapping[int, Redraw],
    usage: Mapping[int, dict[CreditUsage, int]],
    last_number: int,
) -> None:
    """Put draws that follow from `usage`, by the period, in place of those that there are. `last_number`: of the latest batch in it."""
    grants = stored.lock_open(tx, organization_id)
    now_pending = stored.lock_redraws(tx, organization_id)
    chosen = [at for at, redraw in pending.items() if at in now_pending and now_pending[at].closed_at == redraw.closed_at]
    if not chosen:
        return  # their periods were closed meanwhile, or somebody else has drawn anew
    more = stored.list_redraw_usage(tx, organization_id, last_number)
    draws = stored.list_draws(tx, [each.id for each in grants])
    later = stored.list_provisional(tx, organization_id, min(chosen) - 1)
    left = _find_left(grants, {place: pico for place, pico in draws.items() if place[1] < min(chosen)})
    for at in sorted({*chosen, *(period_at for _, period_at in later)}):
        drawn = {grant_id: pico for (grant_id, period_at), pico in later.items() if period_at == at}
        if at in chosen:
            stored.add_usage(usage[at], more.get(at, {}))
            burned = burn(grants, left, usage[at])
            stored.put_draws(tx, organization_id, at, dict.fromkeys(drawn, 0) | burned, is_final=False)
            stored.delete_redraw(tx, organization_id, at)
        else:  # a period that began meanwhile: it has drawn on what was left before this
            uncovered = find_uncovered(left, {(grant_id, at): pico for grant_id, pico in drawn.items()})
            stored.put_redraw(tx, organization_id, at, Redraw(pending[chosen[0]].closed_at, uncovered.get(at, 0)))
            burned = drawn
        left = {grant_id: pico - burned.get(grant_id, 0) for grant_id, pico in left.items()}


def find_end(grant: CreditGrant) -> CreditMove:
    """Return how a grant that has ended is booked."""
    return CreditMove.VOID if grant.voided_at is not None and grant.voided_at == grant.ends_at else CreditMove.EXPIRE


# ---- Booking ------------------------------------------------------------------------------------------------------------


def _book(grant: CreditGrant, move: CreditMove, period_at: int | None, pico: int, now: int) -> tuple[CreditTransaction, tuple[Entry, ...]]:
    transaction = CreditTransaction(
        id=transaction_id(grant, move, period_at),
        organization_id=grant.organization_id,
        grant_id=grant.id,
        move=move,
        period_at=period_at,
        amount_pico=pico,
        booked_at=now,
    )
    return transaction, entries_of(grant, move, pico)


def transaction_id(grant: CreditGrant, move: CreditMove, period_at: int | None) -> str:
    """The id of a transaction of a grant, of the instant of the grant or of the period's start."""
    at = grant.created_at if period_at is None else period_at
    text = f"credit/{grant.organization_id}/{grant.id}/{move}/{period_at}"
    return ids.derive_id(ids.TRANSACTION, at, text)


def entries_of(grant: CreditGrant, move: CreditMove, pico: int) -> tuple[Entry, ...]:
    """Return the entries of a transaction of a grant."""
    own = Account(grant.organization_id, f"{CREDIT}:{grant.id}", grant.currency)
    funding = Account(PLATFORM, FUNDING[grant.category], grant.currency)
    match move:
        case CreditMove.GRANT:
            return Entry(funding, pico), Entry(own, -pico)
        case CreditMove.BURN:
            return Entry(own, pico), Entry(Account(grant.organization_id, UNBILLED, grant.currency), -pico)
        case CreditMove.EXPIRE:
            return Entry(own, pico), Entry(Account(PLATFORM, BREAKAGE, grant.currency), -pico)
        case CreditMove.VOID:
            return Entry(own, pico), Entry(funding, -pico)
