"""Refunds that are paid by SEPA credit transfer: the account of each, and files for the bank, in which each transfer is at most once.

Theory of operation. A refund takes from the balance when it is recorded; its transfer only tells how the money reaches the organization. An
operator names the account, and asks for a file of what waits. From then on its transfers are under way and no other file has them: the
seller is locked meanwhile. The bank's statements tell what was executed (`payments.import_statements`), by the reference of the transfer.
What was not sent, or what the bank refused, is cancelled by the operator and waits again.
"""

from collections.abc import Collection
from datetime import UTC, date
from typing import NamedTuple

from tollway.control.invoicing import pain, parties
from tollway.control.invoicing.payments import get_payment
from tollway.domain.billing_parties import LegalEntity
from tollway.domain.credit_transfers import CreditTransfer, Payee, TransferFile, TransferOutcome
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import day_of
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import PaymentKind, PaymentOrigin
from tollway.domain.periods import find_zone, is_day
from tollway.domain.sepa import AMOUNT_MINOR_MAX, CURRENCY, find_account_problem, write_text
from tollway.storage import billing_parties as stored_parties
from tollway.storage import credit_transfers as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import PlatformTx

TRANSFERS_MAX = 1_000
"""Transfers of a file. What is left is for the next one."""

DAYS_MAX = 60
"""Longest time from today to an execution."""

UNKNOWN = "There is no such file of credit transfers."


class FileContents(NamedTuple):
    """A file with the transfers that it has now."""

    file: TransferFile
    transfers: list[CreditTransfer]


def put_payee(tx: PlatformTx, payment_id: str, payee: Payee) -> CreditTransfer:
    """Say to which account a refund is paid; it can be changed while no file has the transfer.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID for an account that cannot be, STATE_CONFLICT for what is no refund that an operator has
    recorded in euros, or is in a file.
    """
    refund = get_payment(tx, payment_id)
    parties.check_iban("iban", payee.iban)
    reason = find_account_problem(payee.iban, payee.bic)
    if reason is not None:
        raise Fault(PARAMETER_INVALID, param="bic" if "BIC" in reason else "iban", message=f"The account cannot be used: {reason}.")
    if refund.kind is not PaymentKind.REFUND or refund.origin is not PaymentOrigin.MANUAL:
        raise Fault(STATE_CONFLICT, message="Only a refund that an operator has recorded is paid by credit transfer.")
    if refund.currency != CURRENCY or refund.amount_minor > AMOUNT_MINOR_MAX:
        raise Fault(STATE_CONFLICT, message=f"A credit transfer is of at most {AMOUNT_MINOR_MAX // 100} {CURRENCY}.")
    account = parties.get_account(tx, refund.organization_id)
    before = stored.find_transfer(tx, payment_id)
    sellers = {account.legal_entity_id} if before is None else {account.legal_entity_id, before.legal_entity_id}  # another one since then
    stored_parties.lock_entities(tx, sorted(sellers))
    stored_periods.lock_organization(tx, refund.organization_id)
    before = stored.find_transfer(tx, payment_id)
    if before is not None and before.outcome is not TransferOutcome.WAITING:
        raise Fault(
            STATE_CONFLICT, message=f"The transfer of the refund is {before.outcome}: cancel it first, if the bank does not have it."
        )
    reference = payment_id.rpartition("_")[2]
    transfer = CreditTransfer(
        payment_id=payment_id,
        organization_id=refund.organization_id,
        legal_entity_id=account.legal_entity_id,
        amount_minor=refund.amount_minor,
        end_to_end_id=reference,
        iban=payee.iban,
        bic=payee.bic,
        holder=payee.holder or account.name,
        text=write_text(refund.reference, pain.TEXT_MAX) or reference,
    )
    stored.put_transfer(tx, transfer)
    return transfer


def make_file(tx: PlatformTx, entity_id: str, execute_on: str, *, id: str, actor: str, now: int) -> FileContents:
    """Make a file of the transfers of a seller that wait, for execution on a day (YYYY-MM-DD).

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID for a day that cannot be, STATE_CONFLICT where nothing waits.
    """
    entity = parties.get_entity(tx, entity_id)
    _check_day(execute_on, entity, now)
    stored_parties.lock_entities(tx, [entity_id])
    transfers = stored.list_waiting(tx, entity_id, limit=TRANSFERS_MAX)
    if not transfers:
        raise Fault(STATE_CONFLICT, message="No refund waits for a credit transfer: name the accounts of refunds first.")
    file = TransferFile(
        id=id,
        legal_entity_id=entity_id,
        execute_on=execute_on,
        transfers=len(transfers),
        total_minor=sum(each.amount_minor for each in transfers),
        content=pain.render_transfers(id.rpartition("_")[2], entity, execute_on, transfers, now),
        actor=actor,
        created_at=now,
    )
    stored.insert_file(tx, file, transfers)
    return get_contents(tx, id)


def _check_day(execute_on: str, entity: LegalEntity, now: int) -> None:
    today = day_of(now, find_zone(entity.time_zone) or UTC)
    if not is_day(execute_on) or not 0 <= (date.fromisoformat(execute_on) - date.fromisoformat(today)).days <= DAYS_MAX:
        raise Fault(
            PARAMETER_INVALID,
            param="execute_on",
            message=f"'execute_on' cannot be used: it is a day such as 2026-12-01, from today to {DAYS_MAX} days from now.",
        )


def cancel(tx: PlatformTx, file_id: str, payment_ids: Collection[str]) -> FileContents:
    """Let the transfers of a file that are under way wait again, of some refunds or all: the bank does not execute them, because it did
    not get the file or refused them. Raises RESOURCE_UNKNOWN, STATE_CONFLICT where none is under way."""
    file = get_file(tx, file_id)
    stored_parties.lock_entities(tx, [file.legal_entity_id])
    if not stored.cancel(tx, file_id, payment_ids):
        raise Fault(STATE_CONFLICT, message="No transfer of these is under way: the bank has executed them, or they were cancelled.")
    return get_contents(tx, file_id)


def get_file(tx: PlatformTx, file_id: str) -> TransferFile:
    """Return a file. Raises RESOURCE_UNKNOWN."""
    found = stored.find_file(tx, file_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return found


def get_contents(tx: PlatformTx, file_id: str) -> FileContents:
    """Return a file with its transfers, by refund. Raises RESOURCE_UNKNOWN."""
    return FileContents(get_file(tx, file_id), stored.list_transfers(tx, file_id))


def list_files(tx: PlatformTx, window: PageWindow) -> Page[TransferFile]:
    """Return files in the order in which they were made."""
    return stored.list_files(tx, window)
