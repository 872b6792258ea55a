"""Rules of the Single Euro Payments Area that direct debits and credit transfers share: accounts, references and the texts of files.

Source: the rulebooks of the European Payments Council and its implementation guidelines for customers and banks.
"""

import re
import unicodedata

from tollway.domain.tax import is_in_union

CURRENCY = "EUR"
"""The currency of SEPA."""

REFERENCE_MAX = 35
"""Characters of a reference in a file."""

AMOUNT_MINOR_MAX = 99_999_999_999
"""Largest amount of one debit or transfer, in cents: eleven digits."""

_REFERENCE = re.compile(r"(?!/)(?!.*//)[A-Za-z0-9/?:().,'+ -]{1,35}(?<![/ ])")
_BIC = re.compile(r"[A-Z]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?")
_OTHER = re.compile(r"[^A-Za-z0-9/?:().,'+ -]")
_SPELLED = str.maketrans(
    {
        "ä": "ae",
        "ö": "oe",
        "ü": "ue",
        "Ä": "Ae",
        "Ö": "Oe",
        "Ü": "Ue",
        "ß": "ss",
        "æ": "ae",
        "Æ": "Ae",
        "ø": "o",
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "&": "+",
        "œ": "oe",
        "Œ": "Oe",
        "đ": "d",
        "Đ": "D",
    }
)
_OTHER_COUNTRIES = frozenset({"IS", "LI", "NO"})
"""Countries of the European Economic Area that are not in the Union."""


def is_reference(text: str) -> bool:
    """Return whether a text can be a reference in a file: 1 to 35 characters of its character set, no stroke at an end and no two of them
    together."""
    return _REFERENCE.fullmatch(text) is not None


def find_account_problem(iban: str, bic: str) -> str | None:
    """Return what is wrong with an account, check digits of its IBAN aside; None if nothing is. `bic`: empty where it is not needed.

    Other countries of SEPA than those of the European Economic Area want the address of the debtor, which files do not have.
    """
    if not (is_in_union(iban[:2]) or iban[:2] in _OTHER_COUNTRIES):
        return "the account must be in the European Economic Area"
    if bic and not _BIC.fullmatch(bic):
        return "a BIC has eight or eleven letters and digits"
    return None


def write_text(text: str, length: int) -> str:
    """Return a text in the character set of files, which is Latin without accents, cut to a length. What cannot be written is a point."""
    plain = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(each for each in plain if not unicodedata.combining(each))
    return _OTHER.sub(".", plain)[:length].strip(" /")
