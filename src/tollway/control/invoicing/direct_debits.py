"""Collection of invoices by SEPA direct debit: files for the bank, in which each open invoice is at most once.

Theory of operation. An invoice that names a mandate announces its collection for its due date. An operator asks for a file with what is to
be collected on a day; from then on its debits are under way, and no other file has them: the seller and the organizations are locked
meanwhile, and an index of the database has one debit under way for each invoice. The bank's statements tell what became of a debit
(`payments.import_statements`), by the number of the invoice. What was not sent, or what the bank refused before it booked anything, is
cancelled by the operator.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date
from typing import NamedTuple

from tollway.control.invoicing import pain, parties
from tollway.domain.billing_parties import LegalEntity
from tollway.domain.direct_debits import (
    Debit,
    DebitFile,
    DebitOutcome,
    Mandate,
    SequenceType,
    find_last_day,
)
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, day_of, decode_document
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import find_zone, is_day
from tollway.domain.sepa import AMOUNT_MINOR_MAX, is_reference
from tollway.storage import billing_parties as stored_parties
from tollway.storage import direct_debits as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import PlatformTx

DEBITS_MAX = 1_000
"""Debits of a file. What is left is for the next one."""

CANDIDATES_MAX = 10_000
"""Open invoices of a seller that are looked at for a file."""

DAYS_MAX = 60
"""Longest time from today to a collection."""

UNKNOWN = "There is no such file of direct debits."


class SkippedInvoice(NamedTuple):
    """An open invoice that a file does not have, and the reason as a clause."""

    id: str
    number: str
    reason: str


class CollectedFile(NamedTuple):
    """A file with its debits. `skipped`: when it was made, invoices that it does not have although they are due."""

    file: DebitFile
    debits: list[Debit]
    skipped: list[SkippedInvoice]


def collect(
    tx: PlatformTx, entity_id: str, collect_on: str, invoice_ids: Collection[str], *, id: str, actor: str, now: int
) -> CollectedFile:
    """Make a file of what is to be collected on a day (YYYY-MM-DD), by invoice. `invoice_ids`: these alone, also those of which the bank
    returned a debit; empty: all others.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID for a day that cannot be, STATE_CONFLICT where nothing is to be collected.
    """
    entity = parties.get_entity(tx, entity_id)
    _check_day(collect_on, entity, now)
    stored_parties.lock_entities(tx, [entity_id])
    candidates = stored.list_candidates(tx, entity_id, collect_on, invoice_ids, limit=CANDIDATES_MAX)
    stored_periods.lock_organizations(tx, {each.organization_id for each in candidates})
    # What was paid or credited until the locks were there is not collected.
    candidates = stored.list_candidates(tx, entity_id, collect_on, [each.id for each in candidates] or [""], limit=CANDIDATES_MAX)
    debits, skipped = _choose(tx, entity, collect_on, candidates, bool(invoice_ids), id)
    if not debits:
        reasons = "; ".join(f"{each.number}: {each.reason}" for each in skipped[:10])
        raise Fault(STATE_CONFLICT, message="Nothing is to be collected by then" + (f" ({reasons})." if reasons else "."))
    file = DebitFile(
        id=id,
        legal_entity_id=entity_id,
        collect_on=collect_on,
        debits=len(debits),
        total_minor=sum(each.amount_minor for each in debits),
        content=pain.render_debits(id.rpartition("_")[2], entity, collect_on, debits, now),
        actor=actor,
        created_at=now,
    )
    stored.insert_file(tx, file, debits)
    return CollectedFile(file, debits, skipped)


def _check_day(collect_on: str, entity: LegalEntity, now: int) -> None:
    today = day_of(now, find_zone(entity.time_zone) or UTC)
    days = (date.fromisoformat(collect_on) - date.fromisoformat(today)).days if is_day(collect_on) else 0
    if not 1 <= days <= DAYS_MAX:
        raise Fault(
            PARAMETER_INVALID,
            param="collect_on",
            message=f"'collect_on' cannot be used: it is a day such as 2026-12-01, from tomorrow to {DAYS_MAX} days from now.",
        )


def _choose(
    tx: PlatformTx, entity: LegalEntity, collect_on: str, candidates: Sequence[stored.Candidate], is_named: bool, file_id: str
) -> tuple[list[Debit], list[SkippedInvoice]]:
    """Return the debits of a file, and the invoices that it cannot have. The organizations are locked."""
    documents = {each.id: decode_document(each.document) for each in candidates}
    accounts = {each: parties.get_account(tx, each) for each in {candidate.organization_id for candidate in candidates}}
    open_minors = {each.id: each.open_minor for each in candidates}
    returned: Mapping[str, str] = {} if is_named else stored.list_returned(tx, documents)
    references = {account.mandate.reference for account in accounts.values() if account.mandate is not None}
    uses = dict(stored.list_uses(tx, entity.id, references))
    debits, skipped = list[Debit](), list[SkippedInvoice]()
    for id, document in documents.items():
        account = accounts[document.organization_id]
        open_minor, mandate = open_minors[id], account.mandate
        if mandate is None or mandate.revoked_on or account.legal_entity_id != entity.id:
            skipped.append(SkippedInvoice(id, document.number, "there is no mandate that is in force"))
            continue
        last_used_on = uses.get(mandate.reference)
        reason = _find_obstacle(document, entity, mandate, open_minor)
        if id in returned:
            reason = f"the bank has returned it ({returned[id]}): name it to collect it again"
        elif find_last_day(last_used_on or mandate.signed_on) < collect_on:
            reason = "its mandate has ended: it was not used for 36 months"
        if reason is not None:
            skipped.append(SkippedInvoice(id, document.number, reason))
        elif len(debits) < DEBITS_MAX:
            uses[mandate.reference] = collect_on
            debits.append(
                Debit(
                    file_id=file_id,
                    invoice_id=id,
                    organization_id=document.organization_id,
                    amount_minor=open_minor,
                    end_to_end_id=document.number,
                    debtor=mandate.holder or account.name,
                    sequence=SequenceType.FIRST if last_used_on is None else SequenceType.RECURRENT,
                    mandate=mandate,
                )
            )
    return debits, skipped


def _find_obstacle(document: Document, entity: LegalEntity, mandate: Mandate, open_minor: int) -> str | None:
    """Return why an invoice cannot be collected, as a clause; None if it can."""
    announced = document.direct_debit
    if announced is None or (announced.mandate_reference, announced.iban) != (mandate.reference, mandate.iban):
        return "the invoice has announced another mandate"
    if announced.creditor_id != entity.creditor_id:
        return "the invoice has announced another creditor identifier"
    if not is_reference(document.number):
        return "a file cannot have its number"
    if open_minor > AMOUNT_MINOR_MAX:
        return "a file cannot have its amount"
    return None


def cancel(tx: PlatformTx, file_id: str, invoice_ids: Collection[str]) -> CollectedFile:
    """Cancel the debits of a file that are under way, of some invoices or of all: the bank does not collect them, because it did not get
    the file or refused them. Raises RESOURCE_UNKNOWN, STATE_CONFLICT where none is under way."""
    file = get_file(tx, file_id)
    stored_parties.lock_entities(tx, [file.legal_entity_id])
    if not stored.cancel(tx, file_id, invoice_ids):
        raise Fault(
            STATE_CONFLICT, message="No debit of these is under way: the bank has collected or returned them, or they were cancelled."
        )
    return get_contents(tx, file_id)


def get_file(tx: PlatformTx, file_id: str) -> DebitFile:
    """Return a file. Raises RESOURCE_UNKNOWN."""
    found = stored.find_file(tx, file_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return found


def get_contents(tx: PlatformTx, file_id: str) -> CollectedFile:
    """Return a file with its debits, by invoice. Raises RESOURCE_UNKNOWN."""
    return CollectedFile(get_file(tx, file_id), stored.list_debits(tx, file_id), [])


def list_files(tx: PlatformTx, window: PageWindow) -> Page[DebitFile]:
    """Return files in the order in which they were made."""
    return stored.list_files(tx, window)


def count_outcomes(tx: PlatformTx, file_ids: Collection[str]) -> Mapping[str, Mapping[DebitOutcome, int]]:
    """Return how many debits of each file have which outcome."""
    return stored.count_outcomes(tx, file_ids)
