"""Cost of past usage under a draft of prices: per organization, exact, and silent about nothing.

Prices are per unit, so what many requests cost together is what their sums cost: history comes as sums of requests that have
organization, model, tier, outcome and interval of time in common, and each is rated once. What was billed is taken as it was billed.
Under the draft, its lines count as if they had always been there; what it has no line for costs what the book asked at that instant. A
request for which neither has a price is one that would not have been served: it is counted apart, with what it cost, and is in no
difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from tollway.domain.billing_classes import NOTHING, Quantities, UnitPrices
from tollway.domain.money import divide_half_even
from tollway.domain.price_books import BookPrice, DraftLine, Series, compile_units
from tollway.domain.usage import OUTCOME_POLICIES, Outcome, ServiceTier, bills


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that have all this in common, together. `at`: an instant whose book prices are those of every one of them. `used`: tokens as
    counted. `cost_pico`: what they were billed."""

    organization_id: str
    model: str
    endpoint: str
    tier: ServiceTier
    at: int
    outcome_policy: int
    outcome: Outcome
    delivered: bool
    events: int
    used: Quantities
    cost_pico: int


class Tariff:
    """Prices of a book under a draft, before discounts: one price for each series of the draft, at any time; else the book's own."""

    def __init__(self, lines: Iterable[DraftLine], published: Iterable[BookPrice]) -> None:
        """`published` must be ordered by valid_from within its series."""
        self._drafted: dict[Series, UnitPrices] = {line.series: line.unit_prices for line in lines}
        self._published: dict[Series, list[BookPrice]] = {}
        for price in published:
            if (price.model, price.tier) not in self._drafted:
                self._published.setdefault((price.model, price.tier), []).append(price)

    def find(self, series: Series, at: int) -> UnitPrices | None:
        """The price of a model in a tier at an instant; None if it is closed."""
        drafted = self._drafted.get(series)
        if drafted is not None:
            return drafted
        return next((price.unit_prices for price in reversed(self._published.get(series, ())) if price.valid_from <= at), None)

    def list_changes(self, from_at: int, to_at: int) -> list[int]:
        """The instants in between at which a price of the book that the draft leaves alone changes."""
        starts = {price.valid_from for prices in self._published.values() for price in prices}
        return sorted(start for start in starts if from_at < start < to_at)


@dataclass(slots=True)
class PreviewComparison:
    """Billed amount of an organization, and what it would have been, for `events` requests. `unpriced_events` of them the draft could not
    price; they were billed `unpriced_pico`, which is in `current_pico` and in nothing else."""

    events: int = 0
    current_pico: int = 0
    draft_pico: int = 0
    unpriced_events: int = 0
    unpriced_pico: int = 0

    @property
    def difference_pico(self) -> int:
        """Return how much more the requests that can be priced would have cost; below zero if less."""
        return self.draft_pico - (self.current_pico - self.unpriced_pico)

    @property
    def difference_bp(self) -> int | None:
        """The same in basis points of what those requests cost, half to even; None where they cost nothing."""
        base = self.current_pico - self.unpriced_pico
        if not base:
            return None
        size = divide_half_even(abs(self.difference_pico) * 10_000, base)
        return -size if self.difference_pico < 0 else size

    def add(self, other: "PreviewComparison") -> None:
        """Add requests that have none in common with these."""
        self.events += other.events
        self.current_pico += other.current_pico
        self.draft_pico += other.draft_pico
        self.unpriced_events += other.unpriced_events
        self.unpriced_pico += other.unpriced_pico


@dataclass(slots=True)
class Preview:
    """The comparison of every organization that would pay by the draft: `discounts` names them, with their basis points."""

    tariff: Tariff
    discounts: Mapping[str, int]
    events: int = 0
    """Read so far, of these organizations and of others."""
    organizations: dict[str, PreviewComparison] = field(default_factory=dict)
    _compiled: dict[tuple[int, int], UnitPrices] = field(default_factory=dict)
    """By identity of the price, which `tariff` keeps, and discount."""

    def add(self, sums: Sequence[UsageSum]) -> None:
        """Add these sums of history to the preview."""
        for each in sums:
            self.events += each.events
            discount_bp = self.discounts.get(each.organization_id)
            if discount_bp is not None:
                self.organizations.setdefault(each.organization_id, PreviewComparison()).add(self._compare(each, discount_bp))

    def total(self) -> PreviewComparison:
        """All organizations together."""
        total = PreviewComparison()
        for each in self.organizations.values():
            total.add(each)
        return total

    def _compare(self, used: UsageSum, discount_bp: int) -> PreviewComparison:
        price = self.tariff.find((used.model, used.tier), used.at)
        if price is None:
            return PreviewComparison(used.events, used.cost_pico, 0, used.events, used.cost_pico)
        key = (id(price), discount_bp)
        units = self._compiled.get(key)
        if units is None:
            units = self._compiled[key] = compile_units(price, discount_bp)
        tokens, request = bills(OUTCOME_POLICIES[used.outcome_policy], used.endpoint, used.outcome, delivered=used.delivered)
        draft_pico = (used.used if tokens else NOTHING).cost(units, used.events if request else 0)
        return PreviewComparison(used.events, used.cost_pico, draft_pico)


def last_month(now: int) -> tuple[int, int]:
    """The calendar month (UTC) before the one of instant `now`: from, inclusive, to, exclusive, in microseconds."""
    this = datetime.fromtimestamp(now // 1_000_000, UTC).replace(day=1, hour=0, minute=0, second=0)
    last = this.replace(year=this.year - 1, month=12) if this.month == 1 else this.replace(month=this.month - 1)
    return int(last.timestamp()) * 1_000_000, int(this.timestamp()) * 1_000_000
