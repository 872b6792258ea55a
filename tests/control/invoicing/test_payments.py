"""Payments at control: recorded, matched from bank statements, settled, returned, written off and dunned; on each database."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from tests.control.invoicing.parties import BUYER, SELLER, add_parties
from tests.control.invoicing.test_documents import credit, document_of, draft, issue, refused
from tests.control.metering.test_collect import balances, take
from tests.control.money.test_periods import NOW, SEPTEMBER, close
from tests.link.samples import ORGANIZATION, OTHER_ORGANIZATION, admit, final, frames
from tollway.control.api.invoicing.payments import PaymentCreate
from tollway.control.identity.mail import MailFailure, Message, MessageRefused
from tollway.control.invoicing import automatic_issue, dunning, parties, payments, reminders
from tollway.control.invoicing.payments import CustomerAccount, ExternalPayment, ImportedStatement, WantedPayment
from tollway.control.money import budgets
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.billing_parties import Contact, DunningAction, DunningChannel, DunningStep
from tollway.domain.budgets import SUBJECT_BUDGETS_MAX, BudgetLevel, BudgetMode, BudgetWindow
from tollway.domain.connectors import Connector, InvoiceSync, SyncState
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.ids import BUDGET, new_id
from tollway.domain.money import CENT_PICO, PICO, format_minor
from tollway.domain.pages import PageWindow
from tollway.domain.payments import AMOUNT_MINOR_MAX, Payment, PaymentKind, PaymentOrigin, find_numbers, parse_minor
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.usage import Tick
from tollway.storage import budgets as stored_budgets
from tollway.storage import invoice_syncs, outbox
from tollway.storage import payments as stored_payments
from tollway.storage.database import Database
from tollway.storage.invoices import StoredInvoice
from tollway.storage.outbox import EventFilter
from tollway.storage.record_archive import Archive

GROSS = 64_260
"""Gross amount of the invoice of each test: 540.00 EUR and 19 % tax."""

DAY_US = 86_400_000_000
DUE_AT = NOW + 14 * DAY_US
ids_ = itertools.count(1)


def next_id(prefix: str) -> str:
    return new_id(prefix, NOW, next(ids_))


@pytest.fixture
def invoice(database: Database, archive: Archive) -> StoredInvoice:
    large = final(admit(1), used=Quantities(2_000_000_000))
    take(database, archive, frames([large.admit, large, Tick(at=SEPTEMBER.end_at)]))
    close(database, SEPTEMBER.start_at)
    add_parties(database)
    (made,) = draft(database)
    issued = issue(database, made.id)
    assert document_of(issued).totals.gross_minor == GROSS
    return issued


def pay(database: Database, minor: int, kind: PaymentKind = PaymentKind.PAYMENT, *invoice_ids: str, now: int = NOW) -> Payment:
    wanted = WantedPayment(kind, format_minor(minor, 2), None, "2026-12-02", "r", invoice_ids)
    with database.platform() as tx:
        return payments.record_payment(tx, ORGANIZATION, wanted, id=next_id("pay"), actor="key_1", now=now)


def standing(database: Database) -> CustomerAccount:
    with database.platform(write=False) as tx:
        return payments.get_account(tx, ORGANIZATION)


def open_and_balance(database: Database) -> tuple[list[int], int]:
    found = standing(database)
    return [each.open_minor for each in found.open], found.balance_minor


def balance(database: Database, name: str) -> int:
    return balances(database).get(name, 0) // CENT_PICO


def test_partial_and_over_payment_settle_and_the_rest_can_be_paid_back(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    pay(database, 60_000)
    assert open_and_balance(database) == ([4_260], 0)
    pay(database, 5_000)
    assert open_and_balance(database) == ([], 740)
    with refused("More cannot be paid back"):
        pay(database, 741, PaymentKind.REFUND)
    pay(database, 700, PaymentKind.REFUND)
    assert open_and_balance(database) == ([], 40)
    assert balance(database, "platform/cash/EUR") == 64_300 and balance(database, f"{ORGANIZATION}/receivable/EUR") == -40
    assert verify(database, archive).differences == []


def test_a_refund_takes_from_an_invoice_only_what_was_paid_and_not_what_was_credited(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    pay(database, 200)
    issue(database, credit(database, invoice.id, 53_800 * CENT_PICO).id)
    rest = GROSS - 200 - 64_022
    assert open_and_balance(database) == ([rest], 0)
    with refused("More cannot be paid back"):
        pay(database, 201, PaymentKind.REFUND, invoice.id)
    pay(database, 200, PaymentKind.REFUND, invoice.id)
    assert open_and_balance(database) == ([rest + 200], 0) and balance(database, "platform/cash/EUR") == 0
    assert verify(database, archive).differences == []


def test_returned_payment_opens_what_it_settled(database: Database, archive: Archive, invoice: StoredInvoice) -> None:
    paid = pay(database, 70_000)
    returned = {"value_on": "2026-12-05", "reference": "AM04", "actor": "key_1", "now": NOW}
    with database.platform() as tx:
        payments.return_payment(tx, paid.id, id=next_id("pay"), **returned)  # type: ignore[arg-type]
    assert open_and_balance(database) == ([GROSS], 0) and balance(database, "platform/cash/EUR") == 0
    with refused("not returned yet"), database.platform() as tx:
        payments.return_payment(tx, paid.id, id=next_id("pay"), **returned)  # type: ignore[arg-type]
    assert verify(database, archive).differences == []


def test_write_off_and_credit_note_settle_the_invoice(database: Database, archive: Archive, invoice: StoredInvoice) -> None:
    issue(database, credit(database, invoice.id, 1_000 * CENT_PICO).id)
    assert open_and_balance(database) == ([GROSS - 1_190], 0)
    with refused("More cannot be written off"):
        pay(database, GROSS, PaymentKind.WRITE_OFF, invoice.id)
    pay(database, GROSS - 1_190, PaymentKind.WRITE_OFF, invoice.id)
    assert open_and_balance(database) == ([], 0) and balance(database, f"{ORGANIZATION}/receivable/EUR") == 0
    assert balance(database, "platform/write_off/EUR") == GROSS - 1_190
    assert verify(database, archive).differences == []


def test_what_was_written_off_is_credited_only_after_the_write_off_was_taken_back(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    pay(database, 60_000)
    written_off = pay(database, 4_260, PaymentKind.WRITE_OFF, invoice.id)
    note = credit(database, invoice.id, None)
    with refused("take the write-off back first"):
        issue(database, note.id)
    with database.platform() as tx:
        payments.return_payment(tx, written_off.id, id=next_id("pay"), value_on="2026-12-05", reference="", actor="key_1", now=NOW)
    issue(database, note.id)
    assert open_and_balance(database) == ([], 60_000), "only what was paid becomes a balance"
    assert balance(database, "platform/write_off/EUR") == 0 and balance(database, "platform/cash/EUR") == 60_000
    assert verify(database, archive).differences == []


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"amount": "0.00"}, "above zero"),
        ({"amount": "0.011"}, "smallest unit"),
        ({"amount": "10000000000000"}, "above what is kept"),
        ({"currency": "USD"}, "billed in EUR"),
        ({"value_on": "soon"}, "must be a day"),
        ({"value_on": "20261202"}, "must be a day"),
        ({"invoice_ids": ("inv_0",)}, "no open invoice inv_0"),
        ({"kind": PaymentKind.WRITE_OFF}, "names its invoices"),
        ({"kind": PaymentKind.RETURN}, "names the payment"),
    ],
)
def test_a_payment_that_cannot_be_is_refused(database: Database, wanted: dict[str, Any], reason: str) -> None:
    given = WantedPayment(PaymentKind.PAYMENT, "0.01", None, "2026-12-02", "r", ())._replace(**wanted)
    with refused(reason), database.platform() as tx:
        payments.record_payment(tx, ORGANIZATION, given, id=next_id("pay"), actor="key_1", now=NOW)


def with_balances(text: str, opening: str, closing: str, day: str = "2026-12-17") -> str:
    """Return a statement that states its balances, in euros."""

    def balance(code: str, amount: str) -> str:
        sign = "DBIT" if amount.startswith("-") else "CRDT"
        kind = f"<Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>"
        return f"<Bal>{kind}<Amt Ccy='EUR'>{amount.lstrip('-')}</Amt><CdtDbtInd>{sign}</CdtDbtInd><Dt><Dt>{day}</Dt></Dt></Bal>"

    return text.replace("</Acct>", "</Acct>" + balance("OPBD", opening) + balance("CLBD", closing))


def entry(amount: str, text: str, reference: str, **changes: str) -> str:
    shown = {"sign": "CRDT", "status": "BOOK", "currency": "EUR"} | changes
    return (
        f"<Ntry><Amt Ccy='{shown['currency']}'>{amount}</Amt><CdtDbtInd>{shown['sign']}</CdtDbtInd><Sts><Cd>{shown['status']}</Cd></Sts>"
        f"<ValDt><Dt>2026-12-03</Dt></ValDt><AcctSvcrRef>{reference}</AcctSvcrRef><NtryDtls><TxDtls>"
        f"<RltdPties><Dbtr><Pty><Nm>Kunde</Nm></Pty></Dbtr></RltdPties><RmtInf><Ustrd>{text}</Ustrd></RmtInf></TxDtls></NtryDtls></Ntry>"
    )


def statement(*entries: str, name: str = "S1", iban: str = SELLER.bank_account.iban) -> str:
    return (
        "<?xml version='1.0'?><Document xmlns='urn:iso:std:iso:20022:tech:xsd:camt.053.001.08'><BkToCstmrStmt><Stmt>"
        f"<Id>{name}</Id><Acct><Id><IBAN>{iban}</IBAN></Id></Acct>{''.join(entries)}</Stmt></BkToCstmrStmt></Document>"
    )


def load(database: Database, text: str) -> ImportedStatement:
    with database.platform() as tx:
        (found,) = payments.import_statements(tx, text, new_id=next_id, actor="key_1", now=NOW)
    return found


def test_159_bank_statement_pays_what_its_text_names_and_twice_changes_nothing(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    first = statement(
        entry("600.00", "Rechnung re 2026 000001 danke", "A1"),
        entry("10.5", "no number", "A2"),
        entry("5", "RE-2026-000001", "A3", sign="DBIT"),
        entry("5", "RE-2026-000001", "A4", status="PDNG"),
        entry("5", "RE-2026-000001", "A5", currency="USD"),
    )
    found = load(database, first)
    assert (len(found.payments), found.unmatched, found.known, found.others) == (1, 2, 0, 2)
    before = balances(database)
    assert load(database, first).known == 3
    again = load(database, statement(entry("600.00", "Rechnung re 2026 000001 danke", "A1"), name="S2"))
    assert (again.known, again.payments, balances(database)) == (1, [], before), "the entry of another file is known too"
    assert open_and_balance(database) == ([GROSS - 60_000], 0)
    with database.platform() as tx:
        unmatched = payments.list_entries(tx, PageWindow()).items
        (euros,) = (each for each in unmatched if each.currency == "EUR")
        payments.match_entry(tx, euros.id, invoice.id, new_id=next_id, actor="key_1", now=NOW)
        with refused("matched already"):
            payments.match_entry(tx, euros.id, invoice.id, new_id=next_id, actor="key_1", now=NOW)
        (dollars,) = (each for each in unmatched if each.currency == "USD")
        with refused("another currency"):
            payments.match_entry(tx, dollars.id, invoice.id, new_id=next_id, actor="key_1", now=NOW)
    assert open_and_balance(database) == ([GROSS - 61_050], 0)
    assert verify(database, archive).differences == []


def test_a_transfer_pays_an_invoice_of_the_series_before_once_the_seller_has_begun_another(
    database: Database, invoice: StoredInvoice
) -> None:
    with database.platform() as tx:
        parties.put_entity(tx, msgspec.structs.replace(SELLER, invoice_series="RE-2027", credit_note_series="GS-2027"), NOW)
    found = load(database, statement(entry("642.60", "RE-2026-000001", "A1")))
    assert (len(found.payments), found.unmatched, open_and_balance(database)) == (1, 0, ([], 0))


def batch(*parts: tuple[str, str], whole: str) -> str:
    details = "".join(
        f"<TxDtls><Refs><EndToEndId>{text}</EndToEndId></Refs>{amount and f'<Amt Ccy={chr(34)}EUR{chr(34)}>{amount}</Amt>'}"
        f"<RltdPties><Dbtr><Nm>Kunde {text}</Nm></Dbtr></RltdPties><RmtInf><Ustrd>{text}</Ustrd></RmtInf></TxDtls>"
        for amount, text in parts
    )
    plain = entry(whole, "", "B1")
    return plain[: plain.index("<TxDtls>")] + details + "</NtryDtls></Ntry>"


def test_an_entry_of_several_transfers_is_a_credit_for_each_or_waits_for_a_person(database: Database, invoice: StoredInvoice) -> None:
    text = statement(batch(("100.00", "RE-2026-000001"), ("50.00", "of another"), ("100.00", "RE-2026-000001"), whole="250"))
    found = load(database, text)
    assert ([each.amount_minor for each in found.payments], found.unmatched) == ([10_000, 10_000], 1)
    assert load(database, text.replace("S1", "S2")).known == 3
    for parts, whole in (((("1.00", "RE-2026-000001"), ("1.00", "x")), "3.00"), ((("", "RE-2026-000001"), ("1.00", "x")), "4.00")):
        found = load(database, statement(batch(*parts, whole=whole), name=f"S{whole}"))
        assert (found.payments, found.unmatched) == ([], 1)
    reversal = entry("5.00", "RE-2026-000001", "R1").replace("<Sts>", "<RvslInd>1</RvslInd><Sts>")
    assert load(database, statement(reversal, name="S9")).others == 1


def test_a_payment_may_be_more_than_one_rated_line_and_a_credit_of_nothing_is_none(
    database: Database, archive: Archive, invoice: StoredInvoice
) -> None:
    most = AMOUNT_MINOR_MAX
    pay(database, most)
    found = load(database, statement(entry("0.00", "RE-2026-000001", "Z1"), entry("150000000", "of another", "L1", currency="IDR")))
    assert (found.payments, found.unmatched, found.others) == ([], 1, 1)
    told = ExternalPayment(PaymentKind.REFUND, "stripe/re_1", 10**9 + 1, "EUR", "2026-12-03", PaymentOrigin.STRIPE, "in_1")
    asked = InvoiceSync(
        invoice_id=invoice.id,
        organization_id=ORGANIZATION,
        connector=Connector.STRIPE,
        state=SyncState.PAYMENT_PENDING,
        external_id="in_1",
        changed_at=NOW,
    )
    with database.platform() as tx:
        invoice_syncs.insert_sync(tx, asked)
        payments.record_external(tx, ORGANIZATION, told, [], id=next_id("pay"), actor="stripe", now=NOW)
        with refused("at most what is kept"):
            above = told._replace(external_id="stripe/re_2", amount_minor=most + 1)
            payments.record_external(tx, ORGANIZATION, above, [], id=next_id("pay"), actor="stripe", now=NOW)
    assert open_and_balance(database) == ([], most - GROSS - 10**9 - 1)
    assert verify(database, archive).differences == []


@pytest.mark.parametrize(
    ("amount", "minor_units", "minor"), [("1000000000000", 0, 10**12), ("9" * 13 + ".99", 2, AMOUNT_MINOR_MAX), ("1.50", 3, 1_500)]
)
def test_amounts_of_payments_are_read_in_the_smallest_unit_of_any_currency(amount: str, minor_units: int, minor: int) -> None:
    assert parse_minor(amount, minor_units) == minor
    PaymentCreate(amount=amount, value_on="2026-12-02")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no xml", "no XML"),
        ("<a/>", "no statement"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
        (statement(iban="DE02120300000000202051"), "no seller has the account"),
        (statement(entry("1.001", "t", "r")), "cannot be"),
        (statement(entry("-1", "t", "r")), "cannot be"),
        (statement(entry("1e3", "t", "r")), "cannot be"),
        (statement(entry("1", "t", "r", currency="QQQ")), "unknown currency"),
        (statement(entry("1.\u00b2", "t", "r")), "cannot be"),
        (statement(entry("9" * 15, "t", "r")), "above what is kept"),
        (statement(entry("1", "t", "r")).replace("2026-12-03", "2026-99-99"), "no date"),
        (statement(name="S" * 65), "longer than 64"),
        ("x" * 900_001, "longer than"),
    ],
)
def test_a_file_that_is_no_bank_statement_is_refused(database: Database, text: str, reason: str) -> None:
    add_parties(database)
    with refused(reason), database.platform() as tx:
        payments.import_statements(tx, text, new_id=next_id, actor="key_1", now=NOW)


@pytest.mark.parametrize(
    ("text", "series", "found"),
    [
        ("Re.2026 / 000042, RE-2026-000043", "RE-2026", ["RE-2026-000042", "RE-2026-000043"]),
        ("SVWZ+RE2026000042", "RE-2026", ["RE-2026-000042"]),
        ("RE-2026-000042 12.11.2026", "RE-2026", ["RE-2026-000042"]),
        ("RE-2026-1234567", "RE-2026", ["RE-2026-1234567"]),
        ("RE-2026-0000421", "RE-2026", []),
        ("RE-2026-000042X", "RE-2026", []),
        ("RE-2026-000042", "E-2026", []),
        ("GS-2026-000001", "RE-2026", []),
        ("RE-2026-" + "9" * 400, "RE-2026", []),
    ],
)
def test_numbers_are_found_as_people_type_them_and_no_other_ones(text: str, series: str, found: list[str]) -> None:
    assert find_numbers(text, [series]) == found


def test_credits_without_a_reference_of_the_bank_all_count_and_a_statement_is_known_by_its_content(
    database: Database, invoice: StoredInvoice
) -> None:
    equal = entry("119.00", "RE-2026-000001", "NONREF")
    other = entry("119.00", "RE-2026-000001 second", "NONREF")
    assert len(load(database, statement(equal, equal, other)).payments) == 3
    again = load(database, statement(other, equal, name="S2"))
    assert (again.payments, again.known) == ([], 2)
    next_year = load(database, statement(entry("1.00", "RE-2026-000001", "B1")))
    assert (len(next_year.payments), next_year.known) == (1, 0), "the bank uses the name S1 again"
    assert open_and_balance(database) == ([GROSS - 3 * 11_900 - 100], 0)


def test_a_balance_pays_the_next_invoice_that_is_issued(database: Database, archive: Archive, invoice: StoredInvoice) -> None:
    pay(database, GROSS + 100)
    issue(database, credit(database, invoice.id, None).id)
    assert open_and_balance(database) == ([], GROSS + 100)
    (again,) = draft(database)
    issue(database, again.id)
    assert open_and_balance(database) == ([], 100)
    assert verify(database, archive).differences == []


def dun(database: Database, at: int) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    dunning.run(
        database,
        new_id=lambda: next_id(BUDGET),
        now=lambda: at,
        is_stopping=lambda: False,
        log=lambda line: lines.append(dict(line)),
    )
    return lines


def is_restricted(database: Database) -> bool:
    with database.tenant(ORGANIZATION, write=False) as tx:
        return bool(stored_budgets.list_named(tx, ORGANIZATION, dunning.OVERDUE_BUDGET))


def test_an_unpaid_invoice_is_dunned_by_the_steps_of_its_seller_until_it_is_paid(database: Database, invoice: StoredInvoice) -> None:
    assert dun(database, DUE_AT + 5 * DAY_US) == []
    with database.platform() as tx:
        dunning.set_hold(tx, invoice.id, "disputed", NOW)
    assert dun(database, DUE_AT + 60 * DAY_US) == []
    with database.platform() as tx:
        dunning.set_hold(tx, invoice.id, None, NOW)
    assert [(line["step"], line["action"]) for line in dun(database, DUE_AT + 8 * DAY_US)] == [(1, "remind")]
    assert dun(database, DUE_AT + 8 * DAY_US) == [] and not is_restricted(database)
    assert [(line["step"], line["action"]) for line in dun(database, DUE_AT + 40 * DAY_US)] == [(2, "restrict")]
    assert is_restricted(database) and dun(database, DUE_AT + 400 * DAY_US) == []
    with database.platform(write=False) as tx:
        window = PageWindow(limit=1)
        first = dunning.list_open_notices(tx, window, None)
        second = dunning.list_open_notices(tx, PageWindow(f"{invoice.id}/1", 1), None)
        assert [each.step for each in (*first.items, *second.items)] == [1, 2] and (first.has_more, second.has_more) == (True, False)
        assert dunning.list_open_notices(tx, window, OTHER_ORGANIZATION).items == []
        with refused("id of a step"):
            dunning.list_open_notices(tx, PageWindow(invoice.id, 1), None)
    pay(database, GROSS - 1)
    dunning.release(database, [ORGANIZATION], NOW, print)
    assert is_restricted(database), "a cent is open"
    paid = pay(database, 1)
    dun(database, DUE_AT + 41 * DAY_US)
    assert not is_restricted(database) and BUYER.payment_days == 14
    with database.platform(write=False) as tx:
        assert stored_payments.list_overdue_ids(tx, "2099-01-01", after="", limit=10) == [], "a paid invoice is not looked at again"
    with database.platform() as tx:
        payments.return_payment(tx, paid.id, id=next_id("pay"), value_on="2026-12-05", reference="", actor="key_1", now=NOW)
    dun(database, DUE_AT + 41 * DAY_US)
    assert is_restricted(database), "what the bank took back is owed again"
    with database.platform(write=False) as tx:
        told = Counter(str(each.type) for each in outbox.list_events(tx, PageWindow(limit=100), EventFilter()).items)
    assert told == {
        "billing_period.closed": 1,
        "invoice.drafted": 1,
        "invoice.issued": 1,
        "invoice.overdue": 2,
        "payment.recorded": 3,
        "invoice.paid": 1,
    }
    with database.platform() as tx:
        parties.put_entity(tx, msgspec.structs.replace(SELLER, grace_days=0), NOW)
    credit(database, invoice.id, CENT_PICO)
    now, go_on = (lambda: DUE_AT + 41 * DAY_US), (lambda: False)
    automatic_issue.run(database, database, database, new_id=lambda: next_id("inv"), now=now, is_stopping=go_on, log=print)
    assert not is_restricted(database), "an automatic credit note of the last cent lifts it at once"


@dataclass
class Post:
    """Mail that is kept; `failure`: raised in place of it."""

    sent: list[Message] = field(default_factory=list)
    failure: MailFailure | None = None

    def send(self, message: Message) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append(message)


def send_letters(database: Database, post: Post) -> list[str]:
    lines: list[str] = []
    reminders.send_due(database, post, is_stopping=lambda: False, log=lambda line: lines.append(str(line["event"])))
    return lines


def test_steps_by_mail_are_written_once_unless_the_server_is_away_and_not_about_what_is_paid(
    database: Database, invoice: StoredInvoice
) -> None:
    steps = (
        DunningStep(after_days=7, action=DunningAction.REMIND, channel=DunningChannel.MAIL),
        DunningStep(after_days=30, action=DunningAction.RESTRICT, channel=DunningChannel.MAIL),
    )
    buyer = msgspec.structs.replace(BUYER, contact=Contact(name="Einkauf", email="einkauf@kunde.example"))
    add_parties(database, buyer, dunning=steps)
    dun(database, DUE_AT + 8 * DAY_US)
    away, post = Post(failure=MailFailure("away")), Post()
    assert send_letters(database, away) == ["dunning_letter_not_sent"]
    assert (send_letters(database, post), send_letters(database, post)) == ([], [])
    (letter,) = post.sent
    assert (letter.recipient, letter.subject) == ("einkauf@kunde.example", "Zahlungserinnerung zur Rechnung RE-2026-000001")
    assert "Offen sind 642.60 EUR" in letter.text and SELLER.bank_account.iban in letter.text and "Kunde" not in letter.text
    dun(database, DUE_AT + 40 * DAY_US)
    pay(database, GROSS)
    assert send_letters(database, post) == [] and len(post.sent) == 1, "it was paid before the letter went"


def test_letters_that_nobody_takes_are_given_up(database: Database, invoice: StoredInvoice) -> None:
    steps = tuple(DunningStep(after_days=days, action=DunningAction.REMIND, channel=DunningChannel.MAIL) for days in (1, 2, 3))
    add_parties(database, dunning=steps)
    dun(database, DUE_AT + 2 * DAY_US)
    assert send_letters(database, Post()) == ["dunning_letter_given_up"], "the contact has no address"
    add_parties(database, msgspec.structs.replace(BUYER, contact=Contact(email="a@kunde.example")), dunning=steps)
    dun(database, DUE_AT + 3 * DAY_US)
    assert send_letters(database, Post(failure=MessageRefused("no"))) == ["dunning_letter_given_up"]
    dun(database, DUE_AT + 4 * DAY_US)
    away = Post(failure=MailFailure("away"))
    tried = [send_letters(database, away) for _ in range(reminders.ATTEMPTS_MAX + 1)]
    assert tried[-3:] == [["dunning_letter_not_sent"], ["dunning_letter_given_up"], []]


def test_no_budget_of_the_tenant_and_no_other_invoice_stands_against_a_restriction_and_a_hold_lifts_it(
    database: Database, invoice: StoredInvoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: dict[str, Any] = {"mode": BudgetMode.HARD, "window": BudgetWindow.TOTAL, "amount_pico": PICO, "currency": None}
    terms |= {"project_id": None, "key_id": None, "thresholds": [], "is_operators": False, "sizes": DEFAULT_SIZES, "now": NOW}
    with database.tenant(ORGANIZATION) as tx:
        for number in range(SUBJECT_BUDGETS_MAX):
            budgets.create_budget(tx, id=next_id(BUDGET), name=f"own {number}", **terms)
    with monkeypatch.context() as patched:
        patched.setattr(dunning, "take_step", fail)
        assert [line["event"] for line in dun(database, DUE_AT + 40 * DAY_US)] == ["invoice_not_dunned"]
    dun(database, DUE_AT + 40 * DAY_US)
    dun(database, DUE_AT + 40 * DAY_US)
    assert is_restricted(database)
    with database.tenant(ORGANIZATION, write=False) as tx:
        (restriction,) = stored_budgets.list_named(tx, ORGANIZATION, dunning.OVERDUE_BUDGET)
    assert (restriction.mode, restriction.level, restriction.amount_pico) == (BudgetMode.HARD, BudgetLevel.ORGANIZATION, 1)
    with database.platform() as tx:
        dunning.set_hold(tx, invoice.id, "disputed", NOW)
    dunning.release(database, [ORGANIZATION], NOW, print)
    assert not is_restricted(database)
    with database.platform() as tx:
        dunning.set_hold(tx, invoice.id, None, NOW)
    pay(database, GROSS)
    with database.tenant(ORGANIZATION) as tx:
        dunning.restrict(tx, id=next_id(BUDGET), now=NOW)
    assert not is_restricted(database), "it was paid between the step and the restriction"


def fail(*_: object) -> None:
    raise Fault(STATE_CONFLICT, message="no")


def test_statements_of_one_day_follow_each_other_in_whatever_order_they_come(database: Database, invoice: StoredInvoice) -> None:
    """A gap is told where the statement before is missing, and only while it is."""
    days = ("2026-12-16", "2026-12-17", "2026-12-17", "2026-12-17", "2026-12-18")
    texts = [
        with_balances(statement(entry("1.00", "nothing", f"A{at}"), name=f"S{at}"), f"{at}.00", f"{at + 1}.00", day)
        for at, day in enumerate(days)
    ]
    assert [load(database, texts[at]).is_gap for at in (2, 1, 3, 0, 4)] == [False, False, False, False, False]


def test_a_statement_whose_predecessor_of_the_same_day_comes_later_tells_a_gap_once(database: Database, invoice: StoredInvoice) -> None:
    days = ("2026-12-16", "2026-12-17", "2026-12-17", "2026-12-17")
    texts = [
        with_balances(statement(entry("1.00", "nothing", f"A{at}"), name=f"S{at}"), f"{at}.00", f"{at + 1}.00", day)
        for at, day in enumerate(days)
    ]
    assert [load(database, texts[at]).is_gap for at in (0, 2, 1, 3)] == [False, True, False, False]
