"""SEPA credit transfers: files for the bank of a seller (pain.001), by which refunds are paid to the accounts of organizations.

A refund takes from what an organization has paid when it is recorded. To whose account the money goes is stated afterwards; from then on
its transfer waits for a file. A transfer is in one file at a time, until the bank has executed it, or the file is cancelled.
"""

from enum import StrEnum

import msgspec


class TransferOutcome(StrEnum):
    """Outcome of a transfer."""

    WAITING = "waiting"  # for a file
    OPEN = "open"  # in a file; the bank has reported nothing yet
    PAID = "paid"
    RETURNED = "returned"  # by the bank of the payee, after it was paid


class Payee(msgspec.Struct, frozen=True, kw_only=True):
    """An account to which a refund is paid. `bic`: empty where it is not needed. `holder`: empty: the buyer."""

    iban: str
    bic: str = ""
    holder: str = ""


class CreditTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """The transfer of a refund (`payment_id`) in cents. `end_to_end_id`: by which the bank reports what became of it. `text`: what the
    payee reads. `file_id`: None while it waits. `reason`: for which it was returned."""

    payment_id: str
    organization_id: str
    legal_entity_id: str
    amount_minor: int
    end_to_end_id: str
    iban: str
    bic: str
    holder: str
    text: str
    file_id: str | None = None
    outcome: TransferOutcome = TransferOutcome.WAITING
    reason: str = ""


class TransferFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file for the bank of a seller. `execute_on`: the day of execution (YYYY-MM-DD). `content`: the XML."""

    id: str
    legal_entity_id: str
    execute_on: str
    transfers: int
    total_minor: int
    content: str
    actor: str
    created_at: int
