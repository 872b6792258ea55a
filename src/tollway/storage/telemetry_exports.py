"""Telemetry exports at rest. How far a receiver has got stands in its row, and moves under a condition on where it stood: of two processes
that send the same records, one moves it."""

import json
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tollway.domain.pages import Page, PageWindow
from tollway.domain.telemetry_exports import ExportFormat, Signal, TelemetryExport
from tollway.domain.webhooks import DisabledReason
from tollway.storage import usage_batches
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.pages import fetch_page
from tollway.storage.schema import organizations
from tollway.storage.schema_audit import audit_heads
from tollway.storage.schema_events import telemetry_exports

_E = telemetry_exports.c

_MOVED = (
    *("usage_position", "audit_position", "succeeded_at", "waiting_since", "missed_at"),
    *("failures", "failing_since", "paused_until", "last_error"),
)
"""Columns that say where a receiver is, and how it does."""


class Heads(NamedTuple):
    """Numbers of the latest batch of usage, and of the latest audit record of an organization."""

    usage: int
    audit: int


def find_heads(tx: TenantTx) -> Heads:
    """Return where an export of the organization begins that follows what happens next."""
    audit = tx.connection.execute(sa.select(audit_heads.c.sequence).where(audit_heads.c.chain == tx.organization_id)).scalar_one_or_none()
    with tx.as_platform() as platform:
        usage = usage_batches.find_last(platform)
    return Heads(usage, audit or 0)


def insert_export(tx: TenantTx, export: TelemetryExport) -> None:
    """Store a new export."""
    tx.connection.execute(telemetry_exports.insert().values(_columns(export)))


def put_export(tx: Transaction, export: TelemetryExport) -> None:
    """Replace a stored export, which must be locked."""
    tx.connection.execute(telemetry_exports.update().where(_E.id == export.id).values(_columns(export)))


def find_export(tx: TenantTx, export_id: str, *, lock: bool = False) -> TelemetryExport | None:
    """Return an export of the organization. `lock`: until the transaction ends."""
    query = sa.select(telemetry_exports).where(_E.organization_id == tx.organization_id, _E.id == export_id)
    row = tx.connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _export(row)


def lock_organization(tx: TenantTx) -> None:
    """Let those who add exports of the organization take turns until the transaction ends."""
    own = sa.select(organizations.c.id).where(organizations.c.id == tx.organization_id)
    tx.connection.execute(own.with_for_update(key_share=True)).all()


def list_exports(tx: TenantTx, window: PageWindow) -> Page[TelemetryExport]:
    """Return the exports of the organization."""
    query = sa.select(telemetry_exports).where(_E.organization_id == tx.organization_id)
    return fetch_page(tx, query, _E.id, window, _export)


def delete_export(tx: TenantTx, export_id: str) -> None:
    """Delete an export of the organization."""
    tx.connection.execute(telemetry_exports.delete().where(_E.organization_id == tx.organization_id, _E.id == export_id))


def list_due(tx: PlatformTx, now: int, without: set[str], count_max: int) -> list[TelemetryExport]:
    """Return exports behind whose positions there may be records, those first that wait longest or were sent to longest ago."""
    audit = sa.select(audit_heads.c.sequence).where(audit_heads.c.chain == _E.organization_id).scalar_subquery()
    is_behind = sa.or_(_E.usage_position < usage_batches.find_last(tx), _E.audit_position < audit)
    query = sa.select(telemetry_exports).where(_E.disabled_at.is_(None), _E.paused_until <= now, is_behind)
    if without:
        query = query.where(_E.id.not_in(sorted(without)))
    query = query.order_by(sa.func.coalesce(_E.succeeded_at, 0), _E.id).limit(count_max)
    return [_export(row) for row in tx.connection.execute(query)]


def move(tx: PlatformTx, before: TelemetryExport, after: TelemetryExport) -> bool:
    """Store where an export is, and its state, if its positions are still those of `before`. Return whether they were."""
    own = sa.and_(
        _E.id == before.id,
        _E.disabled_at.is_(None),
        _E.usage_position.is_not_distinct_from(before.usage_position),
        _E.audit_position.is_not_distinct_from(before.audit_position),
    )
    values = {name: getattr(after, name) for name in _MOVED}
    return tx.connection.execute(telemetry_exports.update().where(own).values(values)).rowcount == 1


def _columns(export: TelemetryExport) -> dict[str, Any]:
    texts = {name: json.dumps([str(each) for each in getattr(export, name)]) for name in ("signals", "header_names")}
    return msgspec.structs.asdict(export) | texts


def _export(row: Any) -> TelemetryExport:
    fields = {name: getattr(row, name) for name in TelemetryExport.__struct_fields__}
    fields["format"] = ExportFormat(row.format)
    fields["signals"] = tuple(Signal(each) for each in json.loads(row.signals))
    fields["header_names"] = tuple(json.loads(row.header_names))
    fields["sealed"] = bytes(row.sealed)
    fields["disabled_reason"] = None if row.disabled_reason is None else DisabledReason(row.disabled_reason)
    return TelemetryExport(**fields)
