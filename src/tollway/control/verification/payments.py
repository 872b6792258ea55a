"""Verification of payments, for `verify`: each posting against its payment, and settlements against what was there to be settled."""

from collections import Counter
from collections.abc import Callable

from tollway.control.invoicing.payments import entries_of
from tollway.domain.invoices import InvoiceKind, InvoiceState, decode_document
from tollway.domain.payments import Payment, PaymentKind
from tollway.storage import invoices as stored_invoices
from tollway.storage import payments as stored
from tollway.storage.database import PlatformTx

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Sums = dict[str, int]
"""Sums of entries by account."""


def compare_payments(tx: PlatformTx, add: Add) -> tuple[Sums, Sums]:
    """Compare payments with their postings, and settlements with payments and documents. Returns what the entries come to by account, and
    what they should."""
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
    _compare_settlements(tx, payments, add)
    return replayed, owed


def _compare_settlements(tx: PlatformTx, payments: dict[str, Payment], add: Add) -> None:
    """Compare what sources gave and targets took with what they have: of one organization, and neither more nor below zero."""
    sources = {id: (each.organization_id, each.amount_minor) for id, each in payments.items() if each.kind.is_source}
    targets = {id: (each.organization_id, each.amount_minor) for id, each in payments.items() if not each.kind.is_source}
    for found in stored_invoices.iterate_invoices(tx):
        if found.state is InvoiceState.ISSUED:
            side = sources if found.kind is InvoiceKind.CREDIT_NOTE else targets
            side[found.id] = (found.organization_id, decode_document(found.document).totals.gross_minor)
    given, taken, pairs = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for organization_id, each in stored.iterate_settlements(tx):
        for held, id in ((sources, each.source_id), (targets, each.target_id)):
            if id not in held or held[id][0] != organization_id:
                add("settlements", f"{id} is not there to be settled by {organization_id}")
        given[each.source_id] += each.amount_minor
        taken[each.target_id] += each.amount_minor
        pairs[each.source_id, each.target_id] += each.amount_minor
    for held, sums in ((sources, given), (targets, taken)):
        for id, minor in sums.items():
            if id in held and not 0 <= minor <= held[id][1]:
                add("settlements", f"{id} of {held[id][1]} is settled by {minor}")
    for id, (_, whole) in targets.items():
        if id in payments and taken[id] != whole:
            add("settlements", f"{id} of {whole} takes {taken[id]}")
    for payment in payments.values():
        if payment.kind is PaymentKind.RETURN:
            returned = payments.get(payment.returns_id or "")
            is_whole = returned is not None and returned.amount_minor == payment.amount_minor == pairs[returned.id, payment.id]
            if returned is None or not returned.kind.is_source or not is_whole:
                add("payments", f"{payment.id} does not take back the payment that it returns")
