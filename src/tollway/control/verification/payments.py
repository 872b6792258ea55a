"""Verification of payments, for `verify`: each posting against its payment, settlements against what was there to be settled, payments
against what banks have told, and debits, transfers and connectors against payments and documents.

What a bank or a connector has told is taken as the database has it, because no archive has a copy: a payment that is changed together with
the entry of the statement from which it was made, and that statement's sums and balances, is not found.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from msgspec import DecodeError

from tollway.control.invoicing.payments import entries_of
from tollway.domain.connectors import InvoiceSync, SyncState
from tollway.domain.credit_transfers import TransferOutcome
from tollway.domain.direct_debits import Debit, DebitOutcome
from tollway.domain.invoices import InvoiceKind, InvoiceState, decode_document
from tollway.domain.payments import BankEntry, BankStatementRecord, OpenKind, Payment, PaymentKind, PaymentOrigin, ReturnedDebit
from tollway.storage import credit_transfers as stored_transfers
from tollway.storage import direct_debits as stored_debits
from tollway.storage import invoice_syncs as stored_syncs
from tollway.storage import invoices as stored_invoices
from tollway.storage import open_items
from tollway.storage import payments as stored
from tollway.storage.database import PlatformTx
from tollway.storage.open_items import OpenItem

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Sums = dict[str, int]
"""Sums of entries by account."""

Payments = Mapping[str, Payment]
"""Payments by their ids."""


class _Item(NamedTuple):
    """An issued document or a payment, which gives to others or takes from them. `number`: of a document; empty for a payment. `kind`: as
    an open item; None for what is settled at once. `legal_entity_id`, `due_on`: of a document."""

    organization_id: str
    currency: str
    amount_minor: int
    number: str = ""
    kind: OpenKind | None = None
    legal_entity_id: str | None = None
    due_on: str | None = None


class _Items(NamedTuple):
    """Sources and targets of settlements by their ids. `once_settled`: targets of which nothing was open at some time."""

    sources: dict[str, _Item]
    targets: dict[str, _Item]
    once_settled: set[str]


def compare_payments(tx: PlatformTx, add: Add) -> tuple[Sums, Sums]:
    """Compare payments with their postings and with what banks and connectors have told, and settlements with payments and documents.
    Returns what the entries come to by account, and what they should."""
    replayed, owed, payments = Sums(), Sums(), dict[str, Payment]()
    for payment, entries in stored.iterate_payments(tx):
        payments[payment.id] = payment
        returned = stored.find_payment(tx, payment.returns_id) if payment.returns_id is not None else None
        right = entries_of(payment, returned.kind if returned is not None else None)
        for sums, listed in ((replayed, entries), (owed, right)):
            for entry in listed:
                sums[entry.account.id] = sums.get(entry.account.id, 0) + entry.amount_pico
        if entries != right:
            add("ledger_entries", f"{payment.id} does not book what it says")
    items = _list_items(tx, payments)
    _compare_open(tx, items, _compare_settlements(tx, payments, items, add), add)
    _compare_statements(tx, payments, add)
    _compare_debits(tx, payments, items, add)
    _compare_transfers(tx, payments, add)
    _compare_syncs(tx, payments, items, add)
    return replayed, owed


# ---- Settlements --------------------------------------------------------------------------------------------------------


def _list_items(tx: PlatformTx, payments: Payments) -> _Items:
    items = _Items({}, {}, set())
    for each in payments.values():
        side = items.sources if each.kind.is_source else items.targets
        kind = OpenKind.PAYMENT if each.kind.is_source else None
        side[each.id] = _Item(each.organization_id, each.currency, each.amount_minor, kind=kind)
    for found in stored_invoices.iterate_invoices(tx):
        if found.state is not InvoiceState.ISSUED:
            continue
        side = items.sources if found.kind is InvoiceKind.CREDIT_NOTE else items.targets
        try:
            document = decode_document(found.document)
        except DecodeError:  # which the verification of invoices names
            continue
        side[found.id] = _Item(
            found.organization_id,
            document.currency,
            document.totals.gross_minor,
            document.number,
            OpenKind(found.kind),
            found.legal_entity_id,
            document.due_on,
        )
    return items


def _compare_settlements(tx: PlatformTx, payments: Payments, items: _Items, add: Add) -> dict[str, int]:
    """Compare what sources gave and targets took with what they have: of one organization and currency, neither more nor below zero, and
    no organization has a balance in a currency while an invoice in it is open. Returns what is left of each source and target."""
    sources, targets = items.sources, items.targets
    given, taken, pairs = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for organization_id, each in stored.iterate_settlements(tx):
        for held, id in ((sources, each.source_id), (targets, each.target_id)):
            if id not in held or held[id].organization_id != organization_id:
                add("settlements", f"{id} is not there to be settled by {organization_id}")
        source, target = sources.get(each.source_id), targets.get(each.target_id)
        if source is not None and target is not None and source.currency != target.currency:
            add("settlements", f"{each.source_id} in {source.currency} settles {each.target_id} in {target.currency}")
        given[each.source_id] += each.amount_minor
        taken[each.target_id] += each.amount_minor
        pairs[each.source_id, each.target_id] += each.amount_minor
        if target is not None and taken[each.target_id] == target.amount_minor:
            items.once_settled.add(each.target_id)
    for held, sums in ((sources, given), (targets, taken)):
        for id, minor in sums.items():
            if id in held and not 0 <= minor <= held[id].amount_minor:
                add("settlements", f"{id} of {held[id].amount_minor} is settled by {minor}")
    for id, item in targets.items():
        if id in payments and taken[id] != item.amount_minor:
            add("settlements", f"{id} of {item.amount_minor} takes {taken[id]}")
    for payment in payments.values():
        if payment.kind is PaymentKind.RETURN:
            returned = payments.get(payment.returns_id or "")
            is_whole = returned is not None and returned.amount_minor == payment.amount_minor == pairs[returned.id, payment.id]
            if returned is None or not returned.kind.is_source or not is_whole:
                add("payments", f"{payment.id} does not take back the payment that it returns")
    owing = {(item.organization_id, item.currency) for id, item in targets.items() if taken[id] < item.amount_minor}
    for id, item in sources.items():
        if given[id] < item.amount_minor and (item.organization_id, item.currency) in owing:
            add("settlements", f"{id} has {item.amount_minor - given[id]} left, and an invoice of {item.organization_id} is open")
    left = {id: item.amount_minor - given[id] for id, item in sources.items()}
    return left | {id: item.amount_minor - taken[id] for id, item in targets.items()}


def _compare_open(tx: PlatformTx, items: _Items, left: Mapping[str, int], add: Add) -> None:
    """Compare the items that are kept with documents, payments and what settlements left of them."""
    right: dict[str, OpenItem] = {}
    for side in (items.sources, items.targets):
        for id, item in side.items():
            if item.kind is not None:
                right[id] = OpenItem(id, item.organization_id, item.legal_entity_id, item.kind, item.due_on, left[id])
    for found in open_items.iterate_items(tx):
        if right.pop(found.id, None) != found:
            add("open_items", f"{found.id} of {found.organization_id} with {found.left_minor} left is not what was settled of it")
    for id, missing in right.items():
        add("open_items", f"{id} of {missing.organization_id} with {missing.left_minor} left is missing")


# ---- Banks --------------------------------------------------------------------------------------------------------------


def _compare_statements(tx: PlatformTx, payments: Payments, add: Add) -> None:
    """Compare statements with their credits and returned debits, these with the payments that were made of them, payments with the
    statements that they came from, and the balances of each statement with each other and with those of the one before."""
    statements = {each.id: each for each in stored.iterate_statements(tx)}
    counts, sums, returns, made = Counter[str](), Counter[str](), Counter[str](), set[str]()
    for entry in stored.iterate_entries(tx):
        counts[entry.statement_id] += 1
        sums[entry.statement_id] += entry.amount_minor
        if entry.payment_id is not None:
            made.add(entry.payment_id)
            if not _is_made_of(payments.get(entry.payment_id), entry):
                add("bank_entries", f"{entry.id} is not what {entry.payment_id} says")
    for debit in stored.iterate_returned(tx):
        returns[debit.statement_id] += 1
        if debit.payment_id is not None:
            made.add(debit.payment_id)
            if not _is_return_of(payments.get(debit.payment_id), debit):
                add("bank_returns", f"{debit.id} is not what {debit.payment_id} says")
    for each in statements.values():
        stated, there = (each.credits, each.credits_minor, each.returns), (counts[each.id], sums[each.id], returns[each.id])
        if stated != (None, None, None) and stated != there:
            add("bank_statements", f"{each.id} has {_describe(there)}, not {_describe(stated)}")
        _compare_balances(each, statements, add)
    since = min((each.imported_at for each in statements.values() if each.credits is not None), default=None)
    for payment in payments.values():
        is_told = payment.origin is PaymentOrigin.BANK_STATEMENT and since is not None and payment.created_at >= since
        if is_told and payment.id not in made:
            add("payments", f"{payment.id} is in no bank statement")


def _describe(told: tuple[int | None, int | None, int | None]) -> str:
    return "{} credits of {} and {} returned debits".format(*told)


def _is_made_of(payment: Payment | None, entry: BankEntry) -> bool:
    stated = (PaymentKind.PAYMENT, PaymentOrigin.BANK_STATEMENT, entry.id, entry.amount_minor, entry.currency, entry.value_on)
    return payment is not None and stated == (
        payment.kind,
        payment.origin,
        payment.external_id,
        payment.amount_minor,
        payment.currency,
        payment.value_on,
    )


def _is_return_of(payment: Payment | None, debit: ReturnedDebit) -> bool:
    stated = (PaymentKind.RETURN, PaymentOrigin.BANK_STATEMENT, debit.id, debit.value_on, debit.reason)
    if payment is None or stated != (payment.kind, payment.origin, payment.external_id, payment.value_on, payment.reference):
        return False
    return debit.amount_minor in (None, payment.amount_minor)


def _compare_balances(statement: BankStatementRecord, statements: Mapping[str, BankStatementRecord], add: Add) -> None:
    opening, closing = statement.opening_minor, statement.closing_minor
    stated = (opening, closing, statement.closing_on, statement.others_minor)
    if any(each is None for each in stated) and (statement.follows_id is not None or any(each is not None for each in stated)):
        add("bank_statements", f"{statement.id} has a part of its balances only")
    elif (
        opening is not None and closing is not None and closing - opening != (statement.credits_minor or 0) + (statement.others_minor or 0)
    ):
        add("bank_statements", f"the entries of {statement.id} do not come to the difference of its balances")
    before = statements.get(statement.follows_id or "")
    if statement.follows_id is not None and (
        before is None
        or (before.iban, before.closing_minor) != (statement.iban, opening)
        or (before.closing_on or "") > (statement.closing_on or "")
    ):
        add("bank_statements", f"{statement.id} does not open with the balance of {statement.follows_id}")


def _compare_debits(tx: PlatformTx, payments: Payments, items: _Items, add: Add) -> None:
    """Compare direct debits with their invoices, files and payments."""
    counts, sums = Counter[str](), Counter[str]()
    returned_ids = {each.returns_id for each in payments.values()}
    for debit in stored_debits.iterate_debits(tx):
        name = f"the debit of {debit.invoice_id} in {debit.file_id}"
        counts[debit.file_id] += 1
        sums[debit.file_id] += debit.amount_minor
        invoice = items.targets.get(debit.invoice_id)
        if invoice is None or (invoice.organization_id, invoice.number) != (debit.organization_id, debit.end_to_end_id):
            add("direct_debits", f"{name} is about another invoice")
        elif debit.amount_minor > invoice.amount_minor:
            add("direct_debits", f"{name} is more than the invoice")
        if not _is_debit_paid_so(debit, payments, returned_ids):
            add("direct_debits", f"{name} is {debit.outcome}, which its payment is not")
    for file in stored_debits.iterate_files(tx):
        if (file.debits, file.total_minor) != (counts[file.id], sums[file.id]):
            add("direct_debit_files", f"{file.id} has {counts[file.id]} debits of {sums[file.id]}, not {file.debits} of {file.total_minor}")


def _is_debit_paid_so(debit: Debit, payments: Payments, returned_ids: Collection[str | None]) -> bool:
    """Return whether the outcome of a debit is that of its payment."""
    if debit.payment_id is None:
        return debit.outcome in (DebitOutcome.OPEN, DebitOutcome.CANCELLED)
    paid = payments.get(debit.payment_id)
    if paid is None or (paid.kind, paid.organization_id, paid.amount_minor) != (
        PaymentKind.PAYMENT,
        debit.organization_id,
        debit.amount_minor,
    ):
        return False
    return debit.outcome is (DebitOutcome.RETURNED if paid.id in returned_ids else DebitOutcome.PAID)


def _compare_transfers(tx: PlatformTx, payments: Payments, add: Add) -> None:
    """Compare credit transfers with their refunds, and with the files that have them."""
    counts, sums = Counter[str](), Counter[str]()
    for each in stored_transfers.iterate_transfers(tx):
        refund = payments.get(each.payment_id)
        if refund is None or (refund.kind, refund.organization_id, refund.amount_minor) != (
            PaymentKind.REFUND,
            each.organization_id,
            each.amount_minor,
        ):
            add("credit_transfers", f"the transfer of {each.payment_id} is not that of this refund")
        if each.end_to_end_id != each.payment_id.rpartition("_")[2]:
            add("credit_transfers", f"the transfer of {each.payment_id} has the reference {each.end_to_end_id}")
        if (each.outcome is TransferOutcome.OPEN and each.file_id is None) or (each.outcome is TransferOutcome.WAITING and each.file_id):
            add("credit_transfers", f"the transfer of {each.payment_id} is {each.outcome}, which its file is not")
        if each.file_id is not None:
            counts[each.file_id] += 1
            sums[each.file_id] += each.amount_minor
    for file in stored_transfers.iterate_files(tx):  # those that were cancelled are in it no more
        if file.transfers < counts[file.id] or file.total_minor < sums[file.id]:
            add("credit_transfer_files", f"{file.id} of {file.total_minor} has {counts[file.id]} transfers of {sums[file.id]}")


# ---- Connectors ---------------------------------------------------------------------------------------------------------


def _compare_syncs(tx: PlatformTx, payments: Payments, items: _Items, add: Add) -> None:
    """Compare what connectors collect with documents and payments, and what they have told with what they collect."""
    collected = {(each.organization_id, str(each.origin), each.reference) for each in payments.values() if each.kind is PaymentKind.PAYMENT}
    known = {(each.organization_id, str(each.origin), each.external_id) for each in payments.values() if each.external_id}
    for sync in stored_syncs.iterate_syncs(tx):
        item = items.targets.get(sync.invoice_id) or items.sources.get(sync.invoice_id)
        if (item is None) != (sync.state in (SyncState.DRAFT_SYNC, SyncState.DRAFT_READY)):
            add("invoice_syncs", f"{sync.invoice_id} is {sync.state}, which its document is not")
        elif item is not None and item.organization_id != sync.organization_id:
            add("invoice_syncs", f"{sync.invoice_id} is not of {sync.organization_id}")
        if sync.state is SyncState.PAYMENT_PENDING and not sync.external_id:
            add("invoice_syncs", f"{sync.invoice_id} waits for a payment, and {sync.connector} does not know it")
        place = (sync.organization_id, str(sync.connector), sync.external_id)
        if sync.state is SyncState.SETTLED and not _was_settled(sync, items) and place not in collected:
            add("invoice_syncs", f"{sync.invoice_id} is settled at {sync.connector}, and no payment says so")
        if sync.external_id:
            known.add(place)
    for payment in payments.values():
        is_told = payment.origin not in (PaymentOrigin.MANUAL, PaymentOrigin.BANK_STATEMENT)
        if payment.kind is PaymentKind.RETURN:
            returned = payments.get(payment.returns_id or "")
            if is_told and (returned is None or returned.origin is not payment.origin):
                add("payments", f"{payment.id} takes back what {payment.origin} has not collected")
        elif is_told and (payment.organization_id, str(payment.origin), payment.reference) not in known:
            add("payments", f"{payment.id} is about nothing that {payment.origin} has collected")


def _was_settled(sync: InvoiceSync, items: _Items) -> bool:
    item = items.targets.get(sync.invoice_id)
    return sync.invoice_id in items.once_settled or (item is not None and item.amount_minor == 0)
