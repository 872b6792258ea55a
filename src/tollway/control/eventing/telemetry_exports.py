"""Telemetry exports of an organization: made, changed, deleted, and tried.

Headers usually hold a token. They are sealed under the data key of the organization, and never shown again: only their names are.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tollway.control.eventing import delivery
from tollway.control.eventing.delivery import Outcome
from tollway.domain import ids
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.networks import Network
from tollway.domain.pages import Page, PageWindow
from tollway.domain.telemetry_exports import EXPORTS_MAX, ExportFormat, Signal, TelemetryExport, find_unfit, read_headers
from tollway.storage import telemetry_exports as storage
from tollway.storage.database import TenantTx
from tollway.storage.vault import LocalVault

TRACES_PATH = "/v1/traces"
METRICS_PATH = "/v1/metrics"
"""Paths of OTLP/HTTP below the address of a receiver."""

PROTOBUF = {"content-type": "application/x-protobuf"}


HEADERS_LOST = "The headers of the export cannot be opened any more: the key that sealed them is gone. Give them anew."


class NewHeaders(NamedTuple):
    """Headers for an export: their names, and all of them sealed."""

    names: tuple[str, ...]
    sealed: bytes


def seal_headers(export_id: str, headers: Mapping[str, str], vault: LocalVault) -> NewHeaders:
    """Return headers as they are stored. Raises PARAMETER_INVALID."""
    try:
        read = read_headers(headers)
    except ValueError as error:
        raise Fault(PARAMETER_INVALID, param="headers", message=f"Invalid value for headers: {error}.") from None
    return NewHeaders(tuple(read), vault.seal(json.dumps(read), context=_context(export_id)))


def open_headers(export: TelemetryExport, vault: LocalVault) -> dict[str, str]:
    """Return the headers of an export. Raises STATE_CONFLICT where they were sealed under a key that is gone."""
    try:
        opened: dict[str, str] = json.loads(vault.unseal(export.sealed, context=_context(export.id)))
    except ValueError:
        raise Fault(STATE_CONFLICT, message=HEADERS_LOST) from None
    return opened


def _context(export_id: str) -> str:
    return f"telemetry export {export_id}"


def check_signals(format: ExportFormat, signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Return signals in the order of their enumeration, each once. Raises PARAMETER_INVALID for one that the format does not have."""
    chosen = tuple(each for each in Signal if each in signals)
    unfit = find_unfit(format, chosen)
    if unfit is not None:
        raise Fault(PARAMETER_INVALID, param="signals", message=f"Invalid value for signals: the format {format} has no {unfit}.")
    return chosen


def create_export(tx: TenantTx, export: TelemetryExport) -> TelemetryExport:
    """Store a new export, which begins with what happens next. Raises STATE_CONFLICT if there are too many."""
    storage.lock_organization(tx)
    if len(storage.list_exports(tx, PageWindow(limit=EXPORTS_MAX)).items) >= EXPORTS_MAX:
        raise Fault(STATE_CONFLICT, message=f"There are at most {EXPORTS_MAX} telemetry exports.")
    begun = _follow(tx, export)
    storage.insert_export(tx, begun)
    return begun


def get_export(tx: TenantTx, export_id: str, *, lock: bool = False) -> TelemetryExport:
    """Return an export of the organization. Raises RESOURCE_UNKNOWN."""
    found = storage.find_export(tx, export_id, lock=lock) if ids.is_id(ids.TELEMETRY_EXPORT, export_id) else None
    if found is None:
        raise Fault(RESOURCE_UNKNOWN)
    return found


def list_exports(tx: TenantTx, window: PageWindow) -> Page[TelemetryExport]:
    """Return the exports of the organization."""
    return storage.list_exports(tx, window)


class ExportChanges(NamedTuple):
    """Changes of an export; None leaves it. `enabled`: True lets a disabled one send again."""

    name: str | None = None
    url: str | None = None
    signals: Sequence[Signal] | None = None
    headers: NewHeaders | None = None
    enabled: bool | None = None


def update_export(tx: TenantTx, export_id: str, changes: ExportChanges, now: int) -> TelemetryExport:
    """Change an export. A signal that is added begins with what happens next, and so does all of one that is enabled again. Raises
    RESOURCE_UNKNOWN; PARAMETER_INVALID also for another address without the headers anew: whoever changes it could read them there."""
    before = get_export(tx, export_id, lock=True)
    if changes.url not in (None, before.url) and before.header_names and changes.headers is None:
        raise Fault(PARAMETER_INVALID, param="headers", message="Another url needs the headers to be given again.")
    changed = msgspec.structs.replace(
        before,
        name=changes.name or before.name,
        url=changes.url or before.url,
        signals=before.signals if changes.signals is None else check_signals(before.format, changes.signals),
    )
    if changes.headers is not None:
        changed = msgspec.structs.replace(changed, header_names=changes.headers.names, sealed=changes.headers.sealed)
    if changes.enabled and before.disabled_at is not None:
        changed = msgspec.structs.replace(
            changed,
            disabled_at=None,
            disabled_reason=None,
            failures=0,
            failing_since=None,
            waiting_since=None,
            last_error=None,
            paused_until=0,
        )
    changed = _follow(tx, changed)
    if changed != before:
        changed = msgspec.structs.replace(changed, updated_at=now, paused_until=0)
        storage.put_export(tx, changed)
    return changed


def _follow(tx: TenantTx, export: TelemetryExport) -> TelemetryExport:
    """Return an export with a position in each log that it follows, and in no other."""
    heads, enabled = storage.find_heads(tx), export.disabled_at is None
    usage = heads.usage if export.usage_position is None else export.usage_position
    audit = heads.audit if export.audit_position is None else export.audit_position
    return msgspec.structs.replace(
        export,
        usage_position=usage if enabled and export.follows_usage else None,
        audit_position=audit if enabled and export.follows_audit else None,
    )


def delete_export(tx: TenantTx, export_id: str) -> None:
    """Delete an export. What was not sent is not sent any more. Raises RESOURCE_UNKNOWN."""
    get_export(tx, export_id, lock=True)
    storage.delete_export(tx, export_id)


def find_url(export: TelemetryExport, signal: Signal) -> str:
    """Return where a signal is posted to."""
    if export.format is ExportFormat.JSON:
        return export.url
    return export.url.rstrip("/") + (TRACES_PATH if signal is Signal.TRACES else METRICS_PATH)


async def send_test(export: TelemetryExport, networks: Sequence[Network], headers: Mapping[str, str]) -> Outcome:
    """Send a request without records once, at once, and store nothing of it. Raises NamesBusy."""
    own, body = ({}, b"[]") if export.format is ExportFormat.JSON else (PROTOBUF, b"")  # a message without fields has no bytes
    url = find_url(export, export.signals[0])
    return await delivery.post(url, export.organization_id, networks, {**headers, **own}, body)
