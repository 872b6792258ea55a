"""Direct debits: operators make files for the bank of a seller, and cancel what it does not collect."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.invoicing.invoices import OperatorReader, OperatorWriter, known_entity
from tollway.control.api.routes import Plane
from tollway.control.api.schemas import Identified, In, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.invoicing import direct_debits
from tollway.control.invoicing.direct_debits import CollectedFile
from tollway.domain import ids
from tollway.domain.direct_debits import DebitFile, DebitOutcome
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.money import format_minor

router = routes.router(tags=["payments"])

InvoiceIds = Annotated[
    list[Annotated[str, StringConstraints(max_length=64)]],
    Field(max_length=100, description="These invoices alone; empty: all of them.", examples=[["inv_0"]]),
]


class DirectDebitFileCreate(In):
    """Collection of what is due by a day. Invoices of which the bank returned a debit are collected again only if they are named."""

    collect_on: Annotated[str, Field(max_length=10, description="Day of collection, from tomorrow on.", examples=["2026-12-15"])]
    invoice_ids: InvoiceIds = Field(default_factory=list)


class DirectDebitCancel(In):
    """Debits that the bank does not collect: it did not get the file, or refused them."""

    invoice_ids: InvoiceIds = Field(default_factory=list)


class DirectDebitFileOut(Identified):
    """A file of direct debits for the bank."""

    object: Literal["platform.direct_debit_file"] = "platform.direct_debit_file"
    legal_entity_id: Annotated[str, Field(description="The seller, who is the creditor.", examples=["entity_0"])]
    collect_on: Annotated[str, Field(description="Day of collection.", examples=["2026-12-15"])]
    debits: Annotated[int, Field(ge=0, description="How many debits it has.", examples=[1])]
    total: Annotated[str, Field(description="What they come to in euros, as a decimal string.", examples=["119.00"])]
    outcomes: Annotated[
        dict[str, int],
        Field(description="How many of them are `open` (under way), `paid`, `returned` or `cancelled`.", examples=[{"open": 1}]),
    ]
    created_at: int


class DirectDebitOut(Out):
    """A debit of a file."""

    invoice_id: Annotated[str, Field(description="The invoice.", examples=["inv_0"])]
    organization_id: str
    end_to_end_id: Annotated[str, Field(description="The number of the invoice.", examples=["RE-2026-000001"])]
    amount: Annotated[str, Field(description="In euros, as a decimal string.", examples=["119.00"])]
    sequence: Annotated[str, Field(description="`FRST`, or `RCUR`.", examples=["FRST"])]
    mandate_reference: Annotated[str, Field(description="The mandate.", examples=["M-0007"])]
    outcome: Annotated[str, Field(description="`open` (under way), `paid`, `returned` or `cancelled`.", examples=["open"])]
    payment_id: Annotated[str | None, Field(description="The payment that came; null for none.", examples=[None])]
    reason: Annotated[str, Field(description="For which the bank returned it; empty for none.", examples=[""])]


class SkippedInvoiceOut(Out):
    """A due invoice that the file does not have."""

    invoice_id: Annotated[str, Field(description="The invoice.", examples=["inv_0"])]
    number: Annotated[str, Field(description="Its number.", examples=["RE-2026-000002"])]
    reason: Annotated[str, Field(description="Why it is not collected.", examples=["there is no mandate that is in force"])]


class DirectDebitFileContentOut(DirectDebitFileOut):
    """A file of direct debits for the bank, with its contents."""

    content: Annotated[str, Field(description="The file (pain.008.001.08).", examples=["<Document>...</Document>"])]
    data: Annotated[list[DirectDebitOut], Field(description="Its debits.")]
    skipped: Annotated[list[SkippedInvoiceOut], Field(description="When it is made: due invoices that it does not have.", examples=[[]])]


def _file_fields(file: DebitFile, outcomes: dict[str, int]) -> dict[str, object]:
    return {
        "id": file.id,
        "legal_entity_id": file.legal_entity_id,
        "collect_on": file.collect_on,
        "debits": file.debits,
        "total": format_minor(file.total_minor, 2),
        "outcomes": outcomes,
        "created_at": seconds(file.created_at),
    }


def _content_out(found: CollectedFile) -> DirectDebitFileContentOut:
    file, debits = found.file, found.debits
    skipped = [SkippedInvoiceOut(invoice_id=each.id, number=each.number, reason=each.reason) for each in found.skipped]
    outcomes = {str(each): count for each in DebitOutcome if (count := sum(debit.outcome is each for debit in debits))}
    data = [
        DirectDebitOut(
            invoice_id=each.invoice_id,
            organization_id=each.organization_id,
            end_to_end_id=each.end_to_end_id,
            amount=format_minor(each.amount_minor, 2),
            sequence=each.sequence,
            mandate_reference=each.mandate.reference,
            outcome=each.outcome,
            payment_id=each.payment_id,
            reason=each.reason,
        )
        for each in debits
    ]
    fields = {**_file_fields(file, outcomes), "content": file.content, "data": data, "skipped": skipped}
    return DirectDebitFileContentOut.model_validate(fields)


def _known_file(debit_file_id: str) -> str:
    if not ids.is_id(ids.DIRECT_DEBIT_FILE, debit_file_id):
        raise Fault(RESOURCE_UNKNOWN, message=direct_debits.UNKNOWN)
    return debit_file_id


@router.post("/v1/platform/legal_entities/{entity_id}/direct_debit_files")
def create_direct_debit_file(
    caller: OperatorWriter, plane: Plane, entity_id: str, body: DirectDebitFileCreate
) -> DirectDebitFileContentOut:
    """Make a file of direct debits for the bank of a seller: of its invoices that are due by a day, open, and name a mandate. An invoice
    that is in a file already is in no other one."""
    with plane.database.platform() as tx:
        made = direct_debits.collect(
            tx,
            known_entity(entity_id),
            body.collect_on,
            body.invoice_ids,
            id=plane.new_id(ids.DIRECT_DEBIT_FILE),
            actor=caller.key_id,
            now=plane.now(),
        )
    return _content_out(made)


@router.get("/v1/platform/direct_debit_files")
def list_direct_debit_files(_caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[DirectDebitFileOut]:
    """Files of direct debits in the order in which they were made, with what became of them."""
    with plane.database.platform(write=False) as tx:
        page = direct_debits.list_files(tx, query.window())
        outcomes = direct_debits.count_outcomes(tx, [each.id for each in page.items])

    def shown(file: DebitFile) -> DirectDebitFileOut:
        counts = {str(outcome): count for outcome, count in outcomes[file.id].items()}
        return DirectDebitFileOut.model_validate(_file_fields(file, counts))

    return list_out(page, shown)


@router.get("/v1/platform/direct_debit_files/{debit_file_id}")
def retrieve_direct_debit_file(_caller: OperatorReader, plane: Plane, debit_file_id: str) -> DirectDebitFileContentOut:
    """Return a file of direct debits, with its contents and what became of each."""
    with plane.database.platform(write=False) as tx:
        return _content_out(direct_debits.get_contents(tx, _known_file(debit_file_id)))


@router.post("/v1/platform/direct_debit_files/{debit_file_id}/cancel")
def cancel_direct_debit_file(
    _caller: OperatorWriter, plane: Plane, debit_file_id: str, body: DirectDebitCancel
) -> DirectDebitFileContentOut:
    """Cancel the debits of a file that are under way, or some of them, because the bank does not collect them: the next file can have
    their invoices."""
    with plane.database.platform() as tx:
        return _content_out(direct_debits.cancel(tx, _known_file(debit_file_id), body.invoice_ids))
