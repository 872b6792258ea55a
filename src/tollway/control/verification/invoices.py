"""Verification of invoices, for `verify`: each issued document computed again from its period, and each series without a gap.

Events have been compared with the archive before, and periods and credits with these; here they are taken as the database has them. Lines
of usage of a period whose events retention has removed are taken as they were issued. Rules, totals, tax, numbers, files and postings are
always computed again.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from tollway.control.invoicing.booking import entries_of, issue_id
from tollway.control.invoicing.contents import CorrectionKey, describe_period, list_correction_keys, sum_usage, zone_of
from tollway.control.invoicing.documents import render_files
from tollway.control.money.periods import are_corrected_kept, is_kept
from tollway.domain.currencies import CURRENCIES
from tollway.domain.invoices import (
    FORMAT,
    AllowanceKind,
    Document,
    InvoiceKind,
    InvoiceLine,
    InvoiceState,
    LineKind,
    ServiceDays,
    days_of_service,
    decode_document,
    digest_document,
    encode_document,
    find_step,
    find_violations,
    format_number,
    make_allowances,
    make_contract_lines,
    make_correction_lines,
    make_usage_lines,
    negate_lines,
    sum_given_back,
)
from tollway.domain.ledger import Entry
from tollway.domain.periods import Period
from tollway.domain.tax import TaxUndecided, decide_tax
from tollway.storage import contracts as stored_contracts
from tollway.storage import invoices as stored
from tollway.storage import periods as stored_periods
from tollway.storage.database import PlatformTx
from tollway.storage.invoices import StoredInvoice

Add = Callable[[str, str], None]
"""Notes a difference: of which table, and what it is."""

Sums = dict[str, int]
"""Sums of entries by account."""


def compare_invoices(tx: PlatformTx, add: Add) -> tuple[Sums, Sums]:
    """Compare issued documents with their periods, series, files and transactions. Returns what the entries come to by account, and what
    they should."""
    booked = {each.id: (each, entries) for each, entries in stored.iterate_transactions(tx)}
    replayed, owed = Sums(), Sums()
    for _, entries in booked.values():
        _add_up(replayed, entries)
    given = dict[tuple[str, str], int]()
    issued = dict[str, Document]()
    billed = Counter[str]()
    for found in stored.iterate_invoices(tx):
        if found.issue is None:
            continue
        place = (found.legal_entity_id, found.issue.series)
        if found.issue.number != given.get(place, 0) + 1:
            add("invoices", f"{found.id} has number {found.issue.number} in {found.issue.series}, {given.get(place, 0) + 1} is expected")
        given[place] = found.issue.number
        document = _read(found, add)
        if document is None:
            continue
        issued[found.id] = document
        _compare_document(tx, found, document, add)
        entries = entries_of(document)
        _add_up(owed, entries)
        transaction, posted = booked.pop(issue_id(found.id, found.issue.issued_at), (None, ()))
        if transaction is None:
            add("invoice_transactions", f"{found.id} is not booked")
        elif (transaction.invoice_id, transaction.organization_id, transaction.booked_at) != (
            found.id,
            found.organization_id,
            found.issue.issued_at,
        ):
            add("invoice_transactions", f"{transaction.id} does not follow from {found.id}")
        elif posted != entries:
            add("ledger_entries", f"{transaction.id} does not book what {found.id} says")
        if found.period_id is not None and found.corrects_id is None and found.kind is InvoiceKind.INVOICE:
            billed[found.period_id] += 1
    for document in issued.values():
        if document.cancels and document.corrects is not None:
            original = issued.get(document.corrects.id)
            if original is not None and original.period is not None and original.corrects is None:
                billed[original.period.id] -= 1
    for period_id, count in billed.items():
        if count > 1:
            add("invoices", f"{period_id} is billed by {count} invoices")
    _compare_corrections(issued, add)
    _compare_references(issued, add)
    for transaction_id in booked:
        add("invoice_transactions", f"{transaction_id} books no issued document")
    for place, last in stored.list_series(tx).items():
        if given.get(place, 0) != last:
            add("number_series", f"{place} has given {last} numbers, {given.get(place, 0)} documents have one")
    for place in given.keys() - stored.list_series(tx).keys():
        add("number_series", f"{place} is missing")
    _compare_files(tx, issued, add)
    return replayed, owed


def _add_up(sums: Sums, entries: Iterable[Entry]) -> None:
    for entry in entries:
        sums[entry.account.id] = sums.get(entry.account.id, 0) + entry.amount_pico


def _read(found: StoredInvoice, add: Add) -> Document | None:
    """Return the document of a row, of which its columns are a copy; None if it cannot be read."""
    assert found.issue is not None
    if digest_document(found.document.encode()) != found.issue.digest:
        add("invoices", f"{found.id}: its document is not the one that was issued")
    try:
        document = decode_document(found.document)
    except msgspec.DecodeError:
        add("invoices", f"{found.id}: its document cannot be read")
        return None
    if document.format != FORMAT:
        add("invoices", f"{found.id}: its format {document.format} is not known")
    if document.currency not in CURRENCIES:
        add("invoices", f"{found.id}: its currency {document.currency} is none")
        return None
    if encode_document(document) != found.document.encode():
        add("invoices", f"{found.id}: its document is not in the canonical form")
    stated = (document.id, document.organization_id, document.legal_entity_id, document.kind, document.cancels, document.due_on)
    if stated != (found.id, found.organization_id, found.legal_entity_id, found.kind, found.cancels, found.issue.due_on):
        add("invoices", f"{found.id}: its columns are not those of its document")
    if document.number != format_number(found.issue.series, found.issue.number):
        add("invoices", f"{found.id}: it is called {document.number}")
    if (document.corrects.id if document.corrects else None) != found.corrects_id:
        add("invoices", f"{found.id}: it does not correct {found.corrects_id}")
    if found.period_id != (None if document.period is None or document.cancels else document.period.id):
        add("invoices", f"{found.id}: it does not bill {found.period_id}")
    if found.state is not InvoiceState.ISSUED:
        add("invoices", f"{found.id}: it has a number and is {found.state}")
    return document


def _compare_document(tx: PlatformTx, found: StoredInvoice, document: Document, add: Add) -> None:
    """Compare a document with the rules, and with what its period comes to."""
    for violation in find_violations(document):
        add("invoices", f"{found.id}: {violation.rule}: {violation.text}")
    decision, seller, buyer = document.tax_decision, document.seller, document.buyer
    facts = decision.facts
    try:
        right = decide_tax(facts)
    except (TaxUndecided, ValueError):
        right = None
    if right != decision:
        add("invoices", f"{found.id}: its tax does not follow from its evidence")
    if document.corrects is None and (facts.seller_country, facts.buyer_country, facts.vat_id) != (
        seller.address.country,
        buyer.address.country,
        buyer.vat_id,
    ):
        add("invoices", f"{found.id}: its tax was decided by other parties")
    if found.period_id is None:
        return
    period = stored_periods.find_period(tx, found.period_id)
    if period is None or period.organization_id != found.organization_id:
        add("invoices", f"{found.id}: its period is not one of its organization")
    elif document.period != describe_period(period) or document.currency != period.currency:
        add("invoices", f"{found.id}: it does not say what its period came to")
    else:
        _compare_lines(tx, found, document, period, add)


def _compare_lines(tx: PlatformTx, found: StoredInvoice, document: Document, period: Period, add: Add) -> None:
    """Compare the lines and allowances of a document with what was booked in its period."""
    step, zone = find_step(document.currency), zone_of(period)
    service = days_of_service(period.start_at, period.end_at, zone)
    is_own = found.corrects_id is None and found.kind is InvoiceKind.INVOICE
    lines = negate_lines(document.lines) if document.kind is InvoiceKind.CREDIT_NOTE else list(document.lines)
    usage = [line for line in lines if line.kind in (LineKind.USAGE, LineKind.LATE_USAGE)]
    by_contract = [line for line in lines if line.kind is LineKind.CONTRACT]
    booked = stored_contracts.find_charge(tx, period.organization_id, period.start_at) if is_own else None
    parts = () if booked is None else booked.charge.parts
    if _unnumbered(by_contract) != make_contract_lines(parts, zone, step):
        add("invoices", f"{found.id}: its lines are not what contracts add to its period")
    if not is_own and usage:
        add("invoices", f"{found.id}: it bills usage, as the invoice of its period does")
    elif is_own and is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))):
        try:
            summed = sum_usage(tx, period)
            right = make_usage_lines(summed.sums, service, summed.late, step)
        except (ValueError, ZeroDivisionError):  # events that cannot be, which their own verification names
            right = []
        if _unnumbered(usage) != right:
            add("invoices", f"{found.id}: its lines are not the usage of its period")
    burned = Counter[AllowanceKind]()
    for category, pico in stored.list_burned(tx, period.organization_id, period.start_at) if is_own else ():
        burned[AllowanceKind(category)] += pico
    burned.update(sum_given_back(parts))
    if list(document.allowances) != make_allowances(burned, document.lines, step):
        add("invoices", f"{found.id}: its allowances are not the credit that its period burned and what contracts give back")
    if are_corrected_kept(tx, period):
        corrected = _list_corrected(tx, period, service, step)
        by_service: dict[ServiceDays, list[InvoiceLine]] = {}
        for line in _unnumbered(line for line in lines if line.kind is LineKind.CORRECTION):
            by_service.setdefault(line.service, []).append(line)
        for days, there in by_service.items():
            if there not in corrected.get(days, []):
                add("invoices", f"{found.id}: its corrections of {days.first} to {days.last} are not those of its period")


def _list_corrected(tx: PlatformTx, period: Period, service: ServiceDays, step: int) -> Mapping[ServiceDays, list[list[InvoiceLine]]]:
    """Return the lines of corrections that are booked in a period, by the days of the period of the requests that they are about."""
    sums: dict[int, dict[str, int]] = {}
    for each in stored.iterate_corrections(tx, period):
        by_model = sums.setdefault(period.start_at if each.target_at is None else each.target_at, {})
        by_model[each.model] = by_model.get(each.model, 0) + each.amount_pico
    corrected: dict[ServiceDays, list[list[InvoiceLine]]] = {}
    for target_at, by_model in sums.items():
        target = stored_periods.find_period_at(tx, period.organization_id, target_at) or period
        days = days_of_service(target.start_at, target.end_at, zone_of(target))
        corrected.setdefault(days, []).append(make_correction_lines(by_model, days, step))
    return corrected


def _unnumbered(lines: Iterable[InvoiceLine]) -> list[InvoiceLine]:
    return [msgspec.structs.replace(line, number=0) for line in lines]


def _compare_corrections(issued: Mapping[str, Document], add: Add) -> None:
    """Find corrections of a period that several documents bill which stand."""
    counted = Counter[tuple[str, CorrectionKey]]()
    for document in issued.values():
        if document.period is not None:
            counted.update({(document.period.id, key): -1 if document.cancels else 1 for key in list_correction_keys(document)})
    for (period_id, key), count in counted.items():
        if count > 1:
            add("invoices", f"{period_id}: its corrections of {key.model} of {key.service.first} to {key.service.last} stand {count} times")


def _compare_references(issued: Mapping[str, Document], add: Add) -> None:
    """Compare documents with those that they correct: number and tax, the whole of it where it cancels, and no more back than was
    billed."""
    credited = Counter[str]()
    for id, document in issued.items():
        reference = document.corrects
        if reference is None:
            continue
        original = issued.get(reference.id)
        if original is None or (original.number, original.issued_on) != (reference.number, reference.issued_on):
            add("invoices", f"{id}: it refers to {reference.number}, which was not issued so")
            continue
        if document.tax_decision != original.tax_decision:
            add("invoices", f"{id}: its tax is not that of {reference.number}")
        same = ("lines", "allowances", "totals", "tax", "period", "currency", "service", "seller", "buyer", "tax_decision")
        if document.cancels and any(getattr(document, name) != getattr(original, name) for name in same):
            add("invoices", f"{id}: it does not take back what {reference.number} says")
        if document.kind is InvoiceKind.CREDIT_NOTE and (document.cancels or document.period is None):
            credited[reference.id] += document.totals.net_minor
    for id, net_minor in credited.items():
        if net_minor > issued[id].totals.net_minor:
            add("invoices", f"{id}: more is credited than it came to")


def _compare_files(tx: PlatformTx, issued: Mapping[str, Document], add: Add) -> None:
    """Compare archived files with those that are made of the documents now: the same bytes."""
    seen = set[tuple[str, str]]()
    for file in stored.iterate_files(tx):
        seen.add((file.invoice_id, file.format))
        document = issued.get(file.invoice_id)
        if digest_document(file.content) != file.digest:
            add("invoice_files", f"{file.invoice_id}.{file.format} is not the file that was archived")
        elif document is None or _render(document).get(file.format) != file.content:
            add("invoice_files", f"{file.invoice_id}.{file.format} does not follow from its document")
    for id, document in issued.items():
        for format in _render(document):
            if (id, format) not in seen:
                add("invoice_files", f"{id}.{format} is missing")


def _render(document: Document) -> Mapping[str, bytes]:
    """Return the files of a document; none for one that nothing can be made of, because somebody has changed it."""
    try:
        return render_files(document)
    except (KeyError, ValueError):
        return {}
