"""Records at rest that did not become events: conflicts (the id of another event) and quarantined records (they cannot be rated)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.money import PICO
from tollway.domain.pages import Page, PageWindow
from tollway.domain.quarantine import (
    QuarantinedRecord,
    QuarantineState,
    QuarantineSummary,
    Resolution,
    WriteOff,
    WriteOffRequest,
)
from tollway.domain.usage import RejectedRecord
from tollway.storage.database import PlatformTx, TenantTx
from tollway.storage.pages import fetch_page
from tollway.storage.schema_money import event_conflicts, quarantine_resolutions, quarantined_records, write_off_requests

# ---- Writing ----------------------------------------------------------------------------------------------------------


def insert_rejected(tx: PlatformTx, conflicts: Sequence[RejectedRecord], quarantined: Sequence[RejectedRecord], now: int) -> None:
    """Store records that did not become events, with their bytes as they came."""
    if conflicts:
        rows = [{**_row(record, now), "content_hash": record.content_hash} for record in conflicts]
        tx.connection.execute(event_conflicts.insert(), rows)
    if quarantined:
        rows = [
            {**_row(record, now), "reason": record.reason, "organization_id": record.organization_id, "served_at": record.served_at}
            for record in quarantined
        ]
        tx.connection.execute(quarantined_records.insert(), rows)


def _row(record: RejectedRecord, now: int) -> dict[str, object]:
    return {
        "node_id": record.node_id,
        "epoch": record.epoch,
        "seq": record.seq,
        "event_id": record.event_id,
        "payload": record.payload,
        "received_at": now,
    }


def insert_resolution(tx: PlatformTx, record: QuarantinedRecord, resolution: Resolution) -> None:
    """Store the end of a record's quarantine. The record must be locked and open."""
    tx.connection.execute(
        quarantine_resolutions.insert().values(
            node_id=record.node_id,
            epoch=record.epoch,
            seq=record.seq,
            state=resolution.state,
            reason=resolution.reason,
            actor=resolution.actor,
            resolved_at=resolution.resolved_at,
            approver=resolution.approver,
        )
    )


def insert_write_off_request(tx: PlatformTx, record: QuarantinedRecord, request: WriteOffRequest) -> None:
    """Store a request to write a record off; a second one with the same key changes nothing. The record must be locked and open."""
    insert = tx.insert(write_off_requests).values(
        node_id=record.node_id,
        epoch=record.epoch,
        seq=record.seq,
        actor=request.actor.key_id,
        actor_origin=request.actor.origin,
        reason=request.reason,
        amount_pico=request.amount_pico,
        currency=request.currency,
        requested_at=request.requested_at,
    )
    tx.connection.execute(insert.on_conflict_do_nothing())


# ---- Reading ----------------------------------------------------------------------------------------------------------

_record = quarantined_records.c
_resolution = quarantine_resolutions.c
_request = write_off_requests.c
_same_record = sa.and_(_record.node_id == _resolution.node_id, _record.epoch == _resolution.epoch, _record.seq == _resolution.seq)
_joined = quarantined_records.outerjoin(quarantine_resolutions, _same_record)
_ALL = sa.select(
    quarantined_records,
    _resolution.state,
    _resolution.reason.label("resolution_reason"),
    _resolution.actor,
    _resolution.resolved_at,
    _resolution.approver,
    sa.select(_request.actor)
    .where(_request.node_id == _record.node_id, _request.epoch == _record.epoch, _request.seq == _record.seq)
    .order_by(_request.requested_at, _request.actor)
    .limit(1)
    .scalar_subquery()
    .label("write_off_requested_by"),
).select_from(_joined)
_is_open = _resolution.state.is_(None)


def find_quarantined(tx: PlatformTx, node_id: str, epoch: int, seq: int, *, lock: bool = False) -> QuarantinedRecord | None:
    """Return one quarantined record. `lock`: nobody else resolves it until this transaction ends."""
    place = (_record.node_id == node_id, _record.epoch == epoch, _record.seq == seq)
    if lock:
        tx.connection.execute(sa.select(_record.seq).where(*place).with_for_update()).one_or_none()
    row = tx.connection.execute(_ALL.where(*place)).one_or_none()
    return None if row is None else _quarantined(row)


def list_write_off_requests(tx: PlatformTx, record: QuarantinedRecord) -> list[WriteOffRequest]:
    """Return the requests to write a record off, the first one first."""
    place = (_request.node_id == record.node_id, _request.epoch == record.epoch, _request.seq == record.seq)
    rows = tx.connection.execute(sa.select(write_off_requests).where(*place).order_by(_request.requested_at, _request.actor))
    return [
        WriteOffRequest(Operator(row.actor, KeyOrigin(row.actor_origin)), row.reason, row.amount_pico, row.currency, row.requested_at)
        for row in rows
    ]


def sum_write_offs(tx: PlatformTx, origin: KeyOrigin, currency: str, since: int) -> int:
    """Return the amounts in a currency that keys of an origin have asked to write off since then, in pico."""
    amount = _request.amount_pico
    query = sa.select(sa.func.coalesce(sa.func.sum(amount // PICO), 0), sa.func.coalesce(sa.func.sum(amount % PICO), 0))
    mine = (_request.actor_origin == origin, _request.currency == currency, _request.requested_at >= since)
    units, picos = tx.connection.execute(query.where(*mine)).one()
    return int(units) * PICO + int(picos)


def find_own_quarantined(tx: TenantTx, request_id: str) -> QuarantinedRecord | None:
    """Return a quarantined record of one of the organization's requests, the first if there are several."""
    query = _ALL.where(_record.event_id == request_id, _record.organization_id == tx.organization_id)
    row = tx.connection.execute(query.order_by(_record.node_id, _record.epoch, _record.seq).limit(1)).one_or_none()
    return None if row is None else _quarantined(row)


def list_quarantined(
    tx: PlatformTx, window: PageWindow, *, state: QuarantineState | None, organization_id: str | None, reason: str | None
) -> Page[QuarantinedRecord]:
    """Return quarantined records by place: those in one state, of one organization, with one reason. The cursor is
    `<node>/<epoch>/<seq>`."""
    query = _ALL
    if state is not None:
        query = query.where(_is_open if state is QuarantineState.OPEN else _resolution.state == state)
    if organization_id is not None:
        query = query.where(_record.organization_id == organization_id)
    if reason is not None:
        query = query.where(_record.reason == reason)
    place: Any = _record.node_id + "/" + sa.cast(_record.epoch, sa.String) + "/" + sa.cast(_record.seq, sa.String)
    return fetch_page(tx, query, place, window, _quarantined)


def list_open_summaries(tx: PlatformTx, organization_id: str, end_at: int) -> list[QuarantineSummary]:
    """Return the open records that may belong to the organization and to the time before `end_at`, by epoch and reason.

    One that does not say whose it is may be anybody's; one that does not say when it was served was not before its epoch began.
    """
    query = (
        sa.select(*_PLACE, _record.reason, *_COUNTS)
        .select_from(_joined)
        .where(_is_open, *_may_belong_to(organization_id, end_at))
        .group_by(*_PLACE, _record.reason)
        .order_by(*_PLACE, _record.reason)
    )
    rows = tx.connection.execute(query)
    return [QuarantineSummary(row.node_id, row.epoch, row.reason, row.records, row.first_seq, row.last_seq) for row in rows]


def list_write_offs(tx: PlatformTx, organization_id: str, start_at: int, end_at: int) -> list[WriteOff]:
    """Return what was written off of the records that may belong to the organization and to the time from `start_at` to `end_at`."""
    query = (
        sa.select(*_PLACE, _resolution.reason, _resolution.actor, _resolution.approver, *_COUNTS)
        .select_from(_joined)
        .where(
            _resolution.state == QuarantineState.WRITTEN_OFF,
            *_may_belong_to(organization_id, end_at),
            sa.func.coalesce(_record.served_at, _record.received_at) >= start_at,
        )
        .group_by(*_PLACE, _resolution.reason, _resolution.actor, _resolution.approver)
        .order_by(*_PLACE, _resolution.reason, _resolution.actor, sa.func.coalesce(_resolution.approver, ""))
    )
    rows = tx.connection.execute(query)
    return [WriteOff(row.node_id, row.epoch, row.reason, row.actor, row.approver, row.records, row.first_seq, row.last_seq) for row in rows]


_PLACE = (_record.node_id, _record.epoch)
_COUNTS = (
    sa.func.count().label("records"),
    sa.func.min(_record.seq).label("first_seq"),
    sa.func.max(_record.seq).label("last_seq"),
)


def _may_belong_to(organization_id: str, end_at: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        sa.or_(_record.organization_id.is_(None), _record.organization_id == organization_id),
        sa.func.coalesce(_record.served_at, _record.epoch) < end_at,
    )


def count_open(tx: PlatformTx) -> dict[str, int]:
    """Return how many quarantined records are open, by reason: for the metric."""
    query = sa.select(_record.reason, sa.func.count().label("records")).select_from(_joined).where(_is_open).group_by(_record.reason)
    return {row.reason: row.records for row in tx.connection.execute(query)}


def count_conflicts(tx: PlatformTx) -> int:
    """Return how many records have the id of another event and other content: for the metric."""
    found: int = tx.connection.execute(sa.select(sa.func.count()).select_from(event_conflicts)).scalar_one()
    return found


def _quarantined(row: Any) -> QuarantinedRecord:
    resolution = None
    if row.state is not None:
        resolution = Resolution(QuarantineState(row.state), row.resolution_reason, row.actor, row.resolved_at, row.approver)
    return QuarantinedRecord(
        node_id=row.node_id,
        epoch=row.epoch,
        seq=row.seq,
        reason=row.reason,
        event_id=row.event_id,
        organization_id=row.organization_id,
        served_at=row.served_at,
        received_at=row.received_at,
        payload=row.payload,
        resolution=resolution,
        write_off_requested_by=row.write_off_requested_by,
    )


# ---- For verification -------------------------------------------------------------------------------------------------


class RejectedContent(NamedTuple):
    """Columns of a rejected record that follow from the record itself. `content_hash` is empty for quarantined records; `organization_id`
    and `served_at` are None for conflicts, and where the record does not say."""

    event_id: str | None
    payload: bytes
    content_hash: bytes
    organization_id: str | None
    served_at: int | None


def list_conflicts(tx: PlatformTx, node_id: str, epoch: int) -> dict[int, RejectedContent]:
    """Return the contents of an epoch's conflicts by sequence number: for verification."""
    query = sa.select(event_conflicts).where(event_conflicts.c.node_id == node_id, event_conflicts.c.epoch == epoch)
    rows = tx.connection.execute(query)
    return {row.seq: RejectedContent(row.event_id, row.payload, row.content_hash, None, None) for row in rows}


def list_quarantined_contents(tx: PlatformTx, node_id: str, epoch: int) -> dict[int, RejectedContent]:
    """Return the contents of an epoch's quarantined records by sequence number: for verification."""
    rows = tx.connection.execute(sa.select(quarantined_records).where(_record.node_id == node_id, _record.epoch == epoch))
    return {row.seq: RejectedContent(row.event_id, row.payload, b"", row.organization_id, row.served_at) for row in rows}


def list_quarantine_states(tx: PlatformTx, node_id: str, epoch: int) -> dict[int, QuarantineState]:
    """Return the state of each quarantined record of an epoch, by sequence number: for verification."""
    query = sa.select(_record.seq, _resolution.state).select_from(_joined).where(_record.node_id == node_id, _record.epoch == epoch)
    rows = tx.connection.execute(query)
    return {row.seq: QuarantineState.OPEN if row.state is None else QuarantineState(row.state) for row in rows}


def list_epochs_with_rejected(tx: PlatformTx) -> set[tuple[str, int]]:
    """Return node and epoch of every epoch with a conflict or a quarantined record: for verification."""
    places = sa.union(*(sa.select(table.c.node_id, table.c.epoch) for table in (event_conflicts, quarantined_records)))
    return {(node_id, epoch) for node_id, epoch in tx.connection.execute(places)}
