"""Letters of dunning by mail: to the contact of the billing account, in its language.

A letter that is to be sent is a row that the step of dunning leaves in its own transaction; it is removed once the mail server took it. So
none is lost, and one may come twice after a crash. A letter about an invoice that was paid or held meanwhile is not sent. A server that
cannot be reached is asked again by the next run of the job; after ATTEMPTS_MAX runs the letter is given up, and so is one that the server
refuses.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tollway.control.identity.mail import Mail, MailFailure, Message, MessageRefused
from tollway.control.invoicing import parties, payments
from tollway.domain.billing_parties import DunningAction, Language
from tollway.domain.currencies import get_currency
from tollway.domain.invoices import Document
from tollway.domain.money import format_minor
from tollway.domain.payments import DunningLetter
from tollway.storage import payments as stored
from tollway.storage.database import Database

ATTEMPTS_MAX = 24
"""Runs of the hourly job in which a letter is tried."""

LETTERS_PER_RUN = 200
"""Letters of one run: minutes, at the deadline of a mail server."""

TEXTS: Mapping[Language, Mapping[DunningAction, tuple[str, str]]] = {
    Language.GERMAN: {
        DunningAction.REMIND: (
            "Zahlungserinnerung zur Rechnung {number}",
            "die Rechnung {number} vom {issued_on} war am {due_on} fällig. Offen sind {open} {currency}.\n"
            "Bitte überweisen Sie den Betrag auf das Konto {iban} von {holder} und nennen Sie die Nummer der Rechnung.\n"
            "Falls Sie schon gezahlt haben, betrachten Sie diese Nachricht als erledigt.",
        ),
        DunningAction.RESTRICT: (
            "Letzte Mahnung zur Rechnung {number}",
            "die Rechnung {number} vom {issued_on} war am {due_on} fällig. Offen sind {open} {currency}.\n"
            "Weitere Anfragen werden abgelehnt, bis die Rechnung bezahlt ist.\n"
            "Bitte überweisen Sie den Betrag auf das Konto {iban} von {holder} und nennen Sie die Nummer der Rechnung.",
        ),
    },
    Language.ENGLISH: {
        DunningAction.REMIND: (
            "Payment reminder for invoice {number}",
            "invoice {number} of {issued_on} was due on {due_on}. {open} {currency} are open.\n"
            "Please transfer the amount to the account {iban} of {holder}, and name the number of the invoice.\n"
            "If you have paid already, please disregard this message.",
        ),
        DunningAction.RESTRICT: (
            "Final reminder for invoice {number}",
            "invoice {number} of {issued_on} was due on {due_on}. {open} {currency} are open.\n"
            "Further requests are refused until the invoice is paid.\n"
            "Please transfer the amount to the account {iban} of {holder}, and name the number of the invoice.",
        ),
    },
}
"""Subject and text of a letter, by language and action."""

GREETINGS = {Language.GERMAN: ("Guten Tag", "Mit freundlichen Grüßen"), Language.ENGLISH: ("Hello", "Kind regards")}

Log = Callable[[Mapping[str, object]], None]


class Letter(NamedTuple):
    """A letter of dunning, ready to be sent."""

    subject: str
    text: str


def write_letter(document: Document, open_minor: int, action: DunningAction) -> Letter:
    """Return the letter about an issued invoice, of which `open_minor` is open, in the language of the document."""
    subject, body = TEXTS[document.language][action]
    hello, bye = GREETINGS[document.language]
    fields = {
        "number": document.number,
        "issued_on": document.issued_on,
        "due_on": document.due_on,
        "open": format_minor(open_minor, get_currency(document.currency).minor_units),
        "currency": document.currency,
        "iban": document.bank_account.iban,
        "holder": document.bank_account.holder,
    }
    return Letter(subject.format(**fields), f"{hello},\n\n{body.format(**fields)}\n\n{bye}\n{document.seller.name}\n")


def send_due(database: Database, mail: Mail, *, is_stopping: Callable[[], bool], log: Log) -> int:
    """Send the letters that are due, and return how many were taken. Ends where the mail server cannot be reached. Raises Fault
    DATABASE_UNAVAILABLE."""
    with database.platform(write=False) as tx:
        due = stored.list_letters(tx, limit=LETTERS_PER_RUN)
    sent = 0
    for letter in due:
        if is_stopping():
            break
        with database.platform(write=False) as tx:
            account = parties.get_account(tx, letter.organization_id)
            invoice = payments.find_open(tx, letter.invoice_id)
            is_held = stored.find_hold(tx, letter.invoice_id) is not None
        line = {"invoice_id": letter.invoice_id, "step": letter.step}
        is_done = True
        if invoice is not None and not is_held and not account.contact.email:
            log({"event": "dunning_letter_given_up", **line, "detail": "the billing account names no address of mail"})
        elif invoice is not None and not is_held:
            written = write_letter(invoice.document, invoice.open_minor, letter.action)
            try:
                mail.send(Message(account.contact.email, written.subject, written.text))
                sent += 1
            except MessageRefused as error:
                log({"event": "dunning_letter_given_up", **line, "detail": str(error)})
            except MailFailure as error:
                is_done = letter.attempts + 1 >= ATTEMPTS_MAX
                log({"event": "dunning_letter_given_up" if is_done else "dunning_letter_not_sent", **line, "detail": str(error)})
                _finish(database, letter, is_done=is_done)
                break
        _finish(database, letter, is_done=is_done)
    return sent


def _finish(database: Database, letter: DunningLetter, *, is_done: bool) -> None:
    with database.platform() as tx:
        if is_done:
            stored.delete_letter(tx, letter)
        else:
            stored.put_letter_attempts(tx, letter, letter.attempts + 1)
