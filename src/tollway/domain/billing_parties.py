"""The parties of an invoice: the legal entity that sells, and the billing account of the organization that buys.

An issued invoice holds a copy of both, so a later change of either changes no invoice. docs/invoices.md explains the fields.
"""

import re
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tollway.domain.connectors import Connector
from tollway.domain.countries import COUNTRIES, MISTAKEN_COUNTRIES
from tollway.domain.direct_debits import Mandate, find_mandate_problem, has_right_creditor_form
from tollway.domain.tax import VatCheck, is_in_union, name_vat_prefix

GRACE_DAYS_MAX = 60
"""Longest time for which a draft waits before it is issued without an approval."""

PAYMENT_DAYS_MAX = 365
"""Longest term of payment."""

DUNNING_STEPS_MAX = 10

PARTY_TEXT_MAX = 200
"""Longest field of a party, in characters."""

_SERIES = re.compile(r"[A-Z0-9][A-Z0-9./-]{0,19}")
_STRIPE_CUSTOMER = re.compile(r"cus_[0-9A-Za-z]{1,59}")
_SCHEME = re.compile(r"[0-9A-Z]{2,4}")
_TAX_NAME = re.compile(r"S|AE|O|S:[A-Z]{2}")
_VAT_ID = re.compile(r"[A-Z]{2}[0-9A-Z]{2,13}")


class Language(StrEnum):
    """Language of an invoice as it is read by people."""

    GERMAN = "de"
    ENGLISH = "en"


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A postal address. `country`: ISO 3166-1 alpha-2."""

    street: str
    postal_code: str
    city: str
    country: str


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """The person or department to ask about an invoice."""

    name: str = ""
    phone: str = ""
    email: str = ""


class ElectronicAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Address at which a party receives electronic invoices (BT-34, BT-49). `scheme`: of the code list EAS; `EM` for an address of
    e-mail."""

    scheme: str
    address: str


class BankAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The account that invoices are paid to. `bic`: empty where it is not needed."""

    holder: str
    iban: str
    bic: str = ""


class DunningAction(StrEnum):
    """Action at a step of dunning."""

    REMIND = "remind"  # a reminder is recorded
    RESTRICT = "restrict"  # further requests are refused until the invoice is paid


class DunningChannel(StrEnum):
    """Way in which the customer is notified of a step of dunning."""

    NONE = "none"  # by a person
    MAIL = "mail"  # to the contact of the billing account


class DunningStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of dunning: what is done so many days after the due date of an invoice that is not paid."""

    after_days: int
    action: DunningAction
    channel: DunningChannel = DunningChannel.NONE


class Bookkeeping(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of the accounting program of a seller, for what is exported to it (DATEV).

    `consultant`, `client`: numbers of the tax adviser and of the seller there. `fiscal_year_month`: in which its fiscal year begins.
    `account_digits`: length of the numbers of its accounts. `debtor_account`: of buyers that have none of their own. `revenue_accounts`:
    the account of revenue by tax: a category (`S`, `AE`, `O`), or `S:FR` for the tax of another state.
    """

    consultant: int
    client: int
    fiscal_year_month: int
    account_digits: int
    debtor_account: int
    revenue_accounts: dict[str, int]


class LegalEntity(msgspec.Struct, frozen=True, kw_only=True):
    """A seller. Its invoices are numbered in `invoice_series`, its credit notes in `credit_note_series`, each without gaps.

    `grace_days`: a draft is issued without an approval so many days after it was made; None: an operator issues each. `registration`: what
    the law wants on business letters, such as the commercial register. `time_zone`: in which the day of issue is told. `automatic_since`:
    when it got its grace period, in UTC microseconds; periods that had ended by then are drafted by an operator alone. `bookkeeping`: None
    where nothing is exported to an accounting program. `creditor_id`: by which it collects direct debits; empty where it collects none.
    """

    id: str
    name: str
    address: Address
    vat_id: str
    tax_number: str
    registration: str
    contact: Contact
    electronic_address: ElectronicAddress
    bank_account: BankAccount
    invoice_series: str
    credit_note_series: str
    time_zone: str
    grace_days: int | None
    dunning: tuple[DunningStep, ...] = ()
    created_at: int
    automatic_since: int = 0
    bookkeeping: Bookkeeping | None = None
    creditor_id: str = ""


class BillingAccount(msgspec.Struct, frozen=True, kw_only=True):
    """Billing account of an organization, which is invoiced by the legal entity `legal_entity_id`. `is_business`: it buys as a business,
    not as a consumer.

    `vat_check`: evidence about `vat_id`. `buyer_reference`: what the buyer wants to find the invoice by (BT-10; of authorities in Germany
    the Leitweg-ID). `purchase_order`: BT-13. `cost_centre`: BT-19. `payment_days`: from the issue to the due date.
    `debtor_account`: its number in the seller's accounting program; None for the one of buyers without a number.
    `mandate`: by which its invoices are collected; None where it pays them itself.
    """

    organization_id: str
    legal_entity_id: str
    name: str
    address: Address
    is_business: bool
    vat_id: str
    vat_check: VatCheck | None
    contact: Contact
    electronic_address: ElectronicAddress
    language: Language
    payment_days: int
    buyer_reference: str
    purchase_order: str
    cost_centre: str
    connector: Connector = Connector.NONE
    connector_customer: str = ""
    debtor_account: int | None = None
    mandate: Mandate | None = None


class PartyProblem(NamedTuple):
    """A field of a party that cannot be used, and the reason as a clause."""

    field: str
    reason: str


def find_entity_problem(entity: LegalEntity) -> PartyProblem | None:
    """Return what is wrong with a legal entity, check digits aside; None if nothing is."""
    problem = _find_common_problem(entity.name, entity.address, entity.electronic_address)
    if problem is not None:
        return problem
    if not is_in_union(entity.address.country):
        return PartyProblem("address", "a seller must be established in a member state of the European Union")
    if not entity.vat_id and not entity.tax_number:
        return PartyProblem("vat_id", "a seller needs a VAT id or a tax number")
    if entity.vat_id and not _is_vat_id_of(entity.vat_id, entity.address.country):
        return PartyProblem("vat_id", f"it must begin with {name_vat_prefix(entity.address.country)}")
    for field, series in (("invoice_series", entity.invoice_series), ("credit_note_series", entity.credit_note_series)):
        if not _SERIES.fullmatch(series):
            return PartyProblem(field, "1 to 20 capital letters, digits, points, strokes and hyphens")
    if entity.grace_days is not None and not 0 <= entity.grace_days <= GRACE_DAYS_MAX:
        return PartyProblem("grace_days", f"it must be from 0 to {GRACE_DAYS_MAX}")
    if not all((entity.contact.name, entity.contact.phone, entity.contact.email)):
        return PartyProblem("contact", "a seller needs a name, a telephone number and an address of e-mail (BR-DE-5 to BR-DE-7)")
    days = [step.after_days for step in entity.dunning]
    if len(days) > DUNNING_STEPS_MAX or days != sorted(set(days)) or (days and not 1 <= days[0] <= days[-1] <= 365):
        return PartyProblem("dunning", f"at most {DUNNING_STEPS_MAX} steps, each later than the one before, from 1 to 365 days")
    if any(step.action is DunningAction.RESTRICT for step in entity.dunning[:-1]):
        return PartyProblem("dunning", "only the last step can restrict")
    if entity.creditor_id and not has_right_creditor_form(entity.creditor_id):
        return PartyProblem("creditor_id", "its form or its check digits are wrong")
    return None if entity.bookkeeping is None else _find_bookkeeping_problem(entity.bookkeeping)


def _find_bookkeeping_problem(bookkeeping: Bookkeeping) -> PartyProblem | None:
    accounts = [bookkeeping.debtor_account, *bookkeeping.revenue_accounts.values()]
    if not 4 <= bookkeeping.account_digits <= 8 or not 1 <= bookkeeping.fiscal_year_month <= 12:
        return PartyProblem("bookkeeping", "accounts have from 4 to 8 digits, and a fiscal year begins in a month from 1 to 12")
    if not 1001 <= bookkeeping.consultant <= 9_999_999 or not 1 <= bookkeeping.client <= 99_999:
        return PartyProblem("bookkeeping", "the consultant is a number from 1001 to 9999999, the client from 1 to 99999")
    if not all(0 < each < 10 ** (bookkeeping.account_digits + 1) for each in accounts):
        return PartyProblem("bookkeeping", "an account is above zero and has at most one digit more than `account_digits`")
    unknown = sorted(name for name in bookkeeping.revenue_accounts if not _TAX_NAME.fullmatch(name))
    if unknown:
        return PartyProblem("bookkeeping", f"{unknown[0]!r} is no tax: S, AE, O, or S: and a country, such as S:FR")
    return None


def find_account_problem(account: BillingAccount) -> PartyProblem | None:
    """Return what is wrong with a billing account, check digits aside; None if nothing is."""
    problem = _find_common_problem(account.name, account.address, account.electronic_address)
    if problem is not None:
        return problem
    if account.vat_id and not account.is_business:
        return PartyProblem("vat_id", "a consumer has none")
    if account.vat_id and is_in_union(account.address.country) and not _is_vat_id_of(account.vat_id, account.address.country):
        return PartyProblem("vat_id", f"it must begin with {name_vat_prefix(account.address.country)}")
    if account.vat_check is not None and account.vat_check.vat_id != account.vat_id:
        return PartyProblem("vat_check", "it must be about the VAT id of the account")
    if not 0 <= account.payment_days <= PAYMENT_DAYS_MAX:
        return PartyProblem("payment_days", f"it must be from 0 to {PAYMENT_DAYS_MAX}")
    if account.connector is Connector.STRIPE and not _STRIPE_CUSTOMER.fullmatch(account.connector_customer):
        return PartyProblem("connector_customer", "Stripe knows its customers by an id such as cus_NffrFeUfNV2Hib")
    if account.connector is Connector.NONE and account.connector_customer:
        return PartyProblem("connector_customer", "an account without a connector has none")
    if account.debtor_account is not None and not 0 < account.debtor_account < 10**9:
        return PartyProblem("debtor_account", "it must be a number of at most nine digits, above zero")
    if account.mandate is None:
        return None
    if account.connector is not Connector.NONE:
        return PartyProblem("mandate", "a connector collects the invoices of the account already")
    reason = find_mandate_problem(account.mandate, account.payment_days, account.is_business)
    return None if reason is None else PartyProblem("mandate", reason)


def _find_common_problem(name: str, address: Address, electronic: ElectronicAddress) -> PartyProblem | None:
    if not name.strip():
        return PartyProblem("name", "it must not be empty")
    if not all((address.street.strip(), address.postal_code.strip(), address.city.strip())):
        return PartyProblem("address", "street, postal code and city must not be empty")
    if address.country not in COUNTRIES:
        right = MISTAKEN_COUNTRIES.get(address.country, "DE")
        return PartyProblem("address", f"the country must be a code of two capital letters of ISO 3166-1, such as {right}")
    if not _SCHEME.fullmatch(electronic.scheme) or not electronic.address.strip():
        return PartyProblem("electronic_address", "it needs a scheme of the code list EAS, such as EM, and an address")
    return None


def _is_vat_id_of(vat_id: str, country: str) -> bool:
    return _VAT_ID.fullmatch(vat_id) is not None and vat_id.startswith(name_vat_prefix(country))
