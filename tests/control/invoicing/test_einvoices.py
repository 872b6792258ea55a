"""Electronic invoices against the official rules: EN 16931 for UBL and CII by their XSLT, XRechnung by a second implementation."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from threading import BoundedSemaphore

import einvoice
import facturx
import msgspec
import pytest
from lxml import etree
from saxonche import PySaxonProcessor

from tests.control.invoicing.parties import BUYER, FRENCH_BUYER, SELLER
from tollway.control.invoicing import cii, pdf, ubl
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


DOCUMENTS = {
    f"{name}, {kind}": make(buyer, kind)
    for kind in InvoiceKind
    for name, buyer in {"domestic": BUYER, "reverse charge": FRENCH_BUYER, "consumer": CONSUMER, "outside": SWISS_BUYER}.items()
}

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
def test_documents_of_every_kind_pass_the_official_rules(document: Document, validate: Validate) -> None:
    assert find_violations(document) == []
    xml = {"ubl": ubl.render(document), "cii": cii.render(document, FACTUR_X)}
    for syntax, content in xml.items():
        assert validate(syntax, content) == set(), syntax
        result = einvoice.validate_bytes(content, profile="xrechnung" if syntax == "ubl" else "en16931")
        assert result["valid"] and not result["violations"], result
    schema = etree.XMLSchema(etree.parse(SCHEMA))
    assert schema.validate(etree.fromstring(xml["cii"]).getroottree()), schema.error_log
    assert ubl.render(document) == xml["ubl"], "the bytes are the same every time"


WRONG = {
    "BR-CO-15": (b'<cbc:TaxInclusiveAmount currencyID="EUR">', b'<cbc:TaxInclusiveAmount currencyID="EUR">9'),
    "BR-CO-10": (b'<cbc:LineExtensionAmount currencyID="EUR">333.33', b'<cbc:LineExtensionAmount currencyID="EUR">333.34'),
    "BR-02": (b"<cbc:ID>RE-2026-000042</cbc:ID><cbc:IssueDate>", b"<cbc:IssueDate>"),
    "BR-CO-09": (b"<cbc:CompanyID>DE136695976", b"<cbc:CompanyID>136695976"),
    "BR-S-05": (b"<cbc:ID>S</cbc:ID><cbc:Percent>19.00</cbc:Percent></cac:ClassifiedTaxCategory>", b""),
    "BR-CL-04": (b"<cbc:DocumentCurrencyCode>EUR", b"<cbc:DocumentCurrencyCode>EUX"),
}


def test_wrong_documents_break_the_rule_that_they_should(validate: Validate) -> None:
    right = ubl.render(DOCUMENTS["domestic, invoice"])
    for rule, (old, new) in WRONG.items():
        if not new:
            old, new = (
                b"<cbc:Percent>19.00</cbc:Percent><cac:TaxScheme><cbc:ID>VAT</cbc:ID></cac:TaxScheme></cac:ClassifiedTaxCategory>",
                (b"<cbc:Percent>0.00</cbc:Percent><cac:TaxScheme><cbc:ID>VAT</cbc:ID></cac:TaxScheme></cac:ClassifiedTaxCategory>"),
            )
        assert old in right, rule
        assert rule in validate("ubl", right.replace(old, new, 1)), rule


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
