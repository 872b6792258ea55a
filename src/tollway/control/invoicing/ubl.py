"""XRechnung in the syntax UBL 2.1: a document as an Invoice or a CreditNote (EN 16931-3-2). Comments name business terms (BT, BG)."""

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
from tollway.domain.invoices import Allowance, Document, DocumentParty, InvoiceKind, InvoiceLine

NAMESPACE = "urn:oasis:names:specification:ubl:schema:xsd"
VAT = group("cac:TaxScheme", element("cbc:ID", "VAT"))


def render(document: Document) -> bytes:
    """Return an issued document as XML. Raises STATE_CONFLICT for a currency that electronic invoices cannot have."""
    is_credit = document.kind is InvoiceKind.CREDIT_NOTE
    root = "CreditNote" if is_credit else "Invoice"
    body = "".join(
        (
            element("cbc:CustomizationID", SPECIFICATION),  # BT-24
            element("cbc:ProfileID", PROCESS),  # BT-23
            element("cbc:ID", document.number),  # BT-1
            element("cbc:IssueDate", document.issued_on),  # BT-2
            element("cbc:DueDate", document.due_on) if document.is_to_be_paid else "",  # BT-9
            element(f"cbc:{root}TypeCode", type_code(document)),  # BT-3
            element("cbc:Note", document.reason),  # BT-22
            element("cbc:Note", describe_proof(document)),
            element("cbc:DocumentCurrencyCode", document.currency),  # BT-5
            element("cbc:AccountingCost", document.cost_centre),  # BT-19
            element("cbc:BuyerReference", document.buyer_reference),  # BT-10
            group(  # BG-14
                "cac:InvoicePeriod", element("cbc:StartDate", document.service.first), element("cbc:EndDate", document.service.last)
            ),
            group("cac:OrderReference", element("cbc:ID", document.purchase_order)),  # BT-13
            _preceding(document),
            group("cac:AccountingSupplierParty", _party(document, document.seller)),  # BG-4
            group("cac:AccountingCustomerParty", _party(document, document.buyer)),  # BG-7
            group("cac:Delivery", element("cbc:ActualDeliveryDate", document.service.last)),  # BT-72
            _payment(document),
            group("cac:PaymentTerms", element("cbc:Note", describe_terms(document))),  # BT-20
            *(_allowance(document, each) for each in document.allowances),
            _tax(document),
            _totals(document),
            *(_line(document, line) for line in document.lines),
        )
    )
    namespaces = (
        f'xmlns="{NAMESPACE}:{root}-2" xmlns:cac="{NAMESPACE}:CommonAggregateComponents-2" xmlns:cbc="{NAMESPACE}:CommonBasicComponents-2"'
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {namespaces}>{body}</{root}>\n'.encode()


def _preceding(document: Document) -> str:  # BG-3
    if document.corrects is None:
        return ""
    reference = (element("cbc:ID", document.corrects.number), element("cbc:IssueDate", document.corrects.issued_on))
    return group("cac:BillingReference", group("cac:InvoiceDocumentReference", *reference))


def _party(document: Document, party: DocumentParty) -> str:
    taxes = ""
    if party.vat_id and names_vat_ids(document):
        taxes += group("cac:PartyTaxScheme", element("cbc:CompanyID", party.vat_id), VAT)  # BT-31, BT-48
    if party.tax_number:  # BT-32
        taxes += group(
            "cac:PartyTaxScheme",
            element("cbc:CompanyID", party.tax_number),
            group("cac:TaxScheme", element("cbc:ID", "FC")),
        )
    electronic, debit = party.electronic_address, document.direct_debit
    creditor_id = "" if debit is None or party is not document.seller else debit.creditor_id
    return group(
        "cac:Party",
        element("cbc:EndpointID", electronic.address, schemeID=electronic.scheme),  # BT-34, BT-49
        group("cac:PartyIdentification", element("cbc:ID", creditor_id, schemeID="SEPA")),  # BT-90
        group(
            "cac:PostalAddress",
            element("cbc:StreetName", party.address.street),
            element("cbc:CityName", party.address.city),
            element("cbc:PostalZone", party.address.postal_code),
            group("cac:Country", element("cbc:IdentificationCode", party.address.country)),
        ),
        taxes,
        group(
            "cac:PartyLegalEntity",
            element("cbc:RegistrationName", party.name),  # BT-27, BT-44
            element("cbc:CompanyID", party.registration),  # BT-30
        ),
        group(
            "cac:Contact",
            element("cbc:Name", party.contact.name),
            element("cbc:Telephone", party.contact.phone),
            element("cbc:ElectronicMail", party.contact.email),
        ),
    )


def _payment(document: Document) -> str:  # BG-16
    bank, debit = document.bank_account, document.direct_debit
    if debit is not None:  # BG-19
        return group(
            "cac:PaymentMeans",
            element("cbc:PaymentMeansCode", DIRECT_DEBIT),
            element("cbc:PaymentID", document.number),
            group(
                "cac:PaymentMandate",
                element("cbc:ID", debit.mandate_reference),  # BT-89
                group("cac:PayerFinancialAccount", element("cbc:ID", debit.iban)),  # BT-91
            ),
        )
    return group(
        "cac:PaymentMeans",
        element("cbc:PaymentMeansCode", CREDIT_TRANSFER),
        element("cbc:PaymentID", document.number),  # BT-83
        group(
            "cac:PayeeFinancialAccount",
            element("cbc:ID", bank.iban),
            element("cbc:Name", bank.holder),
            group("cac:FinancialInstitutionBranch", element("cbc:ID", bank.bic)),
        ),
    )


def _category(document: Document, name: str) -> str:
    return group(name, element("cbc:ID", document.tax.category), element("cbc:Percent", line_percent(document)), VAT)


def _allowance(document: Document, allowance: Allowance) -> str:  # BG-20
    return group(
        "cac:AllowanceCharge",
        element("cbc:ChargeIndicator", "false"),
        element("cbc:AllowanceChargeReasonCode", DISCOUNT),
        element("cbc:AllowanceChargeReason", TEXTS[document.language][f"allowance_{allowance.kind}"]),
        element("cbc:Amount", amount(document, allowance.net_minor), currencyID=document.currency),
        _category(document, "cac:TaxCategory"),
    )


def _tax(document: Document) -> str:  # BG-23
    tax, currency = document.tax, document.currency
    reason = TEXTS[document.language].get(tax.reason_code, "")
    return group(
        "cac:TaxTotal",
        element("cbc:TaxAmount", amount(document, tax.tax_minor), currencyID=currency),
        group(
            "cac:TaxSubtotal",
            element("cbc:TaxableAmount", amount(document, tax.taxable_minor), currencyID=currency),
            element("cbc:TaxAmount", amount(document, tax.tax_minor), currencyID=currency),
            group(
                "cac:TaxCategory",
                element("cbc:ID", tax.category),
                element("cbc:Percent", percent(document)),
                element("cbc:TaxExemptionReasonCode", tax.reason_code),
                element("cbc:TaxExemptionReason", reason),
                VAT,
            ),
        ),
    )


def _totals(document: Document) -> str:  # BG-22
    totals, currency = document.totals, document.currency
    allowances = amount(document, totals.allowances_minor) if document.allowances else ""
    return group(
        "cac:LegalMonetaryTotal",
        element("cbc:LineExtensionAmount", amount(document, totals.lines_minor), currencyID=currency),
        element("cbc:TaxExclusiveAmount", amount(document, totals.net_minor), currencyID=currency),
        element("cbc:TaxInclusiveAmount", amount(document, totals.gross_minor), currencyID=currency),
        element("cbc:AllowanceTotalAmount", allowances, currencyID=currency),
        element("cbc:PayableAmount", amount(document, totals.gross_minor), currencyID=currency),
    )


def _line(document: Document, line: InvoiceLine) -> str:  # BG-25
    is_credit, unit = document.kind is InvoiceKind.CREDIT_NOTE, unit_code(line)
    return group(
        "cac:CreditNoteLine" if is_credit else "cac:InvoiceLine",
        element("cbc:ID", str(line.number)),
        element("cbc:CreditedQuantity" if is_credit else "cbc:InvoicedQuantity", str(line.quantity), unitCode=unit),
        element("cbc:LineExtensionAmount", amount(document, line.net_minor), currencyID=document.currency),
        group("cac:InvoicePeriod", element("cbc:StartDate", line.service.first), element("cbc:EndDate", line.service.last)),
        group(
            "cac:Item",
            element("cbc:Name", describe_line(line, document.language)),
            group("cac:SellersItemIdentification", element("cbc:ID", sku_of(line))),  # BT-155
            _category(document, "cac:ClassifiedTaxCategory"),
        ),
        group(
            "cac:Price",
            element("cbc:PriceAmount", price(line), currencyID=document.currency),
            element("cbc:BaseQuantity", str(line.price_base), unitCode=unit),
        ),
    )
