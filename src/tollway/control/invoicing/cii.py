"""XRechnung and Factur-X in the syntax UN/CEFACT Cross Industry Invoice D16B (EN 16931-3-3). Comments name business terms (BT, BG)."""

from tollway.control.invoicing.texts import TEXTS, describe_line, describe_proof, describe_terms
from tollway.control.invoicing.xml_elements import (
    CREDIT_TRANSFER,
    DIRECT_DEBIT,
    DISCOUNT,
    PROCESS,
    SPECIFICATION,
    amount,
    element,
    group,
    line_percent,
    names_vat_ids,
    percent,
    price,
    sku_of,
    type_code,
    unit_code,
)
from tollway.domain.invoices import Allowance, Document, DocumentParty, InvoiceLine

NAMESPACES = (
    'xmlns:rsm="urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100"'
    ' xmlns:ram="urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100"'
    ' xmlns:udt="urn:un:unece:uncefact:data:standard:UnqualifiedDataType:100"'
    ' xmlns:qdt="urn:un:unece:uncefact:data:standard:QualifiedDataType:100"'
)


def render(document: Document, specification: str = SPECIFICATION) -> bytes:
    """Return an issued document as XML. `specification`: BT-24. Raises STATE_CONFLICT for a currency that electronic invoices cannot
    have."""
    body = "".join(
        (
            group(
                "rsm:ExchangedDocumentContext",
                group("ram:BusinessProcessSpecifiedDocumentContextParameter", element("ram:ID", PROCESS)),  # BT-23
                group("ram:GuidelineSpecifiedDocumentContextParameter", element("ram:ID", specification)),  # BT-24
            ),
            group(
                "rsm:ExchangedDocument",
                element("ram:ID", document.number),  # BT-1
                element("ram:TypeCode", type_code(document)),  # BT-3
                group("ram:IssueDateTime", _date(document.issued_on)),  # BT-2
                group("ram:IncludedNote", element("ram:Content", document.reason)),  # BT-22
                group("ram:IncludedNote", element("ram:Content", describe_proof(document))),
            ),
            group(
                "rsm:SupplyChainTradeTransaction",
                *(_line(document, line) for line in document.lines),
                _agreement(document),
                group(  # BT-72
                    "ram:ApplicableHeaderTradeDelivery",
                    group("ram:ActualDeliverySupplyChainEvent", group("ram:OccurrenceDateTime", _date(document.service.last))),
                ),
                _settlement(document),
            ),
        )
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<rsm:CrossIndustryInvoice {NAMESPACES}>{body}</rsm:CrossIndustryInvoice>\n'.encode()


def _date(day: str, prefix: str = "udt") -> str:
    return element(f"{prefix}:DateTimeString", day.replace("-", ""), format="102")


def _line(document: Document, line: InvoiceLine) -> str:  # BG-25
    unit = unit_code(line)
    base = element("ram:BasisQuantity", str(line.price_base), unitCode=unit)  # BT-149
    return group(
        "ram:IncludedSupplyChainTradeLineItem",
        group("ram:AssociatedDocumentLineDocument", element("ram:LineID", str(line.number))),
        group(
            "ram:SpecifiedTradeProduct",
            element("ram:SellerAssignedID", sku_of(line)),  # BT-155
            element("ram:Name", describe_line(line, document.language)),
        ),
        group(
            "ram:SpecifiedLineTradeAgreement",
            group("ram:NetPriceProductTradePrice", element("ram:ChargeAmount", price(line)), base),
        ),
        group("ram:SpecifiedLineTradeDelivery", element("ram:BilledQuantity", str(line.quantity), unitCode=unit)),
        group(
            "ram:SpecifiedLineTradeSettlement",
            group(
                "ram:ApplicableTradeTax",
                element("ram:TypeCode", "VAT"),
                element("ram:CategoryCode", document.tax.category),
                element("ram:RateApplicablePercent", line_percent(document)),
            ),
            _period(line.service.first, line.service.last),
            group(
                "ram:SpecifiedTradeSettlementLineMonetarySummation",
                element("ram:LineTotalAmount", amount(document, line.net_minor)),
            ),
        ),
    )


def _period(first: str, last: str) -> str:  # BG-14, BG-26
    return group("ram:BillingSpecifiedPeriod", group("ram:StartDateTime", _date(first)), group("ram:EndDateTime", _date(last)))


def _agreement(document: Document) -> str:
    return group(
        "ram:ApplicableHeaderTradeAgreement",
        element("ram:BuyerReference", document.buyer_reference),  # BT-10
        group("ram:SellerTradeParty", _party(document, document.seller)),  # BG-4
        group("ram:BuyerTradeParty", _party(document, document.buyer)),  # BG-7
        group("ram:BuyerOrderReferencedDocument", element("ram:IssuerAssignedID", document.purchase_order)),  # BT-13
    )


def _party(document: Document, party: DocumentParty) -> str:
    electronic, contact = party.electronic_address, party.contact
    vat_id = party.vat_id if names_vat_ids(document) else ""
    return "".join(
        (
            element("ram:Name", party.name),  # BT-27, BT-44
            group("ram:SpecifiedLegalOrganization", element("ram:ID", party.registration)),  # BT-30
            group(
                "ram:DefinedTradeContact",
                element("ram:PersonName", contact.name),
                group("ram:TelephoneUniversalCommunication", element("ram:CompleteNumber", contact.phone)),
                group("ram:EmailURIUniversalCommunication", element("ram:URIID", contact.email)),
            ),
            group(
                "ram:PostalTradeAddress",
                element("ram:PostcodeCode", party.address.postal_code),
                element("ram:LineOne", party.address.street),
                element("ram:CityName", party.address.city),
                element("ram:CountryID", party.address.country),
            ),
            group("ram:URIUniversalCommunication", element("ram:URIID", electronic.address, schemeID=electronic.scheme)),
            group("ram:SpecifiedTaxRegistration", element("ram:ID", party.tax_number, schemeID="FC")),  # BT-32
            group("ram:SpecifiedTaxRegistration", element("ram:ID", vat_id, schemeID="VA")),  # BT-31, BT-48
        )
    )


def _settlement(document: Document) -> str:
    tax, totals, debit = document.tax, document.totals, document.direct_debit
    return group(
        "ram:ApplicableHeaderTradeSettlement",
        element("ram:CreditorReferenceID", "" if debit is None else debit.creditor_id),  # BT-90
        element("ram:PaymentReference", document.number),  # BT-83
        element("ram:InvoiceCurrencyCode", document.currency),  # BT-5
        _payment(document),
        group(  # BG-23
            "ram:ApplicableTradeTax",
            element("ram:CalculatedAmount", amount(document, tax.tax_minor)),
            element("ram:TypeCode", "VAT"),
            element("ram:ExemptionReason", TEXTS[document.language].get(tax.reason_code, "")),
            element("ram:BasisAmount", amount(document, tax.taxable_minor)),
            element("ram:CategoryCode", tax.category),
            element("ram:ExemptionReasonCode", tax.reason_code),
            element("ram:RateApplicablePercent", percent(document)),
        ),
        _period(document.service.first, document.service.last),
        *(_allowance(document, each) for each in document.allowances),
        group(  # BT-20, BT-9
            "ram:SpecifiedTradePaymentTerms",
            element("ram:Description", describe_terms(document)),
            group("ram:DueDateDateTime", _date(document.due_on)) if document.is_to_be_paid else "",
            element("ram:DirectDebitMandateID", "" if debit is None else debit.mandate_reference),  # BT-89
        ),
        group(  # BG-22
            "ram:SpecifiedTradeSettlementHeaderMonetarySummation",
            element("ram:LineTotalAmount", amount(document, totals.lines_minor)),
            element("ram:AllowanceTotalAmount", amount(document, totals.allowances_minor) if document.allowances else ""),
            element("ram:TaxBasisTotalAmount", amount(document, totals.net_minor)),
            element("ram:TaxTotalAmount", amount(document, totals.tax_minor), currencyID=document.currency),
            element("ram:GrandTotalAmount", amount(document, totals.gross_minor)),
            element("ram:DuePayableAmount", amount(document, totals.gross_minor)),
        ),
        _preceding(document),
        group("ram:ReceivableSpecifiedTradeAccountingAccount", element("ram:ID", document.cost_centre)),  # BT-19
    )


def _payment(document: Document) -> str:  # BG-16
    bank, debit = document.bank_account, document.direct_debit
    if debit is not None:  # BG-19
        return group(
            "ram:SpecifiedTradeSettlementPaymentMeans",
            element("ram:TypeCode", DIRECT_DEBIT),
            group("ram:PayerPartyDebtorFinancialAccount", element("ram:IBANID", debit.iban)),  # BT-91
        )
    return group(
        "ram:SpecifiedTradeSettlementPaymentMeans",
        element("ram:TypeCode", CREDIT_TRANSFER),
        group("ram:PayeePartyCreditorFinancialAccount", element("ram:IBANID", bank.iban), element("ram:AccountName", bank.holder)),
        group("ram:PayeeSpecifiedCreditorFinancialInstitution", element("ram:BICID", bank.bic)),
    )


def _allowance(document: Document, allowance: Allowance) -> str:  # BG-20
    return group(
        "ram:SpecifiedTradeAllowanceCharge",
        group("ram:ChargeIndicator", element("udt:Indicator", "false")),
        element("ram:ActualAmount", amount(document, allowance.net_minor)),
        element("ram:ReasonCode", DISCOUNT),
        element("ram:Reason", TEXTS[document.language][f"allowance_{allowance.kind}"]),
        group(
            "ram:CategoryTradeTax",
            element("ram:TypeCode", "VAT"),
            element("ram:CategoryCode", document.tax.category),
            element("ram:RateApplicablePercent", line_percent(document)),
        ),
    )


def _preceding(document: Document) -> str:  # BG-3
    if document.corrects is None:
        return ""
    issued = group("ram:FormattedIssueDateTime", _date(document.corrects.issued_on, "qdt"))
    return group("ram:InvoiceReferencedDocument", element("ram:IssuerAssignedID", document.corrects.number), issued)
