"""Verification of what periods and corrections say, for `verify`: computed again from events, reports and requests, and compared.

Events have been compared with the archive before; here they are taken as the database has them. A period that is being closed, or
is, must be proven complete by its report, must hold exactly the events that its root commits to, and nothing may have been booked in
it since. Corrections must follow from their events' prices, within their bounds, with a second person where one was needed.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from tollway.control.gateways.epochs import Cover, describe_lost, digest_watermarks, find_cover
from tollway.control.money import closed_credits, contracts, corrections, periods
from tollway.control.money.conditions import digest_conditions, list_conditions
from tollway.domain.corrections import Adjustment, AdjustmentKind, AdjustmentState, ApprovalDecision, find_objection, sum_lines
from tollway.domain.epochs import CLOCKS_APART_US, Epoch
from tollway.domain.ledger import Entry
from tollway.domain.periods import INSTANT_MAX, Bounds, Calendar, Period, PeriodState, month_of, period_id
from tollway.domain.proofs import find_root, hash_statement
from tollway.storage import corrections as stored_corrections
from tollway.storage import epochs as stored_epochs
from tollway.storage import lost_requests, rejected_records
from tollway.storage import periods as stored
from tollway.storage import usage_events as stored_usage
from tollway.storage.database import PlatformTx
from tollway.storage.periods import Block

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The state of an epoch in the archive at some record: its chain value, the latest TICK so far, and CLOSE."""

    chain: bytes
    ticked_at: int | None = None
    closed_at: int | None = None


@dataclass(slots=True)
class Periods:
    """All periods of all organizations, in order. `_reported`: by period, the record that each epoch of its report had reached."""

    by_organization: dict[str, list[Period]] = field(default_factory=dict)
    _reported: dict[tuple[str, int], dict[tuple[str, int], int] | None] = field(default_factory=dict)

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

    def find_first_digest_of_credits(self) -> int:
        """The instant at which the first period was closed that has a digest of credits; INSTANT_MAX if none has one. One that was closed
        before may have credit and no digest, which was introduced later. Whoever clears a digest would have to clear all before it, and
        the hash of the period covers it."""
        closed = (period.closed for of_organization in self.by_organization.values() for period in of_organization)
        return min((each.closed_at for each in closed if each is not None and each.credits_digest is not None), default=INSTANT_MAX)

    def find_at(self, organization_id: str, at: int) -> Period | None:
        """The period that contains an instant."""
        of_organization = self.by_organization.get(organization_id, [])
        index = bisect_right(of_organization, at, key=lambda period: period.start_at)
        return of_organization[index - 1] if index and at < of_organization[index - 1].end_at else None

    def is_reported(self, organization_id: str, period_at: int, node_id: str, epoch: int, seq: int) -> bool:
        """Return whether a period may hold a record: it is open, or its report says that the record had arrived when it was frozen."""
        place = (organization_id, period_at)
        if place not in self._reported:
            period = self.find_at(organization_id, period_at)
            self._reported[place] = None
            if period is not None and period.closing is not None:
                self._reported[place] = {(row.node_id, row.epoch): row.next_seq for row in read_report(period)}
        reported = self._reported[place]
        if reported is None or (node_id, epoch) in reported:
            return reported is None or seq < reported[node_id, epoch]
        # Not named: only an epoch that began after the period by a clock that then went back can have records in it.
        period = self.find_at(organization_id, period_at)
        return period is not None and epoch >= period.end_at

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


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One epoch as a period's report describes it; a field that is missing or of another kind reads as nothing."""

    node_id: str
    epoch: int
    next_seq: int
    chain: str
    cover: str
    known_until: int | None
    lost: Mapping[str, object] | None


def read_report(period: Period) -> list[ReportRow]:
    """Return the rows of a frozen period's report."""
    assert period.closing is not None
    return [
        ReportRow(
            node_id=str(row.get("node_id")),
            epoch=int(row.get("epoch", 0)),
            next_seq=int(row.get("next_seq", 0)),
            chain=str(row.get("chain")),
            cover=str(row.get("cover")),
            known_until=row.get("known_until"),
            lost=row.get("lost"),
        )
        for row in period.closing.report.get("epochs", [])
    ]


def list_reported(all_periods: Periods) -> set[tuple[str, int, int]]:
    """Every place (node, epoch, next_seq) that the report of a period names."""
    return {
        (row.node_id, row.epoch, row.next_seq)
        for of_organization in all_periods.by_organization.values()
        for period in of_organization
        if period.closing is not None
        for row in read_report(period)
    }


def compare_periods(tx: PlatformTx, all_periods: Periods, reached: Mapping[tuple[str, int, int], Reached | None], add: Add) -> None:
    """Every period against its neighbours, its report, and, once it is frozen, its events and corrections.

    `reached`: by node, epoch and next_seq, the state of the archive before that record, for all that reports name.
    """
    known = stored_epochs.list_all(tx)
    for node_id, epoch in lost_requests.list_unapproved(tx):
        add("lost_declarations", f"{node_id}/{epoch} was declared lost, and nobody of another origin approved that")
    for node_id, epoch in lost_requests.list_undeclared(tx):
        add("lost_declarations", f"{node_id}/{epoch} was not declared lost although two persons asked for it")
    if early := stored.count_early_hashes(tx):
        add("billing_periods", f"{early} periods that are not closed have a hash or a digest of conditions")
    digests_from_at = all_periods.find_first_digest_of_credits()
    for of_organization in all_periods.by_organization.values():
        for before, after in pairwise(of_organization):
            if before.end_at > after.start_at:
                add("billing_periods", f"{before.id} and {after.id} overlap")
            if before.state is not PeriodState.CLOSED and after.state is not PeriodState.OPEN:
                add("billing_periods", f"{after.id} is {after.state} before {before.id} is closed")
        for at, period in enumerate(of_organization):
            previous = of_organization[at - 1] if at else None
            following = of_organization[at + 1] if at + 1 < len(of_organization) else None
            if period.id != period_id(period.organization_id, period.start_at):
                add("billing_periods", f"{period.id} does not follow from what it names")
            if not _is_month(previous, period, following):
                add("billing_periods", f"{period.id} is not a month of its time zone between its neighbours")
            if period.closing is not None:
                _compare_report(tx, period, known, reached, add)
                _compare_blocks(tx, period, digests_from_at, add)


def _is_month(before: Period | None, period: Period, after: Period | None) -> bool:
    """Return whether both bounds of a period are those of months in its time zone, or of its neighbours."""
    try:
        starts = month_of(period.start_at, period.time_zone).start_at == period.start_at
        ends = month_of(period.end_at, period.time_zone).start_at == period.end_at
    except ValueError:
        return False
    return (starts or (before is not None and before.end_at == period.start_at)) and (
        ends or (after is not None and after.start_at == period.end_at)
    )


def _compare_report(
    tx: PlatformTx, period: Period, known: Sequence[Epoch], reached: Mapping[tuple[str, int, int], Reached | None], add: Add
) -> None:
    """Compare a report with the archive: each epoch that touches the period, how far it had come, and how it was covered."""
    assert period.closing is not None
    rows = {(row.node_id, row.epoch): row for row in read_report(period)}
    lines = ({"node_id": row.node_id, "epoch": row.epoch, "next_seq": row.next_seq, "chain": row.chain} for row in rows.values())
    if digest_watermarks(list(lines)) != period.closing.watermark_digest:
        add("billing_periods", f"{period.id}: its digest of watermarks is not that of its report")
    declared = {(epoch.node_id, epoch.epoch): epoch.lost for epoch in known}
    for place, row in rows.items():
        where = f"{row.node_id}/{row.epoch}"
        archived, lost = reached.get((*place, row.next_seq)), declared.get(place)
        if archived is None or archived.chain.hex() != row.chain:
            add("billing_periods", f"{period.id}: its report names other records of {where} than the archive has")
            continue
        if lost is not None and row.lost is None and lost.declared_at + CLOCKS_APART_US > period.closing.frozen_at:
            lost = None  # declared after the period was frozen
        ticked_at = archived.ticked_at
        if ticked_at is not None and row.known_until is not None and row.known_until < ticked_at:
            ticked_at = min(row.known_until, period.closing.frozen_at)  # control received it before the node's clock said so
        cover = find_cover(ticked_at, archived.closed_at, lost, period.end_at)
        until = archived.closed_at if cover is Cover.CLOSE else ticked_at
        if cover is None or (row.cover, row.known_until) != (str(cover), until):
            add("billing_periods", f"{period.id}: {where} is not covered up to its end as its report says")
        if cover is Cover.TICK and until is not None and until > period.closing.frozen_at + CLOCKS_APART_US:
            add("billing_periods", f"{period.id}: {where} is covered by a TICK that came after the period was frozen")
        if row.lost != (None if lost is None else describe_lost(lost)):
            add("billing_periods", f"{period.id}: {where} was not declared lost as its report says")
    for epoch in known:
        place = (epoch.node_id, epoch.epoch)
        touches = epoch.epoch < period.end_at and (epoch.closed_at is None or epoch.closed_at >= period.start_at)
        was_known = epoch.first_seen_at + CLOCKS_APART_US <= period.closing.frozen_at
        if touches and was_known and place not in rows and not _was_lost_before(epoch, period):
            add("billing_periods", f"{period.id}: its report does not name {epoch.node_id}/{epoch.epoch}, which touches it")
    written_off = {
        (each.node_id, each.epoch, each.reason, each.actor, each.approver): each.records
        for each in rejected_records.list_write_offs(tx, period.organization_id, period.start_at, period.end_at)
    }
    for row in period.closing.report.get("written_off", ()):
        # More may have been written off since, of what arrived late.
        if written_off.get((row["node_id"], row["epoch"], row["reason"], row["actor"], row["approver"]), 0) < row["records"]:
            add("quarantine_resolutions", f"{period.id}: its report names records of {row['node_id']} that were not written off")


def _was_lost_before(epoch: Epoch, period: Period) -> bool:
    return epoch.lost is not None and epoch.lost.declared_at < period.start_at and epoch.seen_at < period.start_at


def _compare_blocks(tx: PlatformTx, period: Period, digests_from_at: int, add: Add) -> None:
    stored_blocks = list(stored.iterate_blocks(tx, period.id))
    # Without its events a block cannot be made again; its root is still that of its hashes.
    is_whole = periods.is_kept(tx, stored_blocks)
    blocks: list[Block] = [] if is_whole else stored_blocks
    try:
        while is_whole and (block := periods.make_block(tx, period, blocks[-1] if blocks else None)) is not None:
            blocks.append(block)
    except KeyError as error:
        add("period_blocks", f"{period.id}: an event names a price or an outcome policy that does not exist: {error}")
        return
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
    if is_whole and periods.are_corrected_kept(tx, period):
        digest = digest_conditions(list_conditions(tx, period))
        if closed.conditions_digest != digest:
            add("billing_periods", f"{period.id}: its digest of conditions is not that of the prices and terms of its events")
    was_undigested = closed.credits_digest is None and closed.closed_at < digests_from_at
    digest_of_credits = closed_credits.digest_lines(closed_credits.list_lines(tx, period, closed.closed_at))
    if closed.credits_digest != digest_of_credits and not was_undigested:
        add("billing_periods", f"{period.id}: its digest of credits is not that of grants and of what was booked on them")
    try:
        digest_of_contracts = contracts.digest_lines(contracts.list_lines(tx, period))
    except msgspec.DecodeError:  # terms that cannot be read
        digest_of_contracts = None
    if closed.contracts_digest != digest_of_contracts:
        add("billing_periods", f"{period.id}: its digest of contracts is not that of them and of what it was charged by them")
    if closed.period_hash != hash_statement(periods.make_statement(period)):
        add("billing_periods", f"{period.id}: its hash is not that of what it says")


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
    for adjustment_id in stored_corrections.list_miswritten(tx):
        add("usage_adjustments", f"{adjustment_id} has a quantity where null stands for none")
    found, earlier = Corrections(), dict[str, list[Adjustment]]()
    for adjustment in stored_corrections.iterate_adjustments(tx):
        try:
            event = stored_usage.find_booked_event(tx, adjustment.event_id) or removed.get(adjustment.event_id)
        except KeyError as error:
            add("usage_adjustments", f"{adjustment.id} corrects an event whose price or outcome policy does not exist: {error}")
            continue
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
    if admit.test:
        return "corrects a request of a test key, which is never billed"
    cost_pico, after_pico = sum_lines(event.lines), 0
    if adjustment.replacement is not None:
        after_pico = sum_lines(corrections.rerate(adjustment.replacement, event.price))
    if adjustment.kind is not AdjustmentKind.CREDIT and adjustment.amount_pico != after_pico - cost_pico:
        return f"changes {adjustment.amount_pico} instead of {after_pico - cost_pico}"
    objection = find_objection(adjustment.kind, adjustment.amount_pico, cost_pico, before)
    # What waits today may have been rejected later than the next was asked for; only what stands counts here.
    if objection is not None and adjustment.state is AdjustmentState.APPLIED:
        return f"should not have been possible: {objection}"
    if adjustment.decision is ApprovalDecision.APPROVED and adjustment.actor_origin is adjustment.approver_origin:
        return "was approved with a key that whoever asked for it could have made"
    if adjustment.decision is not None and not adjustment.needs_approval:
        return "was decided about although it needs no approval"
    return None
