"""Credit transfers of refunds: operators name the account of a refund, make files for the bank of a seller, and cancel what it refuses."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import AfterValidator, Field, StringConstraints

from tollway.control.api import routes
from tollway.control.api.invoicing.invoices import OperatorReader, OperatorWriter, known_entity
from tollway.control.api.invoicing.payments import known_payment
from tollway.control.api.routes import Plane
from tollway.control.api.schemas import Identified, In, ListOut, Out, PageQuery, list_out, seconds
from tollway.control.invoicing import credit_transfers
from tollway.control.invoicing.credit_transfers import FileContents
from tollway.control.invoicing.parties import normalize_number
from tollway.domain import ids
from tollway.domain.credit_transfers import CreditTransfer, Payee, TransferFile
from tollway.domain.faults import RESOURCE_UNKNOWN, Fault
from tollway.domain.money import format_minor

router = routes.router(tags=["payments"])

Number = Annotated[str, StringConstraints(max_length=64), AfterValidator(normalize_number)]
Id = Annotated[str, StringConstraints(max_length=64)]


class PayeePut(In):
    """An account to which a refund is paid by SEPA credit transfer."""

    iban: Annotated[Number, Field(description="IBAN, with or without spaces.", examples=["DE02120300000000202051"])]
    bic: Annotated[Number, Field(description="BIC; empty where it is not needed.", examples=["BYLADEM1001"])] = ""
    holder: Annotated[
        str, Field(max_length=256, description="Holder of the account; empty: the buyer of the billing account.", examples=["Customer AG"])
    ] = ""


class TransferFileCreate(In):
    """Day on which the bank is to execute transfers."""

    execute_on: Annotated[str, Field(max_length=10, description="Day of execution, from today on.", examples=["2026-12-15"])]


class TransferFileCancel(In):
    """Transfers that the bank does not execute: it did not get the file, or refused them."""

    payment_ids: Annotated[list[Id], Field(max_length=100, description="These refunds alone; empty: all.", examples=[["pay_0"]])] = Field(
        default_factory=list
    )


class CreditTransferOut(Out):
    """The transfer of a refund."""

    object: Literal["platform.credit_transfer"] = "platform.credit_transfer"
    payment_id: Annotated[str, Field(description="The refund.", examples=["pay_0"])]
    organization_id: str
    legal_entity_id: Annotated[str, Field(description="The seller, who pays.", examples=["entity_0"])]
    end_to_end_id: Annotated[str, Field(description="By which the bank tells of it.", examples=["0198c5f2a3b47c11a0b1c2d3e4f50617"])]
    amount: Annotated[str, Field(description="In euros, as a decimal string.", examples=["119.00"])]
    iban: Annotated[str, Field(description="The account.", examples=["DE02120300000000202051"])]
    holder: Annotated[str, Field(description="Holder of the account.", examples=["Customer AG"])]
    outcome: Annotated[str, Field(description="`waiting` (for a file), `open` (in one), `paid` or `returned`.", examples=["waiting"])]
    file_id: Annotated[str | None, Field(description="The file that has it; null while it waits.", examples=[None])]
    reason: Annotated[str, Field(description="For which it was returned; empty for none.", examples=[""])]


class TransferFileOut(Identified):
    """A file of credit transfers for the bank."""

    object: Literal["platform.credit_transfer_file"] = "platform.credit_transfer_file"
    legal_entity_id: Annotated[str, Field(description="The seller, who pays.", examples=["entity_0"])]
    execute_on: Annotated[str, Field(description="Day of execution.", examples=["2026-12-15"])]
    transfers: Annotated[int, Field(ge=0, description="How many transfers it was made with.", examples=[1])]
    total: Annotated[str, Field(description="What they come to in euros, as a decimal string.", examples=["119.00"])]
    created_at: int


class TransferFileContentOut(TransferFileOut):
    """A file of credit transfers for the bank, with its contents."""

    content: Annotated[str, Field(description="The file (pain.001.001.09).", examples=["<Document>...</Document>"])]
    data: Annotated[list[CreditTransferOut], Field(description="Its transfers, but for those that were cancelled.")]


def _transfer_out(transfer: CreditTransfer) -> CreditTransferOut:
    return CreditTransferOut(
        payment_id=transfer.payment_id,
        organization_id=transfer.organization_id,
        legal_entity_id=transfer.legal_entity_id,
        end_to_end_id=transfer.end_to_end_id,
        amount=format_minor(transfer.amount_minor, 2),
        iban=transfer.iban,
        holder=transfer.holder,
        outcome=transfer.outcome,
        file_id=transfer.file_id,
        reason=transfer.reason,
    )


def _file_fields(file: TransferFile) -> dict[str, object]:
    return {
        "id": file.id,
        "legal_entity_id": file.legal_entity_id,
        "execute_on": file.execute_on,
        "transfers": file.transfers,
        "total": format_minor(file.total_minor, 2),
        "created_at": seconds(file.created_at),
    }


def _content_out(found: FileContents) -> TransferFileContentOut:
    fields = {**_file_fields(found.file), "content": found.file.content, "data": [_transfer_out(each) for each in found.transfers]}
    return TransferFileContentOut.model_validate(fields)


def _known_file(transfer_file_id: str) -> str:
    if not ids.is_id(ids.CREDIT_TRANSFER_FILE, transfer_file_id):
        raise Fault(RESOURCE_UNKNOWN, message=credit_transfers.UNKNOWN)
    return transfer_file_id


@router.put("/v1/platform/payments/{payment_id}/payee")
def put_payee(_caller: OperatorWriter, plane: Plane, payment_id: str, body: PayeePut) -> CreditTransferOut:
    """Say to which account a recorded refund is paid: the next file of credit transfers has it."""
    with plane.database.platform() as tx:
        return _transfer_out(credit_transfers.put_payee(tx, known_payment(payment_id), Payee(**body.model_dump())))


@router.post("/v1/platform/legal_entities/{entity_id}/credit_transfer_files")
def create_credit_transfer_file(caller: OperatorWriter, plane: Plane, entity_id: str, body: TransferFileCreate) -> TransferFileContentOut:
    """Make a file of credit transfers for the bank of a seller: of refunds whose account is known and that no other file has."""
    with plane.database.platform() as tx:
        made = credit_transfers.make_file(
            tx,
            known_entity(entity_id),
            body.execute_on,
            id=plane.new_id(ids.CREDIT_TRANSFER_FILE),
            actor=caller.key_id,
            now=plane.now(),
        )
    return _content_out(made)


@router.get("/v1/platform/credit_transfer_files")
def list_credit_transfer_files(_caller: OperatorReader, plane: Plane, query: Annotated[PageQuery, Query()]) -> ListOut[TransferFileOut]:
    """Files of credit transfers in the order in which they were made."""
    with plane.database.platform(write=False) as tx:
        page = credit_transfers.list_files(tx, query.window())
    return list_out(page, lambda file: TransferFileOut.model_validate(_file_fields(file)))


@router.get("/v1/platform/credit_transfer_files/{transfer_file_id}")
def retrieve_credit_transfer_file(_caller: OperatorReader, plane: Plane, transfer_file_id: str) -> TransferFileContentOut:
    """Return a file of credit transfers, with its contents and what became of each."""
    with plane.database.platform(write=False) as tx:
        return _content_out(credit_transfers.get_contents(tx, _known_file(transfer_file_id)))


@router.post("/v1/platform/credit_transfer_files/{transfer_file_id}/cancel")
def cancel_credit_transfer_file(
    _caller: OperatorWriter, plane: Plane, transfer_file_id: str, body: TransferFileCancel
) -> TransferFileContentOut:
    """Let the transfers of a file that are under way wait again, or some of them, because the bank does not execute them."""
    with plane.database.platform() as tx:
        return _content_out(credit_transfers.cancel(tx, _known_file(transfer_file_id), body.payment_ids))
