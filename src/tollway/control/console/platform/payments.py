"""Payments of all organizations: operators record them, record that the bank took one back, and name the account of a refund."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import credit_transfers, payments
from tollway.control.api.invoicing.credit_transfers import PayeePut
from tollway.control.api.invoicing.payments import PaymentCreate, PaymentReturn
from tollway.control.api.money.periods import OrganizationId
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.faults import Fault
from tollway.domain.payments import PaymentKind

router = new_router()

PATH = "/console/platform/payments"
ONE = PATH + "/{payment_id}"

KINDS: Mapping[str, str] = {
    PaymentKind.PAYMENT: mark("payment"),
    PaymentKind.REFUND: mark("refund"),
    PaymentKind.WRITE_OFF: mark("write-off"),
}
"""Names of the kinds of payments that are recorded by hand."""


@router.get(PATH, include_in_schema=False)
def show_payments(page: PlatformPage, query: Annotated[PageQuery, Query()], organization_id: OrganizationId | None = None) -> Response:
    """Payments, of every organization or of one."""
    return _show(page, query, organization_id)


def _show(page: Page, query: PageQuery, organization_id: str | None = None, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/payments.html",
        fault=fault,
        payments=page.call(payments.list_payments, query=query, organization_id=organization_id),
        organization_id=organization_id,
        kinds=KINDS,
        may_write=page.allows(payments.create_payment),
    )


@router.post(PATH, include_in_schema=False)
def record_payment(
    page: PlatformPage,
    fields: Annotated[
        Form, form(payments.create_payment, "organization_id", "kind", "amount", "value_on", "reference", "invoice_ids", "confirmation")
    ],
) -> Response:
    """Record what an organization paid, was paid back, or is given up; the amount was typed twice."""
    organization_id = fields["organization_id"]
    try:
        require_typed(fields["confirmation"], fields["amount"])
        named = {name: fields[name] for name in ("kind", "amount", "value_on", "reference")}
        body = make_body(PaymentCreate, {**named, "invoice_ids": split_list(fields["invoice_ids"])})
        made = page.call(payments.create_payment, organization_id=organization_id, body=body)
    except Fault as fault:
        return _show(page, PageQuery(), fault=fault)
    return page.lead(f"/payments?organization_id={made.organization_id}", "payment_recorded")


@router.post(f"{ONE}/return", include_in_schema=False)
def take_payment_back(
    page: PlatformPage, payment_id: str, fields: Annotated[Form, form(payments.return_payment, "value_on", "reference", "confirmation")]
) -> Response:
    """Record that the bank took a payment back, whose id was typed: what it settled is open again."""
    try:
        require_typed(fields["confirmation"], payment_id)
        body = make_body(PaymentReturn, {"value_on": fields["value_on"], "reference": fields["reference"]})
        page.call(payments.return_payment, payment_id=payment_id, body=body)
    except Fault as fault:
        return _show(page, PageQuery(), fault=fault)
    return page.lead("/payments", "payment_recorded")


@router.post(f"{ONE}/payee", include_in_schema=False)
def set_payee(
    page: PlatformPage, payment_id: str, fields: Annotated[Form, form(credit_transfers.put_payee, "iban", "bic", "holder")]
) -> Response:
    """Say to which account a refund is paid."""
    try:
        page.call(credit_transfers.put_payee, payment_id=payment_id, body=make_body(PayeePut, fields))
    except Fault as fault:
        return _show(page, PageQuery(), fault=fault)
    return page.lead("/payments", "saved")
