"""Connectors: operators see where invoices stand at theirs, and have one asked again; Stripe sends its events."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from tollway.control.api import routes
from tollway.control.api.invoicing.invoices import OperatorReader, OperatorWriter, known_invoice
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.routes import Plane, public
from tollway.control.api.schemas import Identified, ListOut, Out, PageQuery, find_seconds, list_out, seconds
from tollway.control.auditing import audit
from tollway.control.auditing.audit import AuditedOperation
from tollway.control.invoicing import connectors, dunning, stripe_events
from tollway.control.invoicing.stripe_events import BODY_BYTES_MAX, HandledEvent
from tollway.control.plane import ControlPlane
from tollway.domain import ids
from tollway.domain.audit import Actor, ActorKind
from tollway.domain.connectors import InvoiceSync
from tollway.domain.faults import BODY_TOO_LARGE, RESOURCE_UNKNOWN, Fault

router = routes.router(tags=["payments"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in (
        (401, "The event is not signed with a secret of the webhook endpoint, or too old."),
        (404, "Stripe is not set up."),
        (409, "The event cannot be carried out yet. Send it again later."),
    )
}


class InvoiceSyncOut(Identified):
    """Standing of an invoice at its connector."""

    object: Literal["platform.invoice_sync"] = "platform.invoice_sync"
    organization_id: str
    connector: Annotated[str, Field(description="What collects the invoice.", examples=["stripe"])]
    state: Annotated[
        str,
        Field(
            description="`draft.sync`: the draft waits for the connector to say that it can collect it, and is not issued before;"
            " `draft.ready`; `issuing.sync`: the issued invoice is being copied; `payment_processing.pending`: it is being collected;"
            " `settled`.",
            examples=["payment_processing.pending"],
        ),
    ]
    external_id: Annotated[str, Field(description="By which the connector knows it; empty for none yet.", examples=["in_1MtHbELkdIwHu7ix"])]
    is_parked: Annotated[bool, Field(description="Whether it waits for an operator.", examples=[False])]
    problem: Annotated[str, Field(description="Why it is parked, or why the last attempt failed; empty for no problem.", examples=[""])]
    attempts: Annotated[int, Field(ge=0, description="Failed attempts in this state.", examples=[0])]
    next_at: Annotated[
        int | None, Field(description="When the connector is asked again, in Unix seconds; null for never.", examples=[1790812800])
    ]
    changed_at: Annotated[int, Field(description="When it changed last, in Unix seconds (UTC).", examples=[1790812800])]

    @classmethod
    def of(cls, sync: InvoiceSync) -> "InvoiceSyncOut":
        """Return the standing of an invoice as the API shows it."""
        return cls(
            id=sync.invoice_id,
            organization_id=sync.organization_id,
            connector=sync.connector,
            state=sync.state,
            external_id=sync.external_id,
            is_parked=sync.is_parked,
            problem=sync.problem,
            attempts=sync.attempts,
            next_at=find_seconds(sync.next_at),
            changed_at=seconds(sync.changed_at),
        )


class StripeEventOut(Out):
    """Receipt of an event."""

    outcome: Annotated[
        Literal["recorded", "known", "ignored"],
        Field(description="`known`: it was recorded before; `ignored`: it is about nothing that is recorded.", examples=["recorded"]),
    ]


@router.get("/v1/platform/invoice_syncs")
def list_invoice_syncs(
    _caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()], organization_id: OrganizationId | None = None
) -> ListOut[InvoiceSyncOut]:
    """Invoices that a connector collects, drafts included, with their states: of everyone or of one organization."""
    with plane.database.platform(write=False) as tx:
        page = connectors.list_syncs(tx, query.window(), organization_id=organization_id)
    return list_out(page, InvoiceSyncOut.of)


@router.post("/v1/platform/invoices/{invoice_id}/sync")
def retry_invoice_sync(_caller: OperatorWriter, plane: Plane, invoice_id: str) -> InvoiceSyncOut:
    """Have the connector asked about an invoice within a minute, also if it is parked."""
    with plane.database.platform() as tx:
        return InvoiceSyncOut.of(connectors.retry(tx, known_invoice(invoice_id), plane.now()))


@router.post("/v1/stripe/events", dependencies=[Depends(public)], response_model=StripeEventOut, responses=_REFUSALS)
async def receive_stripe_event(plane: Plane, request: Request) -> StripeEventOut:
    """Take an event of Stripe, signed in the header `Stripe-Signature`: payments, refunds and disputes of invoices that it collects are
    recorded, once each. 404 where Stripe is not set up."""
    if plane.stripe is None or not plane.stripe.webhook_secrets:
        raise Fault(RESOURCE_UNKNOWN)
    body = await routes.read_body(request)
    if len(body) > BODY_BYTES_MAX:
        raise Fault(BODY_TOO_LARGE)
    try:
        stripe_events.verify_signature(request.headers.get("stripe-signature", ""), body, plane.stripe.webhook_secrets, plane.now())
        handled = await run_in_threadpool(_handle, plane, request, routes.read_json(body, request.headers))
    except Fault:
        plane.stripe_events.count("refused")
        raise
    plane.stripe_events.count(handled.outcome)
    return StripeEventOut(outcome=handled.outcome.value)


def _handle(plane: ControlPlane, request: Request, event: Any) -> HandledEvent:
    address = "" if request.client is None else request.client.host
    actor = Actor(kind=ActorKind.CONNECTOR, id=stripe_events.ACTOR, address=address, request_id=request.scope["tollway.request_id"])

    def audited(event: str) -> ControlPlane:
        operation = AuditedOperation(event=event, operation="receive_stripe_event", actor=actor)
        return replace(plane, database=plane.database.recording(audit.record_changes(operation, new_id=plane.new_id, now=plane.now)))

    told = event if isinstance(event, dict) else {}
    with audited("payment.recorded").database.platform() as tx:
        handled = stripe_events.handle(tx, told, new_id=lambda: plane.new_id(ids.PAYMENT), now=plane.now())
    if handled.organization_id is not None:
        dunning.release(audited("invoice.dunned").database, [handled.organization_id], plane.now(), plane.log)
    return handled
