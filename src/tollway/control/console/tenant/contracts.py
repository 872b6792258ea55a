"""Contracts of an organization; operators agree on simple ones here and end them, others by the command line or a file."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.money import contracts
from tollway.control.api.money.contracts import ContractCreate, ContractEnd
from tollway.control.api.schemas import PageQuery
from tollway.control.api.tenancy import organizations
from tollway.control.console.forms import Form, form, make_body, read_day, require_typed
from tollway.control.console.routing import Page, TenantPage
from tollway.control.console.routing import router as new_router
from tollway.control.languages.texts import mark
from tollway.domain.contracts import Objective, Schedule
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault

router = new_router()

PATH = "/console/organizations/{organization_id}/contracts"
ONE = PATH + "/{contract_id}"

OBJECTIVES: Mapping[str, str] = {
    Objective.AVAILABILITY: mark("requests that an engine answered"),
    Objective.FIRST_TOKEN: mark("requests whose first token came in time"),
}
SCHEDULES: Mapping[str, str] = {
    Schedule.GRADUATED: mark("each unit at the price of its tier"),
    Schedule.VOLUME: mark("all units at the price of the tier that is reached"),
}
"""Names of objectives of service levels, and of schedules of tiered prices."""

CONTRACTS_MAX = 100
"""Contracts among which one is looked for: the most that the API lists at once. They never overlap, so these are years of them."""


@router.get(PATH, include_in_schema=False)
def show_contracts(page: TenantPage, query: Annotated[PageQuery, Query()]) -> Response:
    """The contracts, in the order in which they were made."""
    return _show_list(page, query)


def _show_list(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "tenant/contracts.html",
        fault=fault,
        contracts=page.call(contracts.list_own_contracts, query=query),
        may_write=page.allows(contracts.create_contract),
        now=page.plane.now() // 1_000_000,
    )


@router.post(PATH, include_in_schema=False)
def agree_on_contract(
    page: TenantPage,
    fields: Annotated[
        Form,
        form(contracts.create_contract, "name", "from_day", "until_day", "discount", "minimum", "commitment", "prepaid", "fee_name", "fee"),
    ],
) -> Response:
    """Agree on a contract of a discount, a minimum, a commitment and a fee: whichever are filled in."""
    try:
        currency = page.call(organizations.retrieve_own_organization).currency
        commitment = {"amount": fields["commitment"], "prepaid": fields["prepaid"] == "yes"} if fields["commitment"] else None
        values = {
            "name": fields["name"],
            "currency": currency,
            "valid_from": read_day("from_day", fields["from_day"]),
            "valid_until": read_day("until_day", fields["until_day"]),
            "discount_bp": _read_percent(fields["discount"]),
            "minimum": fields["minimum"],
            "commitment": commitment,
            "fees": [{"name": fields["fee_name"], "amount": fields["fee"]}] if fields["fee"] or fields["fee_name"] else [],
        }
        made = page.call(contracts.create_contract, organization_id=page.organization_id, body=make_body(ContractCreate, values))
    except Fault as fault:
        return _show_list(page, PageQuery(), fault)
    return page.lead(f"/contracts/{made.id}", "created")


def _read_percent(text: str) -> int:
    """Return a percentage with two decimals at most in basis points. Raises PARAMETER_INVALID."""
    whole, _, decimals = (text or "0").removesuffix("%").strip().replace(",", ".").partition(".")
    if not (whole + decimals).isdecimal() or not (whole + decimals).isascii() or len(whole) > 3 or len(decimals) > 2:
        raise Fault(PARAMETER_INVALID, param="discount", message="A discount is a percentage such as 10 or 12.5.")
    return int(whole or "0") * 100 + int(decimals.ljust(2, "0"))


@router.get(ONE, include_in_schema=False)
def show_contract(page: TenantPage, contract_id: str) -> Response:
    """One contract with its terms."""
    return _show(page, contract_id)


def _find(page: Page, contract_id: str) -> contracts.ContractOut:
    """Return a contract of the organization. Raises RESOURCE_UNKNOWN."""
    query = PageQuery(limit=CONTRACTS_MAX, order="desc")
    found = [each for each in page.call(contracts.list_own_contracts, query=query).data if each.id == contract_id]
    if not found:
        raise Fault(RESOURCE_UNKNOWN)
    return found[0]


def _show(page: Page, contract_id: str, fault: Fault | None = None) -> Response:
    contract, now = _find(page, contract_id), page.plane.now() // 1_000_000
    return page.show(
        "tenant/contract.html",
        fault=fault,
        contract=contract,
        may_end=page.allows(contracts.end_contract) and (contract.valid_until is None or contract.valid_until > now),
        objectives=OBJECTIVES,
        schedules=SCHEDULES,
        now=now,
    )


@router.post(f"{ONE}/end", include_in_schema=False)
def end_contract_by_name(
    page: TenantPage, contract_id: str, fields: Annotated[Form, form(contracts.end_contract, "confirmation")]
) -> Response:
    """End a contract now, whose name was typed."""
    try:
        require_typed(fields["confirmation"], _find(page, contract_id).terms.name)
        page.call(contracts.end_contract, organization_id=page.organization_id, contract_id=contract_id, body=ContractEnd())
    except Fault as fault:
        return _show(page, contract_id, fault)
    return page.lead(f"/contracts/{contract_id}", "saved")
