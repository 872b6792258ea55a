"""The collector: takes in what gateways wrote, exactly once, and turns it into money in one transaction.

Theory of operation. Records of an epoch are numbered without gaps and chained by hash. The epoch's row holds the watermark: the
number expected next, and the chain value before it. A batch that begins below the watermark was sent before; what is below is
skipped, if it leads to the very chain value that is stored. One that begins above is a gap and is refused with the number to go on
from. One whose bytes are not frames, or do not continue the chain, is refused as a whole. The row's lock lasts to the commit, so of
two senders of one epoch the second sees what the first did. Hence any number of deliveries, in any order, have one result.

In the same transaction: the raw frames go to the archive (durable before the commit), each FINAL becomes an event, is rated with
the price version that its ADMIT named (its row keeps what each billing class costs), added to the rollups and booked in the ledger.
An event whose id is known with the same content is a no-op; with other content it is a conflict, kept aside, and never changes
money. What cannot be rated (an organization or price unknown here, counts no request can have) is kept aside too. Both still count
for the watermark: one bad record must not hold up the good ones behind it.

Each event is booked in the billing period in which it ended; if that is being closed, or is, in the first that is not: it is late. The
periods that take bookings are read once for a batch, under locks that keep them open until the commit (`storage.periods`).

The judgement of each record (`judge`) and the sums (`Tally`) are pure, and shared with `verify`, which runs them over the archive.

What makes it fast: a record is looked at once. ADMITs are passed over by their first bytes, since each FINAL repeats its own.
Thousands of events share a few groups (caller, model, price), whose names and price are judged once for all of them. Rows go to the
database in bulk: see `storage.usage`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tollway.control.ledger import book_usage
from tollway.domain.periods import INSTANT_MAX, Calendar
from tollway.domain.prices import BillingClass, PriceVersion, amounts
from tollway.domain.reconciliation import sum_usage
from tollway.domain.usage import (
    ADMIT_HEAD,
    FINAL_HEAD,
    OUTCOME_POLICIES,
    TOKENS_MAX,
    Admit,
    Close,
    Final,
    Tick,
    UsageEvent,
    billed,
    content_hash,
    decode,
    decode_final,
)
from tollway.storage import ledger as stored_ledger
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import reconcile as stored_reconcile
from tollway.storage import usage as stored_usage
from tollway.storage.archive import Archive
from tollway.storage.database import PlatformTx
from tollway.storage.ledger import Posting
from tollway.storage.schema_money import ROLLUP_WIDTHS_SECONDS
from tollway.storage.usage import RollupKey, Stray, Sums, Watermark
from tollway.wire.segments import HEAD_BYTES, Frame, Reader, Tail, first_chain, parse_head

ATTEMPTS_MAX = 1_000
"""Upstreams tried for one request: far above any list of candidates."""


class Gap(Exception):
    """Records before these are missing: go on from `next_seq`."""

    def __init__(self, next_seq: int) -> None:
        super().__init__(f"record {next_seq} is expected")
        self.next_seq = next_seq


class Refused(Exception):
    """The bytes are not the continuation of this epoch. Nothing was taken in; a person must look."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch: the record expected next, and how many records were new, in conflict, or put aside."""

    next_seq: int
    events: int = 0
    conflicts: int = 0
    quarantined: int = 0


def collect(tx: PlatformTx, archive: Archive, *, node_id: str, epoch: int, first_seq: int, body: bytes, now: int) -> Taken:
    """Take in the frames `body`, which begin with record `first_seq` of an epoch. Commit to make it so.

    Raises Gap, Refused, or storage's EventRace (begin again). OSError: the archive could not be written; nothing was taken in.
    """
    watermark = stored_usage.lock_watermark(tx, node_id, epoch, first_chain(node_id, epoch), now)
    if first_seq > watermark.next_seq:
        raise Gap(watermark.next_seq)
    start = _skip_known(body, first_seq, watermark)
    reader = Reader(watermark.next_seq, watermark.chain)
    batch = Batch(node_id, epoch, closed_at=watermark.closed_at, closed_seq=None if watermark.closed_at is None else reader.next_seq - 1)
    batch.take(reader.read(body, start, unless=ADMIT_HEAD))  # not looked into: its FINAL repeats all of an ADMIT
    if reader.end != len(body) or reader.tail is not Tail.CLEAN:
        raise Refused("a frame is broken, or does not continue the chain")
    batch.end(reader.next_seq)
    if reader.next_seq == watermark.next_seq:
        return Taken(watermark.next_seq)
    archive.write(node_id, epoch, watermark.archive_bytes, body[start:])
    tally = _store_events(tx, batch, now)
    stored_usage.insert_strays(tx, tally.conflicts, tally.quarantined, now)
    stored_usage.add_rollups(tx, tally.roll_up())
    stored_reconcile.add_usage(tx, sum_usage(event.final for event in tally.events))
    stored_ledger.post(tx, tally.book(now), now)
    moved = replace(
        watermark,
        next_seq=reader.next_seq,
        chain=reader.chain,
        archive_bytes=watermark.archive_bytes + len(body) - start,
        closed_at=batch.closed_at,
    )
    stored_usage.move_watermark(tx, moved, ticked_at=batch.ticked_at, now=now)
    return Taken(moved.next_seq, len(tally.events), len(tally.conflicts), len(tally.quarantined))


def find_next_seq(tx: PlatformTx, node_id: str, epoch: int) -> int:
    """The record of an epoch that is expected next; 1 for an epoch that was never heard of."""
    return stored_usage.find_next_seq(tx, node_id, epoch)


def _skip_known(body: bytes, first_seq: int, watermark: Watermark) -> int:
    """Where in `body` the first record stands that is not taken in yet."""
    offset, seq, chain = 0, first_seq, None
    while seq < watermark.next_seq and offset < len(body):
        head = parse_head(body, offset)
        if head is None or head[1] != seq or offset + HEAD_BYTES + head[0] > len(body):
            raise Refused("not a run of frames from the given seq on")
        offset, seq, chain = offset + HEAD_BYTES + head[0], seq + 1, head[2]
    if seq == watermark.next_seq and chain is not None and chain != watermark.chain:
        raise Refused("these are not the records that were taken in before")
    return offset


# ---- Judging records --------------------------------------------------------------------------------------------------

_NAMES = re.compile(r"(?:[!-~]{1,64}\n){6}[!-~]{1,128}")
"""Ids, endpoint and service tier of at most 64 visible ASCII characters, and a model's name."""

_NAME = re.compile(r"[!-~]{1,64}")


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """What many events have in common: one key of one organization, model, endpoint, price and service tier. `admit` is that of the
    first of them; what is particular to it is not looked at."""

    admit: Admit
    is_valid: bool


GroupKey = tuple[str, str, str, str, str, str, str]


@dataclass(slots=True)
class Batch:
    """The records of one epoch that matter here, sorted out: FINALs with place and bytes, what is no valid record (and why), CLOSE."""

    node_id: str
    epoch: int
    finals: list[tuple[Frame, Final, Group]] = field(default_factory=list)
    groups: dict[GroupKey, Group] = field(default_factory=dict)
    unreadable: list[tuple[Frame, str]] = field(default_factory=list)
    ticked_at: int | None = None
    closed_at: int | None = None
    closed_seq: int | None = None
    _names: set[str | None] = field(default_factory=lambda: {None})
    """Of deployments and errors, that were seen to be valid."""

    def take(self, frames: Iterable[Frame]) -> None:
        """Sort out records; ADMITs may be left out."""
        for frame in frames:
            payload = frame.payload
            try:
                record = decode_final(payload) if payload.startswith(FINAL_HEAD) else decode(payload)
            except ValueError:
                self.unreadable.append((frame, "unreadable"))
                continue
            if isinstance(record, Final):
                group = self._find_group(record.admit)
                if group.is_valid and self._is_valid(record):
                    self.finals.append((frame, record, group))
                else:
                    self.unreadable.append((frame, "invalid"))
            elif isinstance(record, Tick):
                self.ticked_at = min(max(record.at, 0), INSTANT_MAX)
            elif isinstance(record, Close) and self.closed_seq is None:
                self.closed_at, self.closed_seq = min(max(record.at, 0), INSTANT_MAX), frame.seq

    def end(self, next_seq: int) -> None:
        """Raises Refused if the records up to `next_seq` go on after CLOSE."""
        if self.closed_seq is not None and next_seq != self.closed_seq + 1:
            raise Refused("a record after CLOSE")

    def _find_group(self, admit: Admit) -> Group:
        key = (
            admit.organization_id,
            admit.project_id,
            admit.key_id,
            admit.endpoint,
            admit.price_version,
            admit.service_tier,
            admit.model,
        )
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(admit, _NAMES.fullmatch("\n".join(key)) is not None)
        return group

    def _is_valid(self, final: Final) -> bool:
        """Whether a gateway can have written this: bounded counts and instants, names as names, a policy that we published."""
        admit, used = final.admit, final.used
        return (
            0 <= used.input <= TOKENS_MAX
            and 0 <= used.cached_input <= TOKENS_MAX
            and 0 <= used.output <= TOKENS_MAX
            and 0 <= used.reasoning <= TOKENS_MAX
            and 0 <= admit.admitted_at <= INSTANT_MAX
            and 0 <= final.ended_at <= INSTANT_MAX
            and 0 <= (final.first_token_at or 0) <= INSTANT_MAX
            and 0 <= final.attempts <= ATTEMPTS_MAX
            and admit.outcome_policy in OUTCOME_POLICIES
            and _NAME.fullmatch(admit.request_id) is not None
            and (final.deployment_id in self._names or self._is_name(final.deployment_id))
            and (final.error in self._names or self._is_name(final.error))
        )

    def _is_name(self, text: str | None) -> bool:
        if text is None or _NAME.fullmatch(text) is None:
            return False
        self._names.add(text)
        return True


@dataclass(frozen=True, slots=True)
class Payer:
    """An organization that may owe: its currency, and the price lists that were ever in its terms."""

    currency: str
    lists: frozenset[str]


@dataclass(slots=True)
class Tally:
    """What a run of records comes to: events with what they cost, what was put aside, and the sums."""

    payers: Mapping[str, Payer]
    prices: Mapping[str, PriceVersion]
    calendars: Mapping[str, Calendar]
    """The billing periods of each organization; those that are cut here must be stored."""
    known: dict[str, bytes]
    """Content hashes of events already taken in, by id; grows with each one that is added."""
    events: list[UsageEvent] = field(default_factory=list)
    sums: dict[tuple[Group, int, int], Sums] = field(default_factory=dict)
    """Of the events, by group, minute (since 1970) of their end, and billing period."""
    conflicts: list[Stray] = field(default_factory=list)
    quarantined: list[Stray] = field(default_factory=list)

    def add(self, batch: Batch, taken: Mapping[str, UsageEvent] | None = None) -> None:
        """Judge every FINAL of a batch, in order. `taken`: the events that were taken in, for whoever does not know in which order
        epochs were: where several records have one id, the one that became the event; and what was late when it came."""
        for frame, flaw in batch.unreadable:
            self.quarantined.append(_stray(batch, frame, None, b"", flaw))
        judged = {group: judge(group.admit, self.payers, self.prices) for group in batch.groups.values() if group.is_valid}
        node_id, epoch, known, calendars, all_sums = batch.node_id, batch.epoch, self.known, self.calendars, self.sums
        for frame, final, group in batch.finals:
            event_id, hashed, price = final.admit.request_id, content_hash(frame.payload), judged[group]
            if isinstance(price, str):
                self.quarantined.append(_stray(batch, frame, event_id, hashed, price))
                continue
            tokens, requests = billed(final)
            try:
                costs = amounts(tokens, requests, price)
            except OverflowError:
                self.quarantined.append(_stray(batch, frame, event_id, hashed, "amount_too_large"))
                continue
            other, event = known.get(event_id), None
            if other is None and taken is not None:
                event = taken.get(event_id)
                if event is not None and (event.node_id, event.epoch, event.seq) != (node_id, epoch, frame.seq):
                    other = event.content_hash
            if other is not None:
                if other != hashed:
                    self.conflicts.append(_stray(batch, frame, event_id, hashed, "conflict"))
                continue
            known[event_id] = hashed
            period_at = calendars[group.admit.organization_id].place(final.ended_at) if event is None else event.period_at
            self.events.append(
                UsageEvent(
                    node_id=node_id, epoch=epoch, seq=frame.seq, final=final, content_hash=hashed, amounts=costs, period_at=period_at
                )
            )
            place = (group, final.ended_at // 60_000_000, period_at)
            sums = all_sums.get(place)
            if sums is None:
                sums = all_sums[place] = Sums()
            sums.add_event(tokens, costs)

    def roll_up(self) -> dict[RollupKey, Sums]:
        """The sums of all events by minute, hour and day of their end, tokens as billed."""
        rollups: dict[RollupKey, Sums] = {}
        for (group, minute, _period_at), sums in self.sums.items():
            admit = group.admit
            for width_seconds in ROLLUP_WIDTHS_SECONDS:
                start_at = minute * 60 // width_seconds * width_seconds * 1_000_000
                key = (admit.organization_id, width_seconds, start_at, admit.project_id, admit.key_id, admit.model, admit.endpoint)
                rolled = rollups.get(key)
                if rolled is None:
                    rolled = rollups[key] = Sums()
                rolled.add(sums)
        return rollups

    def book(self, now: int) -> list[Posting]:
        """The ledger transactions for all events, which are of one batch: one for each organization and period in which something is
        owed."""
        costs: dict[Booking, Costs] = {}
        counts: dict[Booking, int] = {}
        for (group, _minute, period_at), sums in self.sums.items():
            model, booking = group.admit.model, (group.admit.organization_id, period_at)
            counts[booking] = counts.get(booking, 0) + sums.requests
            together = costs.setdefault(booking, {})
            for billing_class, pico in sums.costs.items():
                together[model, billing_class] = together.get((model, billing_class), 0) + pico
        first, last = _first_of_each(self.events, len(counts)), _first_of_each(reversed(self.events), len(counts))
        postings = (
            book_usage(first[booking], last[booking], count, costs[booking], self.payers[booking[0]].currency, now)
            for booking, count in sorted(counts.items())
        )
        return [posting for posting in postings if posting is not None]


Booking = tuple[str, int]
"""Organization and period."""


def _first_of_each(events: Iterable[UsageEvent], bookings: int) -> dict[Booking, UsageEvent]:
    """The first event of each organization and period, of which there are that many."""
    first: dict[Booking, UsageEvent] = {}
    for event in events:
        if first.setdefault((event.final.admit.organization_id, event.period_at), event) is event and len(first) == bookings:
            break
    return first


Costs = dict[tuple[str, BillingClass], int]
"""Pico-currency by model and billing class; nothing is zero."""


def costs_of(events: Sequence[UsageEvent]) -> Costs:
    """What events cost together."""
    costs: Costs = {}
    for event in events:
        model = event.final.admit.model
        for billing_class in BillingClass:
            pico = getattr(event.amounts, billing_class)
            if pico:
                costs[model, billing_class] = costs.get((model, billing_class), 0) + pico
    return costs


def judge(admit: Admit, payers: Mapping[str, Payer], prices: Mapping[str, PriceVersion]) -> PriceVersion | str:
    """The price of a valid FINAL, or why it cannot be rated. Pure, and the same for all of a group.

    A list that was ever in the organization's terms will do: a gateway that has not heard of new terms admits by those before.
    """
    payer, price = payers.get(admit.organization_id), prices.get(admit.price_version)
    if payer is None:
        return "organization_unknown"
    if price is None:
        return "price_unknown"
    is_payers = price.currency == payer.currency and price.list in payer.lists
    if not is_payers or price.model != admit.model or price.tier is not admit.service_tier:
        return "price_not_applicable"
    return price


def list_payers(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, Payer]:
    """Those of the organizations that exist, archived or not (what was used is owed), as `judge` needs them."""
    return {
        id: Payer(terms.currency, frozenset(each.list for each in terms.schedule))
        for id, terms in stored_prices.read_terms(tx, sorted(organization_ids)).items()
    }


def _store_events(tx: PlatformTx, batch: Batch, now: int) -> Tally:
    """Judge a batch and store its events, with the periods that they are the first of.

    As if none of their ids were known, which is nearly always so, and the database says when it is not: then again, knowing which. To
    look first would cost as much as to store.
    """
    admits = [group.admit for group in batch.groups.values() if group.is_valid]
    organization_ids = {admit.organization_id for admit in admits}
    payers = list_payers(tx, organization_ids)
    prices = stored_prices.find_prices(tx, {admit.price_version for admit in admits})
    calendars = stored_periods.open_calendars(tx, organization_ids)
    tally = Tally(payers, prices, calendars, known={})
    tally.add(batch)
    stored_periods.insert_cut(tx, calendars.values(), now)
    try:
        stored_usage.insert_events(tx, tally.events)
    except stored_usage.EventRace:
        known = stored_usage.find_hashes(tx, [final.admit.request_id for _, final, _ in batch.finals])
        tally = Tally(payers, prices, calendars, known)
        tally.add(batch)
        stored_usage.insert_events(tx, tally.events)
    return tally


def _stray(batch: Batch, frame: Frame, event_id: str | None, hashed: bytes, reason: str) -> Stray:
    return Stray(batch.node_id, batch.epoch, frame.seq, event_id, frame.payload, hashed, reason)
