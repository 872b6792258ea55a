"""Shapes of legal entities and billing accounts."""

from typing import Annotated, Literal

import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from tollway.control.api.schemas import Identified, In, Name, Out, Second, TimeZone, find_seconds, printable
from tollway.control.invoicing.parties import normalize_number
from tollway.domain.billing_parties import (
    DUNNING_STEPS_MAX,
    GRACE_DAYS_MAX,
    PARTY_TEXT_MAX,
    PAYMENT_DAYS_MAX,
    Address,
    BankAccount,
    BillingAccount,
    Bookkeeping,
    Contact,
    DunningAction,
    DunningChannel,
    DunningStep,
    ElectronicAddress,
    Language,
    LegalEntity,
)
from tollway.domain.connectors import Connector
from tollway.domain.direct_debits import NOTICE_DAYS, Mandate, MandateScheme
from tollway.domain.sepa import REFERENCE_MAX
from tollway.domain.tax import CheckResult, VatCheck


def _printable_or_empty(text: str) -> str:
    return printable(text) if text else text


Text = Annotated[str, StringConstraints(min_length=1, max_length=PARTY_TEXT_MAX), AfterValidator(printable)]
OptionalText = Annotated[str, StringConstraints(max_length=PARTY_TEXT_MAX), AfterValidator(_printable_or_empty)]
Number = Annotated[str, StringConstraints(max_length=64), AfterValidator(normalize_number)]


class AddressBody(In):
    """A postal address."""

    street: Annotated[Text, Field(description="Street and number.", examples=["Rechenweg 1"])]
    postal_code: Annotated[Text, Field(description="Postal code.", examples=["10115"])]
    city: Annotated[Text, Field(description="City.", examples=["Berlin"])]
    country: Annotated[str, Field(min_length=2, max_length=2, description="Country (ISO 3166-1, two letters).", examples=["DE"])]

    def value(self) -> Address:
        """Return it for the operation."""
        return Address(**self.model_dump())


class ContactBody(In):
    """The person or department to ask about an invoice."""

    name: Annotated[OptionalText, Field(description="Person or department; empty for none.", examples=["Accounts"])] = ""
    phone: Annotated[OptionalText, Field(description="Telephone number; empty for none.", examples=["+49 30 123456"])] = ""
    email: Annotated[OptionalText, Field(description="Address of e-mail; empty for none.", examples=["billing@example.com"])] = ""

    def value(self) -> Contact:
        """Return it for the operation."""
        return Contact(**self.model_dump())


class ElectronicAddressBody(In):
    """Address at which a party receives electronic invoices."""

    scheme: Annotated[str, Field(max_length=4, description="Scheme of the code list EAS; `EM` for e-mail.", examples=["EM"])] = "EM"
    address: Annotated[Text, Field(description="The address in that scheme.", examples=["billing@example.com"])]

    def value(self) -> ElectronicAddress:
        """Return it for the operation."""
        return ElectronicAddress(**self.model_dump())


class BankAccountBody(In):
    """The account that invoices are paid to."""

    holder: Annotated[Text, Field(description="Holder of the account.", examples=["Example GmbH"])]
    iban: Annotated[Number, Field(description="IBAN, with or without spaces.", examples=["DE89370400440532013000"])]
    bic: Annotated[Number, Field(description="BIC; empty where it is not needed.", examples=["COBADEFFXXX"])] = ""

    def value(self) -> BankAccount:
        """Return it for the operation."""
        return BankAccount(**self.model_dump())


class DunningStepBody(In):
    """A step of dunning."""

    after_days: Annotated[int, Field(ge=1, le=365, description="Days after the due date, 1 to 365.", examples=[14])]
    action: Annotated[
        DunningAction,
        Field(
            strict=False,
            description="`remind`, or as the last step `restrict`: requests of the customer are refused until it has paid.",
            examples=["remind"],
        ),
    ]
    channel: Annotated[
        DunningChannel,
        Field(strict=False, description="`mail`: to the contact of the billing account; `none`: nothing is sent.", examples=["mail"]),
    ] = DunningChannel.NONE


class VatCheckBody(In):
    """Evidence that the VAT id was looked up in its register and is valid."""

    vat_id: Annotated[
        Number, Field(min_length=1, description="The VAT id that was looked up: that of the account.", examples=["FR40303265045"])
    ]
    checked_at: Annotated[Second, Field(description="When it was looked up, in Unix seconds (UTC).", examples=[1790000000])]
    source: Annotated[Text, Field(description="The register.", examples=["VIES"])] = "VIES"
    consultation_number: Annotated[OptionalText, Field(description="What the register calls the look-up.", examples=["WAPIAAAAX"])] = ""
    result: Annotated[
        CheckResult | None,
        Field(
            strict=False,
            description="What the register said where Tollway looked it up: `valid`, `invalid`, or `unconfirmed` where it could not say."
            " Null where an operator states that the number is valid.",
            examples=["valid"],
        ),
    ] = None
    reason: Annotated[OptionalText | None, Field(description="Why the register could not say.", examples=["MS_UNAVAILABLE"])] = None
    name: Annotated[OptionalText | None, Field(description="The name in the register.", examples=["CUSTOMER AG"])] = None
    address: Annotated[OptionalText | None, Field(description="The address in the register.", examples=["RUE 3, 75001 PARIS"])] = None

    def value(self) -> VatCheck:
        """Return it for the operation."""
        stated = {name: value for name, value in self.model_dump().items() if value is not None}
        return VatCheck(**stated | {"checked_at": self.checked_at * 1_000_000})


SeriesText = Annotated[str, Field(max_length=20, description="Prefix of the numbers, which have no gaps.", examples=["RE-2026"])]
Vat = Annotated[Number, Field(description="VAT identification number; empty for none.", examples=["DE136695976"])]


AccountNumber = Annotated[int, Field(ge=1, le=999_999_999)]


class BookkeepingBody(In):
    """Numbers of the seller's accounting program, for what is exported to it (DATEV)."""

    consultant: Annotated[int, Field(ge=1001, le=9_999_999, description="Number of the tax adviser.", examples=[29098])]
    client: Annotated[int, Field(ge=1, le=99_999, description="Number of the seller there.", examples=[55003])]
    fiscal_year_month: Annotated[int, Field(ge=1, le=12, description="Month in which the fiscal year begins.", examples=[1])] = 1
    account_digits: Annotated[int, Field(ge=4, le=8, description="Length of the numbers of accounts.", examples=[4])] = 4
    debtor_account: Annotated[AccountNumber, Field(description="Account of buyers that have none of their own.", examples=[10000])]
    revenue_accounts: Annotated[
        dict[str, AccountNumber],
        Field(
            max_length=40,
            description="Accounts of revenue, which compute the tax, by tax: `S`, `AE`, `O`, or `S:FR` for that of another state.",
            examples=[{"S": 8400, "AE": 8336, "O": 8338}],
        ),
    ]

    def value(self) -> Bookkeeping:
        """Return it for the operation."""
        return Bookkeeping(**self.model_dump())


Date = Annotated[str, Field(max_length=10)]


class MandateBody(In):
    """A recurrent SEPA mandate, by which the invoices of an organization are collected."""

    reference: Annotated[
        str, Field(min_length=1, max_length=REFERENCE_MAX, description="What the seller calls it by.", examples=["M-0007"])
    ]
    signed_on: Annotated[Date, Field(description="Day on which it was signed.", examples=["2026-10-01"])]
    iban: Annotated[Number, Field(description="IBAN of the debtor, with or without spaces.", examples=["DE02120300000000202051"])]
    bic: Annotated[Number, Field(description="BIC; empty where it is not needed.", examples=["BYLADEM1001"])] = ""
    holder: Annotated[OptionalText, Field(description="Holder of the account; empty: the buyer.", examples=["Customer AG"])] = ""
    scheme: Annotated[MandateScheme, Field(strict=False, description="`CORE`, or `B2B` between businesses.", examples=["CORE"])] = (
        MandateScheme.CORE
    )
    notice_days: Annotated[
        int, Field(ge=1, le=PAYMENT_DAYS_MAX, description="Days from an invoice to its collection that were agreed on.", examples=[14])
    ] = NOTICE_DAYS
    revoked_on: Annotated[Date, Field(description="Day on which it was revoked; empty while it is in force.", examples=[""])] = ""

    def value(self) -> Mandate:
        """Return it for the operation."""
        return Mandate(**self.model_dump())


class LegalEntityWrite(In):
    """A seller."""

    name: Annotated[Name, Field(description="Name as registered.", examples=["Example GmbH"])]
    address: Annotated[AddressBody, Field(description="Where it is established, in the European Union.")]
    vat_id: Vat = ""
    tax_number: Annotated[OptionalText, Field(description="Tax number of its tax office; empty for none.", examples=["12/345/67890"])] = ""
    registration: Annotated[OptionalText, Field(description="Legal registration; empty for none.", examples=["HRB 12345 B"])] = ""
    contact: Annotated[ContactBody, Field(description="Whom customers ask; all three are needed.")]
    electronic_address: Annotated[ElectronicAddressBody, Field(description="Its address for electronic invoices.")]
    bank_account: Annotated[BankAccountBody, Field(description="Its bank account, which documents name.")]
    invoice_series: SeriesText
    credit_note_series: SeriesText
    time_zone: Annotated[TimeZone, Field(description="Time zone in which the day of issue is told.", examples=["Europe/Berlin"])] = "UTC"
    grace_days: Annotated[
        int | None,
        Field(
            ge=0,
            le=GRACE_DAYS_MAX,
            description="Days after which a draft is issued without an approval; null: an operator issues each.",
            examples=[5],
        ),
    ] = None
    dunning: Annotated[
        tuple[DunningStepBody, ...],
        Field(
            strict=False,
            max_length=DUNNING_STEPS_MAX,
            description="What is done when an invoice is not paid, in order.",
            examples=[[]],
        ),
    ] = ()
    bookkeeping: Annotated[BookkeepingBody | None, Field(description="For exports to DATEV; null for none.")] = None
    creditor_id: Annotated[
        Number, Field(description="Creditor identifier for SEPA direct debits; empty for none.", examples=["DE98ZZZ09999999999"])
    ] = ""

    def value(self, id: str, now: int) -> LegalEntity:
        """Return it for the operation."""
        return LegalEntity(
            id=id,
            name=self.name,
            address=self.address.value(),
            vat_id=self.vat_id,
            tax_number=self.tax_number,
            registration=self.registration,
            contact=self.contact.value(),
            electronic_address=self.electronic_address.value(),
            bank_account=self.bank_account.value(),
            invoice_series=self.invoice_series,
            credit_note_series=self.credit_note_series,
            time_zone=self.time_zone,
            grace_days=self.grace_days,
            dunning=tuple(DunningStep(**each.model_dump()) for each in self.dunning),
            bookkeeping=None if self.bookkeeping is None else self.bookkeeping.value(),
            creditor_id=self.creditor_id,
            created_at=now,
        )


class LegalEntityOut(Identified, LegalEntityWrite):
    """A seller."""

    object: Literal["platform.legal_entity"] = "platform.legal_entity"


class BillingAccountWrite(In):
    """Billing account of an organization: by whom and where it is invoiced."""

    legal_entity_id: Annotated[str, Field(max_length=64, description="The seller.", examples=["entity_0"])]
    name: Annotated[Name, Field(description="Name of the buyer.", examples=["Customer AG"])]
    address: Annotated[AddressBody, Field(description="Address of the buyer, by which the tax is decided.")]
    is_business: Annotated[bool, Field(description="Whether it buys as a business; otherwise as a consumer.", examples=[True])] = True
    vat_id: Vat = ""
    vat_check: Annotated[VatCheckBody | None, Field(description="Evidence for reverse charge; null for none.", examples=[None])] = None
    contact: Annotated[ContactBody, Field(description="Whom the invoice is for.")] = ContactBody()
    electronic_address: Annotated[ElectronicAddressBody, Field(description="Where it receives electronic invoices.")]
    language: Annotated[Language, Field(strict=False, description="Language of its documents.", examples=["de"])] = Language.ENGLISH
    payment_days: Annotated[int, Field(ge=0, le=PAYMENT_DAYS_MAX, description="Days from issue to due date.", examples=[14])] = 14
    buyer_reference: Annotated[
        OptionalText,
        Field(description="Reference of the buyer (BT-10), such as a Leitweg-ID; empty: the organization's id.", examples=[""]),
    ] = ""
    purchase_order: Annotated[OptionalText, Field(description="Purchase order (BT-13); empty for none.", examples=["PO-77"])] = ""
    cost_centre: Annotated[OptionalText, Field(description="Cost centre of the buyer (BT-19); empty for none.", examples=["4711"])] = ""
    connector: Annotated[
        Connector,
        Field(strict=False, description="What collects its invoices: `stripe`; `none`: it pays by bank transfer.", examples=["none"]),
    ] = Connector.NONE
    connector_customer: Annotated[
        OptionalText, Field(description="By which the connector knows it: an id of Stripe (cus_...); empty for none.", examples=[""])
    ] = ""
    debtor_account: Annotated[
        AccountNumber | None,
        Field(description="Its number in the seller's accounting program; null: that of buyers without one.", examples=[10007]),
    ] = None
    mandate: Annotated[
        MandateBody | None, Field(description="By which its invoices are collected; null: it pays them itself.", examples=[None])
    ] = None

    def value(self, organization_id: str) -> BillingAccount:
        """Return it for the operation."""
        return BillingAccount(
            organization_id=organization_id,
            legal_entity_id=self.legal_entity_id,
            name=self.name,
            address=self.address.value(),
            is_business=self.is_business,
            vat_id=self.vat_id,
            vat_check=None if self.vat_check is None else self.vat_check.value(),
            contact=self.contact.value(),
            electronic_address=self.electronic_address.value(),
            language=self.language,
            payment_days=self.payment_days,
            buyer_reference=self.buyer_reference,
            purchase_order=self.purchase_order,
            cost_centre=self.cost_centre,
            connector=self.connector,
            connector_customer=self.connector_customer,
            debtor_account=self.debtor_account,
            mandate=None if self.mandate is None else self.mandate.value(),
        )


class BillingAccountOut(Out):
    """Billing account of an organization: by whom and where it is invoiced."""

    object: Literal["platform.billing_account"] = "platform.billing_account"
    organization_id: str
    account: Annotated[BillingAccountWrite, Field(description="Its fields, as they are written.")]


def entity_out(entity: LegalEntity) -> LegalEntityOut:
    """Return a legal entity as the API shows it."""
    fields = msgspec.to_builtins(entity)
    del fields["created_at"], fields["automatic_since"]
    return LegalEntityOut.model_validate(fields, strict=False)


def account_out(account: BillingAccount) -> BillingAccountOut:
    """Return a billing account as the API shows it."""
    fields = msgspec.to_builtins(account)
    organization_id = fields.pop("organization_id")
    if account.vat_check is not None:
        fields["vat_check"]["checked_at"] = find_seconds(account.vat_check.checked_at)
    return BillingAccountOut(organization_id=organization_id, account=BillingAccountWrite.model_validate(fields, strict=False))
