"""The collector: takes in what gateways wrote, exactly once, and turns it into money in one transaction.

Theory of operation. Records of an epoch are numbered without gaps and chained by hash. The epoch's row holds the watermark: the
number expected next, and the chain value before it. A batch that begins below the watermark was sent before; what is below is
skipped, if it leads to the very chain value that is stored. One that begins above is a gap and is refused with the number to go on
from. One whose bytes are not frames, or do not continue the chain, is refused as a whole. The row's lock lasts to the commit, so of
two senders of one epoch the second sees what the first did. Hence any number of deliveries, in any order, have one result.

In the same transaction: the raw frames go to the archive (durable before the commit), each FINAL becomes an event, is rated with
the price version that its ADMIT named, added to the rollups and booked in the ledger. An event whose id is known with the same
content is a no-op; with other content it is a conflict, kept aside, and never changes money. What cannot be rated (an organization
or price unknown here, counts no request can have) is kept aside too. Both still count for the watermark: one bad record must not
hold up the good ones behind it.

The judgement of each record (`judge`) and the sums (`Tally`) are pure, and shared with `verify`, which runs them over the archive.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tollway.control.ledger import book_usage
from tollway.domain.prices import BillingClass, PriceVersion, RatedLine, rate
from tollway.domain.usage import (
    OUTCOME_POLICIES,
    TOKENS_MAX,
    Close,
    Final,
    Tick,
    UsageEvent,
    billed,
    content_hash,
    decode,
)
from tollway.storage import ledger as stored_ledger
from tollway.storage import usage as stored_usage
from tollway.storage.archive import Archive
from tollway.storage.database import PlatformTx
from tollway.storage.ledger import Posting
from tollway.storage.schema_money import ROLLUP_WIDTHS_SECONDS
from tollway.storage.usage import RollupKey, Stray, Sums, Watermark
from tollway.wire.segments import HEAD_BYTES, Frame, Reader, Tail, first_chain, parse_head

INSTANT_MAX = 2**53
"""Microseconds: the year 2255. Later ones are a broken clock, or not an instant."""


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
    frames, reader = _read_new(body, start, watermark)
    if not frames:
        return Taken(watermark.next_seq)
    batch = _sort_out(frames, watermark)
    archive.write(node_id, epoch, watermark.archive_bytes, body[start:])
    tally = _judge_all(tx, batch)
    stored_usage.insert_events(tx, tally.events, tally.lines)
    stored_usage.insert_strays(tx, tally.conflicts, tally.quarantined, now)
    stored_usage.add_rollups(tx, tally.roll_up())
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


def _read_new(body: bytes, start: int, watermark: Watermark) -> tuple[list[Frame], Reader]:
    reader = Reader(watermark.next_seq, watermark.chain)
    frames = list(reader.read(body, start)) if start < len(body) else []
    if (frames[-1].end if frames else start) != len(body) or reader.tail is not Tail.CLEAN:
        raise Refused("a frame is broken, or does not continue the chain")
    return frames, reader


# ---- Judging records --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Batch:
    """The records of one epoch that matter here, sorted out: FINALs with place and bytes, what is no valid record (and why), instants."""

    node_id: str
    epoch: int
    finals: list[tuple[Frame, Final]] = field(default_factory=list)
    unreadable: list[tuple[Frame, str]] = field(default_factory=list)
    ticked_at: int | None = None
    closed_at: int | None = None

    def take(self, frame: Frame) -> None:
        """Sort out one record. Raises Refused if nothing may follow any more."""
        if self.closed_at is not None:
            raise Refused("a record after CLOSE")
        try:
            record = decode(frame.payload)
        except ValueError:
            self.unreadable.append((frame, "unreadable"))
            return
        if isinstance(record, Final):
            if is_valid(record):
                self.finals.append((frame, record))
            else:
                self.unreadable.append((frame, "invalid"))
        elif isinstance(record, Tick):
            self.ticked_at = min(max(record.at, 0), INSTANT_MAX)
        elif isinstance(record, Close):
            self.closed_at = min(max(record.at, 0), INSTANT_MAX)


def _sort_out(frames: Sequence[Frame], watermark: Watermark) -> Batch:
    batch = Batch(watermark.node_id, watermark.epoch, closed_at=watermark.closed_at)
    for frame in frames:
        batch.take(frame)
    return batch


@dataclass(slots=True)
class Tally:
    """What a run of records comes to: events with their rated lines, what was put aside, and the sums."""

    currencies: Mapping[str, str]
    prices: Mapping[str, PriceVersion]
    known: dict[str, bytes]
    """Content hashes of events already taken in, by id; grows with each one that is added."""
    events: list[UsageEvent] = field(default_factory=list)
    lines: dict[str, list[RatedLine]] = field(default_factory=dict)
    conflicts: list[Stray] = field(default_factory=list)
    quarantined: list[Stray] = field(default_factory=list)

    def add(self, batch: Batch, taken: Mapping[str, UsageEvent] | None = None) -> None:
        """Judge every FINAL of a batch, in order. `taken`: the events that were taken in, for whoever does not know in which order
        epochs were: where several records have one id, the one that became the event."""
        for frame, flaw in batch.unreadable:
            self.quarantined.append(_stray(batch, frame, None, b"", flaw))
        for frame, final in batch.finals:
            event_id, hashed = final.admit.request_id, content_hash(frame.payload)
            judged = judge(final, self.currencies, self.prices)
            if isinstance(judged, str):
                self.quarantined.append(_stray(batch, frame, event_id, hashed, judged))
                continue
            known = self.known.get(event_id)
            event = None if taken is None or known is not None else taken.get(event_id)
            if event is not None and (event.node_id, event.epoch, event.seq) != (batch.node_id, batch.epoch, frame.seq):
                known = event.content_hash
            if known is None:
                self.known[event_id] = hashed
                self.lines[event_id] = judged
                self.events.append(UsageEvent(node_id=batch.node_id, epoch=batch.epoch, seq=frame.seq, final=final, content_hash=hashed))
            elif known != hashed:
                self.conflicts.append(_stray(batch, frame, event_id, hashed, "conflict"))

    def roll_up(self) -> dict[RollupKey, Sums]:
        """The sums of all events by minute, hour and day of their end, tokens as billed."""
        by_minute: dict[tuple[int, str, str, str, str, str], Sums] = {}
        for event in self.events:
            final, admit = event.final, event.final.admit
            place = (
                final.ended_at // 60_000_000,
                admit.organization_id,
                admit.project_id,
                admit.key_id,
                admit.model,
                admit.endpoint,
            )
            sums = by_minute.get(place)
            if sums is None:
                sums = by_minute[place] = Sums()
            sums.add_event(billed(final)[0], self.lines[admit.request_id])
        rollups: dict[RollupKey, Sums] = {}
        for (minute, organization_id, project_id, key_id, model, endpoint), sums in by_minute.items():
            for width_seconds in ROLLUP_WIDTHS_SECONDS:
                start_at = minute * 60 // width_seconds * width_seconds * 1_000_000
                key = (organization_id, width_seconds, start_at, project_id, key_id, model, endpoint)
                rollups.setdefault(key, Sums()).add(sums)
        return rollups

    def book(self, now: int) -> list[Posting]:
        """The ledger transactions for all events, which are of one batch: one for each organization that owes something."""
        by_organization: dict[str, list[UsageEvent]] = {}
        for event in self.events:
            by_organization.setdefault(event.final.admit.organization_id, []).append(event)
        postings = []
        for organization_id, events in sorted(by_organization.items()):
            posting = book_usage(events, self.costs_of(events), self.currencies[organization_id], now)
            if posting is not None:
                postings.append(posting)
        return postings

    def costs_of(self, events: Sequence[UsageEvent]) -> dict[tuple[str, BillingClass], int]:
        """What events cost together, by model and billing class."""
        costs: dict[tuple[str, BillingClass], int] = {}
        for event in events:
            admit = event.final.admit
            for line in self.lines[admit.request_id]:
                place = (admit.model, line.billing_class)
                costs[place] = costs.get(place, 0) + line.amount_pico
        return costs


def judge(final: Final, currencies: Mapping[str, str], prices: Mapping[str, PriceVersion]) -> list[RatedLine] | str:
    """The rated lines of a valid FINAL, or why it cannot be rated. Pure: the same record and prices give the same."""
    admit = final.admit
    currency, price = currencies.get(admit.organization_id), prices.get(admit.price_version)
    if currency is None:
        return "organization_unknown"
    if price is None:
        return "price_unknown"
    if price.model != admit.model or price.currency != currency:
        return "price_not_applicable"
    tokens, requests = billed(final)
    try:
        return rate(tokens, requests, price)
    except OverflowError:
        return "amount_too_large"


_NAMES = re.compile(r"(?:[!-~]{1,64}\n){8}[!-~]{1,128}")
"""Ids, endpoint and error of at most 64 visible ASCII characters, and a model's name."""


def is_valid(final: Final) -> bool:
    """Whether a FINAL is one that a gateway can have written: bounded counts and instants, names as names, a policy we published."""
    admit, used = final.admit, final.used
    names = (
        f"{admit.request_id}\n{admit.organization_id}\n{admit.project_id}\n{admit.key_id}\n{admit.price_version}\n"
        f"{admit.endpoint}\n{final.deployment_id or '-'}\n{final.error or '-'}\n{admit.model}"
    )
    return (
        _NAMES.fullmatch(names) is not None
        and 0 <= used.input <= TOKENS_MAX
        and 0 <= used.cached_input <= TOKENS_MAX
        and 0 <= used.output <= TOKENS_MAX
        and 0 <= used.reasoning <= TOKENS_MAX
        and 0 <= admit.admitted_at <= INSTANT_MAX
        and 0 <= final.ended_at <= INSTANT_MAX
        and 0 <= (final.first_token_at or 0) <= INSTANT_MAX
        and 0 <= final.attempts <= ATTEMPTS_MAX
        and admit.outcome_policy in OUTCOME_POLICIES
    )


def _judge_all(tx: PlatformTx, batch: Batch) -> Tally:
    admits = [final.admit for _, final in batch.finals]
    tally = Tally(
        stored_usage.list_currencies(tx, {admit.organization_id for admit in admits}),
        stored_usage.list_prices(tx, {admit.price_version for admit in admits}),
        stored_usage.find_hashes(tx, [admit.request_id for admit in admits]),
    )
    tally.add(batch)
    return tally


def _stray(batch: Batch, frame: Frame, event_id: str | None, hashed: bytes, reason: str) -> Stray:
    return Stray(batch.node_id, batch.epoch, frame.seq, event_id, frame.payload, hashed, reason)
