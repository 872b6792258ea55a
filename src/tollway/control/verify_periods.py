"""Verification of what periods and corrections say, for `verify`: computed again from events, reports and requests, and compared.

Events have been compared with the archive before; here they are taken as the database has them. A period that is being closed, or
is, must be proven complete by its report, must hold exactly the events that its root commits to, and nothing may have been booked in
it since. Corrections must follow from their events' prices, within their bounds, with a second person where one was needed.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tollway.control import corrections, periods
from tollway.control.epochs import Cover, digest_watermarks
from tollway.domain.corrections import Adjustment, AdjustmentKind, AdjustmentState, Decision, find_objection, sum_lines
from tollway.domain.ledger import Entry
from tollway.domain.periods import Bounds, Calendar, PeriodState, period_id
from tollway.domain.proofs import find_root
from tollway.storage import corrections as stored_corrections
from tollway.storage import epochs as stored_epochs
from tollway.storage import periods as stored
from tollway.storage import rejected_records
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import PlatformTx
from tollway.storage.periods import Block, Period

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""


@dataclass(slots=True)
class Periods:
    """All periods of all organizations, in order."""

    by_organization: dict[str, list[Period]] = field(default_factory=dict)

    @classmethod
    def read(cls, tx: PlatformTx) -> "Periods":
        """As the database has them."""
        found = cls()
        for period in stored.iterate_periods(tx):
            found.by_organization.setdefault(period.organization_id, []).append(period)
        return found

    def calendars(self, zones: Mapping[str, str]) -> dict[str, Calendar]:
        """Calendars that place everything where it belongs by time alone, late or not."""
        return {
            organization_id: Calendar(
                organization_id,
                zone,
                open=[Bounds(period.start_at, period.end_at) for period in self.by_organization.get(organization_id, ())],
            )
            for organization_id, zone in zones.items()
        }

    def find_at(self, organization_id: str, at: int) -> Period | None:
        """The period that contains an instant."""
        of_organization = self.by_organization.get(organization_id, [])
        index = bisect_right(of_organization, at, key=lambda period: period.start_at)
        return of_organization[index - 1] if index and at < of_organization[index - 1].end_at else None

    def find_flaw(self, organization_id: str, served_at: int, period_at: int) -> str | None:
        """Return why what was served at an instant cannot be booked in the period that begins at `period_at`; None if it can."""
        booked = self.find_at(organization_id, period_at)
        if booked is None or booked.start_at != period_at:
            return f"is booked in a period that does not exist ({period_at})"
        if booked.start_at <= served_at < booked.end_at:
            return None
        # Late: then the time until somewhere in its period had been frozen.
        ends = [
            period.end_at
            for period in self.by_organization[organization_id]
            if period.state is not PeriodState.OPEN and served_at < period.end_at
        ]
        if any(booked.start_at <= end_at < booked.end_at for end_at in ends):
            return None
        return f"was served at {served_at} and is booked in the period from {booked.start_at}, without reason"


def compare_periods(tx: PlatformTx, all_periods: Periods, chains: Mapping[tuple[str, int, int], bytes], add: Add) -> None:
    """Every period against its neighbours, its report, and, once it is frozen, its events and corrections.

    `chains`: by node, epoch and next_seq, the chain value that the archive has before that record, for all that reports name.
    """
    for of_organization in all_periods.by_organization.values():
        for before, after in pairwise(of_organization):
            if before.end_at > after.start_at:
                add("billing_periods", f"{before.id} and {after.id} overlap")
            if before.state is not PeriodState.CLOSED and after.state is not PeriodState.OPEN:
                add("billing_periods", f"{after.id} is {after.state} before {before.id} is closed")
        for period in of_organization:
            if period.id != period_id(period.organization_id, period.start_at):
                add("billing_periods", f"{period.id} does not follow from what it names")
            if period.closing is not None:
                _compare_report(tx, period, chains, add)
                _compare_blocks(tx, period, add)


def list_reported(all_periods: Periods) -> set[tuple[str, int, int]]:
    """Every place (node, epoch, next_seq) that the report of a period names."""
    return {
        (row["node_id"], row["epoch"], row["next_seq"])
        for of_organization in all_periods.by_organization.values()
        for period in of_organization
        if period.closing is not None
        for row in period.closing.report["epochs"]
    }


def _compare_report(tx: PlatformTx, period: Period, chains: Mapping[tuple[str, int, int], bytes], add: Add) -> None:
    assert period.closing is not None
    rows = period.closing.report["epochs"]
    if digest_watermarks(rows) != period.closing.watermark_digest:
        add("billing_periods", f"{period.id}: its digest of watermarks is not that of its report")
    for row in rows:
        place = f"{row['node_id']}/{row['epoch']}"
        if chains.get((row["node_id"], row["epoch"], row["next_seq"]), b"").hex() != row["chain"]:
            add("billing_periods", f"{period.id}: its report names other records of {place} than the archive has")
        if row["cover"] == Cover.TICK and row["known_until"] < period.end_at:
            add("billing_periods", f"{period.id}: {place} is not covered up to its end")
        if row["cover"] == Cover.LOST:
            epoch = stored_epochs.find_epoch(tx, row["node_id"], row["epoch"])
            if epoch is None or epoch.lost is None:
                add("billing_periods", f"{period.id}: {place} counts as lost and was not declared so")
    written_off = {
        (each.node_id, each.epoch, each.reason, each.actor): each.records
        for each in rejected_records.list_write_offs(tx, period.organization_id, period.start_at, period.end_at)
    }
    for row in period.closing.report.get("written_off", ()):
        # More may have been written off since, of what arrived late.
        if written_off.get((row["node_id"], row["epoch"], row["reason"], row["actor"]), 0) < row["records"]:
            add("quarantine_resolutions", f"{period.id}: its report names records of {row['node_id']} that were not written off")


def _compare_blocks(tx: PlatformTx, period: Period, add: Add) -> None:
    stored_blocks = list(stored.iterate_blocks(tx, period.id))
    # Without its events a block cannot be made again; its root is still that of its hashes.
    is_whole = periods.is_kept(tx, stored_blocks)
    blocks: list[Block] = [] if is_whole else stored_blocks
    while is_whole and (block := periods.make_block(tx, period, blocks[-1] if blocks else None)) is not None:
        blocks.append(block)
    # One that is being closed may have hashed only some of its blocks.
    expected = blocks if period.closed is not None else blocks[: len(stored_blocks)]
    if stored_blocks != expected:
        wrong = next((at for at, (one, other) in enumerate(zip(stored_blocks, expected, strict=False)) if one != other), len(expected))
        add("period_blocks", f"{period.id}: block {wrong} is not that of its events")
    if period.closed is None:
        return
    amounts: dict[str, int] = {}
    for block in blocks:
        for name, pico in block.amounts.items():
            amounts[name] = amounts.get(name, 0) + pico
    count, digest, pico = periods.digest_adjustments(tx, period)
    closed = period.closed
    for what, found, right in (
        ("merkle_root", closed.merkle_root.hex(), find_root([block.hash for block in blocks]).hex()),
        ("events", closed.events, sum(block.events for block in blocks)),
        ("amounts", dict(closed.amounts), amounts),
        ("adjustments", closed.adjustments, count),
        ("adjustments_digest", closed.adjustments_digest.hex(), digest.hex()),
        ("amount of adjustments", closed.adjustments_pico, pico),
    ):
        if found != right:
            add("billing_periods", f"{period.id}: {what} is {found} instead of {right}")


# ---- Corrections ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Corrections:
    """Every correction with the entries that should book it (none for one that is not applied)."""

    by_id: dict[str, tuple[Adjustment, tuple[Entry, ...]]] = field(default_factory=dict)

    def list_entries(self) -> Iterable[Entry]:
        """All entries of all corrections that are applied."""
        return (entry for _, entries in self.by_id.values() for entry in entries)


def compare_corrections(tx: PlatformTx, all_periods: Periods, removed: Mapping[str, stored_usage.BookedEvent], add: Add) -> Corrections:
    """Every correction against its event (one of `removed`, if it is not there any more) and the ones before it. Returns what the
    ledger must book."""
    found, earlier = Corrections(), dict[str, list[Adjustment]]()
    for adjustment in stored_corrections.iterate_adjustments(tx):
        event = stored_usage.find_booked_event(tx, adjustment.event_id) or removed.get(adjustment.event_id)
        if event is None:
            add("usage_adjustments", f"{adjustment.id} corrects an event that does not exist")
            continue
        before = earlier.setdefault(adjustment.event_id, [])
        flaw = _find_flaw(adjustment, event, before)
        if flaw is not None:
            add("usage_adjustments", f"{adjustment.id} {flaw}")
        is_applied = adjustment.state is AdjustmentState.APPLIED
        if is_applied != (adjustment.period_at is not None):
            add("usage_adjustments", f"{adjustment.id} is {adjustment.state}, and {'not' if is_applied else 'nevertheless'} booked")
        elif adjustment.period_at is not None:
            misplaced = all_periods.find_flaw(adjustment.organization_id, event.event.period_at, adjustment.period_at)
            if misplaced is not None:
                add("usage_adjustments", f"{adjustment.id} {misplaced}")
        before.append(adjustment)
        found.by_id[adjustment.id] = (adjustment, corrections.entries_of(adjustment, event) if is_applied else ())
    return found


def _find_flaw(adjustment: Adjustment, event: stored_usage.BookedEvent, before: list[Adjustment]) -> str | None:
    """Return what is wrong with a correction, as the end of a sentence that begins with its id."""
    admit = event.event.final.admit
    named = (adjustment.organization_id, adjustment.project_id, adjustment.key_id, adjustment.model)
    if named != (admit.organization_id, admit.project_id, admit.key_id, admit.model):
        return "names another organization, project, key or model than its event"
    cost_pico, after_pico = sum_lines(event.lines), 0
    if adjustment.replacement is not None:
        after_pico = sum_lines(corrections.rerate(adjustment.replacement, event.price))
    if adjustment.kind is not AdjustmentKind.CREDIT and adjustment.amount_pico != after_pico - cost_pico:
        return f"changes {adjustment.amount_pico} instead of {after_pico - cost_pico}"
    objection = find_objection(adjustment.kind, adjustment.amount_pico, cost_pico, before)
    # What waits today may have been rejected later than the next was asked for; only what stands counts here.
    if objection is not None and adjustment.state is AdjustmentState.APPLIED:
        return f"should not have been possible: {objection}"
    if adjustment.decision is Decision.APPROVED and adjustment.approver == adjustment.actor:
        return "was approved by who asked for it"
    return None
