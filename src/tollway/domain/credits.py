"""Credits: what an organization has been given or has paid in advance, and the order in which its usage burns it.

A grant is used by requests that were admitted between its beginning and its end, and that its scope covers. Which grant a request burns is
decided in one total order over grants (`burn_order`) and one over usage (by the minute of admission, then project, then model), so the
result is the same in whatever order usage arrives. Money is integer pico-currency of the organization; instants are whole minutes.
docs/credits.md explains the whole.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.periods import INSTANT_MAX, STUB_US_MAX, Bounds, days_of, month_of

MINUTE_US = 60_000_000

PRIORITY_MAX = 1000
"""Highest number of a priority; the lowest number burns first."""

COST_BASIS_BP_MAX = 10_000
"""A grant that is paid in full, in hundredths of a percent of its amount."""

GRANTS_MAX = 500
"""Open grants of one organization: neither used up nor ended before a closed period."""


class GrantCategory(StrEnum):
    """The reason for which credit was granted."""

    PAID = "paid"
    PROMOTIONAL = "promotional"
    GOODWILL = "goodwill"


class CreditGrant(msgspec.Struct, frozen=True, kw_only=True):
    """Credit of an organization.

    `cost_basis_bp`: what the organization paid for it, in hundredths of a percent of the amount. `priority`: 0 to PRIORITY_MAX; the lowest
    burns first. It is used by requests that are admitted from `effective_at` (inclusive) to `expires_at` (exclusive; None: without end) and
    before `voided_at`. `project_id`: whose requests alone use it; None for all. `model`: as it was asked for, a model or a group
    (`group:large`) whose requests alone use it; empty for all. `models`: the models that these were when it was granted. `reference`: of
    the payment or the decision, in the operator's words.
    """

    id: str
    organization_id: str
    category: GrantCategory
    amount_pico: int
    currency: str
    cost_basis_bp: int
    priority: int
    effective_at: int
    expires_at: int | None
    created_at: int
    reference: str = ""
    project_id: str | None = None
    model: str = ""
    models: tuple[str, ...] = ()
    voided_at: int | None = None

    @property
    def is_scoped(self) -> bool:
        """Return whether only a part of the organization's requests can use it."""
        return self.project_id is not None or self.model != ""

    @property
    def ends_at(self) -> int:
        """Return the instant (exclusive) until which requests that are admitted can use it."""
        return min(INSTANT_MAX if each is None else each for each in (self.expires_at, self.voided_at))

    def covers(self, usage: "CreditUsage") -> bool:
        """Return whether usage can burn it."""
        return (
            self.effective_at <= usage.minute_at < self.ends_at
            and self.project_id in (None, usage.project_id)
            and (self.model == "" or usage.model in self.models)
        )


class CreditUsage(NamedTuple):
    """Usage that burns credit alike: that of one project and model which was admitted in one minute."""

    minute_at: int
    project_id: str
    model: str


def burn_order(grant: CreditGrant) -> tuple[object, ...]:
    """Return the key by which grants burn: scoped ones first, then by priority, expiry (without end last), cost basis (lowest first), and
    age. The id makes the order total."""
    expires_at = INSTANT_MAX if grant.expires_at is None else grant.expires_at
    return (not grant.is_scoped, grant.priority, expires_at, grant.cost_basis_bp, grant.created_at, grant.id)


def burn(grants: Iterable[CreditGrant], left: Mapping[str, int], usage: Mapping[CreditUsage, int]) -> dict[str, int]:
    """Return what usage burns of grants, by grant. `left`: of each grant. What no grant covers is left out: it is owed."""
    ordered, still = sorted(grants, key=burn_order), dict(left)
    burned: dict[str, int] = {}
    for place in sorted(usage):
        pico = usage[place]
        for grant in ordered:
            if pico == 0:
                break
            part = min(pico, still[grant.id])
            if part > 0 and grant.covers(place):
                still[grant.id] -= part
                burned[grant.id] = burned.get(grant.id, 0) + part
                pico -= part
    return burned


def find_uncovered(left: Mapping[str, int], later: Mapping[tuple[str, int], int]) -> dict[int, int]:
    """Return what the usage of later periods has drawn of grants beyond what is left of them, by the start of the period: that usage has to
    burn other credit, or is owed. `left`: of each open grant, without what later periods drew. `later`: that, by grant and period."""
    unused, uncovered = dict(left), dict[int, int]()
    for (grant_id, period_at), pico in sorted(later.items(), key=lambda each: (each[0][1], each[0][0])):
        covered = min(pico, max(unused.get(grant_id, 0), 0))
        unused[grant_id] = unused.get(grant_id, 0) - covered
        uncovered[period_at] = uncovered.get(period_at, 0) + pico - covered
    return uncovered


class UsableCredit(NamedTuple):
    """Credit that requests can burn at an instant, and until when (exclusive) that is certain."""

    pico: int
    until_at: int


def find_usable(grants: Iterable[CreditGrant], left: Mapping[str, int], at: int) -> UsableCredit:
    """Return what any request can use at instant `at`: of grants that are in force and have no scope. One that was voided is no longer
    usable at once."""
    pico, until_at = 0, INSTANT_MAX
    for grant in grants:
        if grant.is_scoped or grant.voided_at is not None:
            continue
        if at < grant.effective_at:
            until_at = min(until_at, grant.effective_at)
        elif at < grant.ends_at:
            pico += max(left[grant.id], 0)
            until_at = min(until_at, grant.ends_at)
    return UsableCredit(pico, until_at)


class CreditScope(NamedTuple):
    """Requests that a grant with a scope is for: of a project (empty: of any) and of some models (empty: of all)."""

    project_id: str
    models: tuple[str, ...]

    def covers(self, project_id: str, model: str) -> bool:
        """Return whether it is for requests of a project for a model."""
        return self.project_id in ("", project_id) and (not self.models or model in self.models)


class CreditPlace(NamedTuple):
    """Requests that burn the same grants: those of one project for one model, or (EVERYWHERE) those that no grant with a scope covers."""

    project_id: str
    model: str


EVERYWHERE = CreditPlace("", "")


def find_leasable(
    grants: Iterable[CreditGrant], left: Mapping[str, int], leased: Mapping[CreditPlace, int], place: CreditPlace, at: int
) -> UsableCredit:
    """Return by how much what is leased at one place can grow at instant `at`, so that all that is leased then is covered in whatever order
    it is used; below zero if what is leased is not. `left`: of each grant; `leased`: what may still be used at each place.

    Grants with a scope burn first, so a place takes from those without one only what its own do not cover. Where scopes overlap, what
    other places may use of a grant is counted as taken from each that it is for: then a part may not be leased, until they have used it.
    Places that burn the same grants count as one, so that the work grows with the number of grants and not with that of projects.
    """
    shared_pico, until_at = 0, INSTANT_MAX
    scoped: list[CreditGrant] = []
    for grant in grants:
        if grant.voided_at is not None:
            continue
        if at < grant.effective_at:
            until_at = min(until_at, grant.effective_at)
        elif at < grant.ends_at:
            until_at = min(until_at, grant.ends_at)
            if grant.is_scoped:
                scoped.append(grant)
            else:
                shared_pico += max(left[grant.id], 0)
    scopes = _Scopes(scoped, left)
    own = scopes.find_grants(place)
    held, others = 0, Counter[int]()
    for each, pico in leased.items():
        ids = scopes.find_grants(each)
        if ids == own:
            held += pico
        elif pico > 0:
            others[ids] += pico
    in_common = _find_common([own, *others])
    takes = {
        ids: sum(min(pico, scopes.sum_left(ids & other)) for other, pico in others.items())
        for ids in {each & in_common for each in (own, *others)}
    }
    guaranteed = scopes.sum_left(own) - takes[own & in_common]
    fixed_pico = 0
    varying: list[tuple[int, int, int]] = []  # what is leased, what of its own grants nobody else takes, and what `place` can take of it
    for ids, pico in others.items():
        of_others = takes[ids & in_common] - min(pico, scopes.sum_left(ids & in_common))
        rest, common = scopes.sum_left(ids) - of_others, scopes.sum_left(ids & own)
        least = _sum_uncovered(pico, rest)
        if least == _sum_uncovered(pico, rest - common):
            fixed_pico += least
        else:
            varying.append((pico, rest, common))

    def find_rest(pico: int) -> int:
        """Return what is left of grants without a scope if so much is leased at `place`."""
        used = fixed_pico + _sum_uncovered(pico, guaranteed)
        return shared_pico - used - sum(_sum_uncovered(each, rest - min(pico, common)) for each, rest, common in varying)

    spare_pico = find_rest(held)
    if spare_pico < 0:
        return UsableCredit(spare_pico, until_at)
    low, high = 0, scopes.sum_left(own) + shared_pico + 1  # the most that fits is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if find_rest(held + middle) >= 0 else (low, middle)
    return UsableCredit(low, until_at)


def _sum_uncovered(pico: int, own_pico: int) -> int:
    """Return what grants without a scope have to cover of a lease for which so much of others is certain."""
    return max(pico - max(own_pico, 0), 0)


def _find_common(sets: Iterable[int]) -> int:
    """Return the grants that are in more than one of these sets."""
    seen = common = 0
    for each in sets:
        common |= seen & each
        seen |= each
    return common


class _Scopes:
    """Grants with a scope, and what is left of them. A set of them is an integer: bit N for the Nth."""

    def __init__(self, grants: Sequence[CreditGrant], left: Mapping[str, int]) -> None:
        self._left = [max(left[grant.id], 0) for grant in grants]
        self._of_projects: dict[str, int] = {}
        self._of_models: dict[str, int] = {}
        self._of_any_project = self._of_any_model = 0
        self._sums: dict[int, int] = {}
        for number, grant in enumerate(grants):
            bit = 1 << number
            if grant.project_id is None:
                self._of_any_project |= bit
            else:
                self._of_projects[grant.project_id] = self._of_projects.get(grant.project_id, 0) | bit
            if grant.model == "":
                self._of_any_model |= bit
            for model in grant.models if grant.model else ():
                self._of_models[model] = self._of_models.get(model, 0) | bit

    def find_grants(self, place: CreditPlace) -> int:
        """Return the set of those that are for the requests of a place."""
        if place == EVERYWHERE:
            return 0
        of_project = self._of_any_project | self._of_projects.get(place.project_id, 0)
        return of_project & (self._of_any_model | self._of_models.get(place.model, 0))

    def sum_left(self, ids: int) -> int:
        """Return what is left of a set of them."""
        found = self._sums.get(ids)
        if found is None:
            found, rest = 0, ids
            while rest:
                found += self._left[(rest & -rest).bit_length() - 1]
                rest &= rest - 1
            self._sums[ids] = found
        return found


class GrantProblem(NamedTuple):
    """A field of a grant whose value it cannot have, and the reason as a clause."""

    field: str
    reason: str


def find_problem(grant: CreditGrant) -> GrantProblem | None:
    """Return what is wrong with the terms of a grant; None if nothing is."""
    if not 0 < grant.amount_pico <= AMOUNT_PICO_MAX:
        return GrantProblem("amount", "it must be more than zero and at most 9,223,372 currency units")
    if not 0 <= grant.priority <= PRIORITY_MAX:
        return GrantProblem("priority", f"it must be from 0 to {PRIORITY_MAX}")
    if not 0 <= grant.cost_basis_bp <= COST_BASIS_BP_MAX:
        return GrantProblem("cost_basis_percent", "it must be from 0 to 100")
    if grant.effective_at % MINUTE_US or (grant.expires_at is not None and grant.expires_at % MINUTE_US):
        return GrantProblem("expires_at", "grants begin and end at whole minutes")
    if grant.expires_at is not None and grant.expires_at <= grant.effective_at:
        return GrantProblem("expires_at", "it must be after the grant begins")
    if grant.effective_at < grant.created_at // MINUTE_US * MINUTE_US:
        return GrantProblem("effective_at", "a grant cannot begin in the past")
    return None


class CreditMove(StrEnum):
    """The cause of a transaction of a grant's account."""

    GRANT = "grant"
    BURN = "burn"
    EXPIRE = "expire"
    VOID = "void"


class CreditTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction of a grant's account. `period_at`: the start of the billing period whose usage it burns or at whose close the rest is
    booked; None for the grant itself. `amount_pico`: above zero."""

    id: str
    organization_id: str
    grant_id: str
    move: CreditMove
    period_at: int | None
    amount_pico: int
    booked_at: int


# ---- Top-ups ------------------------------------------------------------------------------------------------------------

COOLOFF_SECONDS_MIN, COOLOFF_SECONDS_MAX = 60, 31 * 86_400
"""Shortest and longest time between two top-ups of an organization."""


class TopupInterval(StrEnum):
    """The calendar period of the organization at whose start a rule asks for credit. Weeks begin on Monday."""

    WEEK = "week"
    MONTH = "month"


class TopupRule(NamedTuple):
    """The rule by which more credit is asked for: once less than the threshold is usable, and again after the cool-off at the earliest;
    and, if there is an interval, once in each period of it. `threshold_pico`: 0 for none. `next_at`: the start of the next period for which
    credit is asked for, which the operation sets; None without an interval."""

    threshold_pico: int
    amount_pico: int
    cooloff_seconds: int
    every: TopupInterval | None = None
    next_at: int | None = None


class Topup(msgspec.Struct, frozen=True, kw_only=True):
    """Credit that a rule asks for. `usable_pico`: what was usable then. `period_at`: the start of the period for which it was asked; None
    if too little was usable. `grant_id`: of the grant that answered it; None while none has."""

    id: str
    organization_id: str
    amount_pico: int
    usable_pico: int
    requested_at: int
    period_at: int | None = None
    grant_id: str | None = None


def find_rule_problem(rule: TopupRule) -> GrantProblem | None:
    """Return what is wrong with a rule; None if nothing is."""
    if rule.threshold_pico == 0 and rule.every is None:
        return GrantProblem("threshold", "a rule has a threshold, an interval or both")
    if not 0 <= rule.threshold_pico <= AMOUNT_PICO_MAX:
        return GrantProblem("threshold", "it must be at most 9,223,372 currency units")
    if not 0 < rule.amount_pico <= AMOUNT_PICO_MAX:
        return GrantProblem("amount", "it must be more than zero and at most 9,223,372 currency units")
    if not COOLOFF_SECONDS_MIN <= rule.cooloff_seconds <= COOLOFF_SECONDS_MAX:
        return GrantProblem("cooloff_seconds", f"it must be from {COOLOFF_SECONDS_MIN} to {COOLOFF_SECONDS_MAX:,}")
    return None


def is_topup_due(rule: TopupRule, usable_pico: int, latest: Topup | None, now: int) -> bool:
    """Return whether more credit is to be asked for at instant `now`. `latest`: the latest top-up."""
    is_cool = latest is None or now - latest.requested_at >= rule.cooloff_seconds * 1_000_000
    return usable_pico < rule.threshold_pico and is_cool


def find_first_topup(every: TopupInterval, now: int, time_zone: str) -> int:
    """Return the start of the period of an interval that follows the one of instant `now` in a time zone: the first for which a new rule
    asks for credit."""
    return _find_period(every, now, time_zone).end_at


def find_next_topup(every: TopupInterval, start_at: int, time_zone: str) -> int:
    """Return the start of the period of an interval that follows the one that began at `start_at`, in a time zone. A period that would
    begin within a day and three hours of it is left out: `start_at` is then its start in the zone that the organization had before."""
    found = _find_period(every, start_at, time_zone).end_at
    return found if found - start_at > STUB_US_MAX else _find_period(every, found, time_zone).end_at


def _find_period(every: TopupInterval, at: int, time_zone: str) -> Bounds:
    return month_of(at, time_zone) if every is TopupInterval.MONTH else days_of(at, time_zone, 7, 0)
