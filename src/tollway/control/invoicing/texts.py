"""Words of invoices in German and English, for people who read the PDF and the text fields of the XML."""

from collections.abc import Mapping

from tollway.domain.billing_parties import Language
from tollway.domain.invoices import Document, InvoiceKind, InvoiceLine, LineKind, ServiceDays

Texts = Mapping[str, str]

TEXTS: Mapping[Language, Texts] = {
    Language.GERMAN: {
        "invoice": "Rechnung",
        "credit_note": "Rechnungskorrektur",  # a "Gutschrift" is an invoice by the buyer (§ 14 (4) no. 10 UStG)
        "cancellation": "Stornorechnung",
        "draft": "Entwurf",
        "number": "Nummer",
        "issued_on": "Datum",
        "due_on": "Fällig am",
        "service": "Leistungszeitraum",
        "to": "bis",
        "customer": "Kunde",
        "vat_id": "USt-IdNr.",
        "tax_number": "Steuernummer",
        "your_vat_id": "Ihre USt-IdNr.",
        "buyer_reference": "Ihre Referenz",
        "purchase_order": "Bestellung",
        "cost_centre": "Kostenstelle",
        "corrects": "Zu Rechnung",
        "of": "vom",
        "position": "Pos.",
        "description": "Leistung",
        "quantity": "Menge",
        "price": "Preis",
        "amount": "Betrag",
        "per": "je",
        "lines_total": "Summe der Positionen",
        "net": "Nettobetrag",
        "tax": "Umsatzsteuer",
        "gross": "Rechnungsbetrag",
        "credit_gross": "Korrekturbetrag",
        "allowance_paid": "Vorausbezahltes Guthaben",
        "allowance_promotional": "Werbeguthaben",
        "allowance_goodwill": "Kulanzguthaben",
        "allowance_discount": "Vertragsrabatt",
        "allowance_service_credit": "Gutschrift für die Dienstgüte",
        "allowance_commitment": "Vorausbezahltes Volumen",
        "paid_before": "Bereits bezahlt",
        "contract_tiered_price": "Staffelpreis",
        "contract_platform_fee": "Grundgebühr",
        "contract_seat_fee": "Gebühr je Platz",
        "contract_minimum": "Mindestumsatz, Differenz",
        "contract_prepayment": "Vorauszahlung auf das vereinbarte Volumen",
        "contract_true_up": "Vereinbartes Volumen, Differenz",
        "late": "nachträglich erfasst",
        "corrections": "Korrekturen",
        "corrections_of_usage": "Korrekturen der Nutzung",
        "kind_of_service": "Nutzung von KI-Modellen",
        "unit_token": "Token",
        "unit_character": "Zeichen",
        "unit_pixel": "Pixel",
        "unit_second": "s",
        "unit_image": "Bilder",
        "unit_request": "Anfragen",
        "one_second": "s",
        "one_image": "Bild",
        "one_request": "Anfrage",
        "class_input": "Eingabe",
        "class_cached_input": "Eingabe aus dem Cache",
        "class_output": "Ausgabe",
        "class_reasoning": "Schlussfolgern",
        "class_cache_write": "Schreiben in den Cache",
        "class_audio_input": "Audio-Eingabe",
        "class_image_input": "Bild-Eingabe",
        "class_audio_output": "Audio-Ausgabe",
        "class_image_output": "Bild-Ausgabe",
        "class_seconds": "Sekunden",
        "class_characters": "Zeichen",
        "class_images": "Bilder",
        "class_pixels": "Pixel von Bildern",
        "class_request": "Anfragen",
        "VATEX-EU-AE": "Steuerschuldnerschaft des Leistungsempfängers",
        "VATEX-EU-O": "Nicht im Inland steuerbare Leistung",
        "terms": "Zahlbar ohne Abzug bis {due_on} auf das Konto {iban} mit dem Verwendungszweck {number}.",
        "debit_terms": "Was vom Rechnungsbetrag offen ist, wird frühestens am {due_on} per SEPA-Lastschrift vom Konto {iban} eingezogen;"
        " Mandat {mandate}, Gläubiger-Identifikationsnummer {creditor_id}.",
        "nothing_due_terms": "Es ist nichts zu zahlen: Der Rechnungsbetrag ist null.",
        "covered_terms": "Es ist nichts zu zahlen. Der gesamte Betrag ist gedeckt durch: {allowances}.",
        "no_credit_terms": "Es ist nichts zu erstatten: Der Korrekturbetrag ist null.",
        "credit_terms": "Der Betrag wird mit offenen Rechnungen verrechnet oder erstattet.",
        "proof": "Abrechnungszeitraum {id}: {events} Anfragen, Merkle-Wurzel {root}",
        "page": "Seite",
    },
    Language.ENGLISH: {
        "invoice": "Invoice",
        "credit_note": "Credit note",
        "cancellation": "Cancellation",
        "draft": "Draft",
        "number": "Number",
        "issued_on": "Date",
        "due_on": "Due on",
        "service": "Period of service",
        "to": "to",
        "customer": "Customer",
        "vat_id": "VAT id",
        "tax_number": "Tax number",
        "your_vat_id": "Your VAT id",
        "buyer_reference": "Your reference",
        "purchase_order": "Purchase order",
        "cost_centre": "Cost centre",
        "corrects": "Corrects invoice",
        "of": "of",
        "position": "No.",
        "description": "Service",
        "quantity": "Quantity",
        "price": "Price",
        "amount": "Amount",
        "per": "per",
        "lines_total": "Sum of lines",
        "net": "Net amount",
        "tax": "VAT",
        "gross": "Total",
        "credit_gross": "Total credited",
        "allowance_paid": "Prepaid credit",
        "allowance_promotional": "Promotional credit",
        "allowance_goodwill": "Goodwill credit",
        "allowance_discount": "Contract discount",
        "allowance_service_credit": "Service level credit",
        "allowance_commitment": "Prepaid commitment",
        "paid_before": "Paid before",
        "contract_tiered_price": "Tiered price",
        "contract_platform_fee": "Platform fee",
        "contract_seat_fee": "Fee per seat",
        "contract_minimum": "Minimum, difference",
        "contract_prepayment": "Prepayment of the commitment",
        "contract_true_up": "Commitment, difference",
        "late": "recorded late",
        "corrections": "corrections",
        "corrections_of_usage": "corrections of usage",
        "kind_of_service": "Use of AI models",
        "unit_token": "tokens",
        "unit_character": "characters",
        "unit_pixel": "pixels",
        "unit_second": "s",
        "unit_image": "images",
        "unit_request": "requests",
        "one_second": "s",
        "one_image": "image",
        "one_request": "request",
        "class_input": "input",
        "class_cached_input": "cached input",
        "class_output": "output",
        "class_reasoning": "reasoning",
        "class_cache_write": "cache writes",
        "class_audio_input": "audio input",
        "class_image_input": "image input",
        "class_audio_output": "audio output",
        "class_image_output": "image output",
        "class_seconds": "seconds",
        "class_characters": "characters",
        "class_images": "images",
        "class_pixels": "pixels of images",
        "class_request": "requests",
        "VATEX-EU-AE": "Reverse charge",
        "VATEX-EU-O": "Not subject to VAT",
        "terms": "Payable without deduction until {due_on} to the account {iban}, with the reference {number}.",
        "debit_terms": "What is open of the total is collected by SEPA direct debit from the account {iban}, on {due_on} at the earliest;"
        " mandate {mandate}, creditor identifier {creditor_id}.",
        "nothing_due_terms": "Nothing is to be paid: the total is zero.",
        "covered_terms": "Nothing is to be paid. The whole amount is covered by: {allowances}.",
        "no_credit_terms": "Nothing is to be refunded: the total credited is zero.",
        "credit_terms": "The amount is set off against open invoices or refunded.",
        "proof": "Billing period {id}: {events} requests, Merkle root {root}",
        "page": "Page",
    },
}


def title_of(document: Document) -> str:
    """Return the heading of a document."""
    texts = TEXTS[document.language]
    return texts["cancellation"] if document.cancels else texts[str(document.kind)]


def describe_line(line: InvoiceLine, language: Language) -> str:
    """Return what a line is about: the kind of service, model, class and service tier, or the text of a credit."""
    texts = TEXTS[language]
    match line.kind:
        case LineKind.USAGE | LineKind.LATE_USAGE:
            parts = [f"{texts['kind_of_service']}: {line.model}", texts[f"class_{line.billing_class}"]]
            parts += [line.service_tier] if line.service_tier != "standard" else []
            parts += [texts["late"]] if line.kind is LineKind.LATE_USAGE else []
            return ", ".join(parts)
        case LineKind.CORRECTION:
            return f"{texts['kind_of_service']}: {line.model}, {texts['corrections']}"
        case LineKind.CONTRACT:
            kind, _, name = line.description.partition(": ")
            if line.billing_class:
                name = f"{line.model}, {texts[f'class_{line.billing_class}']}"
            return f"{texts[f'contract_{kind}']}: {name}" if name else texts[f"contract_{kind}"]
        case LineKind.CREDIT:
            return line.description


def describe_terms(document: Document) -> str:
    """Return the terms of payment in a sentence, or why nothing is to be paid."""
    texts = TEXTS[document.language]
    if document.kind is InvoiceKind.CREDIT_NOTE:
        return texts["no_credit_terms" if document.owes_nothing else "credit_terms"]
    if document.owes_nothing:
        allowances = [texts[f"allowance_{each.kind}"] for each in document.allowances]
        return texts["covered_terms"].format(allowances=", ".join(allowances)) if allowances else texts["nothing_due_terms"]
    due_on, debit = show_day(document.due_on, document.language), document.direct_debit
    if debit is not None:
        shown = show_iban(debit.iban)
        return texts["debit_terms"].format(due_on=due_on, iban=shown, mandate=debit.mandate_reference, creditor_id=debit.creditor_id)
    return texts["terms"].format(due_on=due_on, iban=show_iban(document.bank_account.iban), number=document.number)


def show_iban(iban: str) -> str:
    """Return an IBAN in groups of four, as banks print it."""
    return " ".join(iban[at : at + 4] for at in range(0, len(iban), 4))


def show_days(days: ServiceDays, language: Language) -> str:
    """Return the first and the last day of a service as a language writes them, or the only one."""
    shown = [show_day(day, language) for day in dict.fromkeys((days.first, days.last))]
    return f" {TEXTS[language]['to']} ".join(shown)


def show_day(day: str, language: Language) -> str:
    """Return a day (YYYY-MM-DD, or nothing) as the language writes it."""
    if language is not Language.GERMAN or not day:
        return day
    year, month, of_month = day.split("-")
    return f"{of_month}.{month}.{year}"


def describe_proof(document: Document) -> str:
    """Return the closed period that a document bills and the root of its requests, in a sentence; empty without a period."""
    period = document.period
    if period is None:
        return ""
    return TEXTS[document.language]["proof"].format(id=period.id, events=period.events, root=period.merkle_root)
