"""Webhook endpoints of an organization: made, changed, tested, with their deliveries, and events delivered once more."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from tollway.control.api.eventing import webhooks
from tollway.control.api.eventing.webhooks import (
    DeliveryQuery,
    NewestFirst,
    WebhookEndpointCreate,
    WebhookEndpointUpdate,
    WebhookReplay,
    WebhookSecretRotate,
    WebhookTest,
)
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.events import CATALOG, TENANT_TYPES
from tollway.domain.faults import PARAMETER_INVALID, Fault
from tollway.domain.webhooks import DeliveryState

router = new_router()

PATH = "/console/organizations/{organization_id}/webhooks"
ONE = PATH + "/{webhook_endpoint_id}"

STATES: dict[str, str] = {
    DeliveryState.PENDING: mark("waits"),
    DeliveryState.DELIVERED: mark("delivered"),
    DeliveryState.FAILED: mark("given up"),
}
"""Names of the states of deliveries."""


@router.get(PATH, include_in_schema=False)
def show_endpoints(page: TenantPage, query: Annotated[NewestFirst, Query()]) -> Response:
    """The endpoints."""
    return _show_list(page, query)


def _show_list(page: Page, query: NewestFirst, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/webhooks.html",
        fault=fault,
        endpoints=page.call(webhooks.list_webhook_endpoints, query=query),
        event_types=[each for each in CATALOG if each in TENANT_TYPES],
        may_write=page.allows(webhooks.create_webhook_endpoint),
    )


@router.post(PATH, include_in_schema=False)
async def add_endpoint(
    page: TenantPage, fields: Annotated[Form, form(webhooks.create_webhook_endpoint, "name", "url", "event_types")]
) -> Response:
    """Create an endpoint, and show its secret this once."""
    try:
        body = make_body(WebhookEndpointCreate, {**fields, "event_types": split_list(fields["event_types"])})
        made = await page.call(webhooks.create_webhook_endpoint, body=body)
    except Fault as fault:
        refused = fault
    else:
        return await run_in_threadpool(_show, page, made.id, secret=made.signing_secret)
    return await run_in_threadpool(_show_list, page, NewestFirst(), refused)


@router.get(ONE, include_in_schema=False)
def show_endpoint(page: TenantPage, webhook_endpoint_id: str, query: Annotated[DeliveryQuery, Query()]) -> Response:
    """One endpoint with its deliveries."""
    return _show(page, webhook_endpoint_id, query)


def _show(
    page: Page,
    endpoint_id: str,
    query: DeliveryQuery | None = None,
    *,
    secret: str | None = None,
    said: int | None = None,
    fault: Fault | None = None,
) -> Response:
    query = query or DeliveryQuery()
    return page.show(
        "tenant/webhook.html",
        fault=fault,
        secret=secret,
        said=said,
        endpoint=page.call(webhooks.retrieve_webhook_endpoint, webhook_endpoint_id=endpoint_id),
        deliveries=page.call(webhooks.list_webhook_deliveries, webhook_endpoint_id=endpoint_id, query=query),
        state=query.state,
        states=STATES,
        event_types=[each for each in CATALOG if each in TENANT_TYPES],
        may_write=page.allows(webhooks.update_webhook_endpoint),
    )


@router.post(f"{ONE}/change", include_in_schema=False)
async def change_endpoint(
    page: TenantPage,
    webhook_endpoint_id: str,
    fields: Annotated[Form, form(webhooks.update_webhook_endpoint, "name", "url", "event_types")],
) -> Response:
    """Change an endpoint."""
    body = {**fields, "event_types": split_list(fields["event_types"])}
    return await _update(page, webhook_endpoint_id, body)


@router.post(f"{ONE}/enable", include_in_schema=False)
async def enable_endpoint(
    page: TenantPage, webhook_endpoint_id: str, _fields: Annotated[Form, form(webhooks.update_webhook_endpoint)]
) -> Response:
    """Send to an endpoint again that was disabled."""
    return await _update(page, webhook_endpoint_id, {"enabled": True})


async def _update(page: Page, endpoint_id: str, values: Mapping[str, object]) -> Response:
    try:
        body = make_body(WebhookEndpointUpdate, values)
        await page.call(webhooks.update_webhook_endpoint, webhook_endpoint_id=endpoint_id, body=body)
    except Fault as fault:
        refused = fault
    else:
        return page.lead(f"/webhooks/{endpoint_id}", "saved")
    return await run_in_threadpool(_show, page, endpoint_id, fault=refused)


@router.post(f"{ONE}/secret", include_in_schema=False)
def rotate_secret(
    page: TenantPage, webhook_endpoint_id: str, fields: Annotated[Form, form(webhooks.rotate_webhook_secret, "keep")]
) -> Response:
    """Give an endpoint another secret, and show it this once."""
    try:
        body = WebhookSecretRotate(keep_old_secret_active_for_24_hours=fields["keep"] == "yes")
        rotated = page.call(webhooks.rotate_webhook_secret, webhook_endpoint_id=webhook_endpoint_id, body=body)
    except Fault as fault:
        return _show(page, webhook_endpoint_id, fault=fault)
    return _show(page, webhook_endpoint_id, secret=rotated.signing_secret)


@router.post(f"{ONE}/test", include_in_schema=False)
async def test_endpoint(
    page: TenantPage, webhook_endpoint_id: str, fields: Annotated[Form, form(webhooks.test_webhook_endpoint, "event_type")]
) -> Response:
    """Send an example of an event, and show the status of the answer."""
    said, refused = None, None
    try:
        body = make_body(WebhookTest, fields)
        said = (await page.call(webhooks.test_webhook_endpoint, webhook_endpoint_id=webhook_endpoint_id, body=body)).status_code
    except Fault as fault:
        refused = fault
    return await run_in_threadpool(_show, page, webhook_endpoint_id, said=said, fault=refused)


@router.post(f"{ONE}/replay", include_in_schema=False)
def replay_events(
    page: TenantPage,
    webhook_endpoint_id: str,
    fields: Annotated[Form, form(webhooks.replay_webhook_deliveries, "event_id", "since", "until")],
) -> Response:
    """Deliver an event once more, or those of a time."""
    try:
        times = {name: _read_instant(name, fields[name]) for name in ("since", "until") if fields[name]}
        body = make_body(WebhookReplay, {"event_id": fields["event_id"], **times})
        page.call(webhooks.replay_webhook_deliveries, webhook_endpoint_id=webhook_endpoint_id, body=body)
    except Fault as fault:
        return _show(page, webhook_endpoint_id, fault=fault)
    return page.lead(f"/webhooks/{webhook_endpoint_id}", "replayed")


def _read_instant(name: str, text: str) -> int:
    """Return an instant of UTC of a form in Unix seconds. Raises PARAMETER_INVALID."""
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        raise Fault(PARAMETER_INVALID, param=name, message="An instant is written such as 2026-11-30T08:00.") from None


@router.post(f"{ONE}/delete", include_in_schema=False)
def delete_endpoint(
    page: TenantPage, webhook_endpoint_id: str, fields: Annotated[Form, form(webhooks.delete_webhook_endpoint, "confirmation")]
) -> Response:
    """Delete an endpoint, whose name was typed."""
    try:
        require_typed(fields["confirmation"], page.call(webhooks.retrieve_webhook_endpoint, webhook_endpoint_id=webhook_endpoint_id).name)
        page.call(webhooks.delete_webhook_endpoint, webhook_endpoint_id=webhook_endpoint_id)
    except Fault as fault:
        return _show(page, webhook_endpoint_id, fault=fault)
    return page.lead("/webhooks", "deleted")
