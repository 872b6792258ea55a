"""Replay of an invoice from the export of its period: what `tollway invoices verify` compares on the reader's own machine.

Every record of the export is rated again by the published prices beside it; from the sums follow the lines of usage, and from the lines the
totals and the tax. `verifier/tollway_invoice_verifier.py` does the same, and more, without the code of this program.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from tollway.domain.billing_classes import BillingClass, with_default_prices
from tollway.domain.contracts import ContractPart
from tollway.domain.invoices import (
    CONTRACT_ALLOWANCES,
    Document,
    LineKind,
    ServiceDays,
    UsageKey,
    days_of_service,
    find_step,
    find_violations,
    make_contract_lines,
    make_usage_lines,
    sum_given_back,
)
from tollway.domain.periods import find_zone
from tollway.domain.prices import rate
from tollway.domain.tax import TaxUndecided, decide_tax
from tollway.domain.usage import billed, decode_final

PERIOD_FIELDS = ("id", "start_at", "end_at", "time_zone", "events", "merkle_root", "period_hash")


def find_differences(document: Document, lines: Iterable[bytes]) -> Iterator[str]:
    """Yield what a document does not share with the lines of the export of its period; nothing if everything agrees. Raises ValueError
    for lines that are no export."""
    yield from (f"{each.rule}: {each.text}" for each in find_violations(document))
    try:
        is_decided = decide_tax(document.tax_decision.facts) == document.tax_decision
    except (TaxUndecided, ValueError):
        is_decided = False
    if not is_decided:
        yield "the tax does not follow from its evidence"
    period = document.period
    if period is None:
        return
    prices: dict[str, Any] = {}
    parts: tuple[ContractPart, ...] = ()
    sums, late, ended = Counter[UsageKey](), [2**63, 0], False
    for row in map(msgspec.json.decode, lines):
        match row["type"]:
            case "period":
                stated = msgspec.to_builtins(period)
                yield from (f"its period has another {name}" for name in PERIOD_FIELDS if row[name] != stated[name])
                if row["organization_id"] != document.organization_id or row["currency"] != document.currency:
                    yield "its period is another organization's, or in another currency"
            case "price":
                units = {BillingClass(name): int(pico) for name, pico in row["unit_price_pico"].items()}
                prices[row["id"]] = with_default_prices(units)
            case "event":
                final = decode_final(row["payload"].encode())
                admit, is_late = final.admit, final.ended_at < period.start_at
                for line in rate(billed(final), prices[admit.price_version]):
                    if line.amount_pico:
                        key = UsageKey(is_late, admit.model, str(admit.service_tier), str(line.billing_class), line.unit_pico)
                        sums[key] += line.amount_pico
                        if is_late:
                            late = [min(late[0], final.ended_at), max(late[1], final.ended_at)]
            case "contract_charge":
                parts = msgspec.convert(row["parts"], tuple[ContractPart, ...], strict=False)
            case "end":
                ended = True
    if not ended:
        raise ValueError("the export is cut: it has no end")
    if document.corrects is None:
        zone = find_zone(period.time_zone)
        assert zone is not None, "a zone in which a period was cut is known"
        service = days_of_service(period.start_at, period.end_at, zone)
        late_days = days_of_service(late[0], late[1] + 1, zone) if late[1] else None
        yield from _compare_usage(document, sums, service, late_days)
        agreed = [msgspec.structs.replace(line, number=0) for line in document.lines if line.kind is LineKind.CONTRACT]
        if agreed != make_contract_lines(parts, zone, find_step(document.currency)):
            yield "its lines are not what contracts add to the period"
        given_back = {each.kind: each.amount_pico for each in document.allowances if each.kind in CONTRACT_ALLOWANCES}
        if given_back != sum_given_back(parts):
            yield "its allowances are not what contracts give back"


def _compare_usage(document: Document, sums: Counter[UsageKey], service: ServiceDays, late: ServiceDays | None) -> Iterator[str]:
    usage = [msgspec.structs.replace(line, number=0) for line in document.lines if line.kind in (LineKind.USAGE, LineKind.LATE_USAGE)]
    right = make_usage_lines(sums, service, late, find_step(document.currency))
    for line in usage:
        if line not in right:
            yield f"the line {line.description} at {line.unit_price_pico} does not follow from the records"
    for line in right:
        if line not in usage:
            yield f"the records come to a line {line.description} of {line.quantity}, which the document does not have"
