"""Forms of sellers and billing accounts: their fields, and the objects of the REST API that they become."""

from collections.abc import Mapping, Sequence

from tollway.control.console.forms import Form, nest, split_list
from tollway.domain.faults import PARAMETER_INVALID, Fault

PARTY_FIELDS: Sequence[str] = (
    *("name", "address_street", "address_postal_code", "address_city", "address_country", "vat_id"),
    *("contact_name", "contact_phone", "contact_email", "electronic_address_scheme", "electronic_address_address"),
)
"""Fields that sellers and buyers share."""


def read_party(fields: Form) -> dict[str, object]:
    """Return what the fields of PARTY_FIELDS say, as the REST API takes it."""
    return {
        "name": fields["name"],
        "vat_id": fields["vat_id"],
        "address": nest(fields, "address"),
        "contact": nest(fields, "contact"),
        "electronic_address": nest(fields, "electronic_address"),
    }


def read_dunning(text: str) -> list[dict[str, str]]:
    """Return steps of dunning, one a line: days, action, channel. Raises PARAMETER_INVALID."""
    steps = []
    for line in text.splitlines():
        words = line.split()
        if words:
            if len(words) != len(DUNNING_FIELDS):
                raise Fault(PARAMETER_INVALID, param="dunning", message="A step of dunning is three words, such as: 14 remind mail.")
            steps.append(dict(zip(DUNNING_FIELDS, words, strict=True)))
    return steps


DUNNING_FIELDS = ("after_days", "action", "channel")


def read_accounts(text: str) -> Mapping[str, str]:
    """Return the accounts of revenue by tax, one a line or between commas, such as `S = 8400`. Raises PARAMETER_INVALID."""
    accounts: dict[str, str] = {}
    for entry in split_list(text):
        tax, separator, account = entry.partition("=")
        if not separator or tax.strip() in accounts:
            raise Fault(PARAMETER_INVALID, param="revenue_accounts", message="An account of revenue is a tax and a number: S = 8400.")
        accounts[tax.strip()] = account.strip()
    return accounts
