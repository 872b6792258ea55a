"""Payments: recorded by hand or from bank statements, allocated to invoices, paid back, returned or written off.

Theory of operation. Everything about an organization's payments happens with the organization locked, in one transaction: the payment,
its posting and what it settles. A credit of a bank has an id that follows from what the bank says of it, so a file that comes twice changes
nothing. The ledger has one account `receivable` for each organization; which invoice is open by how much follows from settlements. A credit
note is a source like a payment, and settles the invoice that it corrects first. What a source has left settles the invoice that is due
first, at once or as soon as one is issued: an organization with a balance owes nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from tollway.control.invoicing.camt import BankCredit, BankDebit, BankReturn, BankStatement, StatementUnreadable, read_statements
from tollway.control.money.ledger import PLATFORM
from tollway.domain import ids
from tollway.domain.billing_parties import LegalEntity
from tollway.domain.credit_transfers import CreditTransfer, TransferOutcome
from tollway.domain.currencies import get_currency
from tollway.domain.direct_debits import DebitOutcome
from tollway.domain.events import EventType, new_event
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import RECEIVABLE, Document, InvoiceKind, InvoiceState, decode_document, find_step
from tollway.domain.ledger import Account, Entry
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import (
    AMOUNT_MINOR_MAX,
    BankEntry,
    BankStatementRecord,
    OpenInvoice,
    Payment,
    PaymentKind,
    PaymentOrigin,
    ReturnedDebit,
    Settlement,
    allocate,
    find_numbers,
    match_in_order,
    parse_minor,
)
from tollway.domain.periods import is_day
from tollway.storage import billing_parties as stored_parties
from tollway.storage import credit_transfers as stored_transfers
from tollway.storage import direct_debits as stored_debits
from tollway.storage import invoices as stored_invoices
from tollway.storage import open_items, outbox
from tollway.storage import payments as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx, Transaction
from tollway.storage.invoices import StoredInvoice

CASH, WRITE_OFF = "cash", "write_off"
"""Kinds of the platform's accounts: money at the bank, and what was given up."""

UNKNOWN = "There is no such payment."

OPEN_MAX = 1000
"""Open invoices that are shown at once."""

SELLERS_MAX = 1000
"""Legal entities whose numbers are looked for in bank statements."""


class InvoiceStanding(NamedTuple):
    """An issued invoice, and what of it is open in the smallest unit of its currency."""

    id: str
    document: Document
    open_minor: int


class CustomerAccount(NamedTuple):
    """Standing of an organization. `open`: its open invoices, or a page of them. `open_minor`: what is open of all of them together.
    `balance_minor`: what it has paid or was credited and that no invoice took."""

    currency: str
    open: list[InvoiceStanding]
    open_minor: int
    balance_minor: int
    has_more: bool = False


# ---- Recording ----------------------------------------------------------------------------------------------------------


class WantedPayment(NamedTuple):
    """A payment that an operator records. `amount`: a decimal. `invoice_ids`: that it settles first; what is left of a payment settles what
    is due first."""

    kind: PaymentKind
    amount: str
    currency: str | None
    value_on: str
    reference: str
    invoice_ids: tuple[str, ...]


def record_payment(tx: PlatformTx, organization_id: str, wanted: WantedPayment, *, id: str, actor: str, now: int) -> Payment:
    """Record what was received, paid back or given up, and settle invoices with it.

    Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, or STATE_CONFLICT for a refund of more than the organization's balance, or a write-off of
    more than the invoices that it names.
    """
    currency = _get_currency(tx, organization_id)
    if wanted.currency not in (None, currency):
        raise Fault(PARAMETER_INVALID, param="currency", message=f"The organization is billed in {currency}, not {wanted.currency}.")
    try:
        amount_minor = parse_minor(wanted.amount, get_currency(currency).minor_units)
    except ValueError as error:
        raise _refusal("amount", str(error)) from None
    if not amount_minor:
        _refuse("amount", "it must be above zero")
    _check_day(wanted.value_on)
    if wanted.kind is PaymentKind.RETURN:
        _refuse("kind", "the return of a payment names the payment")
    if wanted.kind is PaymentKind.WRITE_OFF and not wanted.invoice_ids:
        _refuse("invoice_ids", "a write-off names its invoices")
    stored_periods.lock_organization(tx, organization_id)
    payment = Payment(
        id=id,
        organization_id=organization_id,
        kind=wanted.kind,
        amount_minor=amount_minor,
        currency=currency,
        value_on=wanted.value_on,
        origin=PaymentOrigin.MANUAL,
        reference=wanted.reference,
        external_id="",
        returns_id=None,
        actor=actor,
        created_at=now,
    )
    spent = []
    if wanted.kind is PaymentKind.REFUND and wanted.invoice_ids:
        spent = _list_received(tx, organization_id, wanted.invoice_ids)
    return _store(tx, payment, wanted.invoice_ids, now, spent)


class ExternalPayment(NamedTuple):
    """A movement of money that a connector tells of. `external_id`: by which it is known if it is told again."""

    kind: PaymentKind
    external_id: str
    amount_minor: int
    currency: str
    value_on: str
    origin: PaymentOrigin
    reference: str


class RefundedPayment(NamedTuple):
    """The payment that a refund pays back. `invoice_id`: for which it was collected."""

    id: str
    invoice_id: str


def record_external(
    tx: PlatformTx,
    organization_id: str,
    found: ExternalPayment,
    invoice_ids: Sequence[str],
    *,
    id: str,
    actor: str,
    now: int,
    refunded: RefundedPayment | None = None,
) -> Payment | None:
    """Record what a connector tells of. Invoices that are settled already take nothing of it. Returns None if it is recorded already.

    A refund has been paid: what is missing of the balance is taken back from the invoices that were settled with the balance that the
    `refunded` payment, or a credit note of its invoice, had left.

    Raises PARAMETER_INVALID for an amount or a day that cannot be, STATE_CONFLICT for a refund of more than the organization's balance.
    """
    if not 0 < found.amount_minor <= AMOUNT_MINOR_MAX:
        _refuse("amount", "it must be above zero, and at most what is kept")
    if found.currency != _get_currency(tx, organization_id):
        _refuse("currency", "the organization is billed in another one")
    _check_day(found.value_on)
    stored_periods.lock_organization(tx, organization_id)
    if stored.find_by_external_id(tx, found.external_id) is not None:
        return None
    payment = Payment(id=id, organization_id=organization_id, returns_id=None, actor=actor, created_at=now, **found._asdict())
    still_open = open_items.read_open(tx, organization_id, invoice_ids)
    spent = _list_spent(tx, organization_id, refunded) if refunded is not None else []
    return _store(tx, payment, [each for each in invoice_ids if each in still_open], now, spent)


def _list_spent(tx: PlatformTx, organization_id: str, refunded: RefundedPayment) -> list[Settlement]:
    """Return what a payment and the credit notes of its invoice gave to other invoices, the latest first."""
    notes = {each.id for each in stored_invoices.list_corrections_of(tx, refunded.invoice_id) if each.state is InvoiceState.ISSUED}
    given = stored.list_settlements_by(tx, organization_id, notes | {refunded.id})
    others = {each.target_id for each in given if stored.find_payment(tx, each.target_id) is None} - {refunded.invoice_id}
    return _sum_pairs(each for each in given if each.target_id in others)


def _list_received(tx: PlatformTx, organization_id: str, invoice_ids: Sequence[str]) -> list[Settlement]:
    """Return what payments, and credit notes of other invoices, gave to these invoices, the latest first. A credit note gives money to
    others only that was paid; to its own invoice it gives what nobody has paid. A write-off gives none."""
    taken = stored.list_settlements_of(tx, organization_id, invoice_ids)
    corrected: dict[str, str | None] = {}
    for source_id in {each.source_id for each in taken}:
        payment = stored.find_payment(tx, source_id)
        if payment is None:
            note = stored_invoices.find_invoice(tx, source_id)
            corrected[source_id] = None if note is None else note.corrects_id
        elif payment.kind is PaymentKind.PAYMENT:
            corrected[source_id] = None
    return _sum_pairs(each for each in taken if each.source_id in corrected and corrected[each.source_id] != each.target_id)


def _sum_pairs(settled: Iterable[Settlement]) -> list[Settlement]:
    """Return what sources gave to targets, the latest first: one settlement for each pair."""
    given: dict[tuple[str, str], int] = {}
    for each in settled:
        pair = (each.source_id, each.target_id)
        given[pair] = given.pop(pair, 0) + each.amount_minor
    pairs = reversed(given.items())
    return [Settlement(source_id=source, target_id=target, amount_minor=minor) for (source, target), minor in pairs if minor > 0]


def _store(tx: PlatformTx, payment: Payment, invoice_ids: Sequence[str], now: int, spent: Sequence[Settlement] = ()) -> Payment:
    """Store a payment with its posting and settlements. The organization is locked. `spent`: from which a refund takes what the balance
    has not."""
    settled: list[Settlement] = []
    if payment.kind is PaymentKind.REFUND:
        sources = open_items.list_sources(tx, payment.organization_id)
        missing = payment.amount_minor - sum(rest for _, rest in sources)
        if missing > sum(each.amount_minor for each in spent):
            raise Fault(STATE_CONFLICT, message="More cannot be paid back than the organization has paid and no invoice took.")
        left = payment.amount_minor
        for source_id, rest in sources:
            part = min(left, rest)
            left -= part
            if part:
                settled.append(Settlement(source_id=source_id, target_id=payment.id, amount_minor=part))
        for each in spent:
            part = min(left, each.amount_minor)
            left -= part
            if part:
                settled.append(msgspec.structs.replace(each, amount_minor=-part))
                settled.append(Settlement(source_id=each.source_id, target_id=payment.id, amount_minor=part))
    else:
        still_open = open_items.read_open(tx, payment.organization_id, invoice_ids)
        for invoice_id in invoice_ids:
            if invoice_id not in still_open:
                _refuse("invoice_ids", f"the organization has no open invoice {invoice_id}")
        given = allocate(payment.amount_minor, [OpenInvoice(each, still_open[each]) for each in dict.fromkeys(invoice_ids)])
        if payment.kind is PaymentKind.WRITE_OFF and sum(part for _, part in given) != payment.amount_minor:
            raise Fault(STATE_CONFLICT, message="More cannot be written off than what is open of these invoices.")
        settled = [Settlement(source_id=payment.id, target_id=target_id, amount_minor=part) for target_id, part in given]
    stored.insert_payment(tx, payment, entries_of(payment), now)
    stored.insert_settlements(tx, payment.organization_id, settled, now)
    if payment.kind is PaymentKind.PAYMENT:
        settled += _settle_balance(tx, payment.organization_id, now)
    _tell_paid(tx, payment.organization_id, settled, now)
    return payment


def _tell_paid(tx: PlatformTx, organization_id: str, settled: Iterable[Settlement], now: int) -> None:
    """Tell of the invoices of which nothing is open any more since `settled`, all that was settled in this transaction, was stored."""
    taken: dict[str, int] = {}
    for each in settled:
        taken[each.target_id] = taken.get(each.target_id, 0) + each.amount_minor
    invoice_ids = [id for id, minor in taken.items() if minor > 0 and id.startswith(f"{ids.INVOICE}_")]
    paid = sorted(set(invoice_ids) - open_items.read_open(tx, organization_id, invoice_ids).keys())
    outbox.append(tx, [new_event(EventType.INVOICE_PAID, organization_id, at=now, data={"id": each}) for each in paid])


def _settle_balance(tx: PlatformTx, organization_id: str, now: int) -> list[Settlement]:
    """Settle open invoices, the one that is due first at the top, with what sources have left, the oldest first. The organization is
    locked. Returns what was settled."""
    settled = list(match_in_order(open_items.list_sources(tx, organization_id), open_items.iterate_open(tx, organization_id)))
    stored.insert_settlements(tx, organization_id, settled, now)
    return settled


def return_payment(
    tx: PlatformTx,
    payment_id: str,
    *,
    id: str,
    value_on: str,
    reference: str,
    actor: str,
    now: int,
    origin: PaymentOrigin = PaymentOrigin.MANUAL,
    external_id: str = "",
) -> Payment:
    """Record that the bank took a payment back, or an operator a write-off: what it settled is open again. `external_id`: by which the
    return is known if the bank tells it again. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID, or STATE_CONFLICT where it was returned or paid
    back already."""
    payment = get_payment(tx, payment_id)
    _check_day(value_on)
    stored_periods.lock_organization(tx, payment.organization_id)
    if not payment.kind.is_source or stored.find_return(tx, payment_id) is not None:
        raise Fault(STATE_CONFLICT, message="Only a payment that was not returned yet can be returned.")
    given: dict[str, int] = {}
    for each in stored.list_settlements_by(tx, payment.organization_id, [payment_id]):
        given[each.target_id] = given.get(each.target_id, 0) + each.amount_minor
    if any(minor and stored.find_payment(tx, target_id) is not None for target_id, minor in given.items()):
        raise Fault(STATE_CONFLICT, message="A part of the payment was paid back already.")
    returned = msgspec.structs.replace(
        payment,
        id=id,
        kind=PaymentKind.RETURN,
        value_on=value_on,
        origin=origin,
        reference=reference,
        external_id=external_id,
        returns_id=payment_id,
        actor=actor,
        created_at=now,
    )
    stored.insert_payment(tx, returned, entries_of(returned, payment.kind), now)
    taken = [Settlement(source_id=payment_id, target_id=target_id, amount_minor=-minor) for target_id, minor in given.items() if minor]
    whole = Settlement(source_id=payment_id, target_id=id, amount_minor=payment.amount_minor)
    stored.insert_settlements(tx, payment.organization_id, [*taken, whole], now)
    stored_debits.put_returned(tx, payment_id, reference)
    _tell_paid(tx, payment.organization_id, [*taken, *_settle_balance(tx, payment.organization_id, now)], now)
    return returned


def settle_issued(tx: PlatformTx, document: Document, now: int) -> None:
    """Settle what a document that was issued allows: a credit note the invoice that it corrects, an invoice with what the organization has
    paid before. An invoice with nothing to pay is reported as paid. The organization is locked."""
    corrected_id = document.corrects.id if document.kind is InvoiceKind.CREDIT_NOTE and document.corrects is not None else None
    settled: list[Settlement] = []
    if corrected_id is not None:
        _check_credited(tx, document, corrected_id)
        part = min(open_items.find_open(tx, corrected_id), document.totals.gross_minor)
        if part:
            settled.append(Settlement(source_id=document.id, target_id=corrected_id, amount_minor=part))
            stored.insert_settlements(tx, document.organization_id, settled, now)
    settled += _settle_balance(tx, document.organization_id, now)
    _tell_paid(tx, document.organization_id, settled, now)
    if document.kind is InvoiceKind.INVOICE and document.owes_nothing:  # no settlement will ever report it
        outbox.append(tx, [new_event(EventType.INVOICE_PAID, document.organization_id, at=now, data={"id": document.id})])


def _check_credited(tx: PlatformTx, note: Document, corrected_id: str) -> None:
    """Raise STATE_CONFLICT if a credit note credits what was written off of its invoice: that would become a balance, though nobody has
    paid it."""
    taken: dict[str, int] = {}
    for each in stored.list_settlements_of(tx, note.organization_id, [corrected_id]):
        taken[each.source_id] = taken.get(each.source_id, 0) + each.amount_minor
    paid = {id: stored.find_payment(tx, id) for id in taken}
    written_off = sum(taken[id] for id, each in paid.items() if each is not None and each.kind is PaymentKind.WRITE_OFF)
    corrections = [each for each in stored_invoices.list_corrections_of(tx, corrected_id) if each.state is InvoiceState.ISSUED]
    credited = sum(decode_document(each.document).totals.gross_minor for each in corrections)
    corrected = stored_invoices.find_invoice(tx, corrected_id)
    assert corrected is not None, "documents are never deleted"
    if written_off and credited + written_off > decode_document(corrected.document).totals.gross_minor:
        raise Fault(STATE_CONFLICT, message="The credit note credits what was written off: take the write-off back first.")


def _get_currency(tx: PlatformTx, organization_id: str) -> str:
    terms = stored_prices.read_terms(tx, [organization_id]).get(organization_id)
    if terms is None:
        raise Fault(RESOURCE_UNKNOWN)
    return terms.currency


def _check_day(day: str) -> None:
    if not is_day(day):
        _refuse("value_on", "it must be a day such as 2026-12-01")


def _refuse(param: str, reason: str) -> None:
    raise _refusal(param, reason)


def _refusal(param: str, reason: str) -> Fault:
    return Fault(PARAMETER_INVALID, param=param, message=f"'{param}' cannot be used: {reason}.")


# ---- Reading ------------------------------------------------------------------------------------------------------------


def get_payment(tx: Transaction, payment_id: str) -> Payment:
    """Return a payment. Raises RESOURCE_UNKNOWN."""
    found = stored.find_payment(tx, payment_id)
    if found is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN)
    return found


def list_payments(tx: PlatformTx, window: PageWindow, *, organization_id: str | None) -> Page[Payment]:
    """Return payments in the order in which they were recorded."""
    return stored.list_payments(tx, window, organization_id=organization_id)


def get_account(tx: Transaction, organization_id: str, *, after: str | None = None, limit: int = OPEN_MAX) -> CustomerAccount:
    """Return how an organization stands, with open invoices behind one of its invoices, the one that is due first at the top. Raises
    RESOURCE_UNKNOWN."""
    currency = stored_prices.find_organization_currency(tx, organization_id)
    if currency is None:
        raise Fault(RESOURCE_UNKNOWN)
    found = open_items.list_open(tx, organization_id, after=after, limit=limit + 1)
    documents = stored_invoices.find_documents(tx, [each.id for each in found[:limit]])
    shown = [InvoiceStanding(each.id, decode_document(documents[each.id]), each.open_minor) for each in found[:limit]]
    return CustomerAccount(currency, shown, *open_items.sum_open(tx, organization_id), len(found) > limit)


def find_open(tx: Transaction, invoice_id: str) -> InvoiceStanding | None:
    """Return an issued invoice of which something is open."""
    open_minor = open_items.find_open(tx, invoice_id)
    found = stored_invoices.find_documents(tx, [invoice_id] if open_minor else [])
    return InvoiceStanding(invoice_id, decode_document(found[invoice_id]), open_minor) if invoice_id in found else None


# ---- Bank statements ----------------------------------------------------------------------------------------------------


class ImportedStatement(NamedTuple):
    """A bank statement that was imported: what was matched with invoices, what a person has to match, and what was known already.
    `returned`: direct debits that came back, also those of which an earlier statement told before their payment came.
    `unmatched_returns`: those of this statement whose payment has not come. `executed`: credit transfers of refunds among `others`.
    `is_gap`: its opening balance is not the closing balance of the statement before: one is missing."""

    iban: str
    name: str
    payments: list[Payment]
    unmatched: int
    known: int
    others: int
    returned: list[Payment]
    unmatched_returns: int
    executed: int
    is_gap: bool


class _ReadCredit(NamedTuple):
    """A credit that is new, with the invoices that it names, all of one organization; none where a person has to say what it is for.
    `transfer`: of which it is the return."""

    credit: BankCredit
    named: list[StoredInvoice]
    transfer: CreditTransfer | None


def import_statements(tx: PlatformTx, text: str, *, new_id: Callable[[str], str], actor: str, now: int) -> list[ImportedStatement]:
    """Record the credits of a bank's file as payments of the invoices whose numbers they name, and take the payments of direct debits back
    that were returned. A file, or an entry, that was imported already changes nothing. Raises PARAMETER_INVALID for what is no bank
    statement of a seller, before anything is changed."""
    try:
        statements = read_statements(text)
    except StatementUnreadable as error:
        raise Fault(PARAMETER_INVALID, param="content", message=f"'content' cannot be used: {error}.") from None
    sellers = stored_parties.list_entities(tx, PageWindow(limit=SELLERS_MAX)).items
    owners = {each.iban: [seller for seller in sellers if seller.bank_account.iban == each.iban] for each in statements}
    for iban, found in owners.items():
        if not found:
            _refuse("content", f"no seller has the account {iban}")
    stored_parties.lock_entities(tx, [each.id for found in owners.values() for each in found])  # imports of an account take turns
    seen = set[str]()
    read = [_read_credits(tx, each, owners[each.iban], seen) for each in statements]
    organization_ids = {invoice.organization_id for credits in read for each in credits for invoice in each.named}
    organization_ids |= {each.transfer.organization_id for credits in read for each in credits if each.transfer is not None}
    for each in statements:
        for returned in each.returns:
            debits = stored_debits.list_by_reference(tx, returned.end_to_end_id, [owner.id for owner in owners[each.iban]])
            organization_ids |= {debit.organization_id for debit in debits}
    stored_periods.lock_organizations(tx, organization_ids)  # all at once: two imports that lock them one by one could wait for each other
    return [_import(tx, each, owners[each.iban], credits, new_id, actor, now) for each, credits in zip(statements, read, strict=True)]


def _read_credits(tx: PlatformTx, statement: BankStatement, owners: Sequence[LegalEntity], seen: set[str]) -> list[_ReadCredit]:
    """Return the credits of a statement that are new, and add their ids to those that the file had."""
    if stored.has_statement(tx, statement.iban, statement.digest):
        return []
    new = []
    for credit in statement.credits:
        if credit.id in seen or stored.find_by_external_id(tx, credit.id) is not None or stored.find_entry(tx, credit.id) is not None:
            continue
        seen.add(credit.id)
        transfer = None
        if credit.return_reason:
            transfer = stored_transfers.find_by_reference(tx, credit.end_to_end_id, credit.amount_minor, [each.id for each in owners])
        is_returned = transfer is not None and transfer.outcome is not TransferOutcome.RETURNED
        new.append(_ReadCredit(credit, [] if is_returned else _find_invoices(tx, credit, owners), transfer if is_returned else None))
    return new


def _import(
    tx: PlatformTx,
    statement: BankStatement,
    owners: Sequence[LegalEntity],
    new: Sequence[_ReadCredit],
    new_id: Callable[[str], str],
    actor: str,
    now: int,
) -> ImportedStatement:
    """Store a statement and what is new in it. The organizations are locked."""
    known, paid, returned, unmatched_returns, is_gap = len(statement.credits) - len(new), list[Payment](), list[Payment](), 0, False
    if not stored.has_statement(tx, statement.iban, statement.digest):
        new_returns = [each for each in statement.returns if not _is_known(tx, each.id)]
        known += len(statement.returns) - len(new_returns)
        record = _make_record(tx, statement, new, len(new_returns), id=new_id(ids.BANK_STATEMENT), actor=actor, now=now)
        is_gap = record.follows_id is None and _has_statement_before(tx, statement)
        stored.insert_statement(tx, record)
        stored.insert_entries(tx, [_entry(each.credit, record.id) for each in new])
        for each in new:
            if each.named:
                payment, taken_back = _pay(tx, each.credit, each.named, statement.iban, new_id=new_id, actor=actor, now=now)
                returned += [] if taken_back is None else [taken_back]
            elif each.transfer is not None:
                payment = _record_returned(tx, each.credit, each.transfer, id=new_id(ids.PAYMENT), actor=actor, now=now)
            else:
                continue
            paid.append(payment)
            stored.put_entry_payment(tx, each.credit.id, payment.id)
        for each_return in new_returns:
            debit = _make_returned(each_return, record.id)
            stored.insert_returned(tx, debit)
            taken_back = _take_back(tx, debit, owners, id=new_id(ids.PAYMENT), actor=actor, now=now)
            returned += [] if taken_back is None else [taken_back]
            unmatched_returns += taken_back is None
    else:
        known += len(statement.returns)
    executed = sum(_execute(tx, each, owners) for each in statement.debits)
    return ImportedStatement(
        iban=statement.iban,
        name=statement.name,
        payments=paid,
        unmatched=len(new) - len(paid),
        known=known,
        others=statement.others,
        returned=returned,
        unmatched_returns=unmatched_returns,
        executed=executed,
        is_gap=is_gap,
    )


def _is_known(tx: PlatformTx, returned_id: str) -> bool:
    return stored.has_returned(tx, returned_id) or stored.find_by_external_id(tx, returned_id) is not None


def _has_statement_before(tx: PlatformTx, statement: BankStatement) -> bool:
    """Return whether there is a statement before one that states its balances."""
    balances = statement.balances
    return balances is not None and stored.has_statement_before(tx, statement.iban, balances.closing_on, balances.closing_minor)


def _make_record(
    tx: PlatformTx, statement: BankStatement, new: Sequence[_ReadCredit], returns: int, *, id: str, actor: str, now: int
) -> BankStatementRecord:
    """Return what is stored of a statement, with the one before it."""
    balances, credits_minor = statement.balances, sum(each.credit.amount_minor for each in new)
    before = None
    if balances is not None:
        before = stored.find_statement_before(tx, statement.iban, balances.closing_on, balances.opening_minor)
    return BankStatementRecord(
        id=id,
        iban=statement.iban,
        name=statement.name,
        digest=statement.digest,
        entries=len(statement.credits) + len(statement.returns) + statement.others,
        actor=actor,
        imported_at=now,
        credits=len(new),
        credits_minor=credits_minor,
        returns=returns,
        opening_minor=None if balances is None else balances.opening_minor,
        closing_minor=None if balances is None else balances.closing_minor,
        closing_on=None if balances is None else balances.closing_on,
        others_minor=None if balances is None else balances.closing_minor - balances.opening_minor - credits_minor,
        follows_id=None if before is None else before.id,
    )


def _make_returned(returned: BankReturn, statement_id: str) -> ReturnedDebit:
    return ReturnedDebit(
        id=returned.id,
        statement_id=statement_id,
        amount_minor=returned.amount_minor,
        value_on=returned.value_on,
        end_to_end_id=returned.end_to_end_id,
        reason=returned.reason,
    )


def _take_back(tx: PlatformTx, returned: ReturnedDebit, owners: Sequence[LegalEntity], *, id: str, actor: str, now: int) -> Payment | None:
    """Take the payment of a direct debit back that the bank returned. Returns None where it has not come, it is not sure which one it is,
    or a part of it was paid back to the organization: a person has to look."""
    debits = stored_debits.list_by_reference(tx, returned.end_to_end_id, [each.id for each in owners])
    paid = [each for each in debits if each.outcome is DebitOutcome.PAID and returned.amount_minor in (None, each.amount_minor)]
    if len(paid) != 1 or paid[0].payment_id is None:
        return None
    return _return_debit(tx, returned, paid[0].payment_id, id=id, actor=actor, now=now)


def _return_debit(tx: PlatformTx, returned: ReturnedDebit, payment_id: str, *, id: str, actor: str, now: int) -> Payment | None:
    """Record that a returned debit took a payment back. Returns None where a part of the payment was paid back to the organization."""
    try:
        taken_back = return_payment(
            tx,
            payment_id,
            id=id,
            value_on=returned.value_on,
            reference=returned.reason,
            actor=actor,
            now=now,
            origin=PaymentOrigin.BANK_STATEMENT,
            external_id=returned.id,
        )
    except Fault as fault:
        if fault.kind is not STATE_CONFLICT:
            raise
        return None
    stored.put_returned_payment(tx, returned.id, taken_back.id)
    return taken_back


def _execute(tx: PlatformTx, debit: BankDebit, owners: Sequence[LegalEntity]) -> bool:
    """Return whether a debit is the transfer of a refund, and store that it was paid."""
    transfer = stored_transfers.find_by_reference(tx, debit.end_to_end_id, debit.amount_minor, [each.id for each in owners])
    if transfer is None:
        return False
    if transfer.outcome in (TransferOutcome.WAITING, TransferOutcome.OPEN):
        stored_transfers.put_outcome(tx, transfer.payment_id, TransferOutcome.PAID)
    return True


def _record_returned(tx: PlatformTx, credit: BankCredit, transfer: CreditTransfer, *, id: str, actor: str, now: int) -> Payment:
    """Record that the money of a refund came back, as a payment of the organization, which is locked."""
    stored_transfers.put_outcome(tx, transfer.payment_id, TransferOutcome.RETURNED, credit.return_reason)
    return _pay_in(tx, transfer.organization_id, credit, credit.return_reason, [], id=id, actor=actor, now=now)


def _entry(credit: BankCredit, statement_id: str) -> BankEntry:
    return BankEntry(
        id=credit.id,
        statement_id=statement_id,
        amount_minor=credit.amount_minor,
        currency=credit.currency,
        value_on=credit.value_on,
        debtor=credit.debtor,
        text=credit.text,
    )


def _find_invoices(tx: PlatformTx, credit: BankCredit, owners: Sequence[LegalEntity]) -> list[StoredInvoice]:
    """Return the invoices that the text of a credit names. Nothing where it is not sure which is meant: where they are of several
    organizations, several sellers with the account gave the same number, or the credit is the sum of several transfers."""
    named: dict[str, StoredInvoice] = {}
    if credit.is_batch:
        return []
    owner_ids = [each.id for each in owners]
    for number in find_numbers(credit.text, stored_invoices.list_series_of(tx, owner_ids)):
        series, _, digits = number.rpartition("-")
        found = stored_invoices.list_numbered(tx, series, int(digits), owner_ids)
        if len(found) > 1:
            return []
        for each in found:
            if each.kind is InvoiceKind.INVOICE and decode_document(each.document).currency == credit.currency:
                named[each.id] = each
    return list(named.values()) if len({each.organization_id for each in named.values()}) == 1 else []


def _pay(
    tx: PlatformTx,
    credit: BankCredit,
    invoices: Sequence[StoredInvoice],
    iban: str,
    *,
    new_id: Callable[[str], str],
    actor: str,
    now: int,
) -> tuple[Payment, Payment | None]:
    """Record a credit of a bank as a payment of invoices of one organization, which is locked. What they do not take settles others.

    Returns the payment, and its return if it is that of a direct debit of which the bank has told before that it came back."""
    organization_id = invoices[0].organization_id
    still_open = open_items.read_open(tx, organization_id, [each.id for each in invoices])
    invoice_ids = [each.id for each in invoices if each.id in still_open]
    reference, id = ": ".join(each for each in (credit.debtor, credit.text) if each), new_id(ids.PAYMENT)
    paid = _pay_in(tx, organization_id, credit, reference, invoice_ids, id=id, actor=actor, now=now)
    is_debit = [stored_debits.put_paid(tx, each.id, credit.end_to_end_id, credit.amount_minor, paid.id) for each in invoices]
    before = stored.list_returned_before(tx, iban, paid, credit.end_to_end_id) if any(is_debit) else []
    taken_back = _return_debit(tx, before[0], paid.id, id=new_id(ids.PAYMENT), actor=actor, now=now) if before else None
    return paid, taken_back


def _pay_in(
    tx: PlatformTx,
    organization_id: str,
    credit: BankCredit,
    reference: str,
    invoice_ids: Sequence[str],
    *,
    id: str,
    actor: str,
    now: int,
) -> Payment:
    """Store a credit of a bank as a payment of an organization, which is locked."""
    payment = Payment(
        id=id,
        organization_id=organization_id,
        kind=PaymentKind.PAYMENT,
        amount_minor=credit.amount_minor,
        currency=credit.currency,
        value_on=credit.value_on,
        origin=PaymentOrigin.BANK_STATEMENT,
        reference=reference[:512],
        external_id=credit.id,
        returns_id=None,
        actor=actor,
        created_at=now,
    )
    return _store(tx, payment, invoice_ids, now)


def match_entry(tx: PlatformTx, entry_id: str, invoice_id: str, *, new_id: Callable[[str], str], actor: str, now: int) -> Payment:
    """Record an entry of a bank statement that named no invoice as a payment of one. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID,
    STATE_CONFLICT."""
    entry = stored.lock_entry(tx, entry_id)
    if entry is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such entry.")
    invoice = stored_invoices.find_invoice(tx, invoice_id)
    if invoice is None or invoice.state is not InvoiceState.ISSUED or invoice.kind is not InvoiceKind.INVOICE:
        _refuse("invoice_id", "there is no such issued invoice")
        raise AssertionError
    document = decode_document(invoice.document)
    if document.currency != entry.currency:
        _refuse("invoice_id", "the invoice is in another currency")
    stored_periods.lock_organization(tx, invoice.organization_id)
    if entry.payment_id is not None or stored.find_by_external_id(tx, entry.id) is not None:
        raise Fault(STATE_CONFLICT, message="The entry was matched already.")
    credit = BankCredit(
        entry.id, entry.amount_minor, entry.currency, entry.value_on, entry.debtor, entry.text, end_to_end_id=document.number
    )
    iban = stored.get_statement(tx, entry.statement_id).iban
    payment, _ = _pay(tx, credit, [invoice], iban, new_id=new_id, actor=actor, now=now)
    stored.put_entry_payment(tx, entry_id, payment.id)
    return payment


def list_entries(tx: PlatformTx, window: PageWindow) -> Page[BankEntry]:
    """Return entries of bank statements for which no invoice was found."""
    return stored.list_entries(tx, window)


# ---- Booking ------------------------------------------------------------------------------------------------------------


def entries_of(payment: Payment, returned: PaymentKind | None = None) -> tuple[Entry, ...]:
    """Return the entries of a payment: money or a loss against what the organization owes. `returned`: of a return, the kind of what it
    takes back."""
    pico = payment.amount_minor * find_step(payment.currency)
    pico = pico if payment.kind.is_source else -pico
    account = WRITE_OFF if PaymentKind.WRITE_OFF in (payment.kind, returned) else CASH
    owed = Account(payment.organization_id, RECEIVABLE, payment.currency)
    return Entry(Account(PLATFORM, account, payment.currency), pico), Entry(owed, -pico)
