"""The billing account of an organization: by whom and where it is invoiced. Operators set it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from starlette.responses import Response

from tollway.control.api.invoicing import invoices
from tollway.control.api.invoicing.party_schemas import BillingAccountWrite, VatCheckBody
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, nest, read_day
from tollway.control.console.parties import PARTY_FIELDS, read_party
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.billing_parties import Language
from tollway.domain.connectors import Connector
from tollway.domain.direct_debits import MandateScheme
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/billing-account"

OWN_FIELDS = (
    *("legal_entity_id", "is_business", "language", "payment_days", "buyer_reference", "purchase_order", "cost_centre"),
    *("connector", "connector_customer", "debtor_account"),
)
MANDATE_FIELDS = ("reference", "signed_on", "iban", "bic", "holder", "scheme", "notice_days", "revoked_on")
FIELDS = (*PARTY_FIELDS, *OWN_FIELDS, *(f"mandate_{each}" for each in MANDATE_FIELDS), "vat_checked_on", "vat_consultation_number")
"""Fields of the form of a billing account."""

LANGUAGES: Mapping[str, str] = {Language.ENGLISH: "English", Language.GERMAN: "Deutsch"}
CONNECTORS: Mapping[str, str] = {Connector.NONE: mark("none: by bank transfer or direct debit"), Connector.STRIPE: "Stripe"}
SCHEMES: Mapping[str, str] = {MandateScheme.CORE: "CORE", MandateScheme.B2B: "B2B"}
BUYERS: Mapping[str, str] = {"true": mark("a business"), "false": mark("a consumer")}
"""Names of languages of documents, of what collects invoices, of schemes of mandates and of kinds of buyers."""


@router.get(PATH, include_in_schema=False)
def show_billing_account(page: TenantPage) -> Response:
    """The billing account, and for operators the form that sets it."""
    return _show(page)


def find_account(page: Page) -> BillingAccountWrite | None:
    """Return the billing account of the organization of a page; None if it has none."""
    try:
        return page.call(invoices.retrieve_own_billing_account).account
    except Fault as fault:
        if fault.kind is not RESOURCE_UNKNOWN:
            raise
        return None


def _show(page: Page, given: Mapping[str, str] | None = None, fault: Fault | None = None) -> Response:
    account, may_write = find_account(page), page.allows(invoices.put_billing_account)
    may_see_sellers = page.allows(invoices.list_legal_entities)
    sellers = page.call(invoices.list_legal_entities, query=PageQuery(limit=100)).data if may_see_sellers else []
    return page.show(
        "tenant/billing_account.html",
        fault=fault,
        account=account,
        given=given or _write(account),
        sellers={each.id: each.name for each in sellers},
        languages=LANGUAGES,
        connectors=CONNECTORS,
        schemes=SCHEMES,
        buyers=BUYERS,
        may_write=may_write,
    )


@router.post(PATH, include_in_schema=False)
def set_billing_account(page: TenantPage, fields: Annotated[Form, form(invoices.put_billing_account, *FIELDS)]) -> Response:
    """Set how the organization is invoiced. Issued documents keep what they say of it."""
    try:
        body = _read(fields, find_account(page))
        page.call(invoices.put_billing_account, organization_id=page.organization_id, body=body)
    except Fault as fault:
        return _show(page, fields, fault)
    return page.lead("/billing-account", "saved")


def _read(fields: Form, before: BillingAccountWrite | None) -> BillingAccountWrite:
    """Return the account that a form describes. Raises the Fault that the API would answer. Evidence for a VAT id stays while neither the
    id nor the day of the look-up is changed: it says more than the form."""
    shown = _write(before)
    names = ("vat_id", "vat_checked_on", "vat_consultation_number")
    check: VatCheckBody | None = None
    if before is not None and all(fields[name] == shown.get(name, "") for name in names):
        check = before.vat_check
    elif fields["vat_checked_on"]:
        stated = {"vat_id": fields["vat_id"], "checked_at": read_day("vat_checked_on", fields["vat_checked_on"])}
        check = make_body(VatCheckBody, {**stated, "consultation_number": fields["vat_consultation_number"]})
    mandate = nest(fields, "mandate") if fields["mandate_reference"] or fields["mandate_iban"] else None
    return make_body(
        BillingAccountWrite,
        {**read_party(fields), **{name: fields[name] for name in OWN_FIELDS}, "vat_check": check, "mandate": mandate},
    )


def _write(account: BillingAccountWrite | None) -> dict[str, str]:
    """Return the fields of the form that describes an account: sent as it is, it changes nothing."""
    if account is None:
        return {"electronic_address_scheme": "EM", "is_business": "true", "payment_days": "14"}
    values: dict[str, object] = {name: getattr(account, name) for name in ("name", "vat_id", *OWN_FIELDS)}
    for prefix in ("address", "contact", "electronic_address", "mandate"):
        part = getattr(account, prefix)
        values |= {} if part is None else {f"{prefix}_{name}": value for name, value in part.model_dump().items()}
    values["is_business"] = str(account.is_business).lower()
    if account.vat_check is not None:
        values["vat_checked_on"] = datetime.fromtimestamp(account.vat_check.checked_at, UTC).date().isoformat()
        values["vat_consultation_number"] = account.vat_check.consultation_number
    return {name: "" if value is None else str(value) for name, value in values.items()}
