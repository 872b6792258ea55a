"""Legal entities that sell and billing accounts of organizations: what is checked before they are stored.

Check digits of VAT ids and IBANs are computed offline, by python-stdnum. Whether a VAT id is in force is known to the register of its
country alone; the evidence of such a look-up is part of the billing account.
"""

import msgspec
from stdnum import iban
from stdnum.eu import vat
from stdnum.exceptions import ValidationError

from tollway.control.invoicing.pdf import find_unshown
from tollway.domain.billing_parties import BillingAccount, LegalEntity, PartyProblem, find_account_problem, find_entity_problem
from tollway.domain.faults import PARAMETER_INVALID, RESOURCE_UNKNOWN, Fault
from tollway.domain.pages import Page, PageWindow
from tollway.domain.periods import find_zone
from tollway.domain.tax import is_in_union
from tollway.storage import billing_parties as stored
from tollway.storage import prices as stored_prices
from tollway.storage.database import PlatformTx, Transaction

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
    try:
        iban.validate(entity.bank_account.iban)
    except ValidationError:
        refuse(PartyProblem("bank_account", "its IBAN has wrong check digits, or not the length of its country"))
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
    stored.put_account(tx, account, now)
    return account


def get_account(tx: Transaction, organization_id: str) -> BillingAccount:
    """Return the billing account of an organization. Raises RESOURCE_UNKNOWN where it has none."""
    account = stored.find_account(tx, organization_id)
    if account is None:
        raise Fault(RESOURCE_UNKNOWN, message="The organization has no billing account.")
    return account


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
