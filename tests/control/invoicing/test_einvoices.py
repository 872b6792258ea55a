"""Electronic invoices against the official rules: EN 16931 for UBL and CII by their XSLT, XRechnung by a second implementation."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from threading import BoundedSemaphore
from typing import NamedTuple

import einvoice
import facturx
import msgspec
import pytest
from lxml import etree
from saxonche import PySaxonProcessor

from tests.control.invoicing.parties import BUYER, DEBTOR, FRENCH_BUYER, MANDATE, SELLER
from tollway.control.invoicing import cii, pdf, ubl
from tollway.control.invoicing.texts import describe_terms
from tollway.control.invoicing.xml_elements import FACTUR_X
from tollway.domain.billing_parties import Address, BillingAccount
from tollway.domain.contracts import ContractLine, ContractPart
from tollway.domain.contracts import LineKind as ContractLineKind
from tollway.domain.faults import RENDERING_BUSY, STATE_CONFLICT, Fault
from tollway.domain.invoices import (
    AllowanceKind,
    Content,
    Document,
    DocumentPeriod,
    DocumentReference,
    InvoiceKind,
    ServiceDays,
    UsageKey,
    decode_document,
    encode_document,
    find_violations,
    issue_document,
    make_allowances,
    make_contract_lines,
    make_correction_lines,
    make_draft,
    make_usage_lines,
    sum_given_back,
)
from tollway.domain.tax import TaxFacts, TaxUndecided, decide_tax

RULES = Path(facturx.__file__).parent / "xsd_and_schematron"
XSLT = {"ubl": RULES / "ubl-2.1/EN16931-UBL-validation.xslt", "cii": RULES / "facturx-en16931/FACTUR-X_EN16931.xslt"}
SCHEMA = RULES / "facturx-en16931/Factur-X_EN16931.xsd"

OCTOBER = ServiceDays("2026-10-01", "2026-10-31")
USAGE = {
    UsageKey(False, "llama-3.3-70b", "standard", "input", 270_000): 270_000 * 1_234_567_890,
    UsageKey(False, "llama-3.3-70b", "standard", "output", 1_100_000): 1_100_000 * 45_678_901,
    UsageKey(False, "llama-3.3-70b", "batch", "output", 1): 100,
    UsageKey(True, "whisper", "standard", "seconds", 100_000_000): 100_000_000 * 72_000,
}
SWISS_BUYER = msgspec.structs.replace(BUYER, vat_id="", address=Address(street="Gasse 1", postal_code="8000", city="Zürich", country="CH"))
CONSUMER = msgspec.structs.replace(FRENCH_BUYER, is_business=False, vat_id="", vat_check=None)
OCTOBER_AT = 1_790_812_800_000_000
PERIOD = DocumentPeriod(
    id="period_" + "0" * 32, start_at=0, end_at=1, time_zone="UTC", events=3, merkle_root="ab" * 32, period_hash="cd" * 32
)


AGREED = ContractPart(
    contract_id="contract_" + "0" * 32,
    start_at=OCTOBER_AT,
    end_at=OCTOBER_AT + 86_400_000_000,
    used_pico=100 * 10**12,
    net_pico=90 * 10**12,
    consumed_before_pico=0,
    drawn_before_pico=0,
    measures=(),
    lines=(
        *(
            ContractLine(kind=kind, amount_pico=500 * 10**12 + 7)
            for kind in (ContractLineKind.MINIMUM, ContractLineKind.PREPAYMENT, ContractLineKind.TRUE_UP)
        ),
        *(
            ContractLine(kind=kind, amount_pico=499_990_000_000, quantity=3, name="Plätze")
            for kind in (ContractLineKind.PLATFORM_FEE, ContractLineKind.SEAT_FEE)
        ),
        ContractLine(
            kind=ContractLineKind.TIERED_PRICE, amount_pico=10**12, model="llama", service_tier="standard", billing_class="output"
        ),
        *(
            ContractLine(kind=kind, amount_pico=-(10**12) - 5)
            for kind in (
                ContractLineKind.TIERED_PRICE,
                ContractLineKind.FREE_UNITS,
                ContractLineKind.DISCOUNT,
                ContractLineKind.SERVICE_CREDIT,
                ContractLineKind.DRAWDOWN,
            )
        ),
    ),
)
"""Every kind of line of a contract."""


BURNED = {AllowanceKind.PROMOTIONAL: 25 * 10**12}


def make(buyer: BillingAccount, kind: InvoiceKind = InvoiceKind.INVOICE, currency: str = "EUR") -> Document:
    lines = make_usage_lines(USAGE, OCTOBER, ServiceDays("2026-09-28", "2026-09-30"), 10**10)
    lines += make_correction_lines({"llama-3.3-70b": -12 * 10**11}, OCTOBER, 10**10)
    lines += make_contract_lines([AGREED], UTC, 10**10)
    facts = TaxFacts(
        seller_country="DE",
        buyer_country=buyer.address.country,
        is_business=buyer.is_business,
        vat_id=buyer.vat_id,
        check=buyer.vat_check,
        supplied_on="2026-10-31",
    )
    is_credit = kind is InvoiceKind.CREDIT_NOTE
    content = Content(
        kind=kind,
        lines=lines,
        allowances=()
        if is_credit
        else make_allowances({AllowanceKind.PROMOTIONAL: 25 * 10**12, **sum_given_back([AGREED])}, lines, 10**10),
        service=OCTOBER,
        tax_decision=decide_tax(facts),
        period=PERIOD,
        corrects=DocumentReference(id="inv_0", number="RE-2026-000001", issued_on="2026-11-01") if is_credit else None,
        reason="as agreed & promised <soon>" if is_credit else "",
    )
    return issue_document(make_draft("inv_" + "0" * 32, content, SELLER, buyer, currency), "RE-2026-000042", "2026-11-03")


FRENCH_DEBTOR = msgspec.structs.replace(FRENCH_BUYER, mandate=MANDATE)
BUYERS = {"domestic": BUYER, "reverse charge": FRENCH_BUYER, "consumer": CONSUMER, "outside": SWISS_BUYER}
BUYERS |= {"direct debit": DEBTOR, "direct debit in English": FRENCH_DEBTOR}
DOCUMENTS = {f"{name}, {kind}": make(buyer, kind) for kind in InvoiceKind for name, buyer in BUYERS.items()}


def make_covered(buyer: BillingAccount, kind: InvoiceKind = InvoiceKind.INVOICE) -> Document:
    """Return a document whose whole amount two kinds of credit cover."""
    made = make(buyer, kind)
    lines = make_usage_lines(USAGE, OCTOBER, ServiceDays("2026-09-28", "2026-09-30"), 10**10)
    burned = {AllowanceKind.PAID: sum(line.amount_pico for line in lines) - 25 * 10**12, AllowanceKind.PROMOTIONAL: 25 * 10**12}
    content = Content(
        kind=kind,
        lines=lines,
        allowances=make_allowances(burned, lines, 10**10),
        service=OCTOBER,
        tax_decision=made.tax_decision,
        period=PERIOD,
        corrects=made.corrects,
        cancels=made.corrects is not None,
        reason=made.reason,
    )
    return issue_document(make_draft(made.id, content, SELLER, buyer, "EUR"), made.number, made.issued_on)


COVERED = {f"{name}, covered {kind}": make_covered(buyer, kind) for kind in InvoiceKind for name, buyer in BUYERS.items()}
DOCUMENTS |= COVERED

Validate = Callable[[str, bytes], set[str]]


@pytest.fixture(scope="module")
def validate() -> Iterator[Validate]:
    """Validate XML by the official rules: compiling these takes seconds, so it is done once."""
    with PySaxonProcessor(license=False) as processor:
        compiled = {name: processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(path)) for name, path in XSLT.items()}

        def run(syntax: str, xml: bytes) -> set[str]:
            report = compiled[syntax].transform_to_string(xdm_node=processor.parse_xml(xml_text=xml.decode()))
            assert report.count("<svrl:fired-rule") > 80
            return {re.search(r'id="([^"]*)"', each)[1] for each in re.findall(r"<svrl:failed-assert[^>]*>", report)}  # type: ignore[index]

        yield run


@pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)
def test_documents_of_every_kind_pass_the_official_rules(document: Document, validate: Validate, tried: Callable[[str, int], None]) -> None:
    assert find_violations(document) == []
    xml = {"ubl": ubl.render(document), "cii": cii.render(document, FACTUR_X)}
    for syntax, content in xml.items():
        assert validate(syntax, content) == set(), syntax
        tried("documents validated by the official rules of EN 16931", 1)
        result = einvoice.validate_bytes(content, profile="xrechnung" if syntax == "ubl" else "en16931")
        assert result["valid"] and not result["violations"], result
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    assert schema.validate(etree.fromstring(xml["cii"]).getroottree()), schema.error_log
    assert ubl.render(document) == xml["ubl"], "the bytes are the same every time"


class Damage(NamedTuple):
    """A fault of a document, and the official rule that must find it. `path`: names of elements, in any namespace. `text`: what the element
    says instead; None if it is not there."""

    rule: str
    path: str
    text: str | None = None
    document: str = "domestic, invoice"


SELLER_PARTY, BUYER_PARTY = "AccountingSupplierParty/Party", "AccountingCustomerParty/Party"
LINE, TOTAL, SUBTOTAL = "InvoiceLine", "LegalMonetaryTotal", "TaxTotal/TaxSubtotal"
TRADE = "SupplyChainTradeTransaction"
AGREEMENT, SETTLEMENT = f"{TRADE}/ApplicableHeaderTradeAgreement", f"{TRADE}/ApplicableHeaderTradeSettlement"
SUMMATION = f"{SETTLEMENT}/SpecifiedTradeSettlementHeaderMonetarySummation"
CII_LINE = f"{TRADE}/IncludedSupplyChainTradeLineItem"
REVERSE, OUTSIDE = "reverse charge, invoice", "outside, invoice"

WRONG: Mapping[str, Sequence[Damage]] = {
    "ubl": [
        Damage("BR-01", "CustomizationID"),
        Damage("BR-02", "ID"),
        Damage("BR-03", "IssueDate"),
        Damage("BR-04", "InvoiceTypeCode"),
        Damage("BR-05", "DocumentCurrencyCode"),
        Damage("BR-06", f"{SELLER_PARTY}/PartyLegalEntity/RegistrationName"),
        Damage("BR-07", f"{BUYER_PARTY}/PartyLegalEntity/RegistrationName"),
        Damage("BR-08", f"{SELLER_PARTY}/PostalAddress"),
        Damage("BR-09", f"{SELLER_PARTY}/PostalAddress/Country/IdentificationCode", ""),
        Damage("BR-10", f"{BUYER_PARTY}/PostalAddress"),
        Damage("BR-11", f"{BUYER_PARTY}/PostalAddress/Country/IdentificationCode", ""),
        Damage("BR-12", f"{TOTAL}/LineExtensionAmount"),
        Damage("BR-13", f"{TOTAL}/TaxExclusiveAmount"),
        Damage("BR-14", f"{TOTAL}/TaxInclusiveAmount"),
        Damage("BR-15", f"{TOTAL}/PayableAmount"),
        Damage("BR-21", f"{LINE}/ID"),
        Damage("BR-22", f"{LINE}/InvoicedQuantity"),
        Damage("BR-24", f"{LINE}/LineExtensionAmount"),
        Damage("BR-25", f"{LINE}/Item/Name"),
        Damage("BR-26", f"{LINE}/Price/PriceAmount"),
        Damage("BR-27", f"{LINE}/Price/PriceAmount", "-1"),
        Damage("BR-29", "InvoicePeriod/EndDate", "2026-01-01"),
        Damage("BR-30", f"{LINE}/InvoicePeriod/EndDate", "2026-01-01"),
        Damage("BR-31", "AllowanceCharge/Amount"),
        Damage("BR-32", "AllowanceCharge/TaxCategory/ID"),
        Damage("BR-45", f"{SUBTOTAL}/TaxableAmount"),
        Damage("BR-46", f"{SUBTOTAL}/TaxAmount"),
        Damage("BR-47", f"{SUBTOTAL}/TaxCategory/ID"),
        Damage("BR-48", f"{SUBTOTAL}/TaxCategory/Percent"),
        Damage("BR-49", "PaymentMeans/PaymentMeansCode"),
        Damage("BR-50", "PaymentMeans/PayeeFinancialAccount/ID"),
        Damage("BR-55", "BillingReference/InvoiceDocumentReference/ID", None, "domestic, credit_note"),
        Damage("BR-CO-04", f"{LINE}/Item/ClassifiedTaxCategory/ID"),
        Damage("BR-CO-09", f"{SELLER_PARTY}/PartyTaxScheme/CompanyID", "136695976"),
        Damage("BR-CO-10", f"{TOTAL}/LineExtensionAmount", "1.00"),
        Damage("BR-CO-11", f"{TOTAL}/AllowanceTotalAmount", "1.00"),
        Damage("BR-CO-13", f"{TOTAL}/TaxExclusiveAmount", "1.00"),
        Damage("BR-CO-14", "TaxTotal/TaxAmount", "1.00"),
        Damage("BR-CO-15", f"{TOTAL}/TaxInclusiveAmount", "1.00"),
        Damage("BR-CO-16", f"{TOTAL}/PayableAmount", "1.00"),
        Damage("BR-CO-17", f"{SUBTOTAL}/TaxAmount", "1.00"),
        Damage("BR-CO-18", SUBTOTAL),
        Damage("BR-DEC-23", f"{LINE}/LineExtensionAmount", "0.001"),
        Damage("BR-CL-01", "InvoiceTypeCode", "999"),
        Damage("BR-CL-04", "DocumentCurrencyCode", "EUX"),
        Damage("BR-CL-14", f"{BUYER_PARTY}/PostalAddress/Country/IdentificationCode", "XX"),
        Damage("BR-CL-16", "PaymentMeans/PaymentMeansCode", "999"),
        Damage("BR-S-05", f"{LINE}/Item/ClassifiedTaxCategory/Percent", "0.00"),
        Damage("BR-S-08", f"{SUBTOTAL}/TaxableAmount", "1.00"),
        Damage("BR-AE-02", f"{BUYER_PARTY}/PartyTaxScheme", None, REVERSE),
        Damage("BR-AE-05", f"{LINE}/Item/ClassifiedTaxCategory/Percent", "19.00", REVERSE),
        Damage("BR-AE-08", f"{SUBTOTAL}/TaxableAmount", "1.00", REVERSE),
        Damage("BR-AE-09", f"{SUBTOTAL}/TaxAmount", "1.00", REVERSE),
        Damage("BR-O-08", f"{SUBTOTAL}/TaxableAmount", "1.00", OUTSIDE),
        Damage("BR-O-09", f"{SUBTOTAL}/TaxAmount", "1.00", OUTSIDE),
    ],
    "cii": [
        Damage("BR-02", "ExchangedDocument/ID"),
        Damage("BR-03", "ExchangedDocument/IssueDateTime"),
        Damage("BR-04", "ExchangedDocument/TypeCode"),
        Damage("BR-05", f"{SETTLEMENT}/InvoiceCurrencyCode"),
        Damage("BR-06", f"{AGREEMENT}/SellerTradeParty/Name"),
        Damage("BR-07", f"{AGREEMENT}/BuyerTradeParty/Name"),
        Damage("BR-08", f"{AGREEMENT}/SellerTradeParty/PostalTradeAddress"),
        Damage("BR-10", f"{AGREEMENT}/BuyerTradeParty/PostalTradeAddress"),
        Damage("BR-12", f"{SUMMATION}/LineTotalAmount"),
        Damage("BR-13", f"{SUMMATION}/TaxBasisTotalAmount"),
        Damage("BR-14", f"{SUMMATION}/GrandTotalAmount"),
        Damage("BR-15", f"{SUMMATION}/DuePayableAmount"),
        Damage("BR-16", CII_LINE),
        Damage("BR-24", f"{CII_LINE}/SpecifiedLineTradeSettlement/SpecifiedTradeSettlementLineMonetarySummation/LineTotalAmount"),
        Damage("BR-25", f"{CII_LINE}/SpecifiedTradeProduct/Name"),
        Damage("BR-27", f"{CII_LINE}/SpecifiedLineTradeAgreement/NetPriceProductTradePrice/ChargeAmount", "-1"),
        Damage("BR-CO-10", f"{SUMMATION}/LineTotalAmount", "1.00"),
        Damage("BR-CO-13", f"{SUMMATION}/TaxBasisTotalAmount", "1.00"),
        Damage("BR-CO-14", f"{SUMMATION}/TaxTotalAmount", "1.00"),
        Damage("BR-CO-15", f"{SUMMATION}/GrandTotalAmount", "1.00"),
        Damage("BR-CO-16", f"{SUMMATION}/DuePayableAmount", "1.00"),
        Damage("BR-CO-17", f"{SETTLEMENT}/ApplicableTradeTax/CalculatedAmount", "1.00"),
        Damage("FX-SCH-A-000555", "ExchangedDocument/TypeCode", "999"),  # BR-CL-01, as Factur-X has it
        Damage("BR-S-08", f"{SETTLEMENT}/ApplicableTradeTax/BasisAmount", "1.00"),
        Damage("BR-AE-09", f"{SETTLEMENT}/ApplicableTradeTax/CalculatedAmount", "1.00", REVERSE),
        Damage("BR-O-09", f"{SETTLEMENT}/ApplicableTradeTax/CalculatedAmount", "1.00", OUTSIDE),
    ],
    "xrechnung": [
        Damage("BR-DE-1", "PaymentMeans"),
        Damage("BR-DE-2", f"{SELLER_PARTY}/Contact"),
        Damage("BR-DE-3", f"{SELLER_PARTY}/PostalAddress/CityName"),
        Damage("BR-DE-4", f"{SELLER_PARTY}/PostalAddress/PostalZone"),
        Damage("BR-DE-5", f"{SELLER_PARTY}/Contact/Name"),
        Damage("BR-DE-6", f"{SELLER_PARTY}/Contact/Telephone"),
        Damage("BR-DE-7", f"{SELLER_PARTY}/Contact/ElectronicMail"),
        Damage("BR-DE-8", f"{BUYER_PARTY}/PostalAddress/CityName"),
        Damage("BR-DE-9", f"{BUYER_PARTY}/PostalAddress/PostalZone"),
        Damage("BR-DE-15", "BuyerReference"),
        Damage("BR-DE-17", "InvoiceTypeCode", "386"),
    ],
}
"""Wrong documents by the rules that must refuse them: EN 16931 in both syntaxes, and those that XRechnung adds (in UBL)."""


def damage(xml: bytes, fault: Damage) -> bytes:
    """Return a document with a fault. All elements of the path are changed: a document has many lines."""
    tree = etree.fromstring(xml)
    path = "/".join("{*}" + name for name in fault.path.split("/"))
    found = tree.findall(path)
    assert found, f"{fault.rule}: the document has no {fault.path}"
    for element in found:
        if fault.text is None:
            element.getparent().remove(element)
        else:
            element.text = fault.text
    return bytes(etree.tostring(tree, encoding="UTF-8", xml_declaration=True))


def test_every_wrong_document_is_refused_by_the_rule_that_it_breaks(validate: Validate, tried: Callable[[str, int], None]) -> None:
    missed = []
    for syntax, faults in WRONG.items():
        for fault in faults:
            document = DOCUMENTS[fault.document]
            wrong = damage(cii.render(document, FACTUR_X) if syntax == "cii" else ubl.render(document), fault)
            if syntax == "xrechnung":
                broken = {each["rule"] for each in einvoice.validate_bytes(wrong, profile="xrechnung")["violations"]}
            else:
                broken = validate(syntax, wrong)
            if fault.rule not in broken:
                missed.append(f"{syntax} {fault.rule}: {sorted(broken)}")
    assert missed == []
    tried("wrong documents refused by the official rules", sum(map(len, WRONG.values())))
    for syntax, path in XSLT.items():
        tried(f"assertions in the official rules of EN 16931 for {syntax.upper()}", path.read_text().count("<svrl:failed-assert"))


def test_direct_debit_stands_on_the_invoice_and_leaves_no_trace_on_others(validate: Validate) -> None:
    debit, credit = DOCUMENTS["direct debit, invoice"], DOCUMENTS["direct debit, credit_note"]
    xml = ubl.render(debit)
    for said in (b"PaymentMeansCode>59<", b"M-0007", b"DE02120300000000202051", b'schemeID="SEPA">DE98ZZZ09999999999'):
        assert said in xml
    assert SELLER.bank_account.iban.encode() not in xml, "an invoice names one means of payment (BR-DE-25)"
    assert "R061" in {each.rule for each in find_violations(without_mandate(debit))}
    english = describe_terms(DOCUMENTS["direct debit in English, invoice"])
    assert english.startswith("What is open of the total is collected by SEPA direct debit from the account DE02 1203 0000 0000 2020 51,")
    assert "frühestens am 17.11.2026 per SEPA-Lastschrift" in describe_terms(debit)
    assert credit.direct_debit is None and b"direct_debit" not in encode_document(DOCUMENTS["domestic, invoice"])
    assert decode_document(encode_document(debit)) == debit
    revoked = msgspec.structs.replace(DEBTOR, mandate=msgspec.structs.replace(MANDATE, revoked_on="2026-10-01"))
    assert make(revoked) == make(BUYER) and make(DEBTOR, currency="USD").direct_debit is None


def test_what_credit_covers_wholly_says_that_nothing_is_to_be_paid_and_why() -> None:
    for document in COVERED.values():
        assert document.totals.gross_minor == 0 and document.owes_nothing and document.direct_debit is None
        shown = pdf.describe(document)
        assert not {"Fällig am", "Due on"} & {name for name, _ in shown["facts"]}
        assert b"DueDate" not in ubl.render(document) and b"DueDateDateTime" not in cii.render(document)
        assert shown["notes"][0] == describe_terms(document)
        assert decode_document(encode_document(document)) == document
    german, english = COVERED["domestic, covered invoice"], COVERED["direct debit in English, covered invoice"]
    assert (
        describe_terms(german) == "Es ist nichts zu zahlen. Der gesamte Betrag ist gedeckt durch: Vorausbezahltes Guthaben, Werbeguthaben."
    )
    assert describe_terms(english) == "Nothing is to be paid. The whole amount is covered by: Prepaid credit, Promotional credit."
    assert describe_terms(msgspec.structs.replace(english, allowances=())) == "Nothing is to be paid: the total is zero."
    assert "Zahlbar" in describe_terms(DOCUMENTS["domestic, invoice"])
    assert describe_terms(COVERED["domestic, covered credit_note"]) == "Es ist nichts zu erstatten: Der Korrekturbetrag ist null."


def without_mandate(document: Document) -> Document:
    assert document.direct_debit is not None
    return msgspec.structs.replace(document, direct_debit=msgspec.structs.replace(document.direct_debit, mandate_reference=""))


def test_prices_per_million_have_all_their_decimals_and_every_line_is_quantity_times_price() -> None:
    tree = etree.fromstring(ubl.render(DOCUMENTS["domestic, invoice"]))
    names = {each: f"{{*}}{each}" for each in ("InvoiceLine", "InvoicedQuantity", "LineExtensionAmount", "PriceAmount", "BaseQuantity")}
    lines = tree.findall(names["InvoiceLine"])
    prices = [line.findtext(f".//{names['PriceAmount']}") for line in lines]
    assert prices == ["0.000001", "0.27", "1.1", "0.0001", "1.2", *["500.000000000007"] * 3, "0.49999", "0.49999", "1"]
    for line in lines:
        quantity, net = (line.find(names[name]) for name in ("InvoicedQuantity", "LineExtensionAmount"))
        base = line.find(f".//{names['BaseQuantity']}")
        assert base.get("unitCode") == quantity.get("unitCode"), "R130"
        exact = float(quantity.text) * float(line.findtext(f".//{names['PriceAmount']}")) / float(base.text)
        assert abs(exact - float(net.text)) <= 0.005001, "R120"


@pytest.mark.parametrize("name", ["domestic, invoice", "reverse charge, credit_note"])
def test_a_pdf_is_archivable_has_the_xml_and_is_the_same_every_time(name: str) -> None:
    document = DOCUMENTS[name]
    made = pdf.render(document)
    assert made.startswith(b"%PDF-1.7") and b"<pdfaid:part>3</pdfaid:part>" in made and b"factur-x.xml" in made
    assert facturx.get_xml_from_pdf(made, check_xsd=False)[1] == cii.render(document, FACTUR_X)
    assert pdf.render(document) == made
    draft = pdf.render(msgspec.structs.replace(document, number="", issued_on="", due_on=""))
    assert b"factur-x.xml" not in draft


def test_a_text_that_the_font_does_not_have_is_an_answer_and_no_crash() -> None:
    named = msgspec.structs.replace(BUYER, name="株式会社")
    with pytest.raises(Fault) as raised:
        pdf.render(make(named))
    assert (raised.value.kind, pdf.find_unshown("Müller Ωμέγα Ж")) == (STATE_CONFLICT, "")


def test_pdfs_are_set_one_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "_turn", BoundedSemaphore(1))
    monkeypatch.setattr(pdf, "_places", BoundedSemaphore(1))
    assert pdf._places.acquire(blocking=False)
    with pytest.raises(Fault) as raised:
        pdf.render(DOCUMENTS["domestic, invoice"])
    assert raised.value.kind is RENDERING_BUSY and raised.value.retry_after_seconds
    pdf._places.release()
    assert pdf.render(DOCUMENTS["domestic, invoice"])


def test_a_seller_without_the_number_that_its_tax_needs_cannot_issue() -> None:
    for name, field, rule in (("reverse charge", "vat_id", "BR-AE-02"), ("outside", "tax_number", "BR-O-02")):
        document = DOCUMENTS[f"{name}, invoice"]
        seller = msgspec.structs.replace(document.seller, **{field: ""})
        assert [each.rule for each in find_violations(msgspec.structs.replace(document, seller=seller))] == [rule]


def test_the_canonical_document_has_every_amount_in_pico_currency_and_every_quantity_as_text() -> None:
    encoded = encode_document(make(BUYER))
    fields = json.loads(encoded)
    described = [*fields["lines"], *fields["allowances"]]
    amounts = [value for each in described for name, value in each.items() if name.endswith("_pico") or name == "quantity"]
    assert amounts and {type(amount) for amount in amounts} == {str}
    assert decode_document(encoded) == make(BUYER)


def test_a_country_that_does_not_exist_has_no_tax() -> None:
    facts = DOCUMENTS["outside, invoice"].tax_decision.facts
    with pytest.raises(TaxUndecided, match="XX is none of ISO 3166-1"):
        decide_tax(msgspec.structs.replace(facts, buyer_country="XX"))


def test_a_currency_with_three_decimals_has_no_electronic_invoice() -> None:
    with pytest.raises(Fault):
        ubl.render(make(BUYER, currency="KWD"))
