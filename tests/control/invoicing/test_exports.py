"""Exports of issued documents: FOCUS rows whose sum is what is to be paid, and the books of a seller; on each database."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from decimal import Decimal

import msgspec
import pytest

from tests.control.auditing.test_audit import close_books
from tests.control.invoicing.parties import BUYER, ENTITY_ID, FRENCH_BUYER, SELLER, add_parties
from tests.control.invoicing.test_documents import credit, document_of, draft, fill_month, issue, refused
from tests.control.money.test_contracts import agree
from tests.control.money.test_credits import COST, add_grant
from tests.control.money.test_periods import NOW, OCTOBER, SEPTEMBER
from tests.link.samples import ORGANIZATION
from tollway.control.invoicing import books, focus_export, parties
from tollway.domain import datev, focus
from tollway.domain.billing_parties import Bookkeeping, LegalEntity, find_entity_problem
from tollway.domain.contracts import Commitment, Fee
from tollway.domain.credits import GrantCategory
from tollway.domain.csv_cells import escape_text
from tollway.domain.invoices import Document, InvoiceKind, find_step
from tollway.domain.money import PICO, format_minor
from tollway.storage.database import Database
from tollway.storage.invoices import StoredInvoice
from tollway.storage.record_archive import Archive

BOOKKEEPING = Bookkeeping(
    consultant=29098,
    client=55003,
    fiscal_year_month=1,
    account_digits=4,
    debtor_account=10000,
    revenue_accounts={"S": 8400, "AE": 8336, "O": 8338},
)

ENUMS = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"", "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"", "Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
}
"""Values that FOCUS 1.2 allows, as far as they can come here; empty for null."""

NEVER_NULL = {
    *("BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory", "ServiceProviderName", "HostProviderName"),
}
"""Columns that FOCUS 1.2 (or, of the last two, 1.3) does not let be null."""


PRICED = ("ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit", "SkuId", "SkuPriceId")
"""Columns that FOCUS 1.2 does not let be null in rows of usage and purchases, and wants to be null in those of tax."""


def focus_rows(database: Database, invoice: StoredInvoice, *, is_daily: bool = True) -> list[dict[str, str]]:
    with database.platform(write=False) as tx:
        text = "".join(focus_export.write(tx, invoice, is_daily=is_daily))
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        assert tuple(row) == focus.COLUMNS
        assert all(row[name] in values for name, values in ENUMS.items()), row
        assert all(row[name] for name in NEVER_NULL), row
        assert (row["ChargeCategory"] == "Usage") == bool(row["ConsumedQuantity"])
        is_priced = row["ChargeCategory"] in ("Usage", "Purchase")
        assert all(is_priced == bool(row[name]) for name in PRICED), row
        if is_priced:
            assert Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ListCost"])
            assert Decimal(row["ContractedUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ContractedCost"])
        assert all(bool(row["CommitmentDiscountId"]) == bool(row[f"CommitmentDiscount{each}"]) for each in ("Category", "Type"))
        assert row["BillingPeriodStart"] < row["BillingPeriodEnd"] and row["ChargePeriodStart"] < row["ChargePeriodEnd"]
    return rows


def total(rows: Sequence[dict[str, str]], column: str = "BilledCost") -> Decimal:
    return sum((Decimal(row[column]) for row in rows), Decimal(0))


def payable(document: Document) -> Decimal:
    minor = Decimal(document.totals.gross_minor) * find_step(document.currency) / PICO
    return -minor if document.kind is InvoiceKind.CREDIT_NOTE else minor


def set_bookkeeping(database: Database, bookkeeping: Bookkeeping | None = BOOKKEEPING) -> LegalEntity:
    with database.platform() as tx:
        return parties.put_entity(tx, msgspec.structs.replace(SELLER, bookkeeping=bookkeeping), NOW)


def read_books(database: Database, month: str) -> dict[str, bytes]:
    with database.platform(write=False) as tx:
        content = books.export(tx, ENTITY_ID, month)
        assert content == books.export(tx, ENTITY_ID, month)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class TestFocus:
    def test_the_rows_of_a_document_come_to_what_is_to_be_paid(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive)
        add_parties(database)
        issued = issue(database, draft(database)[0].id)
        document, rows = document_of(issued), focus_rows(database, issued)
        usage = [row for row in rows if row["ChargeCategory"] == "Usage"]
        assert total(rows) == payable(document) and total(usage) == Decimal(200 * COST) / PICO
        assert {row["ChargeCategory"] for row in rows} == {"Usage", "Adjustment"}, "of less than a cent there is no tax"
        tokens = next(row for row in usage if row["x_BillingClass"] == "output")
        assert (tokens["ConsumedQuantity"], tokens["ConsumedUnit"]) == ("6000", "Tokens")
        assert (tokens["PricingQuantity"], tokens["PricingUnit"]) == ("0.006", "1000000 Tokens")
        assert Decimal(tokens["PricingQuantity"]) * Decimal(tokens["ListUnitPrice"]) == Decimal(tokens["ListCost"])
        assert (tokens["ChargePeriodStart"], tokens["ChargePeriodEnd"]) == ("2026-09-21T00:00:00Z", "2026-09-22T00:00:00Z")
        assert tokens["SubAccountId"] and tokens["InvoiceId"] == document.number
        monthly = focus_rows(database, issued, is_daily=False)
        assert total(monthly) == payable(document)
        assert next(row for row in monthly if row["x_BillingClass"] == "output")["ChargePeriodStart"] == "2026-09-01T00:00:00Z"

    def test_late_usage_corrections_and_cancellations_are_corrections(self, database: Database, archive: Archive) -> None:
        close_books(database, archive)
        add_parties(database)
        corrected = []
        for each in [*draft(database), *draft(database, OCTOBER.start_at)]:
            issued = issue(database, each.id)
            rows = focus_rows(database, issued)
            assert total(rows) == payable(document_of(issued))
            corrected += [row for row in rows if row["ChargeClass"]]
        assert {row["ChargePeriodStart"] for row in corrected if row["ChargeCategory"] == "Usage"} == {"2026-09-21T00:00:00Z"}
        assert any(row["ChargeCategory"] == "Adjustment" and row["x_Model"] for row in corrected)

    def test_a_cancellation_takes_every_row_back(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive, 3)
        add_parties(database)
        issued = issue(database, draft(database)[0].id)
        note = issue(database, credit(database, issued.id, None).id)
        rows, taken = focus_rows(database, issued), focus_rows(database, note)
        assert total(rows) == -total(taken)
        assert [Decimal(row["ConsumedQuantity"] or 0) for row in rows] == [-Decimal(row["ConsumedQuantity"] or 0) for row in taken]

    def test_paid_credit_settles_usage_and_promotional_credit_makes_it_cheaper(self, database: Database, archive: Archive) -> None:
        add_grant(database, 50 * COST, 1, category=GrantCategory.PAID)
        add_grant(database, 30 * COST, 2, category=GrantCategory.PROMOTIONAL)
        fill_month(database, archive)
        add_parties(database)
        issued = issue(database, draft(database)[0].id)
        rows = focus_rows(database, issued)
        assert total(rows) == payable(document_of(issued))
        credits = {row["ChargeDescription"]: row for row in rows if row["ChargeCategory"] == "Credit"}
        assert credits["Paid credit"]["EffectiveCost"] == "0"
        assert Decimal(credits["Promotional credit"]["EffectiveCost"]) == -Decimal(30 * COST) / PICO

    def test_a_contract_is_bought_at_its_price_and_its_commitment_is_named_where_it_is_bought_and_drawn_on(
        self, database: Database, archive: Archive
    ) -> None:
        contract = agree(
            database,
            SEPTEMBER.start_at,
            OCTOBER.end_at,
            discount_bp=1_000,
            fees=(Fee(name="Platform", amount_pico=100 * PICO, is_per_seat=False),),
            commitment=Commitment(amount_pico=5 * PICO, is_prepaid=True),
        )
        fill_month(database, archive)
        add_parties(database)
        issued = issue(database, draft(database)[0].id)
        document, rows = document_of(issued), focus_rows(database, issued)
        assert total(rows) == payable(document)

        purchases = {row["SkuPriceId"]: row for row in rows if row["ChargeCategory"] == "Purchase"}
        assert set(purchases) == {"contract/platform_fee: Platform", "contract/prepayment"}
        paid_ahead = purchases["contract/prepayment"]
        assert (paid_ahead["BilledCost"], paid_ahead["EffectiveCost"]) == ("5", "0")
        assert (paid_ahead["CommitmentDiscountQuantity"], paid_ahead["CommitmentDiscountUnit"]) == ("5", "EUR")
        drawn = next(row for row in rows if row["ChargeDescription"] == "Commitment")
        usage = Decimal(200 * COST) / PICO
        assert (Decimal(drawn["BilledCost"]), drawn["EffectiveCost"]) == (-usage * Decimal("0.9"), "0")
        named = [(row["CommitmentDiscountId"], row["CommitmentDiscountName"]) for row in rows if row["CommitmentDiscountId"]]
        assert named == [(contract.id, "Plan")] * 2

        tax = next(row for row in rows if row["ChargeCategory"] == "Tax")
        others = [row for row in rows if row["ChargeCategory"] != "Tax" and row["ChargeDescription"] != "Rounding"]
        for column in ("ListCost", "EffectiveCost"):
            assert abs(Decimal(tax[column]) - total(others, column) * Decimal("0.19")) < Decimal(1) / PICO
        assert tax["ContractedCost"] == tax["BilledCost"] == format_minor(document.totals.tax_minor, 2)

    def test_a_draft_has_no_charges(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive, 1)
        add_parties(database)
        with refused("not issued"):
            focus_rows(database, draft(database)[0])

    def test_tax_is_a_row_of_its_own(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive, 1)
        add_parties(database)
        document = document_of(issue(database, draft(database)[0].id))
        totals = msgspec.structs.replace(document.totals, tax_minor=19, gross_minor=document.totals.gross_minor + 19)
        taxed = msgspec.structs.replace(document, totals=totals, lines=())
        rows = list(focus.make_rows(taxed, {}, {}))
        assert [row["BilledCost"] for row in rows if row["ChargeCategory"] == "Tax"] == ["0.19"] and total(rows) == payable(taxed)


class TestBooks:
    def test_the_books_of_a_month_agree_with_the_ledger_and_with_their_manifest(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive)
        add_parties(database)
        set_bookkeeping(database)
        issued = issue(database, draft(database)[0].id)
        document, files = document_of(issued), read_books(database, "2026-12")
        manifest = json.loads(files["manifest.json"])
        assert manifest["documents"] == 1 and manifest["totals"] == {
            "EUR": {name: f"{getattr(document.totals, f'{name}_minor') / 100:.2f}" for name in ("net", "tax", "gross")}
        }
        assert {name: hashlib.sha256(files[name]).hexdigest() for name in manifest["files"]} == {
            name: each["sha256"] for name, each in manifest["files"].items()
        }
        entries = list(csv.DictReader(io.StringIO(files["entries.csv"].decode())))
        debits, credits = (sum(Decimal(row[side] or 0) for row in entries) for side in ("debit", "credit"))
        assert debits == credits > 0
        receivable = next(row for row in entries if row["account"] == "receivable")
        assert Decimal(receivable["debit"]) == payable(document) and receivable["owner"] == ORGANIZATION
        listed = list(csv.DictReader(io.StringIO(files["documents.csv"].decode())))
        assert [(row["number"], row["digest"]) for row in listed] == [(document.number, issued.issue.digest if issued.issue else "")]
        assert read_books(database, "2026-11").keys() == files.keys(), "a month without documents has empty books"

    def test_a_batch_for_datev_has_one_posting_for_each_document(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive)
        add_parties(database)
        set_bookkeeping(database)
        issued = issue(database, draft(database)[0].id)
        issue(database, credit(database, issued.id, None).id)
        header, columns, invoice, note = read_books(database, "2026-12")["datev.csv"].decode("cp1252").split("\r\n")[:-1]
        assert header.startswith('"EXTF";700;21;"Buchungsstapel";13;20261231235959000;') and header.count(";") == 30
        assert ';29098;55003;20260101;4;20261201;20261231;"Rechnungen 2026-12";' in header
        assert columns.count(";") == invoice.count(";") == 124
        gross = f"{document_of(issued).totals.gross_minor / 100:.2f}".replace(".", ",")
        assert invoice.startswith(f'{gross};"S";"EUR";;;;10000;8400;"";0112;"RE-2026-000001";;;"Kunde <AG>";')
        assert note.startswith(f'{gross};"H";"EUR";;;;10000;8400;"";0112;"GS-2026-000001";')

    def test_a_tax_without_an_account_is_refused_by_name(self, database: Database, archive: Archive) -> None:
        fill_month(database, archive)
        add_parties(database, FRENCH_BUYER)
        set_bookkeeping(database, msgspec.structs.replace(BOOKKEEPING, revenue_accounts={"S": 8400}))
        issue(database, draft(database)[0].id)
        with refused("no account of revenue for the tax AE"):
            read_books(database, "2026-12")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account_digits": 9}, "from 4 to 8 digits"),
        ({"fiscal_year_month": 0}, "from 1 to 12"),
        ({"consultant": 1}, "1001"),
        ({"debtor_account": 1_000_000}, "one digit more"),
        ({"revenue_accounts": {"VAT": 8400}}, "is no tax"),
    ],
)
def test_bookkeeping_that_no_program_imports_is_refused(changes: dict[str, object], reason: str) -> None:
    problem = find_entity_problem(msgspec.structs.replace(SELLER, bookkeeping=msgspec.structs.replace(BOOKKEEPING, **changes)))
    assert problem is not None and problem.field == "bookkeeping" and reason in problem.reason


def test_a_name_that_a_spreadsheet_would_compute_is_shown_as_text() -> None:
    assert [escape_text(each) for each in ("=1+1", "+49", "@x", "-x", "plain")] == ["'=1+1", "'+49", "'@x", "'-x", "plain"]


def test_the_number_of_a_document_is_what_datev_allows() -> None:
    assert len(datev.COLUMNS) == 125 and len(set(datev.COLUMNS)) == 125
    assert BUYER.debtor_account is None
