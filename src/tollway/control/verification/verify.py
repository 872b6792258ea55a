"""Verification: what the archive says, computed again and compared with what the database holds.

Price versions are compiled again from the published prices of their books. From the archived frames and these versions alone, every
event with its amounts, rollup, ledger sum and balance is made again with the collector's own pure rules, and each table is compared with
what it should be. What is compared does not depend on how records came
in batches: transactions are checked against the records they name, balances against both the ledger and the events. The first
difference of each table is reported, and how many there are.

It reads one instant of the database (a read transaction); a batch that the collector ingests meanwhile belongs to neither side.
Archives are read as far as the database's watermarks say, which are in that instant too.

Charges to budgets are made again from the same events, and compared with their windows and leases (`budgets`).

What it holds does not grow with the events. Archives are read one after the other, in pieces; a piece is rated and compared with the
rows of its events; transactions pass by beside them (`ledger`). Events that are in the database and in no archive are found by
counting: each that the archive has is ticked off by its seq, and only an epoch whose numbers differ is looked at again. Sums wait in
files where there are too many (`ordered_sums`).

Events of months that retention has removed are not missing: the archive stands in for them, as many as were written down when they
went. The rest is compared as ever, but for the hashes of period blocks that they were part of, which cannot be made again without them.
That one of them was not counted twice is known from a fingerprint of each, about 100 bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from tollway.control.metering.batches import Batch, BatchRefused, FinalRecord
from tollway.control.metering.collect import list_billing_accounts
from tollway.control.metering.rating import BillingAccount, RatedBatch, RecordPlace, StoredEvent
from tollway.control.metering.record_checks import Owners, reject_foreign
from tollway.control.money.corrections import transaction_id as correction_transaction_id
from tollway.control.verification import budgets as verify_budgets
from tollway.control.verification import contracts as verify_contracts
from tollway.control.verification import credits as verify_credits
from tollway.control.verification import invoices as verify_invoices
from tollway.control.verification import payments as verify_payments
from tollway.control.verification import periods as verify_periods
from tollway.control.verification import serving_costs as verify_serving_costs
from tollway.control.verification.budgets import BudgetCharges
from tollway.control.verification.ledger import Booked, EpochLedger, entries_of
from tollway.control.verification.ordered_sums import Key, OrderedSums
from tollway.control.verification.periods import Corrections, Periods, Reached
from tollway.domain.billing_classes import NOTHING, Amounts
from tollway.domain.epochs import Watermark
from tollway.domain.ledger import AdjustmentCause, Posting
from tollway.domain.periods import Calendar
from tollway.domain.prices import Offer, rate
from tollway.domain.quarantine import QuarantineState
from tollway.domain.reconciliation import EngineUsage, UsageKey, sum_usage
from tollway.domain.rollups import RollupKey, UsageSums, sum_organizations, sum_projects
from tollway.domain.usage import ADMIT_HEAD, FINAL_HEAD, UsageEvent, billed, content_hash, decode_final
from tollway.storage import corrections as stored_corrections
from tollway.storage import ledger as stored_ledger
from tollway.storage import partitions, rejected_records, rollups, usage_events, watermarks
from tollway.storage import prices as stored_prices
from tollway.storage import reconcile as stored_reconcile
from tollway.storage.database import Database, PlatformTx
from tollway.storage.orphans import list_orphans
from tollway.storage.partitions import RemovedMonth
from tollway.storage.record_archive import CHUNK_BYTES, Archive, ArchiveShort
from tollway.storage.rejected_records import RejectedContent
from tollway.storage.rollups import Totalled
from tollway.storage.usage_events import BookedEvent, EventRow
from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, Frame, Reader, Tail, first_chain

Sums = TypeVar("Sums")

assert CHUNK_BYTES > HEAD_BYTES + PAYLOAD_BYTES_MAX, "a chunk of the archive must hold a frame"

PIECE_RECORDS = 2_000
"""Records of an archive that are rated and compared together: a few MB."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a table from what it should be: how often, and the first place, in words."""

    table: str
    count: int
    first: str


@dataclass(slots=True)
class VerificationReport:
    """Counts of what was read, and the differences found. Empty `differences` mean that everything agrees."""

    epochs: int = 0
    records: int = 0
    events: int = 0
    transactions: int = 0
    accounts: int = 0
    periods: int = 0
    adjustments: int = 0
    conflicts: int = 0
    quarantined: int = 0
    """Records in quarantine that wait for an operator."""
    written_off: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    """Events by month (2026_11) that retention has removed."""
    differences: list[Difference] = field(default_factory=list)
    missing_epochs: int = 0
    missing_records: int = 0
    """Archived records that the database has not ingested, and of how many epochs: it was restored, or a batch did not commit."""

    @property
    def is_right(self) -> bool:
        """Return whether archive, events, rollups, budgets, periods, corrections, ledger and balances all agree, and nothing is missing."""
        return not self.differences and not self.missing_records


@dataclass(slots=True)
class _Findings:
    """Differences as they are met, by table."""

    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, table: str, text: str) -> None:
        self.counts[table] = self.counts.get(table, 0) + 1
        self.firsts.setdefault(table, text)

    def differences(self) -> list[Difference]:
        return [Difference(table, count, self.firsts[table]) for table, count in self.counts.items()]


@dataclass(slots=True)
class _Walk:
    """State of the verification while the archives are read."""

    tx: PlatformTx
    periods: Periods
    removed: Sequence[RemovedMonth]
    corrected: set[str]
    rollups: OrderedSums[RollupKey, UsageSums]
    engine_usage: OrderedSums[UsageKey, EngineUsage]
    report: VerificationReport
    findings: _Findings
    charges: BudgetCharges
    accounts: dict[str, BillingAccount] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    calendars: dict[str, Calendar] = field(default_factory=dict)
    owners: Owners = field(default_factory=Owners)
    costs: dict[str, dict[str, Amounts]] = field(default_factory=dict)
    """By organization and model."""
    absent: dict[int, int] = field(default_factory=dict)
    """Events that the database does not have: fingerprints of their contents by those of their ids."""
    gone: dict[str, int] = field(default_factory=dict)
    """Counts, by month, of the absent events that retention has removed."""
    booked: dict[str, BookedEvent] = field(default_factory=dict)
    """Absent events that a correction names, by id."""
    booked_beside: list[tuple[dict[str, int], dict[str, int]]] = field(default_factory=list)
    """Sums of the entries of credits and of invoices by account: as they are, and as they should be."""


def verify(database: Database, archive: Archive) -> VerificationReport:
    """Compare the whole database, as of one instant, with the archive, in bounded memory. Says what only the archive has, too."""
    sizes = list(archive.list_epochs())
    with database.platform(write=False) as tx:
        tx.lift_deadline()
        report = compare(tx, archive)
    # In a transaction that began later: a batch that was being ingested meanwhile has been committed, and is not missing.
    with database.platform(write=False) as tx:
        missing = _count_missing(tx, archive, sizes)
    report.missing_epochs, report.missing_records = len(missing), sum(missing.values())
    return report


def _count_missing(tx: PlatformTx, archive: Archive, sizes: Sequence[tuple[str, int, int]]) -> dict[tuple[str, int], int]:
    """Return how many whole records the archive has beyond each epoch's watermark, for those epochs in which there are any."""
    known = {(each.node_id, each.epoch): each for each in watermarks.list_watermarks(tx)}
    missing: dict[tuple[str, int], int] = {}
    for node_id, epoch, size in sizes:
        watermark = known.get((node_id, epoch)) or Watermark(node_id, epoch, 1, first_chain(node_id, epoch), 0, None)
        reader, rest, start = Reader(watermark.next_seq, watermark.chain), b"", watermark.archive_bytes
        for chunk in archive.read(node_id, epoch, size - start, start) if size > start else ():
            data, first = rest + chunk, reader.next_seq
            for _ in reader.read(data):
                pass
            rest = data[reader.end :]
            if reader.next_seq > first:
                missing[node_id, epoch] = reader.next_seq - watermark.next_seq
            if reader.tail is Tail.DAMAGED or len(rest) > HEAD_BYTES + PAYLOAD_BYTES_MAX:
                break
    return missing


def compare(tx: PlatformTx, archive: Archive) -> VerificationReport:
    """Compare what a transaction sees of the database with the archive, in bounded memory."""
    report, findings = VerificationReport(), _Findings()
    with (
        OrderedSums[RollupKey, UsageSums](UsageSums) as rollup_sums,
        OrderedSums[UsageKey, EngineUsage](EngineUsage) as engine_usage,
    ):
        periods = Periods.read(tx)
        report.periods = sum(map(len, periods.by_organization.values()))
        reached = dict[tuple[str, int, int], Reached | None].fromkeys(verify_periods.list_reported(periods))
        removed = partitions.list_removed(tx)
        corrected = stored_corrections.list_corrected(tx)
        walk = _Walk(tx, periods, removed, corrected, rollup_sums, engine_usage, report, findings, BudgetCharges.read(tx))
        _read_archive(walk, archive, reached)
        _compare_prices(tx, findings)
        report.removed = {str(each.month): each.events for each in removed}
        for each in removed:
            found = walk.gone.get(str(each.month), 0)
            if found != each.events:
                findings.add("removed_months", f"{each.month}: {each.events} events were removed, the archive has {found}")
            if tx.connection.dialect.name == "sqlite" or each.removed_at < (each.month + 1).start_at:
                findings.add("removed_months", f"{each.month}: retention removes whole months of the past, on PostgreSQL alone")
        _compare_rollups(tx, rollup_sums, findings)
        _compare_sums("engine_usage", engine_usage.items(), stored_reconcile.iterate_usage(tx), findings)
        verify_budgets.compare_budgets(tx, walk.charges, findings.add)
        verify_periods.compare_periods(tx, periods, reached, findings.add)
        corrections = verify_periods.compare_corrections(tx, periods, walk.booked, findings.add)
        walk.booked_beside.append(verify_credits.compare_credits(tx, periods.by_organization, findings.add))
        walk.booked_beside.append(verify_contracts.compare_contracts(tx, periods.by_organization, findings.add))
        walk.booked_beside.append(verify_serving_costs.compare_serving_costs(tx, periods.by_organization, findings.add))
        walk.booked_beside.append(verify_invoices.compare_invoices(tx, findings.add))
        walk.booked_beside.append(verify_payments.compare_payments(tx, findings.add))
        report.adjustments = len(corrections.by_id)
        _compare_ledger(walk, corrections)
        for table, target, count in list_orphans(tx):
            findings.add(table, f"{count} rows refer to rows of {target} that do not exist")
    report.differences = findings.differences()
    return report


# ---- What the archive says --------------------------------------------------------------------------------------------


def _read_archive(walk: _Walk, archive: Archive, reached: dict[tuple[str, int, int], Reached | None]) -> None:
    """Rate every archived record and compare the results, epoch by epoch; store the state of the archive at each place in `reached`.

    Where several records have one event id, the database's word on which of them became the event counts, because the archive does not
    say in which order epochs were ingested.
    """
    tx, findings = walk.tx, walk.findings
    counts, rejected_epochs = usage_events.count_by_epoch(tx), rejected_records.list_epochs_with_rejected(tx)
    postings = groupby(stored_ledger.iterate_usage_transactions(tx), key=_place_of)
    ahead = next(postings, None)
    for watermark in watermarks.list_watermarks(tx):
        place = (watermark.node_id, watermark.epoch)
        walk.report.epochs += 1
        rejected_epochs.discard(place)
        if (*place, 1) in reached:
            reached[*place, 1] = Reached(first_chain(*place))
        while ahead is not None and ahead[0] < place:
            EpochLedger(ahead[1], walk.accounts, findings.add).finish()
            ahead = next(postings, None)
        of_epoch = ahead[1] if ahead is not None and ahead[0] == place else iter(())
        _read_epoch(walk, watermark, _note(reached, place, _frames(archive, watermark, walk.report)), of_epoch, counts.pop(place, 0))
        if ahead is not None and ahead[0] == place:
            ahead = next(postings, None)
    while ahead is not None:
        EpochLedger(ahead[1], walk.accounts, findings.add).finish()
        ahead = next(postings, None)
    for place in counts:
        for _, event_id in usage_events.iterate_places(tx, *place):
            findings.add("usage_events", f"{event_id} is not in the archive")
    for place in rejected_epochs:
        _compare_conflicts(walk, place, {})
        _compare_quarantine(walk, place, rejected_records.list_quarantine_states(tx, *place), {}, bytearray(1))


def _place_of(posting: Posting) -> tuple[str, int]:
    assert not isinstance(posting.cause, AdjustmentCause)
    return posting.cause.node_id, posting.cause.epoch


def _read_epoch(walk: _Walk, watermark: Watermark, frames: Iterator[Frame], postings: Iterator[Posting], events: int) -> None:
    """Rate and compare the records of an epoch, piece by piece. `events`: how many the database has of it."""
    place, ledger = (watermark.node_id, watermark.epoch), EpochLedger(postings, walk.accounts, walk.findings.add)
    ticked, is_over = bytearray(watermark.next_seq // 8 + 1), False
    conflicts, quarantined = dict[int, RejectedContent](), dict[int, RejectedContent]()
    states = rejected_records.list_quarantine_states(walk.tx, *place)
    held = {seq for seq, state in states.items() if state is not QuarantineState.RATED}
    batch = Batch(*place)
    while not is_over:
        batch = Batch(*place, ticked_at=batch.ticked_at, closed_at=batch.closed_at, closed_seq=batch.closed_seq)
        piece, flaw = list[Frame](), ""
        try:
            for frame in frames:
                piece.append(frame)
                if len(piece) == PIECE_RECORDS:
                    break
            else:
                is_over = True
        except (ArchiveShort, BatchRefused) as error:
            is_over, flaw = True, str(error)
        batch.add(piece)
        # What is in quarantine is no event, even if it could be rated by now: that is an operator's decision.
        quarantined.update((record.seq, _content_of(record)) for record in batch.finals if record.seq in states)
        batch.finals = [record for record in batch.finals if record.seq not in held]
        rated = _check_piece(walk, batch, ledger, ticked)
        for record in rated.conflicts:
            conflicts[record.seq] = RejectedContent(record.event_id, record.payload, record.content_hash, None, None)
        for record in rated.quarantined:
            content = RejectedContent(record.event_id, record.payload, b"", record.organization_id, record.served_at)
            quarantined[record.seq] = content
        if is_over and not flaw:
            try:
                batch.end(watermark.next_seq)
            except BatchRefused as error:
                flaw = str(error)
        if flaw:
            walk.findings.add("archive", f"{watermark.node_id}/{watermark.epoch}: {flaw}")
    ledger.finish()
    _compare_conflicts(walk, place, conflicts)
    _compare_quarantine(walk, place, states, quarantined, ticked)
    if (watermark.ticked_at, watermark.closed_at) != (batch.ticked_at, batch.closed_at):
        walk.findings.add("epochs", f"{watermark.node_id}/{watermark.epoch}: its last TICK and CLOSE are not those of the archive")
    if sum(map(int.bit_count, ticked)) != events:
        for seq, event_id in usage_events.iterate_places(walk.tx, *place):
            if not 0 < seq < watermark.next_seq or not ticked[seq // 8] >> seq % 8 & 1:
                walk.findings.add("usage_events", f"{event_id} is not in the archive")


def _check_piece(walk: _Walk, batch: Batch, ledger: EpochLedger, ticked: bytearray) -> RatedBatch:
    """Rate some records, compare their events with the database's, and tick off those that are there."""
    _load_references(walk, batch)
    reject_foreign(batch, walk.owners)
    rows = usage_events.find_rows(walk.tx, [record.event_id for record in batch.finals])
    stored = {event_id: StoredEvent(RecordPlace(row[_NODE], row[_EPOCH], row[_SEQ]), row[_HASH]) for event_id, row in rows.items()}
    rated = RatedBatch(walk.accounts, walk.offers, walk.calendars, known={})
    records = {}
    for record in batch.finals:
        event_id = record.event_id
        records[record.seq] = record
        if event_id not in rows:
            first = walk.absent.get(_fingerprint(event_id.encode()))
            hashed = content_hash(record.payload)
            if first is not None:
                rated.known[event_id] = hashed if first == _fingerprint(hashed) else b""
    finals = []
    for row in walk.charges.watch(rated.rate(batch, stored), batch.node_id, batch.epoch):
        event_id, seq, found = row.event_id, row.seq, rows.get(row.event_id)
        record = records[seq]
        admit, period_at = record.group.admit, row.period_at if found is None else found[_PERIOD]
        event = Booked(event_id, seq, admit.organization_id, period_at, row.ended_at, admit.model, row.amounts, is_gone=False)
        if found is None:
            walk.absent[_fingerprint(event_id.encode())] = _fingerprint(row.content_hash)
            event = replace(event, is_gone=_note_absent(walk, event, record.payload, batch))
        else:
            ticked[seq // 8] |= 1 << seq % 8
            _compare_event(walk, row, found, event)
        ledger.compare(event)
        finals.append(record.final)
    for rejected in rated.quarantined:
        if rejected.event_id in rows:
            walk.findings.add("usage_events", f"{rejected.event_id} is billed, and its record says that it cannot be: {rejected.reason}")
    for key, sums in rated.roll_up().items():
        walk.rollups.add(key, sums)
    for used, usage in sum_usage(finals).items():
        walk.engine_usage.add(used, usage)
    for organization_id, costs in rated.sum_costs().items():
        together = walk.costs.setdefault(organization_id, {})
        for model, amounts in costs.items():
            together[model] = together.get(model, NOTHING) + amounts
    walk.report.events += rated.events
    walk.report.conflicts += len(rated.conflicts)
    return rated


_NODE, _EPOCH, _SEQ, _HASH, _PERIOD = map(usage_events.EVENT_COLUMNS.index, ("node_id", "epoch", "seq", "content_hash", "period_at"))
_AMOUNTS = tuple(map(usage_events.EVENT_COLUMNS.index, usage_events.AMOUNT_COLUMNS))


def _read_amounts(row: tuple[Any, ...]) -> Amounts:
    return Amounts.from_values(row[at] or 0 for at in _AMOUNTS)


def _fingerprint(data: bytes) -> int:
    return int.from_bytes(content_hash(data)[:8])


def _load_references(walk: _Walk, batch: Batch) -> None:
    """Read the billing accounts, prices, periods, projects and keys that a batch is the first to name."""
    walk.owners.learn(walk.tx, batch)
    admits = [group.admit for group in batch.groups if group.is_valid]
    new_accounts = {admit.organization_id for admit in admits} - walk.accounts.keys()
    if new_accounts:
        accounts = list_billing_accounts(walk.tx, new_accounts)
        walk.accounts.update(accounts)
        walk.calendars.update(walk.periods.calendars(dict.fromkeys(accounts, "UTC")))
    new_prices = {admit.price_version for admit in admits} - walk.offers.keys()
    if new_prices:
        walk.offers.update(stored_prices.find_offers(walk.tx, new_prices))


def _compare_event(walk: _Walk, row: EventRow, found: tuple[Any, ...], event: Booked) -> None:
    """Compare an event of the archive with its row. The period is checked by itself: it may be late."""
    expected = row.columns()
    if event.period_at != row.period_at:
        expected = (*expected[:_PERIOD], event.period_at, *expected[_PERIOD + 1 :])
    if found != expected:
        text = "differs from the archive"
        if _read_amounts(found) != _read_amounts(expected):
            text = f"is billed {_shown(_read_amounts(found))} instead of {_shown(event.amounts)}"
        walk.findings.add("usage_events", f"{event.event_id} {text}")
    flaw = walk.periods.find_flaw(event.organization_id, event.ended_at, event.period_at)
    if flaw is None and not walk.periods.is_reported(event.organization_id, event.period_at, found[_NODE], found[_EPOCH], event.seq):
        flaw = "is booked in a period whose report does not reach its record"
    if flaw is not None:
        walk.findings.add("usage_events", f"{event.event_id} {flaw}")


def _note_absent(walk: _Walk, event: Booked, payload: bytes, batch: Batch) -> bool:
    """An event of the archive that the database does not have: whether retention has removed it, with its month."""
    removed = next((each for each in walk.removed if each.month.holds(event.event_id)), None)
    if removed is None:
        walk.findings.add("usage_events", f"{event.event_id} is missing")
        return False
    month = removed.month
    period = walk.periods.find_at(event.organization_id, event.period_at)
    if period is None or period.closed is None or period.closed.closed_at > removed.removed_at:
        walk.findings.add("removed_months", f"{month}: {event.event_id} was removed before its billing period was closed")
    walk.gone[str(month)] = walk.gone.get(str(month), 0) + 1
    if event.event_id in walk.corrected:
        final = decode_final(payload)
        price = walk.offers[final.admit.price_version].price
        found = UsageEvent(
            node_id=batch.node_id,
            epoch=batch.epoch,
            seq=event.seq,
            final=final,
            content_hash=content_hash(payload),
            amounts=event.amounts,
            period_at=event.period_at,
        )
        walk.booked[event.event_id] = BookedEvent(found, price, rate(billed(final), price.unit_prices), price.currency)
    return True


def _note(reached: dict[tuple[str, int, int], Reached | None], place: tuple[str, int], frames: Iterator[Frame]) -> Iterator[Frame]:
    """Yield the frames except ADMITs, which are not decoded; store the state of the archive at each place in `reached` on the way."""
    signs, (node_id, epoch) = Batch(*place), place
    for frame in frames:
        is_admit = frame.payload.startswith(ADMIT_HEAD)
        if not is_admit and not frame.payload.startswith(FINAL_HEAD):
            signs.add([frame])
        if (node_id, epoch, frame.seq + 1) in reached:
            reached[node_id, epoch, frame.seq + 1] = Reached(frame.chain, signs.ticked_at, signs.closed_at)
        if not is_admit:
            yield frame


def _frames(archive: Archive, watermark: Watermark, report: VerificationReport) -> Iterator[Frame]:
    """The records of an epoch. Raises ArchiveShort or BatchRefused unless they are whole, chained and reach exactly to the watermark."""
    reader = Reader(1, first_chain(watermark.node_id, watermark.epoch))
    rest = b""
    for chunk in archive.read(watermark.node_id, watermark.epoch, watermark.archive_bytes):
        data, first = rest + chunk, reader.next_seq
        yield from reader.read(data)
        rest = data[reader.end :]
        report.records += reader.next_seq - first
        if reader.tail is Tail.DAMAGED or len(rest) > HEAD_BYTES + PAYLOAD_BYTES_MAX:
            raise BatchRefused(f"record {reader.next_seq} is damaged")
    if rest:
        raise BatchRefused(f"record {reader.next_seq} is damaged")
    if reader.next_seq != watermark.next_seq or reader.chain != watermark.chain:
        raise BatchRefused(f"the archive ends before record {reader.next_seq}, the watermark stands at {watermark.next_seq}")


# ---- Against what the database holds ----------------------------------------------------------------------------------


def _compare_prices(tx: PlatformTx, findings: _Findings) -> None:
    """Compiled price versions against what the published prices of their books compile to, and both against how they are written."""
    seen = 0
    for right, found in stored_prices.iterate_compiled(tx):
        seen += found is not None
        if found is None:
            findings.add("compiled_prices", f"{right.id} is missing")
        elif found != right:
            findings.add("compiled_prices", f"{found.id} is {found}, its book says {right}")
    extra = stored_prices.count_compiled(tx) - seen
    if extra:
        findings.add("compiled_prices", f"{extra} versions follow from no published price")
    for table, price_id in stored_prices.iterate_miswritten(tx):
        findings.add(table, f"{price_id} states a default price where null stands for it")


def _shown(amounts: Amounts) -> str:
    return ", ".join(f"{name} {pico}" for name, pico in amounts.items()) or "nothing"


def _content_of(record: FinalRecord) -> RejectedContent:
    """Return what the row of a quarantined record must say of it."""
    return RejectedContent(record.event_id, record.payload, b"", record.group.admit.organization_id, record.ended_at)


def _compare_contents(
    walk: _Walk, table: str, place: tuple[str, int], stored: Mapping[int, RejectedContent], expected: Mapping[int, RejectedContent]
) -> None:
    for seq in sorted(stored.keys() & expected.keys()):
        if stored[seq] != expected[seq]:
            walk.findings.add(table, f"{(*place, seq)} differs from the archive")


def _compare_conflicts(walk: _Walk, place: tuple[str, int], expected: Mapping[int, RejectedContent]) -> None:
    stored = rejected_records.list_conflicts(walk.tx, *place)
    for seq in sorted(expected.keys() ^ stored.keys()):
        walk.findings.add("event_conflicts", f"{(*place, seq)} is {'missing' if seq in expected else 'not in the archive'}")
    _compare_contents(walk, "event_conflicts", place, stored, expected)


def _compare_quarantine(
    walk: _Walk, place: tuple[str, int], states: Mapping[int, QuarantineState], expected: Mapping[int, RejectedContent], ticked: bytearray
) -> None:
    """Compare an epoch's quarantined records with those that the archive has; what was rated after all must be an event."""
    walk.report.quarantined += sum(state is QuarantineState.OPEN for state in states.values())
    walk.report.written_off += sum(state is QuarantineState.WRITTEN_OFF for state in states.values())
    rated = {seq for seq, state in states.items() if state is QuarantineState.RATED}
    _compare_contents(walk, "quarantined_records", place, rejected_records.list_quarantined_contents(walk.tx, *place), expected)
    for seq in sorted((expected.keys() ^ states.keys()) - rated):
        walk.findings.add("quarantined_records", f"{(*place, seq)} is {'missing' if seq in expected else 'not in the archive'}")
    for seq in sorted(rated):
        if seq // 8 >= len(ticked) or not ticked[seq // 8] >> seq % 8 & 1:
            walk.findings.add("quarantine_resolutions", f"{(*place, seq)} was rated and is not an event")


def _compare_sums(table: str, expected: Iterator[tuple[Key, Sums]], stored: Iterator[tuple[Key, Sums]], findings: _Findings) -> None:
    """Compare the expected sums with the stored ones, both ordered by key."""
    right, found = next(expected, None), next(stored, None)
    while right is not None or found is not None:
        if found is None or (right is not None and right[0] < found[0]):
            assert right is not None
            findings.add(table, f"{right[0]} is missing")
            right = next(expected, None)
        elif right is None or found[0] < right[0]:
            findings.add(table, f"{found[0]}: {found[1]} instead of nothing")
            found = next(stored, None)
        else:
            if found[1] != right[1]:
                findings.add(table, f"{found[0]}: {found[1]} instead of {right[1]}")
            right, found = next(expected, None), next(stored, None)


def _compare_rollups(tx: PlatformTx, expected: OrderedSums[RollupKey, UsageSums], findings: _Findings) -> None:
    """Rollups by key, and those of projects and organizations, which are sums of them."""
    _compare_sums("usage_rollups", expected.items(), rollups.iterate_rollups(tx), findings)
    by_project = ((key, Totalled(sums, sums.amounts.total)) for key, sums in sum_projects(expected.items()))
    _compare_sums("project_rollups", by_project, rollups.iterate_project_rollups(tx), findings)
    of_all = sum_organizations(sum_projects(expected.items()))
    by_organization = ((key, Totalled(sums, sums.amounts.total)) for key, sums in of_all)
    _compare_sums("organization_rollups", by_organization, rollups.iterate_organization_rollups(tx), findings)


def _compare_ledger(walk: _Walk, corrections: Corrections) -> None:
    """Each transaction against zero, and those of corrections against these; usage has been compared where its records passed by."""
    replayed = _add_sums(found for found, _ in walk.booked_beside)
    for posting in stored_ledger.iterate_transactions(walk.tx):
        walk.report.transactions += 1
        sums: dict[str, int] = {}
        for entry in posting.entries:
            replayed[entry.account.id] = replayed.get(entry.account.id, 0) + entry.amount_pico
            sums[entry.account.currency] = sums.get(entry.account.currency, 0) + entry.amount_pico
        if any(sums.values()):
            walk.findings.add("ledger_entries", f"{posting.id} sums to {sums}")
        if isinstance(posting.cause, AdjustmentCause):
            _compare_correction(posting, posting.cause, corrections, walk.findings)
    _compare_balances(walk, corrections, replayed)


def _add_sums(each: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for sums in each:
        for account_id, pico in sums.items():
            total[account_id] = total.get(account_id, 0) + pico
    return total


def _compare_correction(posting: Posting, cause: AdjustmentCause, corrections: Corrections, findings: _Findings) -> None:
    """A transaction against the correction that it names. (The database books each correction once.)"""
    if cause.adjustment_id not in corrections.by_id:
        findings.add("ledger_transactions", f"{posting.id} books a correction that does not exist")
        return
    adjustment, entries = corrections.by_id[cause.adjustment_id]
    if posting.id != correction_transaction_id(adjustment) or posting.organization_id != adjustment.organization_id:
        findings.add("ledger_transactions", f"{posting.id} does not follow from {adjustment.id}")
    if posting.entries != entries:
        findings.add("ledger_entries", f"{posting.id} does not book what {adjustment.id} changes")


def _compare_balances(walk: _Walk, corrections: Corrections, replayed: dict[str, int]) -> None:
    """Balances against the replay of all entries, and against what events and corrections come to; and their sum against zero."""
    report, findings, owed = walk.report, walk.findings, _add_sums(right for _, right in walk.booked_beside)
    for organization_id, costs in walk.costs.items():
        for account_id, pico in entries_of(organization_id, costs, walk.accounts[organization_id].currency).items():
            owed[account_id] = owed.get(account_id, 0) + pico
    for entry in corrections.list_entries():
        owed[entry.account.id] = owed.get(entry.account.id, 0) + entry.amount_pico
    total: dict[str, int] = {}
    for balance in stored_ledger.iterate_balances(walk.tx):
        report.accounts += 1
        account_id = balance.account.id
        total[balance.account.currency] = total.get(balance.account.currency, 0) + balance.posted_pico
        if balance.posted_pico != replayed.get(account_id, 0):
            findings.add("balances", f"{account_id} is {balance.posted_pico}, its entries sum to {replayed.get(account_id, 0)}")
        elif balance.posted_pico != owed.get(account_id, 0):
            findings.add(
                "balances",
                f"{account_id} is {balance.posted_pico}, all that is booked on it should come to {owed.get(account_id, 0)}",
            )
        replayed.pop(account_id, None)
        owed.pop(account_id, None)
    for account_id in sorted({name for sums in (replayed, owed) for name, pico in sums.items() if pico}):
        findings.add("balances", f"{account_id} is missing")
    if any(total.values()):
        findings.add("balances", f"all balances together are {total}, not zero")
