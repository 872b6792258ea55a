"""Usage as tenants read it: buckets of time, costs by line item, and the receipt of one request.

Buckets are cut at whole minutes, hours or days of UTC and come from rollups kept for each of the three, so that a month by day
costs as much to read as an hour by minute. An event belongs to the bucket in which it ended. Tokens are those billed: usage, costs
and ledger show the same facts. A correction is a cost of its own, at the instant at which it was booked: "correction, <model>".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tollway.control.money.ledger import PLATFORM, REVENUE
from tollway.control.money.periods import NOT_KEPT
from tollway.domain.billing_classes import BILLING_CLASSES, QUANTITY_CLASSES, BillingClass
from tollway.domain.corrections import Adjustment, AdjustmentState
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.periods import INSTANT_MAX, Bounds, Period, month_of
from tollway.domain.prices import Offer, RatedLine, amounts, rate
from tollway.domain.proofs import hash_price
from tollway.domain.quarantine import QuarantineState
from tollway.domain.rollups import RankedGroup, Ranking, UsageGroup, UsageQuery
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX
from tollway.domain.usage import UsageEvent, billed
from tollway.storage import corrections as stored_corrections
from tollway.storage import ledger as stored_ledger
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import rejected_records
from tollway.storage import rollups as stored_rollups
from tollway.storage import usage_events as stored_events
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.rollups import OrganizationUse

SNAPSHOT_AGE_US_MAX = SNAPSHOT_AGE_SECONDS_MAX * 1_000_000
"""Longest time for which a gateway prices by what it knew."""

CORRECTION = "correction"
"""Before the model, on the line item of its corrections."""


OTHER = "other"
"""Stands for all organizations that are not named."""

HOUR_US = 3_600_000_000


def list_top(tx: PlatformTx, count_max: int, now: int) -> list[OrganizationUse]:
    """Return the usage in the latest whole hour of the organizations with most tokens, `count_max` at most, and of all others as OTHER."""
    uses = stored_rollups.list_hour(tx, now - now % HOUR_US - HOUR_US)
    rest = uses[count_max:]
    return [*uses[:count_max], OrganizationUse(OTHER, sum(each.requests for each in rest), sum(each.tokens for each in rest))]


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """Usage from `start_at` (inclusive) to `end_at` (exclusive), by group; no groups if there was none."""

    start_at: int
    end_at: int
    groups: tuple[UsageGroup, ...]


@dataclass(frozen=True, slots=True)
class Buckets:
    """Some buckets in order of time, and where the next page begins (None: there is none)."""

    buckets: list[UsageBucket]
    next_at: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a group. `line_item` is None where costs are not split by it; `quantity` is None where no one unit fits."""

    group: dict[str, str]
    line_item: str | None
    quantity: int | None
    amount_pico: int


@dataclass(frozen=True, slots=True)
class PriceValidity:
    """Validity of a price together with the terms that apply it. Instants in microseconds.

    `valid_from`: from when both were valid. `holds_by`: from when at the latest every gateway charges it, because none serves by a snapshot
    that is older than SNAPSHOT_AGE_SECONDS_MAX. `followed_at`: when another price or other terms were valid instead; None if nothing has
    followed yet. `charged_until`: by when at the latest no gateway charges it any more; None together with `followed_at`.
    """

    list: str
    valid_from: int
    holds_by: int
    followed_at: int | None
    charged_until: int | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """An event and what it cost, line by line; when its price could be charged; the billing period in which it is booked, the month in
    which it was served (another one if it came late), and the corrections that were applied to it."""

    event: UsageEvent
    currency: str
    lines: tuple[RatedLine, ...]
    validity: PriceValidity
    period: Period
    served: Bounds
    adjustments: tuple[Adjustment, ...]


class ReceiptWrong(Exception):
    """Stored cost of an event that its price and quantities do not give. `tollway verify` reports the extent."""


def list_buckets(tx: TenantTx, query: UsageQuery, limit: int) -> Buckets:
    """The first `limit` buckets of `query`, whose bounds are cut down to whole buckets: empty ones are there too."""
    width_us = query.width_seconds * 1_000_000
    start_at = query.start_at - query.start_at % width_us
    end_at = min(query.end_at, start_at + limit * width_us)
    found: dict[int, list[UsageGroup]] = {}
    if start_at < end_at:
        for group in stored_rollups.list_usage(tx, replace(query, start_at=start_at, end_at=end_at)):
            found.setdefault(group.start_at, []).append(group)
    buckets = [UsageBucket(at, at + width_us, tuple(found.get(at, ()))) for at in range(start_at, end_at, width_us)]
    next_at = start_at + limit * width_us
    return Buckets(buckets, next_at if next_at < query.end_at else None)


def list_total(tx: TenantTx, query: UsageQuery) -> Buckets:
    """Return the span of `query` as one bucket. Its start is that of a bucket of the width."""
    groups = stored_rollups.list_usage(tx, replace(query, is_whole=True))
    return Buckets([UsageBucket(query.start_at, query.end_at, tuple(groups))], None)


def rank_quantities(tx: TenantTx, query: UsageQuery, quantities: Sequence[str], *, count: int, before_at: int | None = None) -> Ranking:
    """Return the groups of a span that have most of the quantities together, `count` at most. With `before_at`, what they had in the span
    from there to the start of this one is beside it."""
    return stored_rollups.rank_groups(tx, query, quantities, count=count, before_at=before_at)


def rank_costs(tx: TenantTx, query: UsageQuery, *, count: int, before_at: int | None = None) -> Ranking:
    """Return the groups of a span that cost most, in pico, corrections included, as `rank_quantities` does."""
    read_from = query.start_at if before_at is None else before_at
    booked = stored_corrections.list_costs(
        tx, read_from, query.end_at, project_ids=query.project_ids, key_ids=query.key_ids, models=query.models
    )
    if not booked:
        return stored_rollups.rank_groups(tx, query, (), count=count, before_at=before_at)
    found = stored_rollups.rank_groups(tx, query, (), count=None, before_at=before_at)  # corrections change the order
    values = {each.group: [each.value, each.before] for each in found.groups}
    for each in booked:
        group = tuple(getattr(each, name) for name in query.group_by)
        values.setdefault(group, [0, 0])[each.booked_at < query.start_at] += each.amount_pico
    ordered = sorted(values, key=lambda group: (-values[group][0], group))
    return Ranking([RankedGroup(group, *values[group]) for group in ordered[:count]], len(ordered))


LineItem = tuple[str, BillingClass | None]
"""A model and a class; None stands for its corrections."""

LINE_ITEMS = {row.billing_class: row.line_item for row in BILLING_CLASSES}


def parse_line_item(name: str) -> LineItem:
    """Model and class of a line item's name. Raises a Fault for what is none."""
    model, _, item = name.rpartition(", ")
    if model == CORRECTION:
        return item, None
    for row in BILLING_CLASSES:
        if item == row.line_item and model:
            return model, row.billing_class
    raise Fault(PARAMETER_INVALID, param="line_items", message="A line item is '<model>, <class>'.")


def split_costs(group: UsageGroup, by_line_item: bool, wanted: frozenset[LineItem] | None) -> Iterator[Cost]:
    """The costs of a group: one, or one for each billing class that was used. With `wanted`, of those line items only; the group is
    then of one model."""
    if not by_line_item and wanted is None:
        yield Cost(group.group, None, None, group.total_pico)
        return
    model = group.group["model"]
    for row in BILLING_CLASSES:
        billing_class, amount_pico = row.billing_class, group.sums.amounts.get(row.billing_class)
        # Requests are counted whether billed or not, so for that class the sums have no quantity.
        quantity = group.sums.billed.get(billing_class) if billing_class in QUANTITY_CLASSES else None
        if (quantity or amount_pico) and (wanted is None or (model, billing_class) in wanted):
            yield Cost(group.group, f"{model}, {row.line_item}", quantity, amount_pico)


def list_corrections(
    tx: TenantTx, query: UsageQuery, buckets: Buckets, by_line_item: bool, wanted: frozenset[LineItem] | None
) -> list[list[Cost]]:
    """Return what corrections cost in each of the buckets, by group; with `wanted`, of those line items only."""
    costs: list[list[Cost]] = [[] for _ in buckets.buckets]
    if not costs:
        return costs
    start_at = buckets.buckets[0].start_at
    width_us = buckets.buckets[0].end_at - start_at
    booked = stored_corrections.list_costs(
        tx,
        start_at,
        buckets.buckets[-1].end_at,
        project_ids=query.project_ids,
        key_ids=query.key_ids,
        models=query.models,
    )
    sums: dict[tuple[int, tuple[str, ...]], int] = {}
    for each in booked:
        if wanted is None or (each.model, None) in wanted:
            place = ((each.booked_at - start_at) // width_us, tuple(getattr(each, name) for name in query.group_by))
            sums[place] = sums.get(place, 0) + each.amount_pico
    for (at, values), pico in sorted(sums.items()):
        group = dict(zip(query.group_by, values, strict=True))
        costs[at].append(Cost(group, f"{CORRECTION}, {group['model']}" if by_line_item else None, None, pico))
    return costs


def list_period_costs(tx: TenantTx, period: Period) -> dict[LineItem, int]:
    """Return what is booked in a period of the organization, in pico, by line item: the costs of its events, late ones included, and the
    corrections that are booked in it. For a closed period it is what was closed; for an open one the sum so far.

    It comes from the ledger, so that it never differs from the period's own totals and outlives the events.
    """
    costs: dict[LineItem, int] = {}
    for each in stored_ledger.sum_period(tx, period.organization_id, period.start_at, PLATFORM):
        kind, _, name = each.account.kind.partition(":")
        model, billing_class = name, None
        if kind == REVENUE:
            model, _, class_name = name.rpartition(":")
            billing_class = None if each.is_correction else BillingClass(class_name)
        costs[model, billing_class] = costs.get((model, billing_class), 0) - each.amount_pico
    return costs


@dataclass(slots=True)
class CacheSaving:
    """Effect of the prefix cache of the engines on the costs of a model, in pico-currency. `saved_pico`: what the tokens that were read
    from it would have cost more as input; `surcharge_pico`: what those that were written to it cost more than input. Below zero where a
    price is the other way round."""

    model: str
    read_tokens: int = 0
    saved_pico: int = 0
    written_tokens: int = 0
    surcharge_pico: int = 0


def list_cache_savings(tx: TenantTx, period: Period) -> list[CacheSaving]:
    """Return what the prefix cache saved in a period of the organization, by model, at the price of each request: for a closed one what it
    will always be. Amounts follow from events and published prices, and are booked nowhere. Raises STATE_CONFLICT where events of the
    period are not kept any more."""
    sums = list(stored_events.iterate_cache_sums(tx, period))
    if period.closed is not None and sum(each.events for each in sums) != period.closed.events:
        raise Fault(STATE_CONFLICT, message=NOT_KEPT)
    prices = stored_prices.find_prices(tx, {each.price_version for each in sums})
    savings: dict[str, CacheSaving] = {}
    for each in sums:
        if each.read_tokens or each.written_tokens:
            units, saving = prices[each.price_version].unit_prices, savings.setdefault(each.model, CacheSaving(each.model))
            saving.read_tokens += each.read_tokens
            saving.saved_pico += each.read_tokens * (units.input - units.cached_input)
            saving.written_tokens += each.written_tokens
            saving.surcharge_pico += each.written_tokens * (units.get(BillingClass.CACHE_WRITE) - units.input)
    return sorted(savings.values(), key=lambda saving: saving.model)


def name_line_item(line_item: LineItem) -> str:
    """Return the name of a line item, which `parse_line_item` reads."""
    model, billing_class = line_item
    return f"{CORRECTION}, {model}" if billing_class is None else f"{model}, {LINE_ITEMS[billing_class]}"


def get_receipt(tx: TenantTx, request_id: str) -> Receipt:
    """Return the receipt of one of the organization's requests. Raises RESOURCE_UNKNOWN for any other, and until its record has arrived;
    STATE_CONFLICT for one that is not billed because its record is in quarantine or was written off.

    Its lines are computed again, from the event and its price, which never change; ReceiptWrong if that is not what was billed.
    """
    event = stored_events.find_event(tx, request_id)
    if event is None:
        raise _find_quarantine(tx, request_id) or Fault(RESOURCE_UNKNOWN)
    price_id = event.final.admit.price_version
    offer = stored_prices.find_offers(tx, [price_id])[price_id]
    price = offer.price
    quantities = billed(event.final)
    if amounts(quantities, price.unit_prices) != event.amounts:
        raise ReceiptWrong(request_id)
    period = stored_periods.find_period_at(tx, tx.organization_id, event.period_at)
    assert period is not None, "the collector cuts the period first"
    applied = [
        adjustment
        for adjustment in stored_corrections.list_of_event(tx, tx.organization_id, request_id)
        if adjustment.state is AdjustmentState.APPLIED
    ]
    served = _served(tx, event.final.ended_at, period)
    lines = tuple(rate(quantities, price.unit_prices))
    validity = _find_validity(tx, offer, event.final.admit.price_hash)
    if validity is None:
        raise ReceiptWrong(request_id)
    return Receipt(event, price.currency, lines, validity, period, served, tuple(applied))


def _find_validity(tx: TenantTx, offer: Offer, price_hash: str) -> PriceValidity | None:
    """Return when the price of a request could be charged; None if its hash proves no terms of the organization."""
    schedule = stored_prices.get_terms(tx).schedule
    own = (at for at, terms in enumerate(schedule) if hash_price(offer.price, terms.valid_from) == price_hash)
    at = next(own, None)
    if at is None:
        return None
    terms_until = schedule[at + 1].valid_from if at + 1 < len(schedule) else INSTANT_MAX
    valid_from, until = max(offer.price.valid_from, schedule[at].valid_from), min(offer.valid_until, terms_until)
    return PriceValidity(
        list=offer.price.list,
        valid_from=valid_from,
        holds_by=valid_from + SNAPSHOT_AGE_US_MAX,
        followed_at=None if until == INSTANT_MAX else until,
        charged_until=None if until == INSTANT_MAX else until + SNAPSHOT_AGE_US_MAX,
    )


def _find_quarantine(tx: TenantTx, request_id: str) -> Fault | None:
    record = rejected_records.find_own_quarantined(tx, request_id)
    if record is None:
        return None
    if record.state is QuarantineState.WRITTEN_OFF:
        return Fault(STATE_CONFLICT, message="This request was written off: it is not billed.")
    return Fault(STATE_CONFLICT, message="The usage of this request could not be rated yet; it is not billed until that is resolved.")


def _served(tx: TenantTx, at: int, booked: Period) -> Bounds:
    """The month in which something was served, whether it was booked in it or later."""
    if booked.start_at <= at < booked.end_at:
        return Bounds(booked.start_at, booked.end_at)
    own = stored_periods.find_period_with(tx, tx.organization_id, at)
    return month_of(at, booked.time_zone) if own is None else Bounds(own.start_at, own.end_at)
