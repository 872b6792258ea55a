"""SEPA direct debits: mandates of debtors, and what is collected by them.

A debtor signs a mandate for a creditor; the creditor then has its bank collect amounts that it has announced. A file asks the bank for
many of them (pain.008). An invoice is in one file at a time: until the money has come, the bank has returned it, or the file is cancelled.
Rules and names are those of the SEPA Direct Debit rulebooks of the European Payments Council, and of its implementation guidelines.
"""

import re
from datetime import date
from enum import StrEnum

import msgspec

from tollway.domain.periods import is_day
from tollway.domain.sepa import find_account_problem, is_reference

NOTICE_DAYS = 14
"""Days from the announcement of a debit to its collection, where creditor and debtor have not agreed on fewer."""

UNUSED_MONTHS = 36
"""Months after which a mandate ends by which nothing was collected."""

_CREDITOR_ID = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{3}[A-Z0-9]{1,28}")


class MandateScheme(StrEnum):
    """Scheme of a mandate: CORE for everyone; B2B for businesses, whose bank has confirmed the mandate and returns nothing on demand."""

    CORE = "CORE"
    B2B = "B2B"


class SequenceType(StrEnum):
    """Place of a debit among those of its mandate."""

    FIRST = "FRST"
    RECURRENT = "RCUR"


class DebitOutcome(StrEnum):
    """Outcome of a debit. Of one that is `open`, the bank has reported nothing yet."""

    OPEN = "open"
    PAID = "paid"
    RETURNED = "returned"
    CANCELLED = "cancelled"  # with its file, which was not sent to the bank


class Mandate(msgspec.Struct, frozen=True, kw_only=True):
    """Recurrent mandate of a billing account. `reference`: as the creditor calls it. `signed_on`, `revoked_on`: YYYY-MM-DD; the latter
    empty while it is in force. `holder`: of the debtor's account; empty: the buyer. `notice_days`: from an invoice to its collection."""

    reference: str
    signed_on: str
    iban: str
    bic: str = ""
    holder: str = ""
    scheme: MandateScheme = MandateScheme.CORE
    notice_days: int = NOTICE_DAYS
    revoked_on: str = ""


class DirectDebit(msgspec.Struct, frozen=True, kw_only=True):
    """Announcement of a collection on an invoice (BG-19): by which mandate (BT-89), creditor (BT-90) and from which account (BT-91)."""

    mandate_reference: str
    creditor_id: str
    iban: str


def has_right_creditor_form(creditor_id: str) -> bool:
    """Return whether a creditor identifier has the form and the check digits of the rulebook (AT-02): country, two digits, three
    characters of the creditor's own, and the national identifier. The own characters are not counted by the check digits (ISO 7064,
    modulo 97)."""
    if not _CREDITOR_ID.fullmatch(creditor_id):
        return False
    digits = "".join(str(int(each, 36)) for each in creditor_id[7:] + creditor_id[:4])
    return int(digits) % 97 == 1


def find_mandate_problem(mandate: Mandate, payment_days: int, is_business: bool) -> str | None:
    """Return what is wrong with a mandate, check digits of its IBAN aside; None if nothing is."""
    if not is_reference(mandate.reference) or " " in mandate.reference:
        return "its reference has 1 to 35 letters, digits and characters of /-?:().,'+, without // and without / at an end"
    if not is_day(mandate.signed_on) or (mandate.revoked_on and not is_day(mandate.revoked_on)):
        return "the days on which it was signed and revoked are written like 2026-12-01"
    reason = find_account_problem(mandate.iban, mandate.bic)
    if reason is not None:
        return reason
    if mandate.scheme is MandateScheme.B2B and not is_business:
        return "a consumer cannot sign a mandate of the scheme B2B"
    if not 1 <= mandate.notice_days <= payment_days:
        return f"`notice_days` is at least 1 and at most `payment_days` ({payment_days}): an invoice announces its debit for its due date"
    return None


def find_last_day(last_used_on: str) -> str:
    """Return the last day on which a mandate can be used that was signed, or used last, on a day (YYYY-MM-DD)."""
    used = date.fromisoformat(last_used_on)
    return f"{used.year + UNUSED_MONTHS // 12:04d}{last_used_on[4:]}"


class Debit(msgspec.Struct, frozen=True, kw_only=True):
    """A debit of a file: what was open of an invoice, by a mandate. `end_to_end_id`: the number of the invoice, by which the bank tells
    what became of it. `debtor`: holder of the account. `payment_id`: of the payment that came. `reason`: for which the bank returned it."""

    file_id: str
    invoice_id: str
    organization_id: str
    amount_minor: int
    end_to_end_id: str
    debtor: str
    sequence: SequenceType
    mandate: Mandate
    outcome: DebitOutcome = DebitOutcome.OPEN
    payment_id: str | None = None
    reason: str = ""


class DebitFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file for the bank of a seller. `collect_on`: the day of collection (YYYY-MM-DD). `content`: the XML."""

    id: str
    legal_entity_id: str
    collect_on: str
    debits: int
    total_minor: int
    content: str
    actor: str
    created_at: int


RETURN_REASONS = {
    "AC01": "the account does not exist",
    "AC04": "the account is closed",
    "AC06": "the account is blocked",
    "AC13": "the account is that of a consumer",
    "AG01": "the account takes no direct debits",
    "AM04": "the account is not covered",
    "MD01": "there is no mandate",
    "MD06": "the debtor has disputed it",
    "MD07": "the debtor has died",
    "MS02": "refused by the debtor",
    "MS03": "no reason is given",
    "RR04": "regulatory reason",
    "SL01": "the debtor's bank takes no debits of this creditor",
}
"""Reasons for which a bank returns a debit (ISO 20022, external code set of return reasons), in words."""


def describe_reason(code: str, text: str) -> str:
    """Return the reason of a return as it is shown: the code of the bank, with words for it, and what the bank has added."""
    words = RETURN_REASONS.get(code, "")
    return ": ".join(each for each in (code, words, text) if each)
