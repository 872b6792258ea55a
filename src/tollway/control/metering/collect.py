"""The collector: ingests the records of gateways exactly once, and books them in one transaction.

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

Validation of each record (`batches`), its rating and the sums (`rating`) are pure. `verify` shares them and runs them over the archive.

What makes it fast: a record is looked at once. ADMITs are passed over by their first bytes, since each FINAL repeats its own. What
thousands of events share is rated once for all of them. Rows go to the database in bulk (`storage.usage_events`): each is rated and
formatted while the database stores those before it, then the sums, while it is still busy with the last. The archive is written meanwhile.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tollway.control.metering.batches import Batch, BatchRefused
from tollway.control.metering.rating import BillingAccount, RatedBatch
from tollway.control.metering.record_checks import Owners, reject_foreign, reject_impossible_instants
from tollway.control.money import budgets, credits
from tollway.control.money.budgets import ChargeSums
from tollway.control.money.credits import UsageSums
from tollway.domain.epochs import Watermark
from tollway.domain.faults import DATABASE_UNAVAILABLE, Blame, Fault, FaultKind
from tollway.domain.ledger import Posting
from tollway.domain.reconciliation import EngineUsage, UsageKey
from tollway.domain.usage import ADMIT_HEAD
from tollway.storage import ledger as stored_ledger
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import reconcile as stored_reconcile
from tollway.storage import rejected_records, rollups, usage_batches, usage_events, watermarks
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive, ArchiveShort
from tollway.storage.rollups import RollupRows
from tollway.storage.usage_batches import UsageBatch
from tollway.wire.segments import HEAD_BYTES, Reader, Tail, first_chain, parse_head

RACES_MAX = 3
"""Two transactions that store the event of one request at the same instant are rare; meeting three times in a row is a fault."""

ARCHIVE_UNAVAILABLE = FaultKind(
    code="archive_unavailable", status=503, blame=Blame.PLATFORM, message="The archive cannot be written right now."
)

Booked = TypeVar("Booked")


class Gap(Exception):
    """Records before these are missing: go on from `next_seq`."""

    def __init__(self, next_seq: int) -> None:
        super().__init__(f"record {next_seq} is expected")
        self.next_seq = next_seq


@dataclass(frozen=True, slots=True)
class Ingested:
    """Result of a batch: the record expected next, and how many records were new, in conflict, or quarantined."""

    next_seq: int
    events: int = 0
    conflicts: int = 0
    quarantined: int = 0
    reasons: tuple[str, ...] = field(default=(), compare=False)
    """The reasons for which records were quarantined, each once."""
    ahead_us: int = field(default=0, compare=False)
    """Microseconds by which the latest TICK is ahead of control's clock."""


def ingest(database: Database, archive: Archive, *, node_id: str, epoch: int, first_seq: int, body: bytes, now: int) -> Ingested:
    """Ingest the frames `body` in a transaction of their own, as `collect` does, and commit it.

    Raises Gap, BatchRefused, or Fault: archive_unavailable (503, nothing was ingested) or database_unavailable (503).
    """
    try:
        return retry_races(database, lambda tx: collect(tx, archive, node_id=node_id, epoch=epoch, first_seq=first_seq, body=body, now=now))
    except (OSError, ArchiveShort) as error:
        raise Fault(ARCHIVE_UNAVAILABLE, detail=str(error)) from error


def retry_races(database: Database, book: Callable[[PlatformTx], Booked]) -> Booked:
    """Run `book` in a transaction and commit it; begin again if another transaction stores an event of it at the same time.

    Raises Fault database_unavailable (503) after RACES_MAX attempts, and whatever `book` raises.
    """
    for _ in range(RACES_MAX):
        try:
            with database.platform() as tx:
                return book(tx)
        except usage_events.EventRace:
            continue
    raise Fault(DATABASE_UNAVAILABLE, detail="the same events were stored at the same time, again and again")


def collect(tx: PlatformTx, archive: Archive, *, node_id: str, epoch: int, first_seq: int, body: bytes, now: int) -> Ingested:
    """Ingest the frames `body`, which begin with record `first_seq` of an epoch. Takes effect when the caller commits. Without frames it
    stores nothing: an epoch exists from its first record on.

    Raises Gap, BatchRefused, or storage's EventRace (begin again). OSError: the archive could not be written; nothing was ingested.
    """
    if not body:
        return Ingested(watermarks.find_next_seq(tx, node_id, epoch))
    watermark = watermarks.lock_watermark(tx, node_id, epoch, first_chain(node_id, epoch), now)
    if first_seq > watermark.next_seq:
        raise Gap(watermark.next_seq)
    start = _skip_known(body, first_seq, watermark)
    reader = Reader(watermark.next_seq, watermark.chain, is_from_disk=False)
    batch = Batch(node_id, epoch, closed_at=watermark.closed_at, closed_seq=None if watermark.closed_at is None else reader.next_seq - 1)
    batch.add(reader.read(body, start, unless=ADMIT_HEAD))  # not looked into: its FINAL repeats all of an ADMIT
    if reader.end != len(body) or reader.tail is not Tail.CLEAN:
        raise BatchRefused("a frame is broken, or does not continue the chain")
    batch.end(reader.next_seq)
    reject_impossible_instants(batch, now)
    if reader.next_seq == watermark.next_seq:
        return Ingested(watermark.next_seq)
    with archive.writing(node_id, epoch, watermark.archive_bytes, body[start:]):  # the disk has time while the database works
        rated = book_batch(tx, batch, now)
        rejected_records.insert_rejected(tx, rated.conflicts, rated.quarantined, now)
        moved = replace(
            watermark,
            next_seq=reader.next_seq,
            chain=reader.chain,
            archive_bytes=watermark.archive_bytes + len(body) - start,
            closed_at=batch.closed_at,
        )
        watermarks.move_watermark(tx, moved, ticked_at=batch.ticked_at, now=now)
    reasons = tuple(sorted({each.reason for each in rated.quarantined}))
    ahead_us = max(0, (batch.ticked_at or 0) - now)
    return Ingested(moved.next_seq, rated.events, len(rated.conflicts), len(rated.quarantined), reasons, ahead_us)


def book_batch(tx: PlatformTx, batch: Batch, now: int) -> RatedBatch:
    """Rate a batch, store its events, and add them to rollups, engine usage and ledger; whoever follows usage learns of them. Returns
    what was rated and what was rejected.

    Raises storage's EventRace (begin again).
    """
    rated, sums, charges = _store_events(tx, batch, now)
    if sums.burned is not None:
        credits.draw(tx, sums.burned, now)
    rollups.add_rollups(tx, sums.rollups)
    stored_reconcile.add_usage(tx, sums.engine_usage)
    stored_ledger.post(tx, sums.postings, now)
    if rated.events and usage_batches.is_followed(tx):
        for start in range(0, len(batch.finals), usage_batches.EVENTS_MAX):
            part = batch.finals[start : start + usage_batches.EVENTS_MAX]  # they are in the order of their numbers
            ids = [each.event_id for each in part]
            usage_batches.append(tx, UsageBatch(batch.node_id, batch.epoch, part[0].seq, part[-1].seq, min(ids), max(ids)), now)
    if charges is not None:
        budgets.charge(tx, charges, node_id=batch.node_id, epoch=batch.epoch, now=now)
    return rated


def find_next_seq(tx: PlatformTx, node_id: str, epoch: int) -> int:
    """The record of an epoch that is expected next; 1 for an epoch of which nothing has arrived."""
    return watermarks.find_next_seq(tx, node_id, epoch)


def _skip_known(body: bytes, first_seq: int, watermark: Watermark) -> int:
    """Return the offset in `body` of the first record that is not ingested yet."""
    offset, seq, chain = 0, first_seq, None
    while seq < watermark.next_seq and offset < len(body):
        head = parse_head(body, offset)
        if head is None or head[1] != seq or offset + HEAD_BYTES + head[0] > len(body):
            raise BatchRefused("not a run of frames from the given seq on")
        offset, seq, chain = offset + HEAD_BYTES + head[0], seq + 1, head[2]
    if seq == watermark.next_seq and chain is not None and chain != watermark.chain:
        raise BatchRefused("these records differ from those that were ingested before")
    return offset


def list_billing_accounts(tx: PlatformTx, organization_ids: Iterable[str]) -> dict[str, BillingAccount]:
    """Return the billing accounts of those organizations that exist, archived or not (what was used is owed)."""
    return {
        id: BillingAccount(terms.currency, terms.schedule) for id, terms in stored_prices.read_terms(tx, sorted(organization_ids)).items()
    }


@dataclass(slots=True)
class _Sums:
    """Sums that are stored beside the events of a batch, made while the database stores the events. `burned`: what credit pays, None if no
    organization has any."""

    rollups: RollupRows = field(default_factory=RollupRows)
    engine_usage: dict[UsageKey, EngineUsage] = field(default_factory=dict)
    postings: list[Posting] = field(default_factory=list)
    burned: UsageSums | None = None


def _store_events(tx: PlatformTx, batch: Batch, now: int) -> tuple[RatedBatch, _Sums, ChargeSums | None]:
    """Rate a batch and store its events, and open the periods whose first events they are.

    The first attempt assumes that all event ids are new, which is nearly always true. If the database reports known ids, the second
    attempt leaves these out: to look first would cost as much as to store. Rows are rated while the database stores those before them.
    """
    owners = Owners()
    owners.learn(tx, batch)
    reject_foreign(batch, owners)
    admits = [group.admit for group in batch.groups if group.is_valid]
    organization_ids = {admit.organization_id for admit in admits}
    accounts = list_billing_accounts(tx, organization_ids)
    offers = stored_prices.find_offers(tx, {admit.price_version for admit in admits})
    calendars = stored_periods.open_calendars(tx, organization_ids)
    ids, sums = [record.event_id for record in batch.finals], _Sums()

    charges: ChargeSums | None = None

    def store(known: dict[str, bytes]) -> RatedBatch:
        nonlocal charges
        rated = RatedBatch(accounts, offers, calendars, known)
        charges = budgets.open_charges(tx, organization_ids)
        sums.burned = credits.open_usage(tx, organization_ids)
        rows = rated.rate(batch) if charges is None else charges.watch(rated.rate(batch))
        rows = rows if sums.burned is None else sums.burned.watch(rows)

        def add_up() -> None:
            sums.rollups = rollups.rollup_rows(rated.roll_up())
            sums.engine_usage = rated.sum_usage()
            sums.postings = rated.book(batch, now)

        is_text = all(record.used.other is None for record in batch.finals)
        usage_events.insert_events(tx, rows, min(ids, default=""), max(ids, default=""), add_up, is_text=is_text)
        return rated

    try:
        rated = store({})
    except usage_events.EventRace:
        rated = store(usage_events.find_hashes(tx, ids))
    stored_periods.insert_cut(tx, calendars.values(), now)
    return rated, sums, charges
