"""Contents of the documents of a billing period: its usage, corrections and burned credit, as lines.

A period has one invoice for its usage. Corrections that are booked in it stand on that invoice if they are about its own requests; those
about requests of an earlier period stand on a document of their own that names the invoice of that period, so that each line lies in the
period of its document and is taxed as it was at first. All of it is computed from what was booked, so it is the same whenever it is made;
where retention has removed some of it, nothing is made. What an issued document of the period bills already is left out.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import tzinfo
from typing import NamedTuple

import msgspec

from tollway.control.invoicing.texts import TEXTS
from tollway.control.money import contracts
from tollway.control.money.periods import NOT_KEPT, are_corrected_kept, is_kept
from tollway.domain.billing_classes import BillingClass
from tollway.domain.billing_parties import BillingAccount, Language, LegalEntity
from tollway.domain.contracts import ContractPart
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.invoices import (
    LINES_MAX,
    AllowanceKind,
    Content,
    Document,
    DocumentPeriod,
    InvoiceKind,
    InvoiceLine,
    LineKind,
    ServiceDays,
    UsageKey,
    days_of_service,
    decode_document,
    find_step,
    make_allowances,
    make_contract_lines,
    make_correction_lines,
    make_usage_lines,
    negate_lines,
    sum_given_back,
)
from tollway.domain.periods import Period, PeriodClosure, find_zone
from tollway.domain.tax import TaxDecision, TaxFacts, TaxUndecided, decide_tax
from tollway.storage import contracts as stored_contracts
from tollway.storage import invoices as stored
from tollway.storage import periods as stored_periods
from tollway.storage import prices as stored_prices
from tollway.storage.database import Transaction
from tollway.storage.invoices import EventSum


class UsageOfPeriod(NamedTuple):
    """Usage that is booked in a period, by line, and the days on which late usage was served; None if there is none."""

    sums: Mapping[UsageKey, int]
    late: ServiceDays | None


class CorrectionKey(NamedTuple):
    """Corrections of a period that are one line: of requests of one model that were served on these days."""

    model: str
    service: ServiceDays


class _SumKey(NamedTuple):
    """Usage that is one sum."""

    is_late: bool
    model: str
    service_tier: str
    price_version: str


class Billed(NamedTuple):
    """Charges that issued documents of a period bill already: its own invoice, None if there is none, and corrections."""

    own: Document | None = None
    corrections: Set[CorrectionKey] = frozenset()


NOTHING_BILLED = Billed()


class Part(NamedTuple):
    """A document of a period. `of_invoice_id`: the earlier invoice that it corrects; None for the invoice of the period itself, and for
    what corrects that."""

    content: Content
    of_invoice_id: str | None = None
    is_of_own_invoice: bool = False


def sum_usage(tx: Transaction, period: Period) -> UsageOfPeriod:
    """Return the usage that is booked in a period."""
    found = merge_sums(stored.iterate_event_sums(tx, period))
    prices = stored_prices.find_prices(tx, {each.price_version for each in found})
    units = {price_id: {str(each): price.unit_prices.get(each) for each in BillingClass} for price_id, price in prices.items()}
    return sum_events(found, units, zone_of(period))


def merge_sums(found: Iterable[EventSum]) -> list[EventSum]:
    """Return sums with one for each key, in the order in which keys came first: a statement sums a part of the events, so those of a large
    period have the same keys again and again."""
    merged: dict[_SumKey, EventSum] = {}
    for each in found:
        key = _SumKey(each.is_late, each.model, each.service_tier, each.price_version)
        before = merged.get(key)
        if before is None:
            merged[key] = each
            continue
        merged[key] = msgspec.structs.replace(
            each,
            amounts=dict(Counter(before.amounts) + Counter(each.amounts)),
            first_at=min((at for at in (before.first_at, each.first_at) if at is not None), default=None),
            last_at=max((at for at in (before.last_at, each.last_at) if at is not None), default=None),
        )
    return list(merged.values())


def sum_events(found: Sequence[EventSum], units: Mapping[str, Mapping[str, int]], zone: tzinfo) -> UsageOfPeriod:
    """Return usage by line. `units`: the unit prices by price and billing class. Raises ValueError for usage at a price that is not
    there."""
    sums = Counter[UsageKey]()
    for each in found:
        if each.price_version not in units:
            raise ValueError(f"the price {each.price_version} does not exist")
        for billing_class, pico in each.amounts.items():
            sums[UsageKey(each.is_late, each.model, each.service_tier, billing_class, units[each.price_version][billing_class])] += pico
    late = [(each.first_at, each.last_at) for each in found if each.is_late and each.first_at is not None and each.last_at is not None]
    days = days_of_service(min(first for first, _ in late), max(last for _, last in late) + 1, zone) if late else None
    return UsageOfPeriod(sums, days)


def zone_of(period: Period) -> tzinfo:
    """Return the time zone of a period, which was known when it was cut."""
    zone = find_zone(period.time_zone)
    assert zone is not None
    return zone


def list_correction_keys(document: Document) -> list[CorrectionKey]:
    """Return which corrections a document bills."""
    return [CorrectionKey(line.model, line.service) for line in document.lines if line.kind is LineKind.CORRECTION]


def list_parts(
    tx: Transaction,
    period: Period,
    entity: LegalEntity,
    account: BillingAccount,
    *,
    billed: Billed = NOTHING_BILLED,
) -> list[Part]:
    """Return the documents of a period: its invoice, if there is anything to bill, and those that correct others; without what is billed
    already. Raises STATE_CONFLICT where the tax cannot be decided, or where what was booked is not all there, or makes no invoice."""
    step, zone = find_step(period.currency), zone_of(period)
    service = days_of_service(period.start_at, period.end_at, zone)
    _check_kept(tx, period)
    try:
        usage = sum_usage(tx, period)
        lines = make_usage_lines(usage.sums, service, usage.late, step)
    except (ValueError, ZeroDivisionError) as error:
        raise Fault(STATE_CONFLICT, message=f"The period cannot be invoiced: {error}.") from error
    _check_sum(period, "usage", sum(usage.sums.values()), lambda closed: sum(closed.amounts.values()))
    burned = Counter[AllowanceKind]()
    for category, pico in stored.list_burned(tx, period.organization_id, period.start_at):
        burned[AllowanceKind(category)] += pico
    agreed = list_contract_parts(tx, period)
    lines += make_contract_lines(agreed, zone, step)
    burned.update(sum_given_back(agreed))
    own: list[InvoiceLine] = []
    parts: list[Part] = []
    for target_at, corrections in sorted(_sum_corrections(tx, period).items()):
        days = _find_days(tx, period, target_at)
        left = {model: pico for model, pico in corrections.items() if CorrectionKey(model, days) not in billed.corrections}
        corrected = make_correction_lines(left, days, step)
        target = None if target_at == period.start_at else _find_invoice_of(tx, period.organization_id, target_at)
        if target is None:
            own += corrected
        elif corrected:
            parts.append(Part(make_correction(corrected, target.service, target.tax_decision, period, account.language), target.id))
    decision = decide(entity, account, service.last) if billed.own is None else billed.own.tax_decision
    exact_pico = sum(line.amount_pico for line in (*lines, *own)) - sum(burned.values())
    is_folded = billed.own is None and exact_pico >= 0 and sum(line.net_minor for line in (*lines, *own)) >= 0
    if own and not is_folded:
        is_of_own_invoice = billed.own is not None or bool(lines)
        parts.insert(0, Part(make_correction(own, service, decision, period, account.language), is_of_own_invoice=is_of_own_invoice))
        own = []
    if billed.own is None and (lines or own):
        content = Content(
            kind=InvoiceKind.INVOICE,
            lines=[*lines, *own],
            allowances=make_allowances(burned, [*lines, *own], step),
            service=service,
            tax_decision=decision,
            period=describe_period(period),
        )
        parts.insert(0, Part(content))
    if any(len(part.content.lines) > LINES_MAX for part in parts):
        raise Fault(STATE_CONFLICT, message=f"The period cannot be invoiced: a document would have more than {LINES_MAX} lines.")
    return parts


def list_contract_parts(tx: Transaction, period: Period) -> Sequence[ContractPart]:
    """Return what contracts come to in a period: what a closed one was charged, and what an open one would be now."""
    if period.closed is None:
        return contracts.preview(tx, period, None).parts
    booked = stored_contracts.find_charge(tx, period.organization_id, period.start_at)
    parts = () if booked is None else booked.charge.parts
    _check_sum(period, "charge by contracts", sum(part.billed_pico for part in parts), lambda closed: closed.contracts_pico)
    return parts


def _check_kept(tx: Transaction, period: Period) -> None:
    """Raise STATE_CONFLICT where retention has removed events of the period, or events that its corrections are about."""
    if not is_kept(tx, list(stored_periods.iterate_blocks(tx, period.id))) or not are_corrected_kept(tx, period):
        raise Fault(STATE_CONFLICT, message=NOT_KEPT)


def _check_sum(period: Period, name: str, pico: int, right: Callable[[PeriodClosure], int]) -> None:
    """Raise STATE_CONFLICT where a sum is not what the period was closed with."""
    if period.closed is not None and pico != right(period.closed):
        message = f"The {name} of the period is not what it was closed with: `tollway verify` shows the difference."
        raise Fault(STATE_CONFLICT, message=message)


def make_correction(lines: list[InvoiceLine], service: ServiceDays, decision: TaxDecision, period: Period, language: Language) -> Content:
    """Return a document of corrections: a credit note if its rounded lines give back, otherwise an invoice."""
    gives_back = (sum(line.net_minor for line in lines), sum(line.amount_pico for line in lines)) <= (0, 0)
    return Content(
        kind=InvoiceKind.CREDIT_NOTE if gives_back else InvoiceKind.INVOICE,
        lines=negate_lines(lines) if gives_back else lines,
        allowances=(),
        service=service,
        tax_decision=decision,
        period=describe_period(period),
        reason=TEXTS[language]["corrections_of_usage"],
    )


def _sum_corrections(tx: Transaction, period: Period) -> dict[int, dict[str, int]]:
    """Return what the corrections that are booked in a period add, by the start of the period of their request and by model."""
    sums: dict[int, dict[str, int]] = {}
    for each in stored.iterate_corrections(tx, period):
        if each.target_at is None:
            raise Fault(STATE_CONFLICT, message=NOT_KEPT)
        by_model = sums.setdefault(each.target_at, {})
        by_model[each.model] = by_model.get(each.model, 0) + each.amount_pico
    total_pico = sum(pico for by_model in sums.values() for pico in by_model.values())
    _check_sum(period, "corrections", total_pico, lambda closed: closed.adjustments_pico)
    return sums


def _find_invoice_of(tx: Transaction, organization_id: str, period_at: int) -> Document | None:
    """Return the invoice for the usage of an earlier period that stands; None if there is none."""
    found = stored.find_standing(tx, organization_id, period_at)
    return None if found is None else decode_document(found.document)


def _find_days(tx: Transaction, period: Period, target_at: int) -> ServiceDays:
    """Return the days of the period of a corrected request."""
    target = period if target_at == period.start_at else stored_periods.find_period_at(tx, period.organization_id, target_at) or period
    return days_of_service(target.start_at, target.end_at, zone_of(target))


def decide(entity: LegalEntity, account: BillingAccount, supplied_on: str) -> TaxDecision:
    """Return the tax of what an organization is billed for a service that ended on a day. Raises STATE_CONFLICT where it cannot be
    decided."""
    facts = TaxFacts(
        seller_country=entity.address.country,
        buyer_country=account.address.country,
        is_business=account.is_business,
        vat_id=account.vat_id,
        check=account.vat_check,
        supplied_on=supplied_on,
    )
    try:
        return decide_tax(facts)
    except TaxUndecided as error:
        raise Fault(STATE_CONFLICT, message=f"The tax cannot be decided: {error}.") from error


def describe_period(period: Period) -> DocumentPeriod | None:
    """Return what a document says of its period; None for one that is not closed yet, of which there can only be a preview."""
    closed = period.closed
    if closed is None:
        return None
    return DocumentPeriod(
        id=period.id,
        start_at=period.start_at,
        end_at=period.end_at,
        time_zone=period.time_zone,
        events=closed.events,
        merkle_root=closed.merkle_root.hex(),
        period_hash="" if closed.period_hash is None else closed.period_hash.hex(),
    )
