"""Verification: what the archive says, computed again and compared with what the database holds.

Price versions are compiled again from the published prices of their books. From the archived frames and these versions alone, every
event with its amounts, rollup, ledger sum and balance is made again with the collector's own pure rules, and each table is compared with
what it should be. What is compared does not depend on how records came
in batches: transactions are checked against the records they name, balances against both the ledger and the events. The first
difference of each table is reported, and how many there are.

It reads one instant of the database (a read transaction); a batch that the collector takes in meanwhile belongs to neither side.
Archives are read as far as the database's watermarks say, which are in that instant too.

Events of months that retention has removed are not missing: the archive stands in for them, as many as were written down when they
went. The rest is compared as ever, but for the hashes of period blocks that they were part of, which cannot be made again without them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from tollway.control import verify_periods
from tollway.control.collect import Batch, Refused, Tally, costs_of, list_payers
from tollway.control.corrections import transaction_id as correction_transaction_id
from tollway.control.ledger import PLATFORM, UNBILLED, transaction_id
from tollway.control.verify_periods import Corrections, Periods
from tollway.domain.prices import PriceVersion, rate
from tollway.domain.reconciliation import sum_usage
from tollway.domain.usage import ADMIT_HEAD, Amounts, UsageEvent, billed
from tollway.storage import ledger as stored_ledger
from tollway.storage import partitions
from tollway.storage import prices as stored_prices
from tollway.storage import reconcile as stored_reconcile
from tollway.storage import usage as stored_usage
from tollway.storage.archive import CHUNK_BYTES, Archive, ArchiveShort
from tollway.storage.database import Database, PlatformTx
from tollway.storage.ledger import Account, AdjustmentCause, Posting, UsageCause
from tollway.storage.partitions import RemovedMonth
from tollway.storage.usage import BookedEvent, Watermark
from tollway.wire.segments import HEAD_BYTES, PAYLOAD_BYTES_MAX, Frame, Reader, Tail, first_chain

assert CHUNK_BYTES > HEAD_BYTES + PAYLOAD_BYTES_MAX, "a chunk of the archive must hold a frame"


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a table is not what it should be: how often, and the first place, in words."""

    table: str
    count: int
    first: str


@dataclass(slots=True)
class Report:
    """What was read, and what was found. Nothing in `differences` means that everything agrees."""

    epochs: int = 0
    records: int = 0
    events: int = 0
    transactions: int = 0
    accounts: int = 0
    periods: int = 0
    adjustments: int = 0
    conflicts: int = 0
    quarantined: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    """Events by month (2026_11) that retention has removed."""
    differences: list[Difference] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether archive, events, rollups, periods, corrections, ledger and balances all agree."""
        return not self.differences


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


def verify(database: Database, archive: Archive) -> Report:
    """Compare the whole database with the archive. Holds all events in memory: about 2 KB each."""
    report, findings = Report(), _Findings()
    with database.platform(write=False) as tx:
        periods = Periods.read(tx)
        report.periods = sum(map(len, periods.by_organization.values()))
        chains = dict.fromkeys(verify_periods.list_reported(periods), b"")
        tally = _read_archive(tx, archive, periods, chains, report, findings)
        _compare_prices(tx, findings)
        removed = partitions.list_removed(tx)
        gone = _compare_events(tx, tally, periods, removed, findings)
        report.removed = {str(each.month): each.events for each in removed}
        _place_removed(tx, tally, gone)
        _compare_strays(tx, tally, findings)
        _compare_rollups(tx, tally, findings)
        _compare_engine_usage(tx, tally, findings)
        verify_periods.compare_periods(tx, periods, chains, findings.add)
        corrections = verify_periods.compare_corrections(tx, periods, _booked(tally, gone), findings.add)
        report.adjustments = len(corrections.by_id)
        _compare_ledger(tx, tally, corrections, report, findings)
    report.events, report.conflicts, report.quarantined = len(tally.events), len(tally.conflicts), len(tally.quarantined)
    report.differences = findings.differences()
    return report


# ---- What the archive says --------------------------------------------------------------------------------------------


def _read_archive(
    tx: PlatformTx,
    archive: Archive,
    periods: Periods,
    chains: dict[tuple[str, int, int], bytes],
    report: Report,
    findings: _Findings,
) -> Tally:
    """Judge every archived record, and note the chain values that `chains` asks for. Where several records have one event id, the
    database's word on which of them became the event counts, because the archive does not know in which order epochs were taken in."""
    taken = {event.final.admit.request_id: event for event in stored_usage.iterate_events(tx)}
    batches = []
    for watermark in stored_usage.list_watermarks(tx):
        report.epochs += 1
        batch = Batch(watermark.node_id, watermark.epoch)
        place = (watermark.node_id, watermark.epoch)
        if (*place, 1) in chains:
            chains[*place, 1] = first_chain(*place)
        try:
            batch.take(_note(chains, place, _frames(archive, watermark, report)))
            batch.end(watermark.next_seq)
        except (ArchiveShort, Refused) as error:
            findings.add("archive", f"{watermark.node_id}/{watermark.epoch}: {error}")
        batches.append(batch)
    admits = [group.admit for batch in batches for group in batch.groups.values() if group.is_valid]
    payers = list_payers(tx, {admit.organization_id for admit in admits})
    prices: Mapping[str, PriceVersion] = stored_prices.find_prices(tx, {admit.price_version for admit in admits})
    tally = Tally(payers, prices, periods.calendars(dict.fromkeys(payers, "UTC")), known={})
    for batch in batches:
        tally.add(batch, taken)
    return tally


def _note(chains: dict[tuple[str, int, int], bytes], place: tuple[str, int], frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames but for ADMITs, which are not looked into; the chain values that are asked for are noted on the way."""
    for frame in frames:
        if (*place, frame.seq + 1) in chains:
            chains[*place, frame.seq + 1] = frame.chain
        if not frame.payload.startswith(ADMIT_HEAD):
            yield frame


def _frames(archive: Archive, watermark: Watermark, report: Report) -> Iterator[Frame]:
    """The records of an epoch. Raises ArchiveShort or Refused unless they are whole, chained and reach exactly to the watermark."""
    reader = Reader(1, first_chain(watermark.node_id, watermark.epoch))
    rest = b""
    for chunk in archive.read(watermark.node_id, watermark.epoch, watermark.archive_bytes):
        data, first = rest + chunk, reader.next_seq
        yield from reader.read(data)
        rest = data[reader.end :]
        report.records += reader.next_seq - first
        if reader.tail is Tail.DAMAGED or len(rest) > HEAD_BYTES + PAYLOAD_BYTES_MAX:
            raise Refused(f"record {reader.next_seq} is damaged")
    if rest:
        raise Refused(f"record {reader.next_seq} is damaged")
    if reader.next_seq != watermark.next_seq or reader.chain != watermark.chain:
        raise Refused(f"the archive ends before record {reader.next_seq}, the watermark stands at {watermark.next_seq}")


# ---- Against what the database holds ----------------------------------------------------------------------------------


def _compare_prices(tx: PlatformTx, findings: _Findings) -> None:
    """Compiled price versions against what the published prices of their books compile to."""
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


def _compare_events(
    tx: PlatformTx, tally: Tally, periods: Periods, removed: Sequence[RemovedMonth], findings: _Findings
) -> dict[str, UsageEvent]:
    """Every event against the archive. Returns those that retention has removed, as the archive has them."""
    expected: dict[str, UsageEvent] = {event.final.admit.request_id: event for event in tally.events}
    for event in stored_usage.iterate_events(tx):
        verify_periods.compare_event(periods, event, findings.add)
        event_id = event.final.admit.request_id
        of_archive = expected.pop(event_id, None)
        if of_archive is None:
            findings.add("usage_events", f"{event_id} is not in the archive")
        elif event.amounts != of_archive.amounts:
            findings.add("usage_events", f"{event_id} is billed {_shown(event.amounts)} instead of {_shown(of_archive.amounts)}")
        elif event != of_archive:
            findings.add("usage_events", f"{event_id} differs from the archive")
    gone: dict[str, UsageEvent] = {}
    for each in removed:
        of_month = {event_id: event for event_id, event in expected.items() if each.month.holds(event_id)}
        if len(of_month) != each.events:
            findings.add("removed_months", f"{each.month}: {each.events} events were removed, the archive has {len(of_month)}")
        gone |= of_month
    for event_id in expected.keys() - gone.keys():
        findings.add("usage_events", f"{event_id} is missing")
    return gone


def _place_removed(tx: PlatformTx, tally: Tally, gone: Mapping[str, UsageEvent]) -> None:
    """Give removed events the period in which they were booked: their own, unless they were late, which only the ledger knows now."""
    booked: dict[tuple[str, int, str], list[tuple[UsageCause, int]]] = {}
    for posting in stored_ledger.iterate_transactions(tx) if gone else ():
        if isinstance(posting.cause, UsageCause):
            place = (posting.cause.node_id, posting.cause.epoch, posting.organization_id)
            booked.setdefault(place, []).append((posting.cause, posting.period_at))
    for index, event in enumerate(tally.events):
        if event.final.admit.request_id not in gone:
            continue
        causes = booked.get((event.node_id, event.epoch, event.final.admit.organization_id), [])
        periods = {period_at for cause, period_at in causes if cause.first_seq <= event.seq <= cause.last_seq}
        if periods and event.period_at not in periods:
            tally.events[index] = msgspec.structs.replace(event, period_at=min(periods))


def _booked(tally: Tally, gone: Mapping[str, UsageEvent]) -> dict[str, BookedEvent]:
    """Removed events as corrections need them."""
    found = {}
    for event_id, event in gone.items():
        price = tally.prices[event.final.admit.price_version]
        found[event_id] = BookedEvent(event, price, rate(*billed(event.final), price), price.currency)
    return found


def _shown(amounts: Amounts) -> str:
    return ", ".join(f"{name} {pico}" for name, pico in msgspec.structs.asdict(amounts).items() if pico) or "nothing"


def _compare_strays(tx: PlatformTx, tally: Tally, findings: _Findings) -> None:
    stored = stored_usage.list_stray_places(tx)
    for table, found, strays in zip(("event_conflicts", "quarantined_records"), stored, (tally.conflicts, tally.quarantined), strict=True):
        expected = {(stray.node_id, stray.epoch, stray.seq) for stray in strays}
        for place in sorted(expected ^ found):
            findings.add(table, f"{place} is {'missing' if place in expected else 'not in the archive'}")


def _compare_rollups(tx: PlatformTx, tally: Tally, findings: _Findings) -> None:
    expected = tally.roll_up()
    for key, sums in stored_usage.iterate_rollups(tx):
        right = expected.pop(key, None)
        if sums != right:
            findings.add("usage_rollups", f"{key}: {sums} instead of {right}")
    for key in expected:
        findings.add("usage_rollups", f"{key} is missing")


def _compare_engine_usage(tx: PlatformTx, tally: Tally, findings: _Findings) -> None:
    expected = sum_usage(event.final for event in tally.events)
    for key, sums in stored_reconcile.iterate_usage(tx):
        right = expected.pop(key, None)
        if sums != right:
            findings.add("engine_usage", f"{key}: {sums} instead of {right}")
    for key in expected:
        findings.add("engine_usage", f"{key} is missing")


def _compare_ledger(tx: PlatformTx, tally: Tally, corrections: Corrections, report: Report, findings: _Findings) -> None:
    by_epoch: dict[tuple[str, int, str, int], list[UsageEvent]] = {}
    for event in tally.events:
        by_epoch.setdefault((event.node_id, event.epoch, event.final.admit.organization_id, event.period_at), []).append(event)
    replayed: dict[str, int] = {}
    booked: dict[str, int] = {}
    for posting in stored_ledger.iterate_transactions(tx):
        report.transactions += 1
        sums: dict[str, int] = {}
        for entry in posting.entries:
            replayed[entry.account.id] = replayed.get(entry.account.id, 0) + entry.amount_pico
            sums[entry.account.currency] = sums.get(entry.account.currency, 0) + entry.amount_pico
        if any(sums.values()):
            findings.add("ledger_entries", f"{posting.id} sums to {sums}")
        if isinstance(posting.cause, AdjustmentCause):
            _compare_correction(posting, posting.cause, corrections, findings)
            continue
        events = by_epoch.get((posting.cause.node_id, posting.cause.epoch, posting.organization_id, posting.period_at), [])
        _compare_transaction(posting, posting.cause, events, tally, booked, findings)
    for event in tally.events:
        if event.amounts.total:
            times = booked.get(event.final.admit.request_id, 0)
            if times != 1:
                findings.add("ledger_entries", f"{event.final.admit.request_id} is booked {times} times")
    _compare_balances(tx, tally, corrections, replayed, report, findings)


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


def _compare_transaction(
    posting: Posting, cause: UsageCause, events: list[UsageEvent], tally: Tally, booked: dict[str, int], findings: _Findings
) -> None:
    """One transaction against the records that it names: id, number of events, entries."""
    named = [event for event in events if cause.first_seq <= event.seq <= cause.last_seq]
    for event in named:
        booked[event.final.admit.request_id] = booked.get(event.final.admit.request_id, 0) + 1
    if len(named) != cause.events or not named:
        findings.add("ledger_transactions", f"{posting.id} books {cause.events} events, the archive has {len(named)}")
        return
    right_id = transaction_id(posting.organization_id, posting.period_at, cause, named[-1].final.ended_at)
    if posting.id != right_id or named[0].seq != cause.first_seq or named[-1].seq != cause.last_seq:
        findings.add("ledger_transactions", f"{posting.id} does not follow from its records, which give {right_id}")
    expected = _entries_of(named, tally)
    if {entry.account.id: entry.amount_pico for entry in posting.entries} != expected:
        findings.add("ledger_entries", f"{posting.id} does not book what its events cost")


def _entries_of(events: list[UsageEvent], tally: Tally) -> dict[str, int]:
    """What events of one organization must move, by account."""
    organization_id = events[0].final.admit.organization_id
    currency = tally.payers[organization_id].currency
    costs = costs_of(events)
    entries = {
        Account(PLATFORM, f"revenue:{model}:{billing_class}", currency).id: -pico for (model, billing_class), pico in costs.items() if pico
    }
    entries[Account(organization_id, UNBILLED, currency).id] = sum(costs.values())
    return entries


def _compare_balances(
    tx: PlatformTx, tally: Tally, corrections: Corrections, replayed: dict[str, int], report: Report, findings: _Findings
) -> None:
    """Balances against the replay of all entries, and against what events and corrections come to; and their sum against zero."""
    by_organization: dict[str, list[UsageEvent]] = {}
    for event in tally.events:
        by_organization.setdefault(event.final.admit.organization_id, []).append(event)
    owed: dict[str, int] = {}
    for events in by_organization.values():
        for account_id, pico in _entries_of(events, tally).items():
            owed[account_id] = owed.get(account_id, 0) + pico
    for entry in corrections.list_entries():
        owed[entry.account.id] = owed.get(entry.account.id, 0) + entry.amount_pico
    total: dict[str, int] = {}
    for balance in stored_ledger.iterate_balances(tx):
        report.accounts += 1
        account_id = balance.account.id
        total[balance.account.currency] = total.get(balance.account.currency, 0) + balance.posted_pico
        if balance.posted_pico != replayed.get(account_id, 0):
            findings.add("balances", f"{account_id} is {balance.posted_pico}, its entries sum to {replayed.get(account_id, 0)}")
        elif balance.posted_pico != owed.get(account_id, 0):
            findings.add("balances", f"{account_id} is {balance.posted_pico}, its events and corrections come to {owed.get(account_id, 0)}")
        replayed.pop(account_id, None)
        owed.pop(account_id, None)
    for account_id in sorted({name for sums in (replayed, owed) for name, pico in sums.items() if pico}):
        findings.add("balances", f"{account_id} is missing")
    if any(total.values()):
        findings.add("balances", f"all balances together are {total}, not zero")
