"""Payments: recorded by hand or from bank statements, allocated to invoices, paid back, returned or written off.

Theory of operation. Everything about an organization's payments happens with the organization locked, in one transaction: the payment,
its posting and what it settles. A credit of a bank has an id that follows from what the bank says of it, so a file that comes twice changes
nothing. The ledger has one account `receivable` for each organization; which invoice is open by how much follows from settlements. A credit
note is a source like a payment, and settles the invoice that it corrects first. What a source has left settles the invoice that is due
first, at once or as soon as one is issued: an organization with a balance owes nothing.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from datetime import date
from typing import NamedTuple

import msgspec

from tollway.control.invoicing.camt import BankCredit, BankStatement, StatementUnreadable, read_statements
from tollway.control.money.ledger import PLATFORM
from tollway.domain import ids
from tollway.domain.billing_parties import LegalEntity
from tollway.domain.currencies import get_currency
from tollway.domain.events import EventType, new_event
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, STATE_CONFLICT, Fault
from tollway.domain.invoices import RECEIVABLE, Document, InvoiceKind, InvoiceState, decode_document, find_step
from tollway.domain.ledger import Account, Entry
from tollway.domain.money import AMOUNT_PICO_MAX
from tollway.domain.pages import Page, PageWindow
from tollway.domain.payments import BankEntry, OpenInvoice, Payment, PaymentKind, PaymentOrigin, Settlement, allocate, find_numbers
from tollway.storage import billing_parties as stored_parties
from tollway.storage import invoices as stored_invoices
from tollway.storage import outbox
from tollway.storage import payments as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx, TenantTx, Transaction
from tollway.storage.invoices import StoredInvoice
from tollway.storage.payments import StatementRow

CASH, WRITE_OFF = "cash", "write_off"
"""Kinds of the platform's accounts: money at the bank, and what was given up."""

UNKNOWN = "There is no such payment."

SELLERS_MAX = 1000
"""Legal entities whose numbers are looked for in bank statements."""


class InvoiceStanding(NamedTuple):
    """An issued invoice, and what of it is open in the smallest unit of its currency."""

    id: str
    document: Document
    open_minor: int


class CustomerAccount(NamedTuple):
    """Standing of an organization. `balance_minor`: what it has paid or was credited and that no invoice took."""

    currency: str
    open: list[InvoiceStanding]
    balance_minor: int


# ---- Recording ----------------------------------------------------------------------------------------------------------


class WantedPayment(NamedTuple):
    """A payment that an operator records. `invoice_ids`: that it settles first; what is left of a payment settles what is due first."""

    kind: PaymentKind
    amount_pico: int
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
    step = find_step(currency)
    if wanted.amount_pico <= 0 or wanted.amount_pico % step:
        _refuse("amount", "it must be above zero and whole in the smallest unit of the currency")
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
        amount_minor=wanted.amount_pico // step,
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
    if wanted.kind is PaymentKind.REFUND:
        found = {each.source_id: stored.find_payment(tx, each.source_id) for each in stored.list_settlements(tx, organization_id)}
        received = {id for id, each in found.items() if each is None or each.kind is PaymentKind.PAYMENT}
        spent = _list_given(tx, organization_id, received, wanted.invoice_ids)
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
    if found.amount_minor <= 0 or found.amount_minor * find_step(found.currency) > AMOUNT_PICO_MAX:
        _refuse("amount", "it must be above zero, and at most what is kept")
    if found.currency != _get_currency(tx, organization_id):
        _refuse("currency", "the organization is billed in another one")
    _check_day(found.value_on)
    stored_periods.lock_organization(tx, organization_id)
    if stored.find_by_external_id(tx, found.external_id) is not None:
        return None
    payment = Payment(id=id, organization_id=organization_id, returns_id=None, actor=actor, created_at=now, **found._asdict())
    still_open = {each.id for each in read_account(tx, organization_id).open}
    spent = _list_spent(tx, organization_id, refunded) if refunded is not None else []
    return _store(tx, payment, [each for each in invoice_ids if each in still_open], now, spent)


def _list_spent(tx: PlatformTx, organization_id: str, refunded: RefundedPayment) -> list[Settlement]:
    """Return what a payment and the credit notes of its invoice gave to other invoices, the latest first."""
    issued = [(id, kind, decode_document(text)) for id, kind, text in stored.list_issued(tx, organization_id)]
    others = {id for id, kind, _ in issued if kind is InvoiceKind.INVOICE and id != refunded.invoice_id}
    sources = {id for id, _, document in issued if document.corrects is not None and document.corrects.id == refunded.invoice_id}
    return _list_given(tx, organization_id, sources | {refunded.id}, others)


def _list_given(tx: PlatformTx, organization_id: str, source_ids: Container[str], target_ids: Container[str]) -> list[Settlement]:
    """Return what these sources gave to these targets, the latest first: one settlement for each pair."""
    given: dict[tuple[str, str], int] = {}
    for each in stored.list_settlements(tx, organization_id):
        if each.source_id in source_ids and each.target_id in target_ids:
            pair = (each.source_id, each.target_id)
            given[pair] = given.pop(pair, 0) + each.amount_minor
    pairs = reversed(given.items())
    return [Settlement(source_id=source, target_id=target, amount_minor=minor) for (source, target), minor in pairs if minor > 0]


def _store(tx: PlatformTx, payment: Payment, invoice_ids: Sequence[str], now: int, spent: Sequence[Settlement] = ()) -> Payment:
    """Store a payment with its posting and settlements. The organization is locked. `spent`: from which a refund takes what the balance
    has not."""
    standing = read_account(tx, payment.organization_id)
    by_id = {each.id: each for each in standing.open}
    settled: list[Settlement] = []
    if payment.kind is PaymentKind.REFUND:
        missing = payment.amount_minor - standing.balance_minor
        if missing > sum(each.amount_minor for each in spent):
            raise Fault(STATE_CONFLICT, message="More cannot be paid back than the organization has paid and no invoice took.")
        left = payment.amount_minor
        for source_id, rest in _list_left(tx, payment.organization_id):
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
        for invoice_id in invoice_ids:
            if invoice_id not in by_id:
                _refuse("invoice_ids", f"the organization has no open invoice {invoice_id}")
        named = [by_id[each] for each in dict.fromkeys(invoice_ids)]
        given = allocate(payment.amount_minor, [OpenInvoice(each.id, each.open_minor) for each in named])
        if payment.kind is PaymentKind.WRITE_OFF and sum(part for _, part in given) != payment.amount_minor:
            raise Fault(STATE_CONFLICT, message="More cannot be written off than what is open of these invoices.")
        settled = [Settlement(source_id=payment.id, target_id=target_id, amount_minor=part) for target_id, part in given]
    stored.insert_payment(tx, payment, entries_of(payment), now)
    stored.insert_settlements(tx, payment.organization_id, settled, now)
    if payment.kind is PaymentKind.PAYMENT:
        _settle_balance(tx, payment.organization_id, now)
    _tell_paid(tx, payment.organization_id, by_id, now)
    return payment


def _tell_paid(tx: PlatformTx, organization_id: str, open_before: Iterable[str], now: int) -> None:
    """Tell of the invoices of `open_before` of which nothing is open now."""
    still_open = {each.id for each in read_account(tx, organization_id).open}
    paid = sorted(set(open_before) - still_open)
    outbox.append(tx, [new_event(EventType.INVOICE_PAID, organization_id, at=now, data={"id": each}) for each in paid])


def _settle_balance(tx: PlatformTx, organization_id: str, now: int) -> None:
    """Settle open invoices, the one that is due first at the top, with what sources have left, the oldest first. The organization is
    locked."""
    open_minor = {each.id: each.open_minor for each in read_account(tx, organization_id).open}
    settled = []
    for source_id, left in _list_left(tx, organization_id):
        for target_id, part in allocate(left, [OpenInvoice(id, minor) for id, minor in open_minor.items()]):
            open_minor[target_id] -= part
            settled.append(Settlement(source_id=source_id, target_id=target_id, amount_minor=part))
    stored.insert_settlements(tx, organization_id, settled, now)


def return_payment(tx: PlatformTx, payment_id: str, *, id: str, value_on: str, reference: str, actor: str, now: int) -> Payment:
    """Record that the bank took a payment back, or an operator a write-off: what it settled is open again. Raises RESOURCE_UNKNOWN,
    PARAMETER_INVALID, or STATE_CONFLICT where it was returned or paid back already."""
    payment = get_payment(tx, payment_id)
    _check_day(value_on)
    stored_periods.lock_organization(tx, payment.organization_id)
    if not payment.kind.is_source or stored.find_return(tx, payment_id) is not None:
        raise Fault(STATE_CONFLICT, message="Only a payment that was not returned yet can be returned.")
    given: dict[str, int] = {}
    for each in stored.list_settlements(tx, payment.organization_id):
        if each.source_id == payment_id:
            given[each.target_id] = given.get(each.target_id, 0) + each.amount_minor
    if any(minor and stored.find_payment(tx, target_id) is not None for target_id, minor in given.items()):
        raise Fault(STATE_CONFLICT, message="A part of the payment was paid back already.")
    returned = msgspec.structs.replace(
        payment,
        id=id,
        kind=PaymentKind.RETURN,
        value_on=value_on,
        origin=PaymentOrigin.MANUAL,
        reference=reference,
        external_id="",
        returns_id=payment_id,
        actor=actor,
        created_at=now,
    )
    open_before = [each.id for each in read_account(tx, payment.organization_id).open]
    stored.insert_payment(tx, returned, entries_of(returned, payment.kind), now)
    taken = [Settlement(source_id=payment_id, target_id=target_id, amount_minor=-minor) for target_id, minor in given.items() if minor]
    whole = Settlement(source_id=payment_id, target_id=id, amount_minor=payment.amount_minor)
    stored.insert_settlements(tx, payment.organization_id, [*taken, whole], now)
    _settle_balance(tx, payment.organization_id, now)
    _tell_paid(tx, payment.organization_id, open_before, now)
    return returned


def settle_issued(tx: PlatformTx, document: Document, now: int) -> None:
    """Settle what a document that was issued allows: a credit note the invoice that it corrects, an invoice with what the organization has
    paid before. The organization is locked."""
    corrected_id = document.corrects.id if document.kind is InvoiceKind.CREDIT_NOTE and document.corrects is not None else None
    open_before = read_account(tx, document.organization_id).open
    if corrected_id is not None:
        _check_credited(tx, document, corrected_id)
    for each in open_before:
        part = min(each.open_minor, document.totals.gross_minor)
        if each.id == corrected_id and part:
            settled = Settlement(source_id=document.id, target_id=each.id, amount_minor=part)
            stored.insert_settlements(tx, document.organization_id, [settled], now)
    _settle_balance(tx, document.organization_id, now)
    _tell_paid(tx, document.organization_id, [each.id for each in open_before], now)


def _check_credited(tx: PlatformTx, note: Document, corrected_id: str) -> None:
    """Raise STATE_CONFLICT if a credit note credits what was written off of its invoice: that would become a balance, though nobody has
    paid it."""
    taken: dict[str, int] = {}
    for each in stored.list_settlements(tx, note.organization_id):
        if each.target_id == corrected_id:
            taken[each.source_id] = taken.get(each.source_id, 0) + each.amount_minor
    paid = {id: stored.find_payment(tx, id) for id in taken}
    written_off = sum(taken[id] for id, each in paid.items() if each is not None and each.kind is PaymentKind.WRITE_OFF)
    issued = [(id, decode_document(text)) for id, _, text in stored.list_issued(tx, note.organization_id)]
    credited = sum(each.totals.gross_minor for _, each in issued if each.corrects is not None and each.corrects.id == corrected_id)
    gross = next(each.totals.gross_minor for id, each in issued if id == corrected_id)
    if written_off and credited + written_off > gross:
        raise Fault(STATE_CONFLICT, message="The credit note credits what was written off: take the write-off back first.")


def _get_currency(tx: PlatformTx, organization_id: str) -> str:
    terms = stored_prices.read_terms(tx, [organization_id]).get(organization_id)
    if terms is None:
        raise Fault(RESOURCE_UNKNOWN)
    return terms.currency


def _check_day(day: str) -> None:
    try:
        date.fromisoformat(day)
    except ValueError:
        _refuse("value_on", "it must be a day such as 2026-12-01")


def _refuse(param: str, reason: str) -> None:
    raise Fault(PARAMETER_INVALID, param=param, message=f"'{param}' cannot be used: {reason}.")


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


def list_own_payments(tx: TenantTx, window: PageWindow) -> Page[Payment]:
    """Return the organization's payments in the order in which they were recorded."""
    return stored.list_payments(tx, window, organization_id=tx.organization_id)


def get_account(tx: Transaction, organization_id: str) -> CustomerAccount:
    """Return how an organization stands. Raises RESOURCE_UNKNOWN."""
    if stored_prices.find_organization_currency(tx, organization_id) is None:
        raise Fault(RESOURCE_UNKNOWN)
    return read_account(tx, organization_id)


def read_account(tx: Transaction, organization_id: str) -> CustomerAccount:
    """Return the open invoices of an organization, the one that is due first at the top, and its balance."""
    issued = stored.list_issued(tx, organization_id)
    taken = stored.sum_taken(tx, [id for id, kind, _ in issued if kind is InvoiceKind.INVOICE])
    open_ = []
    for id, kind, encoded in issued:
        if kind is InvoiceKind.INVOICE:
            document = decode_document(encoded)
            rest = document.totals.gross_minor - taken.get(id, 0)
            if rest:
                open_.append(InvoiceStanding(id, document, rest))
    currency = stored_prices.find_organization_currency(tx, organization_id) or ""
    return CustomerAccount(currency, open_, sum(rest for _, rest in _list_left(tx, organization_id)))


def _list_left(tx: Transaction, organization_id: str) -> list[tuple[str, int]]:
    """Return what is left of each source of an organization: of credit notes, then of payments, each the oldest first."""
    amounts = {
        id: decode_document(text).totals.gross_minor
        for id, kind, text in stored.list_issued(tx, organization_id)
        if kind is InvoiceKind.CREDIT_NOTE
    }
    window = PageWindow(limit=1000)
    while True:
        page = stored.list_payments(tx, window, organization_id=organization_id)
        amounts.update({each.id: each.amount_minor for each in page.items if each.kind.is_source})
        if not page.has_more:
            break
        window = PageWindow(after=page.items[-1].id, limit=1000)
    given: dict[str, int] = {}
    for each in stored.list_settlements(tx, organization_id):
        given[each.source_id] = given.get(each.source_id, 0) + each.amount_minor
    return [(id, minor - given.get(id, 0)) for id, minor in amounts.items() if minor != given.get(id, 0)]


# ---- Bank statements ----------------------------------------------------------------------------------------------------


class ImportedStatement(NamedTuple):
    """A bank statement that was imported: what was matched with invoices, what a person has to match, and what was known already."""

    iban: str
    name: str
    payments: list[Payment]
    unmatched: int
    known: int
    others: int


class _ReadCredit(NamedTuple):
    """A credit that is new, with the invoices that it names, all of one organization; none where a person has to say what it is for."""

    credit: BankCredit
    named: list[StoredInvoice]


def import_statements(tx: PlatformTx, text: str, *, new_id: Callable[[str], str], actor: str, now: int) -> list[ImportedStatement]:
    """Record the credits of a bank's file as payments of the invoices whose numbers they name. A file, or an entry, that was imported
    already changes nothing. Raises PARAMETER_INVALID for what is no bank statement of a seller, before anything is changed."""
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
    stored_periods.lock_organizations(tx, organization_ids)  # all at once: two imports that lock them one by one could wait for each other
    return [_import(tx, each, credits, new_id, actor, now) for each, credits in zip(statements, read, strict=True)]


def _read_credits(tx: PlatformTx, statement: BankStatement, owners: Sequence[LegalEntity], seen: set[str]) -> list[_ReadCredit]:
    """Return the credits of a statement that are new, and add their ids to those that the file had."""
    if stored.has_statement(tx, statement.iban, statement.digest):
        return []
    new = []
    for credit in statement.credits:
        if credit.id in seen or stored.find_by_external_id(tx, credit.id) is not None or stored.find_entry(tx, credit.id) is not None:
            continue
        seen.add(credit.id)
        new.append(_ReadCredit(credit, _find_invoices(tx, credit, owners)))
    return new


def _import(
    tx: PlatformTx, statement: BankStatement, new: Sequence[_ReadCredit], new_id: Callable[[str], str], actor: str, now: int
) -> ImportedStatement:
    """Store a statement and what is new in it. The organizations are locked."""
    if not stored.has_statement(tx, statement.iban, statement.digest):
        id = new_id(ids.BANK_STATEMENT)
        entries = len(statement.credits) + statement.others
        stored.insert_statement(tx, StatementRow(id, statement.iban, statement.name, statement.digest, entries, actor, now))
        for each in new:
            if not each.named:
                stored.insert_entry(tx, _entry(each.credit, id))
    paid = [_pay(tx, each.credit, each.named, id=new_id(ids.PAYMENT), actor=actor, now=now) for each in new if each.named]
    known = len(statement.credits) - len(new)
    return ImportedStatement(statement.iban, statement.name, paid, len(new) - len(paid), known, statement.others)


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
    for number in find_numbers(credit.text, {each.invoice_series for each in owners}):
        series, _, digits = number.rpartition("-")
        found = stored_invoices.list_numbered(tx, series, int(digits), [each.id for each in owners])
        if len(found) > 1:
            return []
        for each in found:
            if each.kind is InvoiceKind.INVOICE and decode_document(each.document).currency == credit.currency:
                named[each.id] = each
    return list(named.values()) if len({each.organization_id for each in named.values()}) == 1 else []


def _pay(tx: PlatformTx, credit: BankCredit, invoices: Sequence[StoredInvoice], *, id: str, actor: str, now: int) -> Payment:
    """Record a credit of a bank as a payment of invoices of one organization, which is locked. What they do not take settles others."""
    organization_id = invoices[0].organization_id
    still_open = {each.id for each in read_account(tx, organization_id).open}
    payment = Payment(
        id=id,
        organization_id=organization_id,
        kind=PaymentKind.PAYMENT,
        amount_minor=credit.amount_minor,
        currency=credit.currency,
        value_on=credit.value_on,
        origin=PaymentOrigin.BANK_STATEMENT,
        reference=f"{credit.debtor}: {credit.text}"[:512],
        external_id=credit.id,
        returns_id=None,
        actor=actor,
        created_at=now,
    )
    return _store(tx, payment, [each.id for each in invoices if each.id in still_open], now)


def match_entry(tx: PlatformTx, entry_id: str, invoice_id: str, *, id: str, actor: str, now: int) -> Payment:
    """Record an entry of a bank statement that named no invoice as a payment of one. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID,
    STATE_CONFLICT."""
    entry = stored.lock_entry(tx, entry_id)
    if entry is None:
        raise Fault(RESOURCE_UNKNOWN, message="There is no such entry.")
    invoice = stored_invoices.find_invoice(tx, invoice_id)
    if invoice is None or invoice.state is not InvoiceState.ISSUED or invoice.kind is not InvoiceKind.INVOICE:
        _refuse("invoice_id", "there is no such issued invoice")
        raise AssertionError
    if decode_document(invoice.document).currency != entry.currency:
        _refuse("invoice_id", "the invoice is in another currency")
    stored_periods.lock_organization(tx, invoice.organization_id)
    if entry.payment_id is not None or stored.find_by_external_id(tx, entry.id) is not None:
        raise Fault(STATE_CONFLICT, message="The entry was matched already.")
    credit = BankCredit(entry.id, entry.amount_minor, entry.currency, entry.value_on, entry.debtor, entry.text)
    payment = _pay(tx, credit, [invoice], id=id, actor=actor, now=now)
    stored.put_entry_payment(tx, entry_id, payment.id)
    return payment


def list_entries(tx: PlatformTx, window: PageWindow) -> Page[BankEntry]:
    """Return entries of bank statements for which no invoice was found."""
    return stored.list_entries(tx, window)


# ---- Booking ------------------------------------------------------------------------------------------------------------


def entries_of(payment: Payment, returned: PaymentKind | None = None) -> tuple[Entry, ...]:
    """Return the entries of a payment: money or a loss against what the organization owes. `returned`: of a return, the kind of what it
    takes back."""
    pico = payment.amount_minor * 10 ** (12 - get_currency(payment.currency).minor_units)
    pico = pico if payment.kind.is_source else -pico
    account = WRITE_OFF if PaymentKind.WRITE_OFF in (payment.kind, returned) else CASH
    owed = Account(payment.organization_id, RECEIVABLE, payment.currency)
    return Entry(Account(PLATFORM, account, payment.currency), pico), Entry(owed, -pico)
