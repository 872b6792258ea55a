"""Telemetry exports of an organization: receivers of its requests, usage and audit trail, with the state of each."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tollway.control.api.eventing import telemetry_exports as exports
from tollway.control.api.eventing.telemetry_exports import TelemetryExportCreate, TelemetryExportUpdate
from tollway.control.api.eventing.webhooks import NewestFirst
from tollway.control.console.forms import Form, form, make_body, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.telemetry_exports import SIGNALS, ExportFormat, Signal

router = new_router()

PATH = "/console/organizations/{organization_id}/telemetry"
ONE = PATH + "/{telemetry_export_id}"

FORMATS: Mapping[str, str] = {
    ExportFormat.OTLP: mark("OpenTelemetry (OTLP over HTTP)"),
    ExportFormat.JSON: mark("JSON arrays of records"),
}
SIGNAL_NAMES: Mapping[str, str] = {
    Signal.TRACES: mark("traces: a span for each request"),
    Signal.METRICS: mark("metrics: requests, tokens and costs"),
    Signal.USAGE: mark("usage: an event for each request"),
    Signal.AUDIT: mark("audit trail"),
}
REASONS: Mapping[str, str] = {
    "failing": mark("nothing was taken for three days"),
    "gone": mark("the receiver said that it is gone (410)"),
}
"""Names of formats, signals, and reasons for which an export was disabled."""

_SIGNAL_FIELDS = tuple(Signal)


@router.get(PATH, include_in_schema=False)
def show_exports(page: TenantPage, query: Annotated[NewestFirst, Query()]) -> Response:
    """The exports, each with the state of its receiver."""
    return _show_list(page, query)


def _show_list(page: Page, query: NewestFirst, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/telemetry.html",
        fault=fault,
        exports=page.call(exports.list_telemetry_exports, query=query),
        may_write=page.allows(exports.create_telemetry_export),
        formats=FORMATS,
        signals=SIGNALS,
        signal_names=SIGNAL_NAMES,
    )


def _read_signals(fields: Form) -> list[str]:
    return [each for each in _SIGNAL_FIELDS if fields[each] == "yes"]


def _read_headers(text: str) -> dict[str, str]:
    """Return the headers of a field, one a line (`name: value`). Raises PARAMETER_INVALID; no value of a header is in what it says."""
    headers = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = line.partition(":")
        if not colon or name.strip().lower() in headers:
            message = "Headers are written one a line, such as `authorization: Bearer ...`, each name once."
            raise Fault(PARAMETER_INVALID, param="headers", message=message)
        headers[name.strip().lower()] = value.strip()
    return headers


@router.post(PATH, include_in_schema=False)
async def add_export(
    page: TenantPage, fields: Annotated[Form, form(exports.create_telemetry_export, "name", "url", "format", "headers", *_SIGNAL_FIELDS)]
) -> Response:
    """Have records of the organization sent to a receiver from now on."""
    try:
        headers = _read_headers(fields["headers"])
        values = {name: fields[name] for name in ("name", "url", "format")}
        body = make_body(TelemetryExportCreate, {**values, "signals": _read_signals(fields), "headers": headers})
        made = await page.call(exports.create_telemetry_export, body=body)
    except Fault as fault:
        refused = fault
    else:
        return page.lead(f"/telemetry/{made.id}", "created")
    return await run_in_threadpool(_show_list, page, NewestFirst(), refused)


@router.get(ONE, include_in_schema=False)
def show_export(page: TenantPage, telemetry_export_id: str) -> Response:
    """One export with the state of its receiver."""
    return _show(page, telemetry_export_id)


def _show(page: Page, export_id: str, *, said: int | None = None, fault: Fault | None = None) -> Response:
    export = page.call(exports.retrieve_telemetry_export, telemetry_export_id=export_id)
    return page.show(
        "tenant/telemetry_export.html",
        fault=fault,
        said=said,
        export=export,
        may_write=page.allows(exports.update_telemetry_export),
        formats=FORMATS,
        signals=SIGNALS[export.format],
        signal_names=SIGNAL_NAMES,
        reasons=REASONS,
    )


@router.post(f"{ONE}/test", include_in_schema=False)
async def test_export(
    page: TenantPage, telemetry_export_id: str, _fields: Annotated[Form, form(exports.test_telemetry_export)]
) -> Response:
    """Send a request without records to the receiver, and show the status of its answer."""
    said, refused = None, None
    try:
        said = (await page.call(exports.test_telemetry_export, telemetry_export_id=telemetry_export_id)).status_code
    except Fault as fault:
        refused = fault
    return await run_in_threadpool(_show, page, telemetry_export_id, said=said, fault=refused)


@router.post(f"{ONE}/change", include_in_schema=False)
async def change_export(
    page: TenantPage,
    telemetry_export_id: str,
    fields: Annotated[Form, form(exports.update_telemetry_export, "name", "url", "headers", *_SIGNAL_FIELDS)],
) -> Response:
    """Change an export. Headers that are left empty stay, unless its address changes."""
    try:
        headers = _read_headers(fields["headers"]) or None
        body = {"name": fields["name"], "url": fields["url"], "signals": _read_signals(fields), "headers": headers}
    except Fault as fault:
        refused = fault
    else:
        return await _update(page, telemetry_export_id, body)
    return await run_in_threadpool(_show, page, telemetry_export_id, fault=refused)


@router.post(f"{ONE}/enable", include_in_schema=False)
async def enable_export(
    page: TenantPage, telemetry_export_id: str, _fields: Annotated[Form, form(exports.update_telemetry_export)]
) -> Response:
    """Send to a receiver again that was disabled, from now on."""
    return await _update(page, telemetry_export_id, {"enabled": True})


async def _update(page: Page, export_id: str, values: Mapping[str, object]) -> Response:
    try:
        body = make_body(TelemetryExportUpdate, values)
        await page.call(exports.update_telemetry_export, telemetry_export_id=export_id, body=body)
    except Fault as fault:
        refused = fault
    else:
        return page.lead(f"/telemetry/{export_id}", "saved")
    return await run_in_threadpool(_show, page, export_id, fault=refused)


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_export(
    page: TenantPage, telemetry_export_id: str, fields: Annotated[Form, form(exports.delete_telemetry_export, "confirmation")]
) -> Response:
    """Delete an export, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(exports.retrieve_telemetry_export, telemetry_export_id=telemetry_export_id).name)
        page.call(exports.delete_telemetry_export, telemetry_export_id=telemetry_export_id)
    except Fault as fault:
        return _show(page, telemetry_export_id, fault=fault)
    return page.lead("/telemetry", "deleted")
