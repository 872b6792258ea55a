"""Payments: what organizations have paid, which documents it settles, and how late payment is dunned.

A *source* has money to give: a payment, an amount that is written off, or an issued credit note. A *target* takes it: an issued invoice, a
refund, or a payment that the bank took back. A settlement moves a part of a source to a target of the same organization and currency.
What is left of a source is the organization's balance; what is open of an invoice is owed. Amounts are in the smallest unit of the
currency."""

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tollway.domain.billing_parties import DunningAction, DunningStep
from tollway.domain.invoices import format_number

AMOUNT_MINOR_MAX = 10**15 - 1
"""Highest amount of a payment, in the smallest unit of its currency: 64 bits hold the sum of nine thousand of them."""

_AMOUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]*))?")


def parse_minor(text: str, minor_units: int) -> int:
    """Return an amount, given as a decimal, in the smallest unit of a currency with so many decimals. Raises ValueError for anything else
    and above AMOUNT_MINOR_MAX."""
    match = _AMOUNT.fullmatch(text)
    fraction = (match[2] or "").rstrip("0") if match else ""
    if match is None or len(fraction) > minor_units:
        raise ValueError("it is no decimal that is whole in the smallest unit of the currency")
    minor = int(match[1] + fraction.ljust(minor_units, "0"))
    if minor > AMOUNT_MINOR_MAX:
        raise ValueError("it is above what is kept")
    return minor


class PaymentKind(StrEnum):
    """Kind of a movement of money, or of the decision that none will come."""

    PAYMENT = "payment"  # received
    REFUND = "refund"  # paid back
    RETURN = "return"  # taken back by the bank, such as a direct debit that was returned
    WRITE_OFF = "write_off"  # given up

    @property
    def is_source(self) -> bool:
        """Return whether it settles invoices; otherwise it takes from what was received."""
        return self in (PaymentKind.PAYMENT, PaymentKind.WRITE_OFF)


class OpenKind(StrEnum):
    """Kind of what something can be left of: an invoice that is open, or a credit note or a payment that no invoice took whole."""

    INVOICE = "invoice"
    CREDIT_NOTE = "credit_note"
    PAYMENT = "payment"  # what is given up too


class PaymentOrigin(StrEnum):
    """Source from which a payment is known."""

    MANUAL = "manual"
    BANK_STATEMENT = "bank_statement"
    STRIPE = "stripe"


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A movement of money. `amount_minor`: above zero. `value_on`: the day of the bank (YYYY-MM-DD). `external_id`: by which the same
    payment is known if it comes again; empty for none. `returns_id`: of a return, the payment that was taken back."""

    id: str
    organization_id: str
    kind: PaymentKind
    amount_minor: int
    currency: str
    value_on: str
    origin: PaymentOrigin
    reference: str
    external_id: str
    returns_id: str | None
    actor: str
    created_at: int


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a source that a target took; below zero it is taken back."""

    source_id: str
    target_id: str
    amount_minor: int


class BankStatementRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A bank statement that was imported. `name`: as the bank calls it. `digest`: SHA-256 of its content. `entries`: in the file.

    `credits`, `credits_minor`, `returns`: number and sum of the credits, and number of the returned debits, that no statement had before;
    None for statements of which only unmatched credits were stored. `opening_minor`, `closing_minor`, `closing_on` (YYYY-MM-DD): its booked
    balances, in the smallest unit; None where the bank does not state them. `others_minor`: sum of all other booked entries, so that the
    opening balance, the credits and these come to the closing balance. `follows_id`: the statement with whose closing balance it opens;
    None where that is not known."""

    id: str
    iban: str
    name: str
    digest: str
    entries: int
    actor: str
    imported_at: int
    credits: int | None
    credits_minor: int | None
    returns: int | None
    opening_minor: int | None
    closing_minor: int | None
    closing_on: str | None
    others_minor: int | None
    follows_id: str | None


class BankEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A credit of a bank statement. `payment_id`: the payment that was made of it; None while no invoice is found for it."""

    id: str
    statement_id: str
    amount_minor: int
    currency: str
    value_on: str
    debtor: str
    text: str
    payment_id: str | None = None


class ReturnedDebit(msgspec.Struct, frozen=True, kw_only=True):
    """A direct debit that came back, by a bank statement. `amount_minor`: of the debit; None where the bank does not separate it from
    charges. `end_to_end_id`: reference of the debit. `reason`: code and words of the bank. `payment_id`: of the return that was recorded;
    None while the payment that it takes back has not come."""

    id: str
    statement_id: str
    amount_minor: int | None
    value_on: str
    end_to_end_id: str
    reason: str
    payment_id: str | None = None


class OpenInvoice(NamedTuple):
    """An issued invoice that is not settled yet."""

    id: str
    open_minor: int


def allocate(left_minor: int, targets: Sequence[OpenInvoice]) -> list[tuple[str, int]]:
    """Return what each of these invoices gets of an amount, in their order; those that get nothing are left out."""
    given = []
    for target in targets:
        part = min(left_minor, target.open_minor)
        if part > 0:
            given.append((target.id, part))
            left_minor -= part
    return given


def match_in_order(sources: Sequence[tuple[str, int]], targets: Iterable[OpenInvoice]) -> Iterator[Settlement]:
    """Yield how sources, each an id with what is left of it, settle targets, both in their order: until the sources have nothing left or
    nothing is open."""
    at, left_minor = 0, sources[0][1] if sources else 0
    for target in targets if sources else ():
        open_minor = target.open_minor
        while open_minor:
            part = min(open_minor, left_minor)
            yield Settlement(source_id=sources[at][0], target_id=target.id, amount_minor=part)
            open_minor, left_minor = open_minor - part, left_minor - part
            if not left_minor:
                at += 1
                if at == len(sources):
                    return
                left_minor = sources[at][1]


def find_numbers(text: str, series: Iterable[str]) -> list[str]:
    """Return the numbers of documents that the text of a bank transfer names, in their order, of some series.

    Letters of any case are taken, and up to three other characters in place of each hyphen, as people type them: "re 2026 / 000042" names
    RE-2026-000042. A letter or a digit before the series or behind the number makes it another number, and so do digits that the series
    would not print: what is not surely meant is left to a person.
    """
    found: list[tuple[int, str]] = []
    for name in series:
        parts = re.findall(r"[^\W\d_]+|[0-9]+", name.upper())
        if not parts:
            continue
        pattern = _NOT_WITHIN + _BETWEEN.join(map(re.escape, parts)) + _BETWEEN + r"([0-9]{6,18})" + _NOT_FOLLOWED
        for match in re.finditer(pattern, text.upper()):
            number = format_number(name, int(match[1]))
            if number == f"{name}-{match[1]}":
                found.append((match.start(), number))
    return [number for _, number in sorted(found)]


_NOT_WITHIN, _BETWEEN, _NOT_FOLLOWED = r"(?<![^\W_])", r"[\W_]{0,3}", r"(?![^\W_])"


# ---- Dunning ------------------------------------------------------------------------------------------------------------


class DunningNotice(msgspec.Struct, frozen=True, kw_only=True):
    """A step of dunning that was taken for an invoice. `step`: its place among the steps of the seller, from 1."""

    invoice_id: str
    step: int
    action: DunningAction
    noticed_at: int


class DunningLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A letter about a step of dunning that is still to be sent. `attempts`: failed ones."""

    invoice_id: str
    step: int
    organization_id: str
    action: DunningAction
    attempts: int = 0


def find_due_step(steps: Sequence[DunningStep], taken: int, overdue_days: int) -> int | None:
    """Return the next step of dunning (from 1) of an invoice that has been due for so many days, of which `taken` steps were taken; None
    if there is none. Steps are taken one after the other, also where several became due at once."""
    if taken < len(steps) and overdue_days >= steps[taken].after_days:
        return taken + 1
    return None
