"""The FOCUS rows of an issued document, from the events of its period."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tollway.control.invoicing.export_checks import read_issued
from tollway.domain import focus
from tollway.domain.billing_classes import BillingClass
from tollway.domain.contracts import LineKind as ContractLineKind
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.focus import Commitment, UsageShare
from tollway.domain.invoices import InvoiceState, LineKind, UsageKey
from tollway.domain.money import format_amount
from tollway.domain.periods import Bounds, Period
from tollway.storage import contracts as stored_contracts
from tollway.storage import invoices as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage import tenants as stored_tenants
from tollway.storage.database import Transaction
from tollway.storage.invoices import StoredInvoice

SHARES_MAX: Final = 100_000
"""Rows of usage of one document: they are held in memory while they are summed."""


def write(tx: Transaction, invoice: StoredInvoice, *, is_daily: bool) -> Iterator[str]:
    """Return the FOCUS rows of an issued document as CSV, from a transaction that may end before they are read.

    Raises STATE_CONFLICT where the document is not issued, or not as it was issued and booked, has more than SHARES_MAX rows of usage, or
    where events that it bills are not kept any more or come to another amount.
    """
    if invoice.state is not InvoiceState.ISSUED:
        raise Fault(STATE_CONFLICT, message="The document is not issued: only what is issued has charges.")
    document = read_issued(tx, invoice)
    has_usage = any(line.kind in (LineKind.USAGE, LineKind.LATE_USAGE) for line in document.lines)
    found = None if document.period is None else stored_periods.find_period_at(tx, document.organization_id, document.period.start_at)
    shares = {} if found is None or not has_usage else _sum_shares(tx, found, is_daily)
    missing = focus.find_missing_line(document, shares)
    if missing is not None:
        kept_pico = sum(shares.get(focus.key_of(missing), {}).values())
        said = f"line {missing.number} bills {format_amount(abs(missing.amount_pico))} {document.currency}, its events come to"
        hint = "Not all of them are kept any more (FOCUS rows need `retention_months`), or `tollway verify` shows the difference."
        raise Fault(STATE_CONFLICT, message=f"{document.number} is not exported: {said} {format_amount(kept_pico)}. {hint}")
    projects = {share.project_id for each in shares.values() for share in each}
    names = stored_tenants.find_project_names(tx, sorted(projects))
    commitments = [] if found is None else _list_commitments(tx, found)
    return focus.write_rows(focus.make_rows(document, shares, names, commitments))


def _list_commitments(tx: Transaction, period: Period) -> list[Commitment]:
    """Return what a period was charged and given back by contracts with a prepaid commitment, in order of time."""
    booked = stored_contracts.find_charge(tx, period.organization_id, period.start_at)
    if booked is None:
        return []
    valid = stored_contracts.list_valid(tx, period.organization_id, Bounds(period.start_at, period.end_at))
    names = {contract.id: contract.terms.name for contract in valid}
    found = []
    for part in booked.charge.parts:
        bought_pico = sum(line.amount_pico for line in part.lines if line.kind is ContractLineKind.PREPAYMENT)
        drawn_pico = -sum(line.amount_pico for line in part.lines if line.kind is ContractLineKind.DRAWDOWN)
        if bought_pico or drawn_pico:
            found.append(Commitment(part.contract_id, names.get(part.contract_id, ""), bought_pico, drawn_pico))
    return found


def _sum_shares(tx: Transaction, period: Period, is_daily: bool) -> dict[UsageKey, Counter[UsageShare]]:
    """Return what each line of usage of a period consists of."""
    shares: dict[UsageKey, Counter[UsageShare]] = {}
    prices: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
    count = 0
    for each in stored.iterate_project_sums(tx, period):
        events = each.events
        if events.price_version not in prices:
            prices[events.price_version] = _read_units(tx, events.price_version)
        charged, listed = prices[events.price_version]
        for billing_class, pico in events.amounts.items():
            key = UsageKey(events.is_late, events.model, events.service_tier, billing_class, charged[billing_class])
            of_line = shares.setdefault(key, Counter())
            before = len(of_line)
            of_line[UsageShare(each.project_id, each.day if is_daily else None, listed[billing_class])] += pico
            count += len(of_line) - before
        if count > SHARES_MAX:
            remedy = "ask for monthly rows" if is_daily else "take the export of its period"
            raise Fault(STATE_CONFLICT, message=f"The document has more than {SHARES_MAX} rows of usage: {remedy}.")
    return shares


def _read_units(tx: Transaction, price_id: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the unit prices of a price as they are charged, and as they are published."""
    price = stored_prices.find_prices(tx, [price_id])[price_id]
    published = stored_prices.find_published_units(tx, [price_id]).get(price_id, price.unit_prices)
    return ({str(each): price.unit_prices.get(each) for each in BillingClass}, {str(each): published.get(each) for each in BillingClass})
