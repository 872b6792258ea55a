"""Files for the bank of a seller: direct debits of what is due, and credit transfers of refunds."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from tollway.control.api.invoicing import credit_transfers, direct_debits, invoices
from tollway.control.api.invoicing.credit_transfers import TransferFileCancel, TransferFileContentOut, TransferFileCreate
from tollway.control.api.invoicing.direct_debits import DirectDebitCancel, DirectDebitFileContentOut, DirectDebitFileCreate
from tollway.control.api.schemas import PageQuery
from tollway.control.console import rendering
from tollway.control.console.forms import Form, form, make_body, require_typed, split_list
from tollway.control.console.routing import Page, PlatformPage
from tollway.control.console.routing import router as new_router
from tollway.domain.faults import Fault

router = new_router()

DEBITS = "/console/platform/direct-debits"
DEBIT_FILE = DEBITS + "/{debit_file_id}"
TRANSFERS = "/console/platform/credit-transfers"
TRANSFER_FILE = TRANSFERS + "/{transfer_file_id}"


def offer_sellers(page: Page) -> dict[str, str]:
    """Return the names of the first hundred sellers, by id."""
    return {each.id: each.name for each in page.call(invoices.list_legal_entities, query=PageQuery(limit=100)).data}


def _offer_file(content: str, id: str) -> Response:
    """Return a file for a bank."""
    headers = {**rendering.HEADERS, "content-disposition": f'attachment; filename="{id}.xml"'}
    return Response(content, headers=headers, media_type="application/xml")


# ---- Direct debits ------------------------------------------------------------------------------------------------------


@router.get(DEBITS, include_in_schema=False)
def show_debit_files(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Files of direct debits."""
    return _show_debit_files(page, query)


def _show_debit_files(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/direct_debits.html",
        fault=fault,
        files=page.call(direct_debits.list_direct_debit_files, query=query),
        sellers=offer_sellers(page),
        may_write=page.allows(direct_debits.create_direct_debit_file),
    )


@router.post(DEBITS, include_in_schema=False)
def make_debit_file(
    page: PlatformPage,
    fields: Annotated[Form, form(direct_debits.create_direct_debit_file, "legal_entity_id", "collect_on", "invoice_ids")],
) -> Response:
    """Make a file of direct debits of what is due, and show it with the invoices that it does not have."""
    try:
        values = {"collect_on": fields["collect_on"], "invoice_ids": split_list(fields["invoice_ids"])}
        body = make_body(DirectDebitFileCreate, values)
        made = page.call(direct_debits.create_direct_debit_file, entity_id=fields["legal_entity_id"], body=body)
    except Fault as fault:
        return _show_debit_files(page, PageQuery(), fault)
    return _show_debit_file(page, made)


@router.get(DEBIT_FILE, include_in_schema=False)
def show_debit_file(page: PlatformPage, debit_file_id: str) -> Response:
    """One file of direct debits, and what became of each."""
    return _show_debit_file(page, page.call(direct_debits.retrieve_direct_debit_file, debit_file_id=debit_file_id))


def _show_debit_file(page: Page, file: DirectDebitFileContentOut, fault: Fault | None = None) -> Response:
    may_cancel = file.outcomes.get("open", 0) > 0 and page.allows(direct_debits.cancel_direct_debit_file)
    return page.show("platform/direct_debit_file.html", fault=fault, file=file, may_cancel=may_cancel)


@router.get(DEBIT_FILE + "/file", include_in_schema=False)
def download_debit_file(page: PlatformPage, debit_file_id: str) -> Response:
    """The file as the bank takes it (pain.008)."""
    found = page.call(direct_debits.retrieve_direct_debit_file, debit_file_id=debit_file_id)
    return _offer_file(found.content, found.id)


@router.post(DEBIT_FILE + "/cancel", include_in_schema=False)
def cancel_debits(
    page: PlatformPage,
    debit_file_id: str,
    fields: Annotated[Form, form(direct_debits.cancel_direct_debit_file, "invoice_ids", "confirmation")],
) -> Response:
    """Cancel debits of a file that are under way, all or those of some invoices; the id of the file was typed."""
    try:
        require_typed(fields["confirmation"], debit_file_id)
        body = make_body(DirectDebitCancel, {"invoice_ids": split_list(fields["invoice_ids"])})
        page.call(direct_debits.cancel_direct_debit_file, debit_file_id=debit_file_id, body=body)
    except Fault as fault:
        file = page.call(direct_debits.retrieve_direct_debit_file, debit_file_id=debit_file_id)
        return _show_debit_file(page, file, fault)
    return page.lead(f"/direct-debits/{debit_file_id}", "saved")


# ---- Credit transfers ---------------------------------------------------------------------------------------------------


@router.get(TRANSFERS, include_in_schema=False)
def show_transfer_files(page: PlatformPage, query: Annotated[PageQuery, Query()]) -> Response:
    """Files of credit transfers."""
    return _show_transfer_files(page, query)


def _show_transfer_files(page: Page, query: PageQuery, fault: Fault | None = None) -> Response:
    return page.show(
        "platform/credit_transfers.html",
        fault=fault,
        files=page.call(credit_transfers.list_credit_transfer_files, query=query),
        sellers=offer_sellers(page),
        may_write=page.allows(credit_transfers.create_credit_transfer_file),
    )


@router.post(TRANSFERS, include_in_schema=False)
def make_transfer_file(
    page: PlatformPage, fields: Annotated[Form, form(credit_transfers.create_credit_transfer_file, "legal_entity_id", "execute_on")]
) -> Response:
    """Make a file of credit transfers of the refunds whose account is known."""
    try:
        body = make_body(TransferFileCreate, {"execute_on": fields["execute_on"]})
        made = page.call(credit_transfers.create_credit_transfer_file, entity_id=fields["legal_entity_id"], body=body)
    except Fault as fault:
        return _show_transfer_files(page, PageQuery(), fault)
    return page.lead(f"/credit-transfers/{made.id}", "created")


@router.get(TRANSFER_FILE, include_in_schema=False)
def show_transfer_file(page: PlatformPage, transfer_file_id: str) -> Response:
    """One file of credit transfers, and what became of each."""
    return _show_transfer_file(page, page.call(credit_transfers.retrieve_credit_transfer_file, transfer_file_id=transfer_file_id))


def _show_transfer_file(page: Page, file: TransferFileContentOut, fault: Fault | None = None) -> Response:
    may_cancel = any(each.outcome == "open" for each in file.data) and page.allows(credit_transfers.cancel_credit_transfer_file)
    return page.show("platform/credit_transfer_file.html", fault=fault, file=file, may_cancel=may_cancel)


@router.get(TRANSFER_FILE + "/file", include_in_schema=False)
def download_transfer_file(page: PlatformPage, transfer_file_id: str) -> Response:
    """The file as the bank takes it (pain.001)."""
    found = page.call(credit_transfers.retrieve_credit_transfer_file, transfer_file_id=transfer_file_id)
    return _offer_file(found.content, found.id)


@router.post(TRANSFER_FILE + "/cancel", include_in_schema=False)
def cancel_transfers(
    page: PlatformPage,
    transfer_file_id: str,
    fields: Annotated[Form, form(credit_transfers.cancel_credit_transfer_file, "payment_ids", "confirmation")],
) -> Response:
    """Let transfers of a file wait again, all or those of some refunds; the id of the file was typed."""
    try:
        require_typed(fields["confirmation"], transfer_file_id)
        body = make_body(TransferFileCancel, {"payment_ids": split_list(fields["payment_ids"])})
        page.call(credit_transfers.cancel_credit_transfer_file, transfer_file_id=transfer_file_id, body=body)
    except Fault as fault:
        file = page.call(credit_transfers.retrieve_credit_transfer_file, transfer_file_id=transfer_file_id)
        return _show_transfer_file(page, file, fault)
    return page.lead(f"/credit-transfers/{transfer_file_id}", "saved")
