"""FOCUS: the charges of an issued document as rows of the FinOps Open Cost and Usage Specification, for tools that compare costs of clouds.

Source: FOCUS 1.2, https://focus.finops.org/focus-specification/v1-2/, with the columns ServiceProviderName and HostProviderName of 1.3.

Usage is split by project and by UTC day of service. What a row costs is exact; the rounding of the document, its tax and the credit that
paid for usage are rows of their own, so the sum of BilledCost is what the document says is to be paid, to the last digit. Amounts are
decimal strings: nothing here is a float.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, Unit
from tollway.domain.contracts import WHOLE_BP
from tollway.domain.contracts import LineKind as ContractLineKind
from tollway.domain.csv_cells import escape_text
from tollway.domain.invoices import (
    CONTRACT_ALLOWANCES,
    MILLION,
    AllowanceKind,
    Document,
    InvoiceKind,
    InvoiceLine,
    LineKind,
    UsageKey,
    find_step,
)
from tollway.domain.money import PICO, format_amount, round_half_up

SERVICE_NAME: Final = "Model inference"


class ChargeCategory(StrEnum):
    """Kind of a charge."""

    USAGE = "Usage"
    PURCHASE = "Purchase"
    TAX = "Tax"
    CREDIT = "Credit"
    ADJUSTMENT = "Adjustment"


COLUMNS: Final = (
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_BillingClass",
    "x_CostCentre",
    "x_Model",
    "x_PurchaseOrder",
    "x_ServiceTier",
)
"""Columns in the order in which they are written. Those beginning with `x_` are our own, as the specification has it."""

_UNIT_NAMES: Final = {
    Unit.TOKEN: "Tokens",
    Unit.CHARACTER: "Characters",
    Unit.PIXEL: "Pixels",
    Unit.SECOND: "Seconds",
    Unit.IMAGE: "Images",
    Unit.REQUEST: "Requests",
}
_UNITS: Final = {str(row.billing_class): row.unit for row in BILLING_CLASSES}
_DAY_US: Final = 86_400_000_000
_USAGE: Final = frozenset({LineKind.USAGE, LineKind.LATE_USAGE})


class UsageShare(NamedTuple):
    """The part of a line that is of one project and one day. `day`: since 1970-01-01 in UTC; None: of the whole period.
    `list_unit_pico`: the published unit price, before the discount of the organization."""

    project_id: str
    day: int | None
    list_unit_pico: int


class Commitment(NamedTuple):
    """Amounts of a document by a contract with a prepaid commitment, in pico-currency: what was bought, and what usage drew on it."""

    contract_id: str
    name: str
    bought_pico: int
    drawn_pico: int


Shares = Mapping[UsageKey, Mapping[UsageShare, int]]
"""Shares of each line of usage, in pico-currency."""

Row = dict[str, str]


def find_missing_line(document: Document, shares: Shares) -> InvoiceLine | None:
    """Return a line of usage whose shares do not come to its amount: what it was made from is not all there any more. None if each does."""
    for line in document.lines:
        if line.kind in _USAGE and sum(shares.get(key_of(line), {}).values()) != abs(line.amount_pico):
            return line
    return None


def make_rows(
    document: Document, shares: Shares, project_names: Mapping[str, str], commitments: Sequence[Commitment] = ()
) -> Iterator[Row]:
    """Yield the rows of an issued document, whose shares are all there (`find_missing_line`). Those of a credit note are negative.
    `commitments`: of the contracts that its lines and allowances come from."""
    sign, step = -1 if document.kind is InvoiceKind.CREDIT_NOTE else 1, find_step(document.currency)
    rest_pico = sign * document.totals.gross_minor * step
    listed_pico = effective_pico = 0
    bought = iter([each for each in commitments if each.bought_pico])  # in the order of their lines
    for line in document.lines:
        billed_pico = sign * line.amount_pico
        rest_pico -= billed_pico
        if line.kind in _USAGE:
            of_line = shares.get(key_of(line), {})
            listed_pico += sign * sum(_list_share(share, pico, line.unit_price_pico) for share, pico in of_line.items())
            effective_pico += billed_pico
            yield from _make_usage_rows(document, line, of_line, project_names, sign)
            continue
        is_prepayment = line.kind is LineKind.CONTRACT and line.description == ContractLineKind.PREPAYMENT
        listed_pico += billed_pico
        effective_pico += 0 if is_prepayment else billed_pico  # what is paid ahead is effective when usage draws on it
        yield _make_line_row(document, line, sign, next(bought, None) if is_prepayment else None, is_prepaid=is_prepayment)
    for allowance in document.allowances:
        pico = -sign * allowance.amount_pico
        rest_pico -= pico
        listed_pico += pico
        # Paid credit and commitments were bought before: they settle the usage, whose cost stays effective. All else makes usage cheaper.
        is_bought = allowance.kind in (AllowanceKind.PAID, AllowanceKind.COMMITMENT)
        effective_pico += 0 if is_bought else pico
        text = allowance.kind.replace("_", " ").capitalize()
        text = text if allowance.kind in CONTRACT_ALLOWANCES else f"{text} credit"
        drawn = [each for each in commitments if each.drawn_pico] if allowance.kind is AllowanceKind.COMMITMENT else []
        if sum(each.drawn_pico for each in drawn) != allowance.amount_pico:
            yield _make_row(document, ChargeCategory.CREDIT, text, billed_pico=pico, effective_pico=0 if is_bought else pico)
            continue
        for each in drawn:
            row = _make_row(document, ChargeCategory.CREDIT, text, billed_pico=-sign * each.drawn_pico, effective_pico=0)
            yield row | _name_commitment(each)
    if document.totals.tax_minor:
        pico = sign * document.totals.tax_minor * step
        row = _make_row(
            document,
            ChargeCategory.TAX,
            f"VAT {document.tax.country}",
            billed_pico=pico,
            list_pico=_tax(listed_pico, document.tax.rate_bp),
            effective_pico=_tax(effective_pico, document.tax.rate_bp),
        )
        yield row
        rest_pico -= pico
    if rest_pico:
        yield _make_row(document, ChargeCategory.ADJUSTMENT, "Rounding", billed_pico=rest_pico, effective_pico=rest_pico)


def _tax(pico: int, rate_bp: int) -> int:
    """Return the tax on an amount, to the pico: FOCUS has each cost of a tax be that on the same cost of what is taxed."""
    return round_half_up(pico * rate_bp, WHOLE_BP)


def _list_share(share: UsageShare, pico: int, unit_pico: int) -> int:
    """Return what a share of a line costs at list prices."""
    return pico // unit_pico * share.list_unit_pico


def key_of(line: InvoiceLine) -> UsageKey:
    """Return which usage a line is about."""
    return UsageKey(line.kind is LineKind.LATE_USAGE, line.model, line.service_tier, line.billing_class, line.unit_price_pico)


def _make_usage_rows(
    document: Document, line: InvoiceLine, shares: Mapping[UsageShare, int], project_names: Mapping[str, str], sign: int
) -> Iterator[Row]:
    unit, unit_pico = _UNITS[line.billing_class], line.unit_price_pico
    base = MILLION if unit in PER_MILLION else 1
    sku = f"{line.model}/{line.billing_class}"
    for share in sorted(shares, key=lambda each: (each.project_id, each.day or 0, each.list_unit_pico)):
        amount_pico = shares[share]
        quantity = amount_pico // unit_pico
        row = _make_row(
            document,
            ChargeCategory.USAGE,
            line.description,
            billed_pico=sign * amount_pico,
            effective_pico=sign * amount_pico,
            list_pico=sign * _list_share(share, amount_pico, unit_pico),
        )
        start, end = _bounds_of_charge(document, line, share.day)
        yield row | {
            "ChargeClass": "Correction" if line.kind is LineKind.LATE_USAGE or document.cancels else "",
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodStart": start,
            "ChargePeriodEnd": end,
            "ConsumedQuantity": str(sign * quantity),
            "ConsumedUnit": _UNIT_NAMES[unit],
            "ContractedUnitPrice": format_amount(unit_pico * base),
            "ListUnitPrice": format_amount(share.list_unit_pico * base),
            "PricingCategory": "Standard",
            "PricingQuantity": format_amount(sign * quantity * (PICO // base)),
            "PricingUnit": f"{base} {_UNIT_NAMES[unit]}" if base > 1 else _UNIT_NAMES[unit],
            "SkuId": sku,
            "SkuMeter": f"{line.billing_class.replace('_', ' ').title()} {_UNIT_NAMES[unit]}",
            "SkuPriceId": f"{sku}/{line.service_tier}",
            "SubAccountId": share.project_id,
            "SubAccountName": escape_text(project_names.get(share.project_id, "")),
            "x_BillingClass": line.billing_class,
            "x_Model": line.model,
            "x_ServiceTier": line.service_tier,
        }


def _make_line_row(document: Document, line: InvoiceLine, sign: int, bought: Commitment | None, *, is_prepaid: bool) -> Row:
    """Return the row of a line that is not usage. `bought`: the commitment that it pays ahead."""
    pico = sign * line.amount_pico
    match line.kind:
        case LineKind.CORRECTION:
            category = ChargeCategory.ADJUSTMENT
        case LineKind.CREDIT:
            category = ChargeCategory.CREDIT
        case _ if line.amount_pico < 0 or line.description.startswith(ContractLineKind.TIERED_PRICE):
            category = ChargeCategory.ADJUSTMENT
        case _:
            category = ChargeCategory.PURCHASE
    is_correction = line.kind is LineKind.CORRECTION or document.corrects is not None
    row = _make_row(document, category, line.description, billed_pico=pico, effective_pico=0 if is_prepaid else pico)
    row |= {"ChargeClass": "Correction" if is_correction else "", "x_Model": line.model}
    if category is ChargeCategory.PURCHASE:
        row |= {
            "ContractedUnitPrice": format_amount(line.amount_pico),
            "ListUnitPrice": format_amount(line.amount_pico),
            "PricingCategory": "Standard",
            "PricingQuantity": str(sign),
            "PricingUnit": "Units",
            "SkuId": f"contract/{line.description.partition(':')[0]}",
            "SkuPriceId": escape_text(f"contract/{line.description}"),
        }
    if bought is not None:
        row |= _name_commitment(bought)
        row |= {"CommitmentDiscountQuantity": format_amount(pico), "CommitmentDiscountUnit": document.currency}
    return row


def _name_commitment(commitment: Commitment) -> Row:
    """Return the columns that say to which commitment a row belongs."""
    return {
        "CommitmentDiscountCategory": "Spend",
        "CommitmentDiscountId": commitment.contract_id,
        "CommitmentDiscountName": escape_text(commitment.name),
        "CommitmentDiscountType": "Prepaid commitment",
    }


def _make_row(
    document: Document, category: ChargeCategory, text: str, *, billed_pico: int, effective_pico: int, list_pico: int | None = None
) -> Row:
    """Return a row that is about the whole period of a document."""
    period = document.period
    start_at = _instant_of(document.service.first) if period is None else period.start_at
    end_at = _instant_of(document.service.last) + _DAY_US if period is None else period.end_at
    start, end = _format_instant(start_at), _format_instant(end_at)
    provider = escape_text(document.seller.name)
    row = dict.fromkeys(COLUMNS, "")
    return row | {
        "BilledCost": format_amount(billed_pico),
        "BillingAccountId": document.organization_id,
        "BillingAccountName": escape_text(document.buyer.name),
        "BillingCurrency": document.currency,
        "BillingPeriodStart": start,
        "BillingPeriodEnd": end,
        "ChargeCategory": category,
        "ChargeDescription": escape_text(text),
        "ChargeFrequency": "One-Time",
        "ChargePeriodStart": start,
        "ChargePeriodEnd": end,
        "ContractedCost": format_amount(billed_pico),
        "EffectiveCost": format_amount(effective_pico),
        "HostProviderName": provider,
        "InvoiceId": document.number,
        "InvoiceIssuerName": provider,
        "ListCost": format_amount(billed_pico if list_pico is None else list_pico),
        "ProviderName": provider,
        "PublisherName": provider,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": SERVICE_NAME,
        "ServiceProviderName": provider,
        "ServiceSubcategory": "Generative AI",
        "Tags": json.dumps({}),
        "x_CostCentre": escape_text(document.cost_centre),
        "x_PurchaseOrder": escape_text(document.purchase_order),
    }


def write_rows(rows: Iterable[Row]) -> Iterator[str]:
    """Yield rows as CSV (RFC 4180), the names of the columns first. A value that is null is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _bounds_of_charge(document: Document, line: InvoiceLine, day: int | None) -> tuple[str, str]:
    """Return the time of a charge: the part of a day that lies in the period of its document, the whole day of usage that was served before
    that, or, without a day, the days of service of its line."""
    if day is None:
        return _format_instant(_instant_of(line.service.first)), _format_instant(_instant_of(line.service.last) + _DAY_US)
    start_at, end_at = day * _DAY_US, (day + 1) * _DAY_US
    if document.period is not None and line.kind is not LineKind.LATE_USAGE:
        start_at, end_at = max(start_at, document.period.start_at), min(end_at, document.period.end_at)
    return _format_instant(start_at), _format_instant(end_at)


def _instant_of(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000


def _format_instant(at: int) -> str:
    """Return an instant as FOCUS writes it. Periods begin and end on whole seconds."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at // 1_000_000)).strftime("%Y-%m-%dT%H:%M:%SZ")
