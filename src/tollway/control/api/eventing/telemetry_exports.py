"""Telemetry exports of an organization: receivers of its requests, usage and audit trail, by OpenTelemetry or as JSON."""

from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from tollway.control.api import routes
from tollway.control.api.eventing.webhooks import NewestFirst
from tollway.control.api.routes import Plane, may
from tollway.control.api.schemas import Identified, In, ListOut, Name, Out, find_seconds, list_out, seconds
from tollway.control.eventing import telemetry_exports
from tollway.control.eventing.addresses import AddressRefused, find_peer
from tollway.control.eventing.telemetry_exports import ExportChanges
from tollway.control.host_names import NamesBusy
from tollway.control.identity import access
from tollway.control.identity.access import Tenant
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.faults import NAMES_BUSY, PARAMETER_INVALID, WEBHOOK_UNREACHABLE, Fault
from tollway.domain.roles import Permission
from tollway.domain.telemetry_exports import HEADERS_MAX, ExportFormat, Signal, TelemetryExport

router = routes.router(tags=["telemetry exports"])

Reader = Annotated[Tenant, Depends(may(Permission.TELEMETRY_READ))]
Writer = Annotated[Tenant, Depends(may(Permission.TELEMETRY_WRITE))]

_PATH = "/v1/organization/telemetry_exports"
_EXPORT = "telexp_0198c5f2a3b47c11a0b1c2d3e4f50617"

READ_BY = {
    Signal.TRACES: Permission.COSTS_READ,
    Signal.METRICS: Permission.COSTS_READ,
    Signal.USAGE: Permission.COSTS_READ,
    Signal.AUDIT: Permission.AUDIT_READ,
}
"""Permission to read by the API what a signal sends: whoever lets it be sent must hold it too."""

ExportName = Annotated[Name, Field(description="A name for people, 1 to 256 characters.", examples=["Grafana Cloud"])]
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    Field(
        description="An https URL with a public address. Of `otlp` the part before `/v1/traces` and `/v1/metrics`, of `json` all of it.",
        examples=["https://otlp.example.com"],
    ),
]
Format = Annotated[
    ExportFormat,
    Field(strict=False, description="`otlp`: OpenTelemetry over HTTP, in protobuf. `json`: arrays of records.", examples=["otlp"]),
]
Signals = Annotated[
    list[Annotated[Signal, Field(strict=False)]],
    Field(
        min_length=1,
        max_length=len(Signal),
        description="What is sent: of `otlp`, `traces` and `metrics`; of `json`, `usage` and `audit`.",
        examples=[["traces", "metrics"]],
    ),
]
Headers = Annotated[
    dict[str, str],
    Field(
        max_length=HEADERS_MAX,
        description="Headers of each request to the receiver, such as a token. They are stored sealed, and their values never shown.",
        examples=[{"authorization": "Bearer 2f1c"}],
    ),
]


class TelemetryExportCreate(In):
    """An export to create."""

    name: ExportName
    url: Url
    format: Format
    signals: Signals
    headers: Headers = Field(default_factory=dict)


class TelemetryExportUpdate(In):
    """Changes of an export; what is left out stays."""

    name: ExportName | None = None
    url: Url | None = None
    signals: Signals | None = None
    headers: Headers | None = None
    enabled: Annotated[
        Literal[True] | None, Field(description="True: send to a receiver again that was disabled, from now on.", examples=[True])
    ] = None


class TelemetryExportOut(Identified):
    """An export, with the state of its receiver."""

    object: Annotated[Literal["telemetry_export"], Field(description="Always `telemetry_export`.")] = "telemetry_export"
    id: Annotated[str, Field(description="Id of the export.", examples=[_EXPORT])]
    name: ExportName
    url: Url
    format: Format
    signals: Signals
    header_names: Annotated[list[str], Field(description="Names of its headers, in lower case.", examples=[["authorization"]])]
    created_at: int
    updated_at: Annotated[int, Field(description="When it was changed last, in Unix seconds (UTC).", examples=[1790000000])]
    enabled: Annotated[bool, Field(description="Whether anything is sent.", examples=[True])]
    disabled_at: Annotated[int | None, Field(description="When it was disabled, in Unix seconds (UTC).", examples=[None])]
    disabled_reason: Annotated[
        Literal["failing", "gone"] | None,
        Field(description="Why: nothing was taken for three days, or the receiver answered 410.", examples=[None]),
    ]
    last_success_at: Annotated[
        int | None, Field(description="When the receiver took records last, in Unix seconds (UTC).", examples=[1790000000])
    ]
    failing_since: Annotated[
        int | None, Field(description="The first failure since then, in Unix seconds (UTC); null if none.", examples=[None])
    ]
    last_error: Annotated[
        str | None, Field(description="Why the latest attempt failed: the status, or what there was instead.", examples=["status 401"])
    ]
    waiting_since: Annotated[
        int | None,
        Field(
            description="The instant of the oldest record that it has not got, in Unix seconds (UTC); null if it has all.", examples=[None]
        ),
    ]
    records_missed_at: Annotated[
        int | None,
        Field(description="When records were last removed before they were sent, in Unix seconds (UTC); null if never.", examples=[None]),
    ]

    @classmethod
    def of(cls, found: TelemetryExport) -> "TelemetryExportOut":
        """Return an export as the API shows it."""
        return cls(
            id=found.id,
            name=found.name,
            url=found.url,
            format=found.format,
            signals=list(found.signals),
            header_names=list(found.header_names),
            created_at=seconds(found.created_at),
            updated_at=seconds(found.updated_at),
            enabled=found.disabled_at is None,
            disabled_at=find_seconds(found.disabled_at),
            disabled_reason=None if found.disabled_reason is None else found.disabled_reason.value,
            last_success_at=find_seconds(found.succeeded_at),
            failing_since=find_seconds(found.failing_since),
            last_error=found.last_error,
            waiting_since=find_seconds(found.waiting_since),
            records_missed_at=find_seconds(found.missed_at),
        )


class TelemetryExportDeleted(Identified):
    """An export is gone."""

    object: Literal["telemetry_export.deleted"] = "telemetry_export.deleted"
    id: Annotated[str, Field(description="Id of the export.", examples=[_EXPORT])]
    deleted: Literal[True] = True


class TelemetryExportTestOut(Out):
    """The result of a test."""

    object: Annotated[Literal["telemetry_export.test"], Field(description="Always `telemetry_export.test`.")] = "telemetry_export.test"
    telemetry_export_id: Annotated[str, Field(description="The export.", examples=[_EXPORT])]
    status_code: Annotated[int, Field(description="Status of the receiver's answer, 100 to 599.", examples=[200])]


Page = Annotated[NewestFirst, Query()]


@router.get(_PATH)
def list_telemetry_exports(caller: Reader, plane: Plane, query: Page) -> ListOut[TelemetryExportOut]:
    """The telemetry exports of the organization, the newest first."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return list_out(telemetry_exports.list_exports(tx, query.window()), TelemetryExportOut.of)


@router.post(_PATH)
async def create_telemetry_export(caller: Writer, plane: Plane, body: TelemetryExportCreate) -> TelemetryExportOut:
    """Have requests, usage or the audit trail of the organization sent to a receiver, from now on."""
    signals = telemetry_exports.check_signals(body.format, body.signals)
    _require(caller, signals)
    await _check_url(plane, caller.organization_id, body.url)
    return await run_in_threadpool(_store_new, plane, caller.organization_id, body, signals)


def _store_new(plane: ControlPlane, organization_id: str, body: TelemetryExportCreate, signals: tuple[Signal, ...]) -> TelemetryExportOut:
    now, id = plane.now(), plane.new_id(ids.TELEMETRY_EXPORT)
    headers = telemetry_exports.seal_headers(id, body.headers, plane.open_vault(organization_id))
    made = TelemetryExport(
        id=id,
        organization_id=organization_id,
        name=body.name,
        url=body.url,
        format=body.format,
        signals=signals,
        header_names=headers.names,
        sealed=headers.sealed,
        created_at=now,
        updated_at=now,
    )
    with plane.database.tenant(organization_id) as tx:
        return TelemetryExportOut.of(telemetry_exports.create_export(tx, made))


@router.get(_PATH + "/{telemetry_export_id}")
def retrieve_telemetry_export(caller: Reader, plane: Plane, telemetry_export_id: str) -> TelemetryExportOut:
    """One telemetry export, with the state of its receiver."""
    with plane.database.tenant(caller.organization_id, write=False) as tx:
        return TelemetryExportOut.of(telemetry_exports.get_export(tx, telemetry_export_id))


@router.post(_PATH + "/{telemetry_export_id}")
async def update_telemetry_export(
    caller: Writer, plane: Plane, telemetry_export_id: str, body: TelemetryExportUpdate
) -> TelemetryExportOut:
    """Change a telemetry export. A signal that is added is sent from now on; headers are replaced as a whole."""
    if body.url is not None:
        await _check_url(plane, caller.organization_id, body.url)
    return await run_in_threadpool(_store_changes, plane, caller, telemetry_export_id, body)


def _store_changes(plane: ControlPlane, caller: Tenant, export_id: str, body: TelemetryExportUpdate) -> TelemetryExportOut:
    headers = None
    if body.headers is not None:
        headers = telemetry_exports.seal_headers(export_id, body.headers, plane.open_vault(caller.organization_id))
    changes = ExportChanges(body.name, body.url, body.signals, headers, body.enabled)
    with plane.database.tenant(caller.organization_id) as tx:
        changed = telemetry_exports.update_export(tx, export_id, changes, plane.now())
        _require(caller, changed.signals)  # also for an address that is changed: it gets them all
    return TelemetryExportOut.of(changed)


@router.delete(_PATH + "/{telemetry_export_id}")
def delete_telemetry_export(caller: Writer, plane: Plane, telemetry_export_id: str) -> TelemetryExportDeleted:
    """Delete a telemetry export. What was not sent is not sent any more."""
    with plane.database.tenant(caller.organization_id) as tx:
        telemetry_exports.delete_export(tx, telemetry_export_id)
    return TelemetryExportDeleted(id=telemetry_export_id)


@router.post(_PATH + "/{telemetry_export_id}/test")
async def test_telemetry_export(caller: Writer, plane: Plane, telemetry_export_id: str) -> TelemetryExportTestOut:
    """Send a request without records to the receiver, once, with the headers of the export, and answer with the status of its answer."""
    export, headers = await run_in_threadpool(_open_export, plane, caller.organization_id, telemetry_export_id)
    try:
        outcome = await telemetry_exports.send_test(export, plane.webhook_networks, headers)
    except NamesBusy:
        raise Fault(NAMES_BUSY) from None
    if outcome.status is None:
        raise Fault(WEBHOOK_UNREACHABLE, message=f"The receiver did not answer: {outcome.error}.")
    return TelemetryExportTestOut(telemetry_export_id=telemetry_export_id, status_code=outcome.status)


def _open_export(plane: ControlPlane, organization_id: str, export_id: str) -> tuple[TelemetryExport, dict[str, str]]:
    with plane.database.tenant(organization_id, write=False) as tx:
        export = telemetry_exports.get_export(tx, export_id)
    return export, telemetry_exports.open_headers(export, plane.open_vault(organization_id))


async def _check_url(plane: ControlPlane, organization_id: str, url: str) -> None:
    """Raise PARAMETER_INVALID unless telemetry may be sent to a URL as it resolves now, and NAMES_BUSY if that cannot be said now."""
    if "?" in url:
        raise Fault(PARAMETER_INVALID, param="url", message="Invalid value for url: it must be a URL without a query.")
    try:
        await find_peer(url, plane.webhook_networks, organization_id)
    except NamesBusy:
        raise Fault(NAMES_BUSY) from None
    except AddressRefused as refused:
        raise Fault(PARAMETER_INVALID, param="url", message=f"Invalid value for url: {refused}.") from None


def _require(caller: Tenant, signals: tuple[Signal, ...]) -> None:
    """Raise SCOPE_INSUFFICIENT unless the caller may read by the API what would be sent."""
    for each in signals:
        access.require_permission(caller, READ_BY[each], None)
