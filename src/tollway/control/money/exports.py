"""Exports: everything that an auditor without trust in the operator needs to compute a closed period of one organization again.

Lines of JSON, one object each, in this order; docs/money.md says what stands in them:

    export, organization, period
    outcome_policy ...      by version: those under which something in the export was admitted
    price ...               by id, those of the same
    terms ...               by their beginning, those of the same
    transaction ...         by id
    grant ...               by id, the credit that usage of the period could burn
    credit ...              by id, what the close of the period booked on it
    contract ...            contracts that cover a part of the period, by time
    contract_charge         what they add to it
    adjustment ...          corrections booked in the period, by id, each with the event that it corrects
    event ...               by id
    account ...             what the period moved, by account
    end                     how many lines stand before it: without it, the file is cut

Amounts are integer strings of pico-currency, instants are integers of UTC microseconds. A closed period never changes, so each page
is read in a transaction of its own, and a slow reader holds up nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tollway.control.money import closed_credits, contracts, periods
from tollway.control.money.conditions import list_conditions
from tollway.domain.billing_classes import stated_quantities
from tollway.domain.corrections import fields_of
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.ledger import AdjustmentCause, Posting
from tollway.domain.pages import PageWindow
from tollway.domain.periods import Period
from tollway.domain.usage import UsageEvent, content_hash, encode
from tollway.storage import corrections as stored_corrections
from tollway.storage import ledger as stored_ledger
from tollway.storage import periods as stored_periods
from tollway.storage import usage_events as stored_events
from tollway.storage import watermarks as stored_watermarks
from tollway.storage.database import TenantTx
from tollway.storage.record_archive import Archive
from tollway.wire.segments import Reader, first_chain

FORMAT = "tollway-audit-3"
"""Name of the export format. A verifier refuses any other."""

PAGE_ROWS = 1000
"""Events or transactions read at a time: a few milliseconds of the database's time."""

Open = Callable[[], AbstractContextManager[TenantTx]]
"""Begins a reading transaction of the organization."""


def export(open_tx: Open, archive: Archive, period_id: str, now: int) -> Iterator[bytes]:
    """The lines of a closed period. Raises RESOURCE_UNKNOWN, or STATE_CONFLICT (not closed, not kept), before the first one, if at all."""
    with open_tx() as tx:
        period = periods.get_own_period(tx, period_id)
        if period.closed is None or period.closing is None:
            raise Fault(STATE_CONFLICT, message="The period is not closed yet.")
        blocks = list(stored_periods.iterate_blocks(tx, period.id))
        if not periods.are_corrected_kept(tx, period) or not periods.is_kept(tx, blocks):
            raise Fault(STATE_CONFLICT, message=periods.NOT_KEPT)
    return _Lines(open_tx, archive, period).all(now)


@dataclass(slots=True)
class _Lines:
    open_tx: Open
    archive: Archive
    period: Period
    moved: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def all(self, now: int) -> Iterator[bytes]:
        """Every line, in order."""
        for type, fields in self._rows(now):
            self.count += 1
            yield msgspec.json.encode({"type": type, **fields}) + b"\n"

    def _rows(self, now: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
        period = self.period
        yield "export", {"format": FORMAT, "exported_at": now}
        yield "organization", {"id": period.organization_id, "currency": period.currency}
        hashed = period.closed.period_hash if period.closed is not None else None
        yield "period", {**periods.make_statement(period), "period_hash": None if hashed is None else hashed.hex()}
        with self.open_tx() as tx:
            conditions = list_conditions(tx, period)
        yield from conditions
        for posting in self._transactions():
            for entry in posting.entries:
                self.moved[entry.account.id] = self.moved.get(entry.account.id, 0) + entry.amount_pico
            yield "transaction", _transaction_row(posting)
        if period.closed is not None and period.closed.credits_digest is not None:
            with self.open_tx() as tx:
                lines = closed_credits.list_lines(tx, period, period.closed.closed_at)
            yield from lines
        with self.open_tx() as tx:
            agreed = contracts.list_lines(tx, period)
        yield from agreed
        yield from self._adjustments()
        for events in self._events():
            yield from self._event_rows("event", events)
        for account_id, pico in sorted(self.moved.items()):
            yield "account", {"id": account_id, "amount_pico": str(pico)}
        yield "end", {"lines": self.count}

    def _transactions(self) -> Iterator[Posting]:
        window = PageWindow(limit=PAGE_ROWS)
        while True:
            with self.open_tx() as tx:
                page = stored_ledger.list_period_transactions(tx, window, self.period.organization_id, self.period.start_at)
            yield from page.items
            if not page.has_more:
                return
            window = PageWindow(after=page.items[-1].id, limit=PAGE_ROWS)

    def _events(self) -> Iterator[list[UsageEvent]]:
        after = ""
        while True:
            with self.open_tx() as tx:
                found = stored_events.list_period_events(
                    tx, self.period.organization_id, self.period.start_at, limit=PAGE_ROWS, after=after
                )
            events = [event for event, _ in found]
            if not events:
                return
            yield events
            after = events[-1].final.admit.request_id

    def _adjustments(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        with self.open_tx() as tx:
            booked = list(stored_corrections.iterate_booked(tx, self.period.organization_id, self.period.start_at))
        for adjustment in booked:
            with self.open_tx() as tx:
                target = stored_events.find_event(tx, adjustment.event_id)
            assert target is not None, "looked for before the first line"
            for _, row in self._event_rows("target", [target]):
                yield "adjustment", {**fields_of(adjustment), "target": {**row, "period_at": target.period_at}}

    def _event_rows(self, type: str, events: Iterable[UsageEvent]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Return events as lines."""
        for event, payload in self._payloads(list(events)):
            amounts = {str(name): str(pico) for name, pico in stated_quantities(event.amounts).items()}
            yield (
                type,
                {
                    "node_id": event.node_id,
                    "epoch": event.epoch,
                    "seq": event.seq,
                    "payload": payload.decode(),
                    "amounts_pico": amounts,
                },
            )

    def _payloads(self, events: list[UsageEvent]) -> list[tuple[UsageEvent, bytes]]:
        """Events with the record that the gateway wrote, byte for byte: made again, or else looked up in the archive."""
        made = [(event, encode(event.final)) for event in events]
        odd: dict[tuple[str, int], set[int]] = {}
        for event, payload in made:
            if content_hash(payload) != event.content_hash:
                odd.setdefault((event.node_id, event.epoch), set()).add(event.seq)
        archived = {place: self._read_archive(*place, seqs) for place, seqs in odd.items()}
        return [(event, archived.get((event.node_id, event.epoch), {}).get(event.seq, payload)) for event, payload in made]

    def _read_archive(self, node_id: str, epoch: int, seqs: set[int]) -> dict[int, bytes]:
        """The payloads of records of an epoch. A gateway of another version may have written what we would write otherwise."""
        with self.open_tx() as tx, tx.as_platform() as platform:  # an epoch has records of many organizations
            archive_bytes = stored_watermarks.find_archive_bytes(platform, node_id, epoch)
        reader, rest, found = Reader(1, first_chain(node_id, epoch)), b"", dict[int, bytes]()
        for chunk in self.archive.read(node_id, epoch, archive_bytes):
            data, used = rest + chunk, 0
            for frame in reader.read(data):
                used = frame.end
                if frame.seq in seqs:
                    found[frame.seq] = frame.payload
            rest = data[used:]
            if len(found) == len(seqs):
                break
        return found


def _transaction_row(posting: Posting) -> Mapping[str, Any]:
    cause = posting.cause
    told: Mapping[str, Any]
    if isinstance(cause, AdjustmentCause):
        told = {"kind": "adjustment", "adjustment_id": cause.adjustment_id}
    else:
        told = {
            "kind": "usage",
            "node_id": cause.node_id,
            "epoch": cause.epoch,
            "first_seq": cause.first_seq,
            "last_seq": cause.last_seq,
            "events": cause.events,
        }
    return {
        "id": posting.id,
        "booked_at": posting.booked_at,
        "cause": told,
        "entries": [{"account": entry.account.id, "amount_pico": str(entry.amount_pico)} for entry in posting.entries],
    }
