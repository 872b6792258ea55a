"""Contracts of organizations: what they add to a billing period beside the rated usage, as lines that are computed when it closes.

Theory of operation. Requests are always rated at the unit price of their price list, so that no amount of one depends on another. What
depends on a whole period (tiers, free units, discounts, minimums, commitments, fees, service credits) is computed once from the sums of the
closed period, so the order of events cannot matter. All of it is integers: what is given back is rounded down, and amounts by time are
differences of a function that is rounded down, so that the parts of a period come to the whole.

A part is the time that one contract covers of one period. Usage belongs to the part in which its request ended; late usage counts at the
start of the period that takes it. docs/contracts.md explains the whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from tollway.domain.money import AMOUNT_PICO_MAX, PICO, UNIT_PRICE_PICO_MAX
from tollway.domain.periods import INSTANT_MAX, Bounds, Period
from tollway.domain.usage import Outcome

WHOLE_BP: Final = 10_000
"""Basis points of the whole."""

ENTRIES_MAX: Final = 100
"""Tiered prices, free units and fees of a contract, each: a catalog has a few dozen models."""

TIERS_MAX: Final = 20
"""Tiers of one price."""

SERVICE_LEVELS_MAX: Final = 10
"""Service levels of a contract."""

SEATS_MAX: Final = 1_000_000
"""Seats of a contract."""

QUANTITY_MAX: Final = 2**62
"""Highest edge of a tier, and most free units: above what a period can come to."""

FAILED_OUTCOMES: Final = (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.GATEWAY_CRASH)
"""Outcomes of requests that were admitted and not served: they count against availability."""


class Sku(NamedTuple):
    """Unit of sale: a billing class of a model in a service tier."""

    model: str
    service_tier: str
    billing_class: str


class Schedule(StrEnum):
    """Rule by which tiers price a quantity."""

    GRADUATED = "graduated"  # each unit at the price of the tier that it is in
    VOLUME = "volume"  # all units at the price of the tier that the quantity reaches


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Price of units up to `up_to` of them in a period, that one included; None has no end. In pico-currency of one unit."""

    up_to: int | None
    unit_price_pico: int


class TieredPrice(msgspec.Struct, frozen=True, kw_only=True):
    """Price of what one class of a model comes to in a period, in place of that of its price list."""

    model: str
    service_tier: str
    billing_class: str
    schedule: Schedule
    tiers: tuple[Tier, ...]

    @property
    def sku(self) -> Sku:
        """The class that it prices."""
        return Sku(self.model, self.service_tier, self.billing_class)


class FreeUnits(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one class of a model that cost nothing in each period."""

    model: str
    service_tier: str
    billing_class: str
    quantity: int

    @property
    def sku(self) -> Sku:
        """The class of the units."""
        return Sku(self.model, self.service_tier, self.billing_class)


class Fee(msgspec.Struct, frozen=True, kw_only=True):
    """Fee of a whole period, of the organization or of each seat."""

    name: str
    amount_pico: int
    is_per_seat: bool


class Commitment(msgspec.Struct, frozen=True, kw_only=True):
    """Amount that the organization commits to use while the contract lasts. Prepaid: it is billed in the first period, and usage draws on
    it; otherwise what is missing is billed in the last one (true-up)."""

    amount_pico: int
    is_prepaid: bool


class Objective(StrEnum):
    """Subject of a service level."""

    AVAILABILITY = "availability"  # requests that did not fail, of those that were admitted
    FIRST_TOKEN = "first_token"  # requests whose first token came within a time, of those that had one


class ServiceLevel(msgspec.Struct, frozen=True, kw_only=True):
    """Share of requests that must meet an objective, in basis points, and the share of the period's usage that is credited where it is
    missed. `within_ms`: time to the first token, in milliseconds; 0 for availability."""

    objective: Objective
    target_bp: int
    credit_bp: int
    within_ms: int = 0


class ContractTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Terms of a contract, which never change. Amounts in pico of `currency`."""

    name: str
    currency: str
    discount_bp: int = 0
    tiered_prices: tuple[TieredPrice, ...] = ()
    free_units: tuple[FreeUnits, ...] = ()
    fees: tuple[Fee, ...] = ()
    seats: int = 0
    minimum_pico: int = 0
    commitment: Commitment | None = None
    service_levels: tuple[ServiceLevel, ...] = ()


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """A contract of an organization from `valid_from` (inclusive) to `valid_until` (exclusive; None: no end), in UTC microseconds."""

    id: str
    organization_id: str
    valid_from: int
    valid_until: int | None
    created_at: int
    terms: ContractTerms

    @property
    def span(self) -> Bounds:
        """The time in which it is valid."""
        return Bounds(self.valid_from, INSTANT_MAX if self.valid_until is None else self.valid_until)

    def is_valid_at(self, at: int) -> bool:
        """Return whether it has begun before an instant, and is valid at it."""
        return self.valid_from < at < self.span.end_at

    def covers(self, bounds: Bounds) -> Bounds | None:
        """Return the time that it covers of a span; None for none."""
        start_at = max(self.valid_from, bounds.start_at)
        end_at = bounds.end_at if self.valid_until is None else min(self.valid_until, bounds.end_at)
        return Bounds(start_at, end_at) if start_at < end_at else None


class LineKind(StrEnum):
    """Subject of a line."""

    TIERED_PRICE = "tiered_price"
    FREE_UNITS = "free_units"
    DISCOUNT = "discount"
    SERVICE_CREDIT = "service_credit"
    DRAWDOWN = "drawdown"  # usage that a prepaid commitment covers
    PLATFORM_FEE = "platform_fee"
    SEAT_FEE = "seat_fee"
    MINIMUM = "minimum"
    PREPAYMENT = "prepayment"  # of a prepaid commitment, in the first period
    TRUE_UP = "true_up"  # what is missing of a commitment that is not prepaid, in the last period
    LAPSE = "lapse"  # what is left of a prepaid commitment at the end: booked, not billed


ON_USAGE: Final = (LineKind.TIERED_PRICE, LineKind.FREE_UNITS, LineKind.DISCOUNT, LineKind.SERVICE_CREDIT, LineKind.DRAWDOWN)
"""Kinds of lines that change what is owed for usage."""


class ContractLine(msgspec.Struct, frozen=True, kw_only=True):
    """An amount that a contract adds to a period; below zero gives something back. `quantity`: units, seats or requests that it is about, 0
    where it has none. `name`: of a fee."""

    kind: LineKind
    amount_pico: int
    model: str = ""
    service_tier: str = ""
    billing_class: str = ""
    quantity: int = 0
    name: str = ""


class UsageTotal(NamedTuple):
    """Units of one SKU in a part, and what they come to at list prices."""

    quantity: int
    amount_pico: int


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that a service level counts in a part, and how many of them met it."""

    counted: int
    met: int


class Standing(NamedTuple):
    """Sums of the parts of earlier periods under a contract: usage after discounts, and what was drawn of a prepaid commitment."""

    consumed_pico: int = 0
    drawn_pico: int = 0


class ContractPart(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts of a contract for the time that it covers of a period, with what that follows from. `used_pico`: at list prices;
    `net_pico`: after tiers, free units and discount. `measures`: one for each service level of the terms."""

    contract_id: str
    start_at: int
    end_at: int
    used_pico: int
    net_pico: int
    consumed_before_pico: int
    drawn_before_pico: int
    measures: tuple[Measure, ...]
    lines: tuple[ContractLine, ...]

    @property
    def billed_pico(self) -> int:
        """Amount that it adds to the bill."""
        return sum(line.amount_pico for line in self.lines if line.kind is not LineKind.LAPSE)

    @property
    def standing(self) -> Standing:
        """Sums of the parts up to this one."""
        drawn_pico = -sum(line.amount_pico for line in self.lines if line.kind is LineKind.DRAWDOWN)
        return Standing(self.consumed_before_pico + self.net_pico, self.drawn_before_pico + drawn_pico)


# ---- Terms --------------------------------------------------------------------------------------------------------------


class ContractProblem(NamedTuple):
    """Defect of terms: the field, and a sentence for whoever wrote them."""

    field: str
    text: str


def find_problem(terms: ContractTerms, currency: str, *, ends: bool) -> ContractProblem | None:
    """Return why terms cannot be those of an organization that is billed in a currency; None if they can. `ends`: the contract has an
    end."""
    if terms.currency != currency:
        return ContractProblem("currency", f"The organization is billed in {currency}, not in {terms.currency}.")
    if not terms.name.strip():
        return ContractProblem("name", "A contract needs a name.")
    if not 0 <= terms.discount_bp <= WHOLE_BP:
        return ContractProblem("discount_bp", "A discount is from 0 to 100 percent.")
    if not 0 <= terms.seats <= SEATS_MAX:
        return ContractProblem("seats", f"Seats are from 0 to {SEATS_MAX}.")
    if not 0 <= terms.minimum_pico <= AMOUNT_PICO_MAX:
        return ContractProblem("minimum", "A minimum is not below zero.")
    if max(map(len, (terms.tiered_prices, terms.free_units, terms.fees))) > ENTRIES_MAX:
        return ContractProblem("fees", f"A contract has at most {ENTRIES_MAX} tiered prices, free units and fees each.")
    if len(terms.service_levels) > SERVICE_LEVELS_MAX:
        return ContractProblem("service_levels", f"A contract has at most {SERVICE_LEVELS_MAX} service levels.")
    if terms.commitment is not None and not (ends and 0 < terms.commitment.amount_pico <= AMOUNT_PICO_MAX):
        return ContractProblem("commitment", "A commitment is above zero, and its contract has an end.")
    skus = [*(price.sku for price in terms.tiered_prices), *(free.sku for free in terms.free_units)]
    if len(set(skus)) < len(skus):
        return ContractProblem("tiered_prices", "A class of a model stands once among tiered prices and free units.")
    for price in terms.tiered_prices:
        if (problem := _find_tier_problem(price.tiers)) is not None:
            return ContractProblem("tiered_prices", problem)
    if any(not 0 < each.quantity <= QUANTITY_MAX for each in terms.free_units):
        return ContractProblem("free_units", "Free units are above zero.")
    for fee in terms.fees:
        if not fee.name.strip() or fee.amount_pico <= 0:
            return ContractProblem("fees", "A fee has a name and an amount above zero.")
        if fee.is_per_seat and not terms.seats:
            return ContractProblem("seats", "A fee per seat needs the number of seats.")
        if fee.amount_pico * (terms.seats if fee.is_per_seat else 1) > AMOUNT_PICO_MAX:
            return ContractProblem("fees", f"A fee is too high: it comes to at most {AMOUNT_PICO_MAX // PICO} {currency}, for all seats.")
    for level in terms.service_levels:
        if not 0 < level.target_bp <= WHOLE_BP or not 0 < level.credit_bp <= WHOLE_BP:
            return ContractProblem("service_levels", "The target and the credit of a service level are above 0 and at most 100 percent.")
        if (level.objective is Objective.FIRST_TOKEN) != (level.within_ms > 0):
            return ContractProblem("service_levels", "'within_ms' is above zero for the first token, and for nothing else.")
    return None


def _find_tier_problem(tiers: Sequence[Tier]) -> str | None:
    if not 0 < len(tiers) <= TIERS_MAX:
        return f"A tiered price has from 1 to {TIERS_MAX} tiers."
    edges = [tier.up_to for tier in tiers[:-1]]
    if tiers[-1].up_to is not None or any(edge is None or not 0 < edge <= QUANTITY_MAX for edge in edges):
        return "The last tier has no end, and every other one ends above zero."
    if any(before is None or after is None or before >= after for before, after in pairwise(edges)):
        return "Tiers stand in the order of their ends."
    if any(not 0 <= tier.unit_price_pico <= UNIT_PRICE_PICO_MAX for tier in tiers):
        return "The price of a tier is from zero to the highest price."
    return None


def find_overlap(contracts: Iterable[Contract], span: Bounds) -> Contract | None:
    """Return a contract that is valid at some time of a span; None if there is none."""
    return next((each for each in contracts if each.covers(span) is not None), None)


# ---- Amounts ------------------------------------------------------------------------------------------------------------


def rate_tiers(schedule: Schedule, tiers: Sequence[Tier], quantity: int) -> int:
    """Return what a quantity comes to by tiers, in pico-currency."""
    amount_pico = below = 0
    for tier in tiers:
        edge = quantity if tier.up_to is None else min(quantity, tier.up_to)
        if schedule is Schedule.VOLUME:
            if edge == quantity:
                return quantity * tier.unit_price_pico
            continue
        amount_pico += (edge - below) * tier.unit_price_pico
        below = edge
        if edge == quantity:
            break
    return amount_pico


def prorate(amount: int, part: Bounds, span: Bounds) -> int:
    """Return the share of an amount for a part of a span, by time. The shares of parts that follow each other come to that of all."""
    length = span.end_at - span.start_at
    return amount * (part.end_at - span.start_at) // length - amount * (part.start_at - span.start_at) // length


def find_owed(used_pico: int, corrected_pico: int, burned_pico: int) -> int:
    """Return how much contracts can give back in a period: what is owed for its usage after corrections and credit. `corrected_pico`: what
    corrections of requests of this very period add (those of others are billed with the other period), `burned_pico`: what credit paid."""
    return max(used_pico + min(corrected_pico, 0) - burned_pico, 0)


def charge_part(
    contract: Contract,
    span: Bounds,
    usage: Mapping[Sku, UsageTotal],
    measures: Sequence[Measure],
    standing: Standing,
    owed_pico: int,
) -> ContractPart:
    """Return what a contract comes to in the part that it covers of a period. `measures`: one for each service level. `owed_pico`: how much
    it can give back (`find_owed`, and `find_owed_after` for the next part). Raises ValueError for a contract that covers nothing of it."""
    part, terms = contract.covers(span), contract.terms
    if part is None:
        raise ValueError(f"{contract.id} is not valid in the period")
    lines, left_pico = list[ContractLine](), owed_pico

    def give_back(kind: LineKind, pico: int, quantity: int = 0, sku: Sku = NO_SKU) -> None:
        nonlocal left_pico
        pico = min(pico, left_pico)
        if pico > 0:
            left_pico -= pico
            lines.append(_make_line(kind, -pico, quantity, sku))

    for price in sorted(terms.tiered_prices, key=lambda each: each.sku):
        total = usage.get(price.sku, NO_USAGE)
        change_pico = rate_tiers(price.schedule, price.tiers, total.quantity) - total.amount_pico
        if change_pico > 0:
            left_pico += change_pico
            lines.append(_make_line(LineKind.TIERED_PRICE, change_pico, total.quantity, price.sku))
        give_back(LineKind.TIERED_PRICE, -change_pico, total.quantity, price.sku)
    for free in sorted(terms.free_units, key=lambda each: each.sku):
        total = usage.get(free.sku, NO_USAGE)
        quantity = min(prorate(free.quantity, part, span), total.quantity)
        if quantity:
            give_back(LineKind.FREE_UNITS, total.amount_pico * quantity // total.quantity, quantity, free.sku)
    used_pico = sum(total.amount_pico for total in usage.values())
    give_back(LineKind.DISCOUNT, (used_pico + _sum_lines(lines)) * terms.discount_bp // WHOLE_BP)
    net_pico = used_pico + _sum_lines(lines)
    for level, measure in zip(terms.service_levels, measures, strict=True):
        if measure.met * WHOLE_BP < measure.counted * level.target_bp:
            give_back(LineKind.SERVICE_CREDIT, net_pico * level.credit_bp // WHOLE_BP, measure.counted - measure.met)
    is_first, is_last = contract.valid_from >= span.start_at, contract.valid_until is not None and contract.valid_until <= span.end_at
    committed_pico = 0 if terms.commitment is None else terms.commitment.amount_pico
    is_prepaid = terms.commitment is not None and terms.commitment.is_prepaid
    if is_prepaid:
        give_back(LineKind.DRAWDOWN, min(net_pico, committed_pico - standing.drawn_pico))
    lines += _list_fees(terms, part, span, net_pico)
    result = ContractPart(
        contract_id=contract.id,
        start_at=part.start_at,
        end_at=part.end_at,
        used_pico=used_pico,
        net_pico=net_pico,
        consumed_before_pico=standing.consumed_pico,
        drawn_before_pico=standing.drawn_pico,
        measures=tuple(measures),
        lines=tuple(lines),
    )
    after = result.standing
    if is_prepaid and is_first:
        lines.append(_make_line(LineKind.PREPAYMENT, committed_pico))
    if is_prepaid and is_last and committed_pico > after.drawn_pico:
        lines.append(_make_line(LineKind.LAPSE, committed_pico - after.drawn_pico))
    if committed_pico and not is_prepaid and is_last and committed_pico > after.consumed_pico:
        lines.append(_make_line(LineKind.TRUE_UP, committed_pico - after.consumed_pico))
    return msgspec.structs.replace(result, lines=tuple(lines))


NO_SKU: Final = Sku("", "", "")
NO_USAGE: Final = UsageTotal(0, 0)


def _make_line(kind: LineKind, amount_pico: int, quantity: int = 0, sku: Sku = NO_SKU) -> ContractLine:
    return ContractLine(
        kind=kind,
        amount_pico=amount_pico,
        model=sku.model,
        service_tier=sku.service_tier,
        billing_class=sku.billing_class,
        quantity=quantity,
    )


def _sum_lines(lines: Iterable[ContractLine]) -> int:
    return sum(line.amount_pico for line in lines)


def _list_fees(terms: ContractTerms, part: Bounds, span: Bounds, net_pico: int) -> list[ContractLine]:
    """Return the lines of fees and of the minimum, which do not depend on what credit paid."""
    lines = []
    for fee in terms.fees:
        seats = terms.seats if fee.is_per_seat else 0
        pico = prorate(fee.amount_pico * (seats or 1), part, span)
        if pico:
            kind = LineKind.SEAT_FEE if seats else LineKind.PLATFORM_FEE
            lines.append(ContractLine(kind=kind, amount_pico=pico, quantity=seats, name=fee.name))
    missing_pico = prorate(terms.minimum_pico, part, span) - net_pico
    if missing_pico > 0:
        lines.append(_make_line(LineKind.MINIMUM, missing_pico))
    return lines


def find_owed_after(owed_pico: int, part: ContractPart) -> int:
    """Return how much can be given back after a part has given back its own."""
    return owed_pico + _sum_lines(line for line in part.lines if line.kind in ON_USAGE)


# ---- Bookings -----------------------------------------------------------------------------------------------------------


class ContractMovement(NamedTuple):
    """Amount that the lines of a period book on one account: `is_own` of the organization, otherwise of the platform. Debits are above
    zero."""

    is_own: bool
    account: str
    amount_pico: int


UNBILLED: Final = "unbilled"
DEFERRED_REVENUE: Final = "deferred_revenue"
BREAKAGE: Final = "breakage"
REVENUE: Final = "contract_revenue"
"""Kind of the platform's accounts, by kind of line: "contract_revenue:<kind>"."""


def list_movements(parts: Iterable[ContractPart]) -> list[ContractMovement]:
    """Return what the lines of a period book, which sums to zero: what is billed against revenue by kind; a prepayment is deferred until
    usage draws on it, and what is left of it at the end is breakage."""
    platform: dict[str, int] = {}
    billed_pico = 0
    for part in parts:
        billed_pico += part.billed_pico
        for line in part.lines:
            account = f"{REVENUE}:{line.kind}"
            if line.kind in (LineKind.PREPAYMENT, LineKind.DRAWDOWN):
                account = DEFERRED_REVENUE
            elif line.kind is LineKind.LAPSE:
                platform[DEFERRED_REVENUE] = platform.get(DEFERRED_REVENUE, 0) + line.amount_pico
                account = BREAKAGE
            platform[account] = platform.get(account, 0) - line.amount_pico
    own = ContractMovement(True, UNBILLED, billed_pico)
    return [each for each in (own, *(ContractMovement(False, name, platform[name]) for name in sorted(platform))) if each.amount_pico]


# ---- Encoding -----------------------------------------------------------------------------------------------------------


def describe(value: msgspec.Struct) -> Mapping[str, Any]:
    """Return a contract, or what is made of it, as exports and documents show it: amounts in pico-currency and quantities as text."""
    described: Mapping[str, Any] = _with_text(msgspec.to_builtins(value))
    return described


def _with_text(value: Any) -> Any:
    """Amounts exceed the integers that every reader of JSON takes for what they are."""
    if isinstance(value, dict):
        return {name: str(each) if name.endswith("_pico") or name == "quantity" else _with_text(each) for name, each in value.items()}
    return [_with_text(each) for each in value] if isinstance(value, list | tuple) else value


def describe_contract(contract: Contract, period: Period, standing: Standing) -> Mapping[str, Any]:
    """Return a contract as the export of a period shows it. An end after the period is left out, because it can still come earlier."""
    ends = contract.valid_until is not None and contract.valid_until <= period.end_at
    return {
        "id": contract.id,
        "valid_from": contract.valid_from,
        "valid_until": contract.valid_until if ends else None,
        "consumed_before_pico": str(standing.consumed_pico),
        "drawn_before_pico": str(standing.drawn_pico),
        "terms": describe(contract.terms),
    }
