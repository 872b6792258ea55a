"""Sellers and buyers for tests of invoices."""

from typing import Any

import msgspec

from tests.link.samples import ORGANIZATION
from tollway.control.invoicing import parties
from tollway.domain.billing_parties import (
    Address,
    BankAccount,
    BillingAccount,
    Contact,
    DunningAction,
    DunningStep,
    ElectronicAddress,
    Language,
    LegalEntity,
)
from tollway.domain.direct_debits import Mandate
from tollway.domain.tax import VatCheck
from tollway.storage.database import Database

ENTITY_ID = "entity_" + "1" * 32

ACCOUNT_AT = 1_788_220_800_000_000
"""2026-09-01: when the billing account is made."""

CONTACT = Contact(name="Accounts", phone="+49 30 123456", email="billing@seller.example")

SELLER = LegalEntity(
    id=ENTITY_ID,
    name="Inferenz & Söhne GmbH",
    address=Address(street="Rechenweg 1", postal_code="10115", city="Berlin", country="DE"),
    vat_id="DE136695976",
    tax_number="12/345/67890",
    registration="HRB 12345 B",
    contact=CONTACT,
    electronic_address=ElectronicAddress(scheme="EM", address="billing@seller.example"),
    bank_account=BankAccount(holder="Inferenz GmbH", iban="DE89370400440532013000", bic="COBADEFFXXX"),
    invoice_series="RE-2026",
    credit_note_series="GS-2026",
    time_zone="Europe/Berlin",
    grace_days=None,
    dunning=(DunningStep(after_days=7, action=DunningAction.REMIND), DunningStep(after_days=30, action=DunningAction.RESTRICT)),
    created_at=0,
    creditor_id="DE98ZZZ09999999999",
)

BUYER = BillingAccount(
    organization_id=ORGANIZATION,
    legal_entity_id=ENTITY_ID,
    name="Kunde <AG>",
    address=Address(street="Kaufgasse 2", postal_code="80331", city="München", country="DE"),
    is_business=True,
    vat_id="DE129273398",
    vat_check=None,
    contact=Contact(name="Einkauf"),
    electronic_address=ElectronicAddress(scheme="EM", address="rechnung@kunde.example"),
    language=Language.GERMAN,
    payment_days=14,
    buyer_reference="04011000-12345-03",
    purchase_order="PO-77",
    cost_centre="KST 4",
)

FRENCH_BUYER = msgspec.structs.replace(
    BUYER,
    name="Client SA",
    address=Address(street="Rue 3", postal_code="75001", city="Paris", country="FR"),
    vat_id="FR40303265045",
    vat_check=VatCheck(vat_id="FR40303265045", checked_at=1, source="VIES", consultation_number="WAPIAAAA"),
    language=Language.ENGLISH,
    buyer_reference="",
    purchase_order="",
)


MANDATE = Mandate(reference="M-0007", signed_on="2026-08-01", iban="DE02120300000000202051", bic="BYLADEM1001")

DEBTOR = msgspec.structs.replace(BUYER, mandate=MANDATE)


def add_parties(database: Database, buyer: BillingAccount = BUYER, **changes: Any) -> None:
    """Store the seller, changed in some fields, and the buyer."""
    with database.platform() as tx:
        parties.put_entity(tx, msgspec.structs.replace(SELLER, **changes), now=10)
        parties.put_account(tx, buyer, now=ACCOUNT_AT)
