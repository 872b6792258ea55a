"""Legal entities that sell and billing accounts of organizations: what is checked before they are stored.

Check digits of VAT ids and IBANs are computed offline, by python-stdnum. Whether a VAT id is in force is known to the register of its
country alone; the evidence of such a look-up is part of the billing account.
"""

from datetime import UTC

import msgspec
from stdnum import iban
from stdnum.eu import vat
from stdnum.exceptions import ValidationError

from tollway.control.invoicing.pdf import find_unshown
from tollway.domain.billing_parties import BillingAccount, LegalEntity, PartyProblem, find_account_problem, find_entity_problem
from tollway.domain.direct_debits import Mandate
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.invoices import day_of
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import find_zone
from tollway.domain.tax import is_in_union
from tollway.storage import billing_parties as stored
from tollway.storage import direct_debits as stored_debits
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx, Transaction

DAY_AHEAD_US = 86_400_000_000
"""A day: where a debtor signs, it may be the next one already."""

UNKNOWN_ENTITY = "There is no such legal entity."


def normalize_number(text: str) -> str:
    """Return a VAT id or IBAN as it is stored: without spaces and separators, in capital letters."""
    return "".join(each for each in text.upper() if each.isalnum())


def has_right_check_digits(vat_id: str) -> bool:
    """Return whether a VAT id of a member state has the form and the check digits of its country."""
    try:
        vat.validate(vat_id)
    except ValidationError:
        return False
    return True


def put_entity(tx: PlatformTx, entity: LegalEntity, now: int) -> LegalEntity:
    """Store a legal entity, new or changed. Issued invoices keep what they say of it. `automatic_since` is taken from what is stored.
    Raises PARAMETER_INVALID."""
    refuse(find_entity_problem(entity))
    _check_shown(entity)
    _check_vat_id(entity.vat_id, entity.address.country)
    if find_zone(entity.time_zone) is None:
        refuse(PartyProblem("time_zone", "no time zone is called so (IANA names, such as Europe/Berlin)"))
    check_iban("bank_account", entity.bank_account.iban)
    before = stored.find_entity(tx, entity.id)
    since = now if before is None or before.grace_days is None else before.automatic_since
    entity = msgspec.structs.replace(entity, automatic_since=since)
    stored.put_entity(tx, entity)
    return entity


def get_entity(tx: Transaction, entity_id: str) -> LegalEntity:
    """Return a legal entity. Raises RESOURCE_UNKNOWN."""
    entity = stored.find_entity(tx, entity_id)
    if entity is None:
        raise Fault(RESOURCE_UNKNOWN, message=UNKNOWN_ENTITY)
    return entity


def list_entities(tx: PlatformTx, window: PageWindow) -> Page[LegalEntity]:
    """Return legal entities in the order in which they were made."""
    return stored.list_entities(tx, window)


def put_account(tx: PlatformTx, account: BillingAccount, now: int) -> BillingAccount:
    """Store the billing account of an organization, new or changed. Raises RESOURCE_UNKNOWN, PARAMETER_INVALID."""
    if stored_prices.read_terms(tx, [account.organization_id]).get(account.organization_id) is None:
        raise Fault(RESOURCE_UNKNOWN)
    if stored.find_entity(tx, account.legal_entity_id) is None:
        raise Fault(PARAMETER_INVALID, param="legal_entity_id", message=UNKNOWN_ENTITY)
    refuse(find_account_problem(account))
    _check_shown(account)
    _check_vat_id(account.vat_id, account.address.country)
    if account.vat_check is not None and account.vat_check.checked_at > now:
        refuse(PartyProblem("vat_check", "it was made in the future"))
    if account.mandate is not None:
        stored.lock_entities(tx, [account.legal_entity_id])  # two accounts with one reference take turns
        _check_mandate(tx, account.mandate, account, now)
    stored.put_account(tx, account, now)
    return account


def get_account(tx: Transaction, organization_id: str) -> BillingAccount:
    """Return the billing account of an organization. Raises RESOURCE_UNKNOWN where it has none."""
    account = stored.find_account(tx, organization_id)
    if account is None:
        raise Fault(RESOURCE_UNKNOWN, message="The organization has no billing account: `tollway invoices set-account` gives it one.")
    return account


def check_iban(field: str, number: str) -> None:
    """Refuse an IBAN that cannot be. Raises PARAMETER_INVALID about `field`."""
    try:
        iban.validate(number)
    except ValidationError:
        refuse(PartyProblem(field, "its IBAN has wrong check digits, or not the length of its country"))


def _check_mandate(tx: PlatformTx, mandate: Mandate, account: BillingAccount, now: int) -> None:
    check_iban("mandate", mandate.iban)
    entity = get_entity(tx, account.legal_entity_id)
    if mandate.signed_on > day_of(now + DAY_AHEAD_US, find_zone(entity.time_zone) or UTC):
        refuse(PartyProblem("mandate", "it was signed in the future"))
    if not entity.creditor_id:
        refuse(PartyProblem("mandate", "the seller has no creditor identifier"))
    if stored.has_mandate(tx, account.legal_entity_id, mandate.reference, but_of=account.organization_id):
        refuse(PartyProblem("mandate", "its reference is that of the mandate of another organization"))
    used = stored_debits.find_used(tx, account.legal_entity_id, mandate.reference)
    if used is not None and (used.iban, used.signed_on, used.scheme) != (mandate.iban, mandate.signed_on, mandate.scheme):
        refuse(PartyProblem("mandate", "it was used before: another account, day or scheme needs a mandate with a reference of its own"))


def _check_vat_id(vat_id: str, country: str) -> None:
    if vat_id and is_in_union(country) and not has_right_check_digits(vat_id):
        refuse(PartyProblem("vat_id", "its check digits are wrong"))


def _check_shown(party: LegalEntity | BillingAccount) -> None:
    """Refuse text that the PDF of an invoice could not show."""
    for field, value in msgspec.to_builtins(party).items():
        refuse(find_text_problem(field, " ".join(_list_texts(value))))


def find_text_problem(field: str, text: str) -> PartyProblem | None:
    """Return what is wrong with a text that a document shows; None if nothing is."""
    unshown = find_unshown(text) if not text.isascii() else ""
    return PartyProblem(field, f"the font of the PDF has no {unshown!r}") if unshown else None


def _list_texts(value: object) -> list[str]:
    """Return every text of a field."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in _list_texts(each)]
    return [value] if isinstance(value, str) else []


def refuse(problem: PartyProblem | None) -> None:
    """Raise PARAMETER_INVALID for a problem, if there is one."""
    if problem is not None:
        raise Fault(PARAMETER_INVALID, param=problem.field, message=f"'{problem.field}' cannot be used: {problem.reason}.")
