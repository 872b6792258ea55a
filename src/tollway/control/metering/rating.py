"""Rating: which records become events, what each event costs, and the sums of a batch. Pure; shared by the collector and `verify`.

What an event shares with its group (`batches`) is decided once for the group: which price applies, what the outcome policy bills, how the
columns of the row read. Sums are computed in the same pass: `MinuteSums` is what a group comes to in one minute, one billing period and one
hour of its first tokens. Rating only multiplies, so the amounts of such a sum are its quantities times the unit prices. Rollups, postings
and what engines did follow from them.

`RatedBatch.rate` is a generator, so that the database stores the first rows while the last are rated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from tollway.control.metering.batches import Batch, EventGroup, FinalRecord
from tollway.control.money.ledger import book_usage
from tollway.domain.billing_classes import NOTHING, Amounts, Direction, Quantities, UnitPrices, add_up
from tollway.domain.epochs import CLOCKS_APART_US
from tollway.domain.ledger import Posting, UsageCause
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.periods import INSTANT_MAX, Calendar
from tollway.domain.prices import Offer, PriceTerms, PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.reconciliation import HOUR_US, UNKNOWN_DEPLOYMENT, EngineUsage, UsageKey
from tollway.domain.rollups import ROLLUP_WIDTHS_SECONDS, RollupKey, UsageSums, rollup_endpoint
from tollway.domain.snapshot import SNAPSHOT_AGE_SECONDS_MAX
from tollway.domain.usage import OUTCOME_POLICIES, TOKENS_MAX, Admit, Outcome, RejectedRecord, bills, content_hash
from tollway.storage.usage_events import EventColumns, EventRow

MINUTE_US = 60_000_000


PRICE_LAG_US = SNAPSHOT_AGE_SECONDS_MAX * 1_000_000 + CLOCKS_APART_US
"""Longest time after the end of a price's validity, or of terms, in which a gateway may still admit by it: its snapshot may be so old, and
clocks so far apart."""


@dataclass(frozen=True, slots=True)
class BillingAccount:
    """An organization that may owe: its currency, and all of its terms, ordered by valid_from."""

    currency: str
    terms: tuple[PriceTerms, ...]


class RecordPlace(NamedTuple):
    """The place of a record."""

    node_id: str
    epoch: int
    seq: int


class StoredEvent(NamedTuple):
    """The place and the content hash of the record that became an event."""

    place: RecordPlace
    content_hash: bytes


class ProvenPrice(NamedTuple):
    """The price of a group of events, and when it can have been admitted under: from `from_at` (inclusive) until `until_at` (exclusive)."""

    price: PriceVersion
    from_at: int
    until_at: int


def find_proven_price(admit: Admit, accounts: Mapping[str, BillingAccount], offers: Mapping[str, Offer]) -> ProvenPrice | str:
    """Return the price of a valid FINAL, or the reason why it cannot be rated. Pure, and the same for all events of a group.

    The record's own hash decides whether the price and the terms are those under which its request was admitted. Terms that others have
    followed apply for PRICE_LAG_US more: a gateway that does not know new ones yet admits by those before.
    """
    account, offer = accounts.get(admit.organization_id), offers.get(admit.price_version)
    if account is None:
        return "organization_unknown"
    if offer is None:
        return "price_unknown"
    price = offer.price
    own = [at for at, terms in enumerate(account.terms) if terms.list == price.list]
    if price.currency != account.currency or not own or price.model != admit.model or price.tier is not admit.service_tier:
        return "price_not_applicable"
    at = next((at for at in own if hash_price(price, account.terms[at].valid_from) == admit.price_hash), None)
    if at is None:
        return "price_unproven"
    terms_until = account.terms[at + 1].valid_from if at + 1 < len(account.terms) else INSTANT_MAX
    return ProvenPrice(price, max(price.valid_from, account.terms[at].valid_from), min(offer.valid_until, terms_until) + PRICE_LAG_US)


@dataclass(frozen=True, slots=True)
class GroupRating:
    """The rule by which the events of a group are rated.

    `from_at`, `until_at`: when they can have been admitted (`ProvenPrice`).
    `bills`, `bills_delivered`: whether quantities are billed always, or once output was delivered. `requests`: 1 if the request itself
    is billed where its quantities are, else 0. `is_bounded`: whether no quantities that a record may state cost too much to be stored.
    """

    unit_prices: UnitPrices
    is_bounded: bool
    from_at: int
    until_at: int
    bills: bool
    bills_delivered: bool
    requests: int
    reached_engine: bool
    calendar: Calendar
    template: EventColumns


class MinuteKey(NamedTuple):
    """The key of one MinuteSums within its group.

    `minute` of the end, `first_token_hour` (that of the end, if there was no token), both since 1970; the period in which they are booked;
    whether they are billed; whether an engine received them.
    """

    minute: int
    first_token_hour: int
    period_at: int
    is_billed: bool
    reached_engine: bool


@dataclass(slots=True)
class MinuteSums:
    """The sum of the events of one group and MinuteKey: their rows, in the order of their records. Once it was asked for, no event may be
    added any more. Quantities are as used."""

    group: EventGroup
    rating: GroupRating
    key: MinuteKey
    rows: list[EventRow] = field(default_factory=list)
    _used: Quantities | None = None
    _sums: UsageSums | None = None

    @property
    def requests(self) -> int:
        """The number of events."""
        return len(self.rows)

    @property
    def used(self) -> Quantities:
        """The sum of what they used."""
        if self._used is None:
            self._used = add_up([row.used for row in self.rows])
        return self._used

    def sums(self) -> UsageSums:
        """Return quantities as billed, and what they cost; of test keys quantities as counted, at no cost."""
        if self._sums is None:
            self._sums = self._add_up()
        return self._sums

    def _add_up(self) -> UsageSums:
        if not self.key.is_billed:
            return UsageSums(self.requests, self.used if self.group.admit.test else NOTHING)
        rating = self.rating
        return UsageSums(self.requests, self.used, self.used.times(rating.unit_prices, self.requests * rating.requests))


@dataclass(slots=True)
class RatedBatch:
    """The result of rating a batch: the number of events, the rejected records, and the sums."""

    accounts: Mapping[str, BillingAccount]
    offers: Mapping[str, Offer]
    calendars: Mapping[str, Calendar]
    """The billing periods of each organization; those that are added here must be stored."""
    known: dict[str, bytes]
    """Content hashes of events that are stored already, by id; grows with each event."""
    events: int = 0
    minutes: list[MinuteSums] = field(default_factory=list)
    conflicts: list[RejectedRecord] = field(default_factory=list)
    quarantined: list[RejectedRecord] = field(default_factory=list)

    def rate(self, batch: Batch, stored: Mapping[str, StoredEvent] | None = None) -> Iterator[EventRow]:
        """Rate every FINAL of a batch, in order, and yield the rows of those that are events.

        `stored`: the records that became events, by id, for a caller that does not know in which order epochs were ingested: where several
        records have one id, the one of that place became the event.
        """
        node_id, epoch, known = batch.node_id, batch.epoch, self.known
        self.quarantined += batch.unreadable
        groups: dict[EventGroup, tuple[GroupRating | str, dict[tuple[int, ...], MinuteSums]]]
        groups = {group: (self._rate_group(batch, group), {}) for group in batch.groups if group.is_valid}
        for record in batch.finals:
            used, ended_at, event_id, hashed = record.used, record.ended_at, record.event_id, content_hash(record.payload)
            rating, minutes = groups[record.group]
            if isinstance(rating, str):
                self.quarantined.append(_rejected(batch, record, hashed, rating))
                continue
            if not rating.from_at <= record.admitted_at < rating.until_at:
                self.quarantined.append(_rejected(batch, record, hashed, "price_not_valid"))
                continue
            amounts = NOTHING
            is_billed = rating.bills or (rating.bills_delivered and used.output_tokens > 0)
            if is_billed:
                amounts = used.times(rating.unit_prices, rating.requests)
                if not rating.is_bounded and amounts.bits > AMOUNT_PICO_MAX:
                    self.quarantined.append(_rejected(batch, record, hashed, "amount_too_large"))
                    continue
            other = known.get(event_id)
            if other is None and stored is not None and event_id in stored:
                place, stored_hash = stored[event_id]
                other = None if place == (node_id, epoch, record.seq) else stored_hash
            if other is not None:
                if other != hashed:
                    self.conflicts.append(_rejected(batch, record, hashed, "conflict"))
                continue
            known[event_id] = hashed
            period_at = rating.calendar.place(ended_at)
            first_at = record.first_token_at
            first_token_at = ended_at if first_at is None or first_at > ended_at else first_at
            reached_engine = rating.reached_engine or used.bits > 0
            row = EventRow(event_id, record.seq, record.admitted_at, first_at, ended_at, used, amounts, period_at, hashed, rating.template)
            # A plain tuple finds the MinuteKey that it equals, and is made in a fifth of the time.
            key = (ended_at // MINUTE_US, first_token_at // HOUR_US, period_at, is_billed, reached_engine)
            minute = minutes.get(key)
            if minute is None:
                minute = minutes[key] = MinuteSums(record.group, rating, MinuteKey(*key))
                self.minutes.append(minute)
            minute.rows.append(row)
            self.events += 1
            yield row

    def _rate_group(self, batch: Batch, group: EventGroup) -> "GroupRating | str":
        proven, final, admit = find_proven_price(group.admit, self.accounts, self.offers), group.final, group.admit
        if isinstance(proven, str):
            return proven
        policy, is_live = OUTCOME_POLICIES[admit.outcome_policy], not admit.test
        bills_tokens, bills_request = bills(policy, admit.endpoint, final.outcome, delivered=False)
        bills_delivered, bills_delivered_request = bills(policy, admit.endpoint, final.outcome, delivered=True)
        return GroupRating(
            unit_prices=proven.price.unit_prices,
            is_bounded=TOKENS_MAX * proven.price.unit_prices.bits <= AMOUNT_PICO_MAX,
            from_at=proven.from_at,
            until_at=proven.until_at,
            bills=is_live and bills_tokens,
            bills_delivered=is_live and bills_delivered,
            requests=int(bills_request or bills_delivered_request),
            reached_engine=final.deployment_id is not None,
            calendar=self.calendars[admit.organization_id],
            template=EventColumns.of(batch.node_id, batch.epoch, final),
        )

    def roll_up(self) -> dict[RollupKey, UsageSums]:
        """Return the sums of all events by minute, hour and day of their end, quantities as billed. Several keys may have the same object:
        whoever adds to one makes another."""
        rollups: dict[RollupKey, UsageSums] = {}
        for minute in self.minutes:
            admit, sums, minute_at = minute.group.admit, minute.sums(), minute.key.minute * MINUTE_US
            endpoint = rollup_endpoint(admit.endpoint, test=admit.test)
            for width_seconds in ROLLUP_WIDTHS_SECONDS:
                start_at = minute_at - minute_at % (width_seconds * 1_000_000)
                key = RollupKey(admit.organization_id, width_seconds, start_at, admit.project_id, admit.key_id, admit.model, endpoint)
                rolled = rollups.get(key)
                rollups[key] = sums if rolled is None else rolled + sums
        return rollups

    def sum_usage(self) -> dict[UsageKey, EngineUsage]:
        """Return what `domain.reconciliation.sum_usage` makes of the same requests one by one, as `verify` does."""
        usage: dict[UsageKey, EngineUsage] = {}
        for minute in self.minutes:
            key, used = minute.key, minute.used
            if not key.reached_engine:
                continue
            final = minute.group.final
            deployment_id, model = final.deployment_id or UNKNOWN_DEPLOYMENT, final.admit.model
            ended = usage.setdefault((key.minute * MINUTE_US // HOUR_US * HOUR_US, deployment_id, model), EngineUsage())
            ended.requests += minute.requests
            ended.incomplete += minute.requests if final.outcome is not Outcome.COMPLETED else 0
            ended.retried += minute.requests if final.attempts > 1 else 0
            ended.anomalous += minute.requests if final.anomaly is not None else 0
            ended.output += used.sum_of(Direction.OUTPUT)
            first = usage.setdefault((key.first_token_hour * HOUR_US, deployment_id, model), EngineUsage())
            first.add_input(used, final.admit.choices)
        return usage

    def sum_costs(self) -> dict[str, dict[str, Amounts]]:
        """Return what the events cost, by organization and model."""
        costs: dict[str, dict[str, Amounts]] = {}
        for minute in self.minutes:
            _add_costs(costs.setdefault(minute.group.admit.organization_id, {}), minute)
        return costs

    def book(self, batch: Batch, now: int) -> list[Posting]:
        """Return the ledger transactions for all events: one for each organization and period in which something is owed."""
        booked: dict[tuple[str, int], list[MinuteSums]] = {}
        for minute in self.minutes:
            booked.setdefault((minute.group.admit.organization_id, minute.key.period_at), []).append(minute)
        postings = []
        for (organization_id, period_at), minutes in sorted(booked.items(), key=lambda each: each[0]):
            costs: dict[str, Amounts] = {}
            for minute in minutes:
                _add_costs(costs, minute)
            first_seq, last = min(minute.rows[0].seq for minute in minutes), max((minute.rows[-1] for minute in minutes), key=_seq_of)
            cause = UsageCause(batch.node_id, batch.epoch, first_seq, last.seq, sum(minute.requests for minute in minutes))
            currency = self.accounts[organization_id].currency
            posting = book_usage(organization_id, period_at, cause, last.ended_at, costs, currency, now)
            if posting is not None:
                postings.append(posting)
        return postings


_seq_of = attrgetter("seq")


def _add_costs(costs: dict[str, Amounts], minute: MinuteSums) -> None:
    model, amounts = minute.group.admit.model, minute.sums().amounts
    if amounts.bits:
        costs[model] = costs.get(model, NOTHING) + amounts


def _rejected(batch: Batch, record: FinalRecord, hashed: bytes, reason: str) -> RejectedRecord:
    return RejectedRecord(
        node_id=batch.node_id,
        epoch=batch.epoch,
        seq=record.seq,
        event_id=record.event_id,
        payload=record.payload,
        content_hash=hashed,
        reason=reason,
        organization_id=record.group.admit.organization_id,
        served_at=record.ended_at,
    )
