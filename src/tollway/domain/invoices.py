"""Invoices: the documents that are made of a closed billing period, and every rule by which their amounts follow from what was booked.

Theory of operation. A document is one immutable value. Its canonical encoding (`encode_document`) is what is archived, and its SHA-256 is
its digest; XML and PDF are made of it and of nothing else. Each line is quantity x unit price, exact in pico-currency, and is rounded
once, half up, to the smallest unit of the currency; what rounding added or took away is the line's residual, which is booked. Tax is
computed on the sum of the rounded lines and rounded half up once per rate (BR-CO-17). So every amount follows from the lines, and the lines
from the events and corrections of the period: `tollway verify` and the stand-alone verifier compute both again.

Amounts of a credit note are above zero and mean what is given back; its postings have the opposite sign. docs/invoices.md explains the
whole."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from tollway.domain.billing_classes import BILLING_CLASSES, PER_MILLION, BillingClass
from tollway.domain.billing_parties import Address, BankAccount, BillingAccount, Contact, ElectronicAddress, Language, LegalEntity
from tollway.domain.contracts import ContractPart, describe
from tollway.domain.contracts import LineKind as ContractLineKind
from tollway.domain.currencies import get_currency
from tollway.domain.direct_debits import DirectDebit
from tollway.domain.money import round_half_up
from tollway.domain.sepa import CURRENCY
from tollway.domain.tax import TaxCategory, TaxDecision

FORMAT: Final = "tollway-invoice-1"

LINES_MAX: Final = 5_000
"""Lines of a document. A line is a model, tier, class and unit price, so only a catalog of hundreds of models comes near it."""

MILLION: Final = 1_000_000

UNBILLED: Final = "unbilled"
"""Account of the organization that lines of usage are booked against: used and not yet on an invoice."""

REVENUE_DEDUCTIONS: Final = "revenue_deductions"
"""Account of the platform that credit notes are booked against which no correction of usage caused."""


class InvoiceKind(StrEnum):
    """Kind of a document, with its code (UNTDID 1001): 380 and 381."""

    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"


class InvoiceState(StrEnum):
    """State of a document. Issued and void are final."""

    DRAFT = "draft"
    ISSUED = "issued"
    VOID = "void"


class LineKind(StrEnum):
    """Subject of a line."""

    USAGE = "usage"
    LATE_USAGE = "late_usage"  # served before the period, and known only after the period of its service was closed
    CORRECTION = "correction"  # corrections of requests of one model
    CONTRACT = "contract"  # what a contract adds: a fee, a minimum, a commitment, the higher price of a tier
    CREDIT = "credit"  # of a credit note: given back without a correction of usage


class AllowanceKind(StrEnum):
    """Credit that usage burned, by its category, and what contracts give back."""

    PAID = "paid"
    PROMOTIONAL = "promotional"
    GOODWILL = "goodwill"
    DISCOUNT = "discount"  # tiers, free units and discounts
    SERVICE_CREDIT = "service_credit"
    COMMITMENT = "commitment"  # usage that was prepaid


class UsageKey(NamedTuple):
    """Usage that is one line: of one model, service tier and class at one unit price. `is_late`: it was served before the period."""

    is_late: bool
    model: str
    service_tier: str
    billing_class: str
    unit_price_pico: int


class ServiceDays(msgspec.Struct, frozen=True, order=True):
    """First and last day of a service (YYYY-MM-DD), both included."""

    first: str
    last: str


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line. `unit_price_pico`: of one `unit`; invoices show it for `price_base` of them. `amount_pico` is quantity x unit price,
    `net_minor` that amount rounded half up to the smallest unit of the currency, and `residual_pico` what is left: amount - net."""

    number: int
    kind: LineKind
    description: str
    model: str
    service_tier: str
    billing_class: str
    quantity: int
    unit: str
    price_base: int
    unit_price_pico: int
    amount_pico: int
    net_minor: int
    residual_pico: int
    service: ServiceDays
    account: str


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """Credit that the usage of the invoice burned, or what a contract gives back: it reduces what is taxed. Rounded as a line is."""

    kind: AllowanceKind
    amount_pico: int
    net_minor: int
    residual_pico: int


class TaxLine(msgspec.Struct, frozen=True, kw_only=True):
    """The tax of a document, whose lines all have one category and rate."""

    category: str
    rate_bp: int
    country: str
    reason_code: str
    taxable_minor: int
    tax_minor: int


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of a document in the smallest unit of its currency: BT-106, BT-107, BT-109, BT-110 and BT-112 of EN 16931."""

    lines_minor: int
    allowances_minor: int
    net_minor: int
    tax_minor: int
    gross_minor: int


class DocumentParty(msgspec.Struct, frozen=True, kw_only=True):
    """A party as a document names it."""

    name: str
    address: Address
    vat_id: str
    tax_number: str
    registration: str
    contact: Contact
    electronic_address: ElectronicAddress


class DocumentPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """The closed billing period of a document, with what proves it. Instants in UTC microseconds; digests in hexadecimal."""

    id: str
    start_at: int
    end_at: int
    time_zone: str
    events: int
    merkle_root: str
    period_hash: str


class DocumentReference(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier document that this one corrects (BG-3)."""

    id: str
    number: str
    issued_on: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice or a credit note. `number`, `issued_on` and `due_on` are empty in a draft. `cancels`: it takes the whole of the document
    back that it refers to. `direct_debit`: None where the buyer pays itself."""

    format: str
    id: str
    kind: InvoiceKind
    number: str
    issued_on: str
    due_on: str
    currency: str
    language: Language
    organization_id: str
    legal_entity_id: str
    seller: DocumentParty
    buyer: DocumentParty
    bank_account: BankAccount
    payment_days: int
    buyer_reference: str
    purchase_order: str
    cost_centre: str
    period: DocumentPeriod | None
    service: ServiceDays
    corrects: DocumentReference | None
    cancels: bool
    reason: str
    lines: tuple[InvoiceLine, ...]
    allowances: tuple[Allowance, ...]
    tax: TaxLine
    tax_decision: TaxDecision
    totals: Totals
    direct_debit: DirectDebit | None = None

    @property
    def owes_nothing(self) -> bool:
        """Return whether its total is zero: nothing is to be paid or refunded, and it says so in place of terms of payment."""
        return not self.totals.gross_minor

    @property
    def is_to_be_paid(self) -> bool:
        """Return whether the buyer has to pay it, so that it has a day on which it is due."""
        return self.kind is InvoiceKind.INVOICE and not self.owes_nothing


# ---- Lines --------------------------------------------------------------------------------------------------------------

_UNITS = {str(row.billing_class): row.unit for row in BILLING_CLASSES}
_CLASS_ORDER = {str(billing_class): at for at, billing_class in enumerate(BillingClass)}


def find_step(currency: str) -> int:
    """Return the smallest amount of a currency that can be paid, in pico-currency."""
    return int(10 ** (12 - get_currency(currency).minor_units))


def days_of_service(start_at: int, end_at: int, zone: tzinfo) -> ServiceDays:
    """Return the days of a service from an instant (inclusive) to another (exclusive), as they are called in a time zone."""
    return ServiceDays(day_of(start_at, zone), day_of(max(end_at - 1, start_at), zone))


def day_of(at: int, zone: tzinfo) -> str:
    """Return the day of an instant (UTC microseconds) in a time zone, as YYYY-MM-DD."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)).astimezone(zone).date().isoformat()


def make_usage_lines(usage: Mapping[UsageKey, int], service: ServiceDays, late: ServiceDays | None, step: int) -> list[InvoiceLine]:
    """Return the lines of usage, by model, tier, class and unit price, late usage last. `usage`: what each comes to in pico-currency, all
    above zero; its quantity follows, because an amount is quantity x unit price. `late`: the days on which late usage was served."""
    lines = []
    for key in sorted(usage, key=lambda each: (each.is_late, each.model, each.service_tier, _CLASS_ORDER[each.billing_class], each[4])):
        quantity, rest = divmod(usage[key], key.unit_price_pico)
        if rest:
            raise ValueError(f"{key} comes to {usage[key]}, which is no multiple of its unit price")
        unit = _UNITS[key.billing_class]
        assert not key.is_late or late is not None, "late usage has days of service"
        lines.append(
            _make_line(
                kind=LineKind.LATE_USAGE if key.is_late else LineKind.USAGE,
                description=f"{key.model}, {key.billing_class}",
                model=key.model,
                service_tier=key.service_tier,
                billing_class=key.billing_class,
                quantity=quantity,
                unit=str(unit),
                price_base=MILLION if unit in PER_MILLION else 1,
                unit_price_pico=key.unit_price_pico,
                service=late if key.is_late and late is not None else service,
                account=UNBILLED,
                step=step,
            )
        )
    return lines


def make_correction_lines(corrections: Mapping[str, int], service: ServiceDays, step: int) -> list[InvoiceLine]:
    """Return a line for each model whose requests were corrected. `corrections`: what these add to the cost, in pico-currency."""
    return [
        _make_line(
            kind=LineKind.CORRECTION,
            description=f"{model}, corrections",
            model=model,
            quantity=-1 if corrections[model] < 0 else 1,
            unit="",
            price_base=1,
            unit_price_pico=abs(corrections[model]),
            service=service,
            account=UNBILLED,
            step=step,
        )
        for model in sorted(corrections)
        if corrections[model]
    ]


CONTRACT_ALLOWANCES: Final = (AllowanceKind.DISCOUNT, AllowanceKind.SERVICE_CREDIT, AllowanceKind.COMMITMENT)
"""Allowances for what contracts give back."""

_GIVEN_BACK = {ContractLineKind.SERVICE_CREDIT: AllowanceKind.SERVICE_CREDIT, ContractLineKind.DRAWDOWN: AllowanceKind.COMMITMENT}


def make_contract_lines(parts: Iterable[ContractPart], zone: tzinfo, step: int) -> list[InvoiceLine]:
    """Return a line for each amount that contracts add to a period. Its description is the kind, and the name or the model and class."""
    return [
        _make_line(
            kind=LineKind.CONTRACT,
            description=": ".join(filter(None, (str(line.kind), line.name or ", ".join(filter(None, (line.model, line.billing_class)))))),
            model=line.model,
            service_tier=line.service_tier,
            billing_class=line.billing_class,
            quantity=1,
            unit="",
            price_base=1,
            unit_price_pico=line.amount_pico,
            service=days_of_service(part.start_at, part.end_at, zone),
            account=UNBILLED,
            step=step,
        )
        for part in parts
        for line in part.lines
        if line.kind is not ContractLineKind.LAPSE and line.amount_pico > 0
    ]


def sum_given_back(parts: Iterable[ContractPart]) -> dict[AllowanceKind, int]:
    """Return what contracts give back of the usage of a period, as allowances, in pico-currency above zero."""
    sums: dict[AllowanceKind, int] = {}
    for line in (line for part in parts for line in part.lines if line.amount_pico < 0):
        kind = _GIVEN_BACK.get(line.kind, AllowanceKind.DISCOUNT)
        sums[kind] = sums.get(kind, 0) - line.amount_pico
    return sums


def make_credit_line(description: str, amount_pico: int, service: ServiceDays, step: int) -> InvoiceLine:
    """Return the line of a credit note that gives an amount back, above zero."""
    return _make_line(
        kind=LineKind.CREDIT,
        description=description,
        quantity=1,
        unit="",
        price_base=1,
        unit_price_pico=amount_pico,
        service=service,
        account=REVENUE_DEDUCTIONS,
        step=step,
    )


def negate_lines(lines: Iterable[InvoiceLine]) -> list[InvoiceLine]:
    """Return lines with the opposite sign: what was a line of corrections that give back is one of a credit note."""
    return [
        msgspec.structs.replace(
            line,
            quantity=-line.quantity,
            amount_pico=-line.amount_pico,
            net_minor=-line.net_minor,
            residual_pico=-line.residual_pico,
        )
        for line in lines
    ]


def _make_line(
    *,
    kind: LineKind,
    description: str,
    quantity: int,
    unit: str,
    price_base: int,
    unit_price_pico: int,
    service: ServiceDays,
    account: str,
    step: int,
    model: str = "",
    service_tier: str = "",
    billing_class: str = "",
) -> InvoiceLine:
    amount_pico = quantity * unit_price_pico
    net_minor = round_half_up(amount_pico, step)
    return InvoiceLine(
        number=0,
        kind=kind,
        description=description,
        model=model,
        service_tier=service_tier,
        billing_class=billing_class,
        quantity=quantity,
        unit=unit,
        price_base=price_base,
        unit_price_pico=unit_price_pico,
        amount_pico=amount_pico,
        net_minor=net_minor,
        residual_pico=amount_pico - net_minor * step,
        service=service,
        account=account,
    )


def make_allowances(burned: Mapping[AllowanceKind, int], lines: Sequence[InvoiceLine], step: int) -> list[Allowance]:
    """Return the allowances for credit that was burned and for what contracts give back, in pico-currency. Each is rounded as a line is;
    together they are at most what the rounded lines come to, and exactly that where they cover all of them: nothing is left to pay then."""
    left_pico = sum(line.amount_pico for line in lines)
    left_minor = max(sum(line.net_minor for line in lines), 0)
    allowances = []
    for kind in AllowanceKind:
        pico = burned.get(kind, 0)
        if pico:
            left_pico -= pico
            net_minor = left_minor if left_pico == 0 else min(round_half_up(pico, step), left_minor)
            left_minor -= net_minor
            allowances.append(Allowance(kind=kind, amount_pico=pico, net_minor=net_minor, residual_pico=pico - net_minor * step))
    return allowances


def sum_totals(lines: Iterable[InvoiceLine], allowances: Iterable[Allowance], rate_bp: int) -> Totals:
    """Return the sums of a document. Tax: the net sum x the rate, rounded half up to the smallest unit (BR-CO-17)."""
    lines_minor = sum(line.net_minor for line in lines)
    allowances_minor = sum(each.net_minor for each in allowances)
    net_minor = lines_minor - allowances_minor
    tax_minor = round_half_up(net_minor * rate_bp, 10_000)
    return Totals(
        lines_minor=lines_minor,
        allowances_minor=allowances_minor,
        net_minor=net_minor,
        tax_minor=tax_minor,
        gross_minor=net_minor + tax_minor,
    )


# ---- Documents ----------------------------------------------------------------------------------------------------------


def _make_seller(entity: LegalEntity) -> DocumentParty:
    """Return a legal entity as its documents name it."""
    return DocumentParty(
        name=entity.name,
        address=entity.address,
        vat_id=entity.vat_id,
        tax_number=entity.tax_number,
        registration=entity.registration,
        contact=entity.contact,
        electronic_address=entity.electronic_address,
    )


def _make_buyer(account: BillingAccount) -> DocumentParty:
    """Return the owner of a billing account as documents name it."""
    return DocumentParty(
        name=account.name,
        address=account.address,
        vat_id=account.vat_id,
        tax_number="",
        registration="",
        contact=account.contact,
        electronic_address=account.electronic_address,
    )


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a draft, beside its parties."""

    kind: InvoiceKind
    lines: Sequence[InvoiceLine]
    allowances: Sequence[Allowance]
    service: ServiceDays
    tax_decision: TaxDecision
    period: DocumentPeriod | None = None
    corrects: DocumentReference | None = None
    cancels: bool = False
    reason: str = ""


def make_draft(id: str, content: Content, entity: LegalEntity, account: BillingAccount, currency: str) -> Document:
    """Return the draft of a document. Its period of service is widened to that of its lines, which must lie inside (R110, R111). Raises
    ValueError for too many lines, or for none."""
    if not 0 < len(content.lines) <= LINES_MAX:
        raise ValueError(f"a document has from 1 to {LINES_MAX} lines, not {len(content.lines)}")
    lines = tuple(msgspec.structs.replace(line, number=number) for number, line in enumerate(content.lines, 1))
    decision = content.tax_decision
    totals = sum_totals(lines, content.allowances, decision.rate_bp)
    return Document(
        format=FORMAT,
        id=id,
        kind=content.kind,
        number="",
        issued_on="",
        due_on="",
        currency=currency,
        language=account.language,
        organization_id=account.organization_id,
        legal_entity_id=entity.id,
        seller=_make_seller(entity),
        buyer=_make_buyer(account),
        bank_account=entity.bank_account,
        payment_days=account.payment_days,
        buyer_reference=account.buyer_reference or account.organization_id,
        purchase_order=account.purchase_order,
        cost_centre=account.cost_centre,
        period=content.period,
        service=ServiceDays(
            min(content.service.first, *(line.service.first for line in lines)),
            max(content.service.last, *(line.service.last for line in lines)),
        ),
        corrects=content.corrects,
        cancels=content.cancels,
        reason=content.reason,
        lines=lines,
        allowances=tuple(content.allowances),
        tax=TaxLine(
            category=str(decision.category),
            rate_bp=decision.rate_bp,
            country=decision.country,
            reason_code=decision.reason_code,
            taxable_minor=totals.net_minor,
            tax_minor=totals.tax_minor,
        ),
        tax_decision=decision,
        totals=totals,
        direct_debit=_find_direct_debit(content.kind, entity, account, currency) if totals.gross_minor else None,
    )


def _find_direct_debit(kind: InvoiceKind, entity: LegalEntity, account: BillingAccount, currency: str) -> DirectDebit | None:
    """Return how an invoice is collected: by the mandate that its buyer gave this seller, if that is in force."""
    mandate = account.mandate
    if mandate is None or mandate.revoked_on or not entity.creditor_id or account.legal_entity_id != entity.id:
        return None
    if kind is not InvoiceKind.INVOICE or currency != CURRENCY:
        return None
    return DirectDebit(mandate_reference=mandate.reference, creditor_id=entity.creditor_id, iban=mandate.iban)


def issue_document(draft: Document, number: str, issued_on: str) -> Document:
    """Return a draft as it is issued on a day (YYYY-MM-DD), with its number and the day on which it is due."""
    due_on = datetime.fromisoformat(issued_on).date() + timedelta(days=draft.payment_days)
    return msgspec.structs.replace(draft, number=number, issued_on=issued_on, due_on=due_on.isoformat())


def format_number(series: str, number: int) -> str:
    """Return the number of a document as it is printed: that of its series, with at least six digits."""
    return f"{series}-{number:06d}"


def encode_document(document: Document) -> bytes:
    """Return the canonical encoding: JSON with names in order, without spaces, all text ASCII.

    Amounts in pico-currency and quantities are text, because they exceed the integers that every reader of JSON takes for what they are. A
    document that is not collected by direct debit has no such field, as those from before there was one.
    """
    fields = dict(describe(document))
    if document.direct_debit is None:
        del fields["direct_debit"]
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def decode_document(encoded: bytes | str) -> Document:
    """Return the document of an encoding. Raises ValueError (msgspec.DecodeError) for what is none."""
    return msgspec.json.decode(encoded, type=Document, strict=False)


def digest_document(encoded: bytes) -> str:
    """Return the digest of a document, by its canonical encoding: SHA-256 in hexadecimal."""
    return hashlib.sha256(encoded).hexdigest()


# ---- Postings -----------------------------------------------------------------------------------------------------------


class Movement(NamedTuple):
    """Amount that a document books on one account: `is_own` of the organization, otherwise of the platform. Debits are above zero."""

    is_own: bool
    account: str
    amount_pico: int


RECEIVABLE: Final = "receivable"
ROUNDING: Final = "rounding"
VAT_PAYABLE: Final = "vat_payable"


def list_movements(document: Document) -> list[Movement]:
    """Return what the issue of a document books: the receivable against what the lines are booked against, less allowances, the tax, and
    what rounding added. They sum to zero. Accounts that nothing is booked on are left out."""
    step, sign = find_step(document.currency), -1 if document.kind is InvoiceKind.CREDIT_NOTE else 1
    against: dict[str, int] = {}
    for line in document.lines:
        against[line.account] = against.get(line.account, 0) + line.amount_pico
    # Credit and contracts have taken their part of what was unbilled when the period was closed.
    against[UNBILLED] = against.get(UNBILLED, 0) - sum(each.amount_pico for each in document.allowances)
    exact_pico = sum(against.values())
    movements = [
        Movement(True, RECEIVABLE, document.totals.gross_minor * step),
        *(Movement(account == UNBILLED, account, -pico) for account, pico in sorted(against.items())),
        Movement(False, f"{VAT_PAYABLE}:{document.tax.country}", -document.totals.tax_minor * step),
        Movement(False, ROUNDING, exact_pico - document.totals.net_minor * step),
    ]
    return [each._replace(amount_pico=sign * each.amount_pico) for each in movements if each.amount_pico]


# ---- Rules --------------------------------------------------------------------------------------------------------------


class Violation(NamedTuple):
    """A rule that a document breaks, by its official id (EN 16931, Peppol BIS, XRechnung), and how."""

    rule: str
    text: str


def find_violations(document: Document) -> list[Violation]:
    """Return the rules that a document breaks; nothing if it is sound. An issued document breaks none."""
    found, totals, step = list[Violation](), document.totals, find_step(document.currency)
    for line in document.lines:
        where = f"line {line.number}"
        if line.amount_pico != line.quantity * line.unit_price_pico or line.net_minor != round_half_up(line.amount_pico, step):
            found.append(Violation("R120", f"{where}: the net amount is not quantity x price"))
        if line.residual_pico != line.amount_pico - line.net_minor * step:
            found.append(Violation("R120", f"{where}: the residual is not what rounding left"))
        if line.unit_price_pico < 0:
            found.append(Violation("BR-27", f"{where}: the price is below zero"))
        if line.service.first < document.service.first:
            found.append(Violation("R110", f"{where}: its period begins before that of the document"))
        if line.service.last > document.service.last:
            found.append(Violation("R111", f"{where}: its period ends after that of the document"))
        if line.service.first > line.service.last:
            found.append(Violation("BR-30", f"{where}: its period ends before it begins"))
        if not line.description:
            found.append(Violation("BR-25", f"{where}: it has no description"))
    for allowance in document.allowances:
        if allowance.residual_pico != allowance.amount_pico - allowance.net_minor * step or allowance.net_minor < 0:
            found.append(Violation("BR-31", f"the allowance {allowance.kind} is not its amount, rounded"))
    if totals != sum_totals(document.lines, document.allowances, document.tax.rate_bp):
        found.append(Violation("BR-CO-15", "the totals do not follow from lines, allowances and tax"))
    if (document.tax.taxable_minor, document.tax.tax_minor) != (totals.net_minor, totals.tax_minor):
        found.append(Violation("BR-CO-14", "the tax is not that of the totals"))
    decision = document.tax_decision
    stated = (document.tax.category, document.tax.rate_bp, document.tax.country, document.tax.reason_code)
    if stated != (str(decision.category), decision.rate_bp, decision.country, decision.reason_code):
        found.append(Violation("BR-CO-17", "the tax is not what was decided"))
    if not document.lines:
        found.append(Violation("BR-16", "it has no line"))
    if not document.buyer_reference and not document.purchase_order:
        found.append(Violation("R003", "it names neither a buyer reference nor a purchase order"))
    for rule, party in (("R020", document.seller), ("R010", document.buyer)):
        if not party.electronic_address.address:
            found.append(Violation(rule, f"{party.name} has no electronic address"))
    if document.tax.category == TaxCategory.OUTSIDE and not document.seller.registration:
        found.append(Violation("BR-CO-26", "where no tax is due, the seller is named by a legal registration, which is missing"))
    if document.tax.category == TaxCategory.OUTSIDE and not document.seller.tax_number:
        found.append(Violation("BR-O-02", "where no tax is due, no VAT id is named: the seller's tax number is missing"))
    if document.tax.category == TaxCategory.REVERSE_CHARGE and not document.seller.vat_id:
        found.append(Violation("BR-AE-02", "reverse charge names the VAT ids of both parties: the seller's is missing"))
    if totals.gross_minor < 0:
        found.append(Violation("BR-CO-16", "what is to be paid is below zero: it must be a credit note"))
    if document.direct_debit is not None and not document.direct_debit.mandate_reference:
        found.append(Violation("R061", "what is collected by direct debit names the mandate"))
    if document.cancels and document.corrects is None:
        found.append(Violation("BR-55", "what takes a document back names it"))
    return found
