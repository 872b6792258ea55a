"""Documents from draft to issue: what operators do with invoices and credit notes.

Theory of operation. The documents of a closed period are drafted together, with the organization locked, and can be made again or voided as
long as they are drafts. Issuing a draft is one transaction: it takes the next number of its series, stores the final document with its
digest and its XML, and books it. A crash before the commit leaves a draft and no number; after it everything is there. From then on the
database refuses every change: what was wrong is corrected by another document. A draft is issued by an operator, or after its grace
period by the job `invoices`.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from tollway.control.invoicing import cii, connectors, parties, ubl
from tollway.control.invoicing.booking import entries_of, issue_id
from tollway.control.invoicing.contents import Billed, CorrectionKey, Part, list_correction_keys, list_parts
from tollway.control.invoicing.export_checks import check_file, read_issued
from tollway.control.invoicing.payments import settle_issued
from tollway.control.invoicing.xml_elements import MINOR_UNITS_MAX
from tollway.control.money import periods
from tollway.domain.billing_parties import BillingAccount, LegalEntity
from tollway.domain.currencies import get_currency
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import (
    Content,
    Document,
    DocumentReference,
    InvoiceKind,
    InvoiceState,
    decode_document,
    digest_document,
    encode_document,
    find_step,
    find_violations,
    format_number,
    issue_document,
    make_credit_line,
    make_draft,
)
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import Period, PeriodState, find_zone
from tollway.storage import invoices as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.invoices import InvoiceFile, InvoiceTransaction, Issue, StoredInvoice

UNKNOWN = "There is no such invoice."

CANONICAL, UBL, CII = "json", "ubl", "cii"
"""Names of the canonical document and of its archived files."""

DAY_US = 86_400_000_000

NewId = Callable[[], str]
"""Makes an id of a document. Each is greater than the one before."""


class InvoiceView(NamedTuple):
    """A stored document, and what it says."""

    invoice: StoredInvoice
    document: Document

    @classmethod
    def of(cls, invoice: StoredInvoice) -> "InvoiceView":
        """Return a stored document with its contents."""
        return cls(invoice, decode_document(invoice.document))


# ---- Reading ------------------------------------------------------------------------------------------------------------


def get_invoice(tx: Transaction, invoice_id: str) -> StoredInvoice:
    """Return a document that the transaction may see. Raises RESOURCE_UNKNOWN."""
    found = stored.find_invoice(tx, invoice_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return found


def get_own_invoice(tx: TenantTx, invoice_id: str) -> StoredInvoice:
    """Return an issued document of the organization. Raises RESOURCE_UNKNOWN for drafts, and for those of others."""
    found = get_invoice(tx, invoice_id)
    if found.organization_id != tx.organization_id or found.state is not InvoiceState.ISSUED:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return found


def list_invoices(tx: PlatformTx, window: PageWindow, *, organization_id: str | None, state: InvoiceState | None) -> Page[StoredInvoice]:
    """Return documents in the order in which they were made."""
    return stored.list_invoices(tx, window, organization_id=organization_id, state=state)


def list_own_invoices(tx: TenantTx, window: PageWindow) -> Page[StoredInvoice]:
    """Return the issued documents of the organization in the order in which they were made."""
    return stored.list_invoices(tx, window, organization_id=tx.organization_id, state=InvoiceState.ISSUED)


def read_document(tx: Transaction, invoice: StoredInvoice) -> Document:
    """Return what a document says. Raises STATE_CONFLICT for an issued one that is not as it was issued and booked."""
    return read_issued(tx, invoice) if invoice.state is InvoiceState.ISSUED else decode_document(invoice.document)


def read_file(tx: Transaction, invoice: StoredInvoice, format: str) -> bytes:
    """Return the canonical document, or one of its archived files. Raises RESOURCE_UNKNOWN for a file that it does not have, STATE_CONFLICT
    for one that is not as it was archived."""
    if format == CANONICAL:
        return invoice.document.encode()
    file = stored.find_file(tx, invoice.id, format)
    if file is None:
        raise Fault(RESOURCE_UNKNOWN, message="The document has no such file: a draft and some currencies have no electronic invoice.")
    return check_file(decode_document(invoice.document), file)


# ---- Drafts -------------------------------------------------------------------------------------------------------------


def preview_period(tx: Transaction, period: Period) -> list[Document]:
    """Return the documents that a period would be billed by now, without an id. Of an open period they are what is booked so far. Raises
    RESOURCE_UNKNOWN where there is no billing account, STATE_CONFLICT where the tax cannot be decided."""
    account = parties.get_account(tx, period.organization_id)
    entity = parties.get_entity(tx, account.legal_entity_id)
    return [make_draft("", part.content, entity, account, period.currency) for part in list_parts(tx, period, entity, account)]


def draft_period(tx: PlatformTx, period_id: str, new_id: NewId, now: int) -> list[StoredInvoice]:
    """Make the drafts of a closed period, in place of drafts that it has already. What is issued stays, and is not drafted again unless
    it was cancelled.

    Raises RESOURCE_UNKNOWN, or STATE_CONFLICT where the period is not closed or not kept, its tax cannot be decided, or nothing is left to
    be drafted.
    """
    period = periods.get_period(tx, period_id)
    stored_periods.lock_organization(tx, period.organization_id)
    if period.state is not PeriodState.CLOSED:
        raise Fault(STATE_CONFLICT, message="The period is not closed yet.")
    account = parties.get_account(tx, period.organization_id)
    entity = parties.get_entity(tx, account.legal_entity_id)
    there = stored.list_of_period(tx, period.id)
    billed = _find_billed(tx, there)
    parts = list_parts(tx, period, entity, account, billed=billed)
    for each in there:
        if each.state is InvoiceState.DRAFT:
            stored.void_draft(tx, each.id, now)
    own = None if billed.own is None else billed.own.id
    drafts: list[StoredInvoice] = []
    for part in parts:
        corrects_id = own if part.is_of_own_invoice else part.of_invoice_id
        draft = _store_draft(tx, part, corrects_id, entity, account, period, new_id(), now)
        drafts.append(draft)
        if corrects_id is None and own is None:
            own = draft.id
    if not drafts:
        raise Fault(STATE_CONFLICT, message="There is nothing to invoice: it is invoiced already, or nothing was booked.")
    return drafts


def _find_billed(tx: PlatformTx, there: Sequence[StoredInvoice]) -> Billed:
    """Return what the issued documents of a period that are not cancelled bill."""
    own: Document | None = None
    corrections = set[CorrectionKey]()
    for each in there:
        if each.state is InvoiceState.ISSUED and not is_cancelled(tx, each.id):
            document = decode_document(each.document)
            corrections.update(list_correction_keys(document))
            if each.corrects_id is None and each.kind is InvoiceKind.INVOICE:
                own = document
    return Billed(own, corrections)


def _store_draft(
    tx: PlatformTx, part: Part, corrects_id: str | None, entity: LegalEntity, account: BillingAccount, period: Period, id: str, now: int
) -> StoredInvoice:
    content = part.content
    if corrects_id is not None:
        original = decode_document(get_invoice(tx, corrects_id).document)
        reference = DocumentReference(id=original.id, number=original.number, issued_on=original.issued_on)
        content = msgspec.structs.replace(content, corrects=reference)
        # Who sold it corrects it, whoever sells to the organization by now.
        entity = parties.get_entity(tx, original.legal_entity_id)
    document = make_draft(id, content, entity, account, period.currency)
    return _insert(tx, document, entity, corrects_id=corrects_id, period_id=period.id, now=now)


def _insert(
    tx: PlatformTx, document: Document, entity: LegalEntity, *, corrects_id: str | None, period_id: str | None, now: int
) -> StoredInvoice:
    draft = StoredInvoice(
        id=document.id,
        organization_id=document.organization_id,
        legal_entity_id=entity.id,
        period_id=period_id,
        corrects_id=corrects_id,
        cancels=document.cancels,
        kind=document.kind,
        state=InvoiceState.DRAFT,
        document=encode_document(document).decode(),
        created_at=now,
        issue_at=None if entity.grace_days is None else now + entity.grace_days * DAY_US,
    )
    stored.insert_draft(tx, draft)
    connectors.begin(tx, document, now)
    return draft


def void_draft(tx: PlatformTx, invoice_id: str, now: int) -> StoredInvoice:
    """Void a draft: it is never issued. Raises RESOURCE_UNKNOWN, STATE_CONFLICT."""
    found = _lock(tx, invoice_id)
    if found.state is not InvoiceState.DRAFT:
        raise Fault(STATE_CONFLICT, message=f"Only a draft can be voided; the document is {found.state}. An issued one is cancelled.")
    stored.void_draft(tx, invoice_id, now)
    return get_invoice(tx, invoice_id)


def _lock(tx: PlatformTx, invoice_id: str) -> StoredInvoice:
    """Return a document, with its organization and itself locked. Raises RESOURCE_UNKNOWN."""
    stored_periods.lock_organization(tx, get_invoice(tx, invoice_id).organization_id)
    found = stored.lock_invoice(tx, invoice_id)
    assert found is not None, "documents are never deleted"
    return found


# ---- Credit notes -------------------------------------------------------------------------------------------------------


def draft_credit_note(tx: PlatformTx, invoice_id: str, *, amount_pico: int | None, reason: str, id: str, now: int) -> StoredInvoice:
    """Draft a credit note to an issued invoice: about an amount before tax, or (None) about all of it, which cancels the invoice.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID for a reason that the PDF cannot show, or an amount that is more than what is left of the
    invoice or no multiple of the smallest unit of the currency, STATE_CONFLICT where the invoice is not issued, or was corrected before and
    cannot be cancelled.
    """
    parties.refuse(parties.find_text_problem("reason", reason))
    found = _lock(tx, invoice_id)
    if found.state is not InvoiceState.ISSUED or found.kind is not InvoiceKind.INVOICE:
        raise Fault(STATE_CONFLICT, message="A credit note can be made to an issued invoice only.")
    others = stored.list_corrections_of(tx, invoice_id)
    if any(each.cancels for each in others):
        raise Fault(STATE_CONFLICT, message="The invoice is cancelled, or about to be.")
    original, step = decode_document(found.document), find_step(decode_document(found.document).currency)
    reference = DocumentReference(id=original.id, number=original.number, issued_on=original.issued_on)
    entity = parties.get_entity(tx, found.legal_entity_id)
    if amount_pico is None:
        if others:
            raise Fault(STATE_CONFLICT, message="The invoice was corrected by other documents: credit what is left of it as an amount.")
        document = msgspec.structs.replace(
            original,
            id=id,
            kind=InvoiceKind.CREDIT_NOTE,
            number="",
            issued_on="",
            due_on="",
            corrects=reference,
            cancels=True,
            reason=reason,
            direct_debit=None,
        )
        return _insert(tx, document, entity, corrects_id=invoice_id, period_id=None, now=now)
    credited_minor = sum(decode_document(each.document).totals.net_minor for each in others if each.kind is InvoiceKind.CREDIT_NOTE)
    left_minor = original.totals.net_minor - credited_minor
    if not 0 < amount_pico <= AMOUNT_PICO_MAX or amount_pico % step or amount_pico // step > left_minor:
        raise Fault(
            PARAMETER_INVALID,
            param="amount",
            message="'amount' cannot be used: it must be above zero, whole in the smallest unit of the currency, and at most what is left.",
        )
    account = parties.get_account(tx, found.organization_id)
    content = Content(
        kind=InvoiceKind.CREDIT_NOTE,
        lines=[make_credit_line(reason, amount_pico, original.service, step)],
        allowances=(),
        service=original.service,
        tax_decision=original.tax_decision,
        corrects=reference,
        reason=reason,
    )
    document = make_draft(id, content, entity, account, original.currency)
    return _insert(tx, document, entity, corrects_id=invoice_id, period_id=None, now=now)


def is_cancelled(tx: Transaction, invoice_id: str) -> bool:
    """Return whether an issued document takes the whole of an invoice back."""
    return any(each.cancels and each.state is InvoiceState.ISSUED for each in stored.list_corrections_of(tx, invoice_id))


# ---- Issue --------------------------------------------------------------------------------------------------------------


def issue(tx: PlatformTx, invoice_id: str, *, actor: str, now: int) -> StoredInvoice:
    """Issue a draft: number it, store it with its XML, and book it. One that is issued already is returned as it is.

    Raises RESOURCE_UNKNOWN, or STATE_CONFLICT where it is void, breaks a rule, or corrects a document that is not issued.
    """
    found = _lock(tx, invoice_id)
    if found.state is InvoiceState.ISSUED:
        return found
    if found.state is InvoiceState.VOID:
        raise Fault(STATE_CONFLICT, message="The draft was voided.")
    connectors.hand_over(tx, invoice_id, now)
    entity = parties.get_entity(tx, found.legal_entity_id)
    draft = _complete_reference(tx, found, decode_document(found.document))
    series = entity.credit_note_series if draft.kind is InvoiceKind.CREDIT_NOTE else entity.invoice_series
    number = stored.take_number(tx, entity.id, series)
    document = issue_document(draft, format_number(series, number), _today(entity, now))
    violations = find_violations(document)
    if violations:
        rules = "; ".join(f"{each.rule}: {each.text}" for each in violations)
        raise Fault(STATE_CONFLICT, message=f"The document breaks rules of electronic invoices: {rules}.")
    encoded = encode_document(document)
    digest = digest_document(encoded)
    record = Issue(series=series, number=number, digest=digest, issued_at=now, issued_by=actor, due_on=document.due_on)
    stored.put_issued(tx, document.id, encoded.decode(), record)
    transaction = InvoiceTransaction(
        id=issue_id(document.id, now), organization_id=document.organization_id, invoice_id=document.id, booked_at=now
    )
    stored.post(tx, transaction, entries_of(document), now)
    for format, content in render_files(document).items():
        stored.insert_file(tx, InvoiceFile(invoice_id=document.id, format=format, content=content, digest=digest_document(content)), now)
    settle_issued(tx, document, now)
    return get_invoice(tx, invoice_id)


def render_files(document: Document) -> dict[str, bytes]:
    """Return the files that are archived with an issued document, by format: XRechnung in both syntaxes. None for a currency whose amounts
    electronic invoices cannot have."""
    if get_currency(document.currency).minor_units > MINOR_UNITS_MAX:
        return {}
    return {UBL: ubl.render(document), CII: cii.render(document)}


def _complete_reference(tx: PlatformTx, found: StoredInvoice, draft: Document) -> Document:
    """Return a draft with the number of the document that it corrects, which may have been a draft when it was made. Raises STATE_CONFLICT
    where that is not issued, or is cancelled, or where the draft cancels what others correct."""
    if found.corrects_id is None:
        return draft
    original = get_invoice(tx, found.corrects_id)
    if original.state is not InvoiceState.ISSUED:
        raise Fault(STATE_CONFLICT, message=f"It corrects {original.id}, which is {original.state}: issue that one first, or draft anew.")
    document = decode_document(original.document)
    others = [each for each in stored.list_corrections_of(tx, original.id) if each.state is InvoiceState.ISSUED]
    if found.cancels and others:
        raise Fault(STATE_CONFLICT, message=f"{document.number} was corrected by other documents meanwhile: void this one.")
    if any(each.cancels for each in others):
        raise Fault(STATE_CONFLICT, message=f"{document.number} was cancelled meanwhile: draft anew.")
    reference = DocumentReference(id=document.id, number=document.number, issued_on=document.issued_on)
    return msgspec.structs.replace(draft, corrects=reference)


def _today(entity: LegalEntity, now: int) -> str:
    zone = find_zone(entity.time_zone) or UTC
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)).astimezone(zone).date().isoformat()
