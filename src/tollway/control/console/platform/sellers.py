"""Sellers (legal entities): who issues invoices, with their addresses, numbers, series, dunning and bookkeeping."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import invoices
from tollway.control.api.invoicing.party_schemas import LegalEntityOut, LegalEntityWrite
from tollway.control.api.schemas import PageQuery
from tollway.control.console.forms import Form, form, make_body, nest
from tollway.control.console.parties import PARTY_FIELDS, read_accounts, read_dunning, read_party
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault

router = new_router()

PATH = "/console/platform/sellers"
ONE = PATH + "/{entity_id}"

OWN_FIELDS = ("tax_number", "registration", "invoice_series", "credit_note_series", "time_zone", "grace_days", "creditor_id")
FIELDS = (
    *PARTY_FIELDS,
    *OWN_FIELDS,
    *("bank_account_holder", "bank_account_iban", "bank_account_bic", "dunning", "revenue_accounts"),
    *("books_consultant", "books_client", "books_fiscal_year_month", "books_account_digits", "books_debtor_account"),
)
"""Fields of the form of a seller."""


@router.get(PATH, include_in_schema=False)
def show_sellers(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Sellers, and the form for another one."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, given: Mapping[str, str] | None = None, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/sellers.html",
        fault=fault,
        sellers=page.call(invoices.list_legal_entities, query=query),
        given=given or {"electronic_address_scheme": "EM", "time_zone": "UTC"},
        may_write=page.allows(invoices.create_legal_entity),
    )


@router.post(PATH, include_in_schema=False)
def add_seller(page: PlatformPage, fields: Annotated[Form, form(invoices.create_legal_entity, *FIELDS)]) -> Response:
    """Set up a seller."""
    try:
        made = page.call(invoices.create_legal_entity, body=_read(fields))
    except Fault as fault:
        return _show_list(page, PageQuery(), fields, fault)
    return page.lead(f"/sellers/{made.id}", "created")


@router.get(ONE, include_in_schema=False)
def show_seller(page: PlatformPage, entity_id: str) -> Response:
    """One seller."""
    return _show(page, entity_id)


def _show(page: Page, entity_id: str, given: Mapping[str, str] | None = None, fault: Fault | None = None) -> Response:
    seller = page.call(invoices.retrieve_legal_entity, entity_id=entity_id)
    return page.show(
        "platform/seller.html",
        fault=fault,
        seller=seller,
        given=given or _write(seller),
        may_write=page.allows(invoices.update_legal_entity),
    )


@router.post(ONE, include_in_schema=False)
def change_seller(page: PlatformPage, entity_id: str, fields: Annotated[Form, form(invoices.update_legal_entity, *FIELDS)]) -> Response:
    """Change a seller. Issued documents keep what they say of it."""
    try:
        page.call(invoices.update_legal_entity, entity_id=entity_id, body=_read(fields))
    except Fault as fault:
        return _show(page, entity_id, fields, fault)
    return page.lead(f"/sellers/{entity_id}", "saved")


def _read(fields: Form) -> LegalEntityWrite:
    """Return the seller that a form describes. Raises the Fault that the API would answer."""
    books: dict[str, object] = {**nest(fields, "books")}
    if accounts := read_accounts(fields["revenue_accounts"]):
        books["revenue_accounts"] = accounts
    return make_body(
        LegalEntityWrite,
        {
            **read_party(fields),
            **{name: fields[name] for name in OWN_FIELDS},
            "bank_account": nest(fields, "bank_account"),
            "dunning": read_dunning(fields["dunning"]),
            "bookkeeping": books or None,
        },
    )


def _write(seller: LegalEntityOut) -> dict[str, str]:
    """Return the fields of the form that describes a seller: sent as it is, it changes nothing."""
    values: dict[str, object] = {name: getattr(seller, name) for name in ("name", "vat_id", *OWN_FIELDS)}
    for prefix in ("address", "contact", "electronic_address", "bank_account"):
        values |= {f"{prefix}_{name}": value for name, value in getattr(seller, prefix).model_dump().items()}
    if seller.bookkeeping is not None:
        books = seller.bookkeeping.model_dump()
        accounts = books.pop("revenue_accounts")
        values |= {f"books_{name}": value for name, value in books.items()}
        values["revenue_accounts"] = "\n".join(f"{tax} = {account}" for tax, account in accounts.items())
    values["dunning"] = "\n".join(f"{each.after_days} {each.action} {each.channel}" for each in seller.dunning)
    return {name: "" if value is None else str(value) for name, value in values.items()}
