"""Payments of two organizations in any order, on each database: recorded, imported, told by Stripe, refunded, returned, disputed, credited
and written off. The ledger says what is open, nothing is below zero, `verify` finds nothing, what is told again changes nothing, and
nobody's payments change the books of another organization.

All histories begin with the same books, and are rolled back. TOLLWAY_TEST_HISTORIES is their number."""

import hashlib
import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.control.invoicing.parties import BUYER, SELLER
from tests.control.invoicing.stripe_api import PAID_AT
from tests.control.invoicing.test_payments import entry, statement
from tests.control.metering.test_collect import take
from tests.control.money.test_periods import ACTOR, NOVEMBER, NOW, OCTOBER, SEPTEMBER, close
from tests.link.samples import EPOCH, ORGANIZATION, OTHER_ORGANIZATION, OTHER_PRICE, PRICE, admit, final, frames
from tests.storage.databases import PostgresTemplate, SqliteTemplate, fill
from tollway.control.invoicing import documents, parties, payments, stripe_events
from tollway.control.invoicing.payments import WantedPayment
from tollway.control.invoicing.stripe import STRIPE_VERSION
from tollway.control.invoicing.stripe_events import EventOutcome
from tollway.control.verification.payments import compare_payments
from tollway.domain.billing_classes import Quantities
from tollway.domain.connectors import Connector, InvoiceSync, SyncState
from tollway.domain.faults import Fault
from tollway.domain.ids import INVOICE, PAYMENT, new_id
from tollway.domain.invoices import decode_document
from tollway.domain.money import CENT_PICO, format_minor
from tollway.domain.payments import PaymentKind
from tollway.domain.periods import period_id
from tollway.domain.usage import Record, Tick
from tollway.storage import invoice_syncs, open_items, schema_invoices, schema_money, schema_payments
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive

HISTORIES = int(os.environ.get("TOLLWAY_TEST_HISTORIES", "12"))

CURRENCIES = {ORGANIZATION: "EUR", OTHER_ORGANIZATION: "USD"}

MIGRATION = importlib.import_module("tollway.storage.migrations.versions.0150_open_items")

OWNED = (schema_invoices.invoices, schema_payments.payments, schema_payments.settlements, schema_payments.invoice_syncs)
"""Tables of which each organization has rows of its own."""

owners = st.sampled_from([ORGANIZATION, OTHER_ORGANIZATION])
choices = st.integers(0, 5)
amounts = st.one_of(st.integers(1, 5_000), st.sampled_from([16_065, 32_130, 64_260, 100_000]))


def issue_all(database: Database, archive: Archive) -> None:
    """Issue two invoices of each organization, which Stripe collects."""
    fill(database)
    records: list[Record] = []
    for number, (owner, month) in enumerate(itertools.product(CURRENCIES, (SEPTEMBER, OCTOBER)), 1):
        price = PRICE if owner == ORGANIZATION else OTHER_PRICE
        at = max(month.start_at, EPOCH) + number * 60_000_000
        of = admit(number, organization_id=owner, price_version=price.id, admitted_at=at)
        records += [of, final(of, used=Quantities(0, 0, 0, 122_727_273), ended_at=at + 1000, first_token_at=None)]
    take(database, archive, frames([*records, Tick(at=NOVEMBER.start_at)]))
    with database.platform() as tx:
        parties.put_entity(tx, SELLER, now=10)
        for owner in CURRENCIES:
            parties.put_account(tx, msgspec.structs.replace(BUYER, organization_id=owner), now=10)
    numbers = itertools.count(1)
    for owner, month in itertools.product(CURRENCIES, (SEPTEMBER, OCTOBER)):
        close(database, month.start_at, owner)
        with database.platform() as tx:
            for draft in documents.draft_period(tx, period_id(owner, month.start_at), lambda: new_id(INVOICE, NOW, next(numbers)), NOW):
                documents.issue(tx, draft.id, actor=ACTOR, now=NOW)
                sync = InvoiceSync(
                    invoice_id=draft.id,
                    organization_id=owner,
                    connector=Connector.STRIPE,
                    state=SyncState.PAYMENT_PENDING,
                    external_id=f"in_{draft.id}",
                    changed_at=NOW,
                )
                invoice_syncs.insert_sync(tx, sync)


class Payments(RuleBasedStateMachine):
    """Model: what each organization owes, by what was billed, credited, received, paid back and given up."""

    def __init__(self, tx: PlatformTx) -> None:
        super().__init__()
        self.tx, self.history = tx, tx.connection.begin_nested()
        self.numbers = itertools.count(1_000)
        self.files: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.owed = {owner: sum(each.open_minor for each in self.account(owner).open) for owner in CURRENCIES}
        self.invoices = {owner: [(each.id, each.document) for each in self.account(owner).open] for owner in CURRENCIES}
        assert all(len(each) == 2 for each in self.invoices.values())

    def teardown(self) -> None:
        """Compare what the triggers kept with what the migration makes of documents, payments and settlements."""
        kept = list(open_items.iterate_items(self.tx))
        self.tx.connection.execute(schema_payments.open_items.delete())
        with Operations.context(MigrationContext.configure(self.tx.connection)):
            MIGRATION.fill()
        assert list(open_items.iterate_items(self.tx)) == kept
        self.history.rollback()

    def account(self, owner: str) -> payments.CustomerAccount:
        return payments.get_account(self.tx, owner)

    def new_id(self, prefix: str = PAYMENT) -> str:
        return new_id(prefix, NOW, next(self.numbers))

    def digest(self, owner: str) -> str:
        found = hashlib.sha256()
        balances = schema_money.balances.c
        query = sa.select(balances.account_id, balances.posted_pico).where(balances.account_id.startswith(owner + "/"))
        found.update(repr(sorted((id, int(pico)) for id, pico in self.tx.connection.execute(query))).encode())
        for table in OWNED:
            rows = self.tx.connection.execute(sa.select(table).where(table.c.organization_id == owner).order_by(*table.primary_key))
            found.update(repr([tuple(row) for row in rows]).encode())
        return found.hexdigest()

    @contextmanager
    def acting(self, owner: str) -> Iterator[None]:
        """Do something of one organization, and check what holds. What is refused changes nothing."""
        (other,) = CURRENCIES.keys() - {owner}
        before, own = self.digest(other), self.digest(owner)
        savepoint, owed = self.tx.connection.begin_nested(), self.owed[owner]
        try:
            yield
            savepoint.commit()
        except Fault:
            savepoint.rollback()
            self.owed[owner] = owed
            assert self.digest(owner) == own, "what is refused changes nothing"
        assert self.digest(other) == before, "nobody's payments change the books of another organization"
        self.check(owner)

    def check(self, owner: str) -> None:
        account = self.account(owner)
        assert all(0 < each.open_minor <= each.document.totals.gross_minor for each in account.open) and account.balance_minor >= 0
        assert not (account.open and account.balance_minor), "a balance settles what is open"
        assert sum(each.open_minor for each in account.open) - account.balance_minor == self.owed[owner]
        balances = {
            row.account_id: int(row.posted_pico) for row in self.tx.connection.execute(sa.select(schema_money.balances)) if row.posted_pico
        }
        assert balances.get(f"{owner}/receivable/{CURRENCIES[owner]}", 0) == self.owed[owner] * CENT_PICO
        for currency in CURRENCIES.values():
            assert sum(pico for id, pico in balances.items() if id.endswith(f"/{currency}")) == 0
        differences: list[str] = []
        replayed, right = compare_payments(self.tx, lambda table, text: differences.append(f"{table}: {text}"))
        assert differences == [] and replayed == right

    # ---- By hand --------------------------------------------------------------------------------------------------------

    @rule(owner=owners, minor=amounts, at=choices, kind=st.sampled_from([PaymentKind.PAYMENT, PaymentKind.WRITE_OFF, PaymentKind.REFUND]))
    def record(self, owner: str, minor: int, at: int, kind: PaymentKind) -> None:
        named = (self.invoices[owner][at % 2][0],) if at < 2 or kind is PaymentKind.WRITE_OFF else ()
        with self.acting(owner):
            self.owed[owner] += minor if kind is PaymentKind.REFUND else -minor
            wanted = WantedPayment(kind, format_minor(minor, 2), None, "2026-12-02", "r", named)
            payments.record_payment(self.tx, owner, wanted, id=self.new_id(), actor=ACTOR, now=NOW)

    @rule(owner=owners, at=choices)
    def take_back(self, owner: str, at: int) -> None:
        """The bank takes a payment back, or an operator a write-off; once."""
        table = schema_payments.payments.c
        query = sa.select(table.id, table.amount_minor).where(table.organization_id == owner).order_by(table.id)
        if found := self.tx.connection.execute(query).all():
            taken = found[at % len(found)]
            with self.acting(owner):
                self.owed[owner] += taken.amount_minor
                payments.return_payment(self.tx, taken.id, id=self.new_id(), value_on="2026-12-05", reference="AM04", actor=ACTOR, now=NOW)

    @rule(owner=owners, at=choices, minor=st.integers(1, 20_000))
    def credit(self, owner: str, at: int, minor: int) -> None:
        """Credit an amount before tax of an invoice, or all of it."""
        with self.acting(owner):
            amount_pico = None if at >= 4 else minor * CENT_PICO
            id, invoice_id = self.new_id(INVOICE), self.invoices[owner][at % 2][0]
            documents.draft_credit_note(self.tx, invoice_id, amount_pico=amount_pico, reason="r", id=id, now=NOW)
            issued = documents.issue(self.tx, id, actor=ACTOR, now=NOW)
            self.owed[owner] -= decode_document(issued.document).totals.gross_minor

    # ---- Of banks -------------------------------------------------------------------------------------------------------

    @rule(owner=owners, minor=amounts, at=choices)
    def import_file(self, owner: str, minor: int, at: int) -> None:
        """A credit names an invoice, or none, and waits then; the file comes twice, and another one with the same entry."""
        number = next(self.numbers)
        named = "nothing" if at > 3 else self.invoices[owner][at % 2][1].number
        credit = entry(format_minor(minor, 2), named, f"A{number}", currency=CURRENCIES[owner])
        for text in (statement(credit, name=f"S{number}"), statement(credit, name=f"T{number}")):
            with self.acting(owner):
                (told,) = payments.import_statements(self.tx, text, new_id=self.new_id, actor=ACTOR, now=NOW)
                self.owed[owner] -= sum(each.amount_minor for each in told.payments)
                assert len(told.payments) + told.unmatched == text.count(f"<Id>S{number}<")
            self.files.append(text)

    @rule(owner=owners, at=choices)
    def match(self, owner: str, at: int) -> None:
        table = schema_payments.bank_entries.c
        query = sa.select(table.id, table.amount_minor).where(table.currency == CURRENCIES[owner]).order_by(table.id)
        if found := self.tx.connection.execute(query).all():
            one = found[at % len(found)]
            with self.acting(owner):
                self.owed[owner] -= one.amount_minor
                payments.match_entry(self.tx, one.id, self.invoices[owner][at % 2][0], new_id=self.new_id, actor=ACTOR, now=NOW)

    # ---- Of Stripe ------------------------------------------------------------------------------------------------------

    @rule(
        owner=owners,
        at=choices,
        minor=amounts,
        kind=st.sampled_from([*sorted(stripe_events.HANDLED), "invoice.paid", "refund.created", "charge.dispute.funds_withdrawn"]),
    )
    def tell(self, owner: str, at: int, minor: int, kind: str) -> None:
        """Stripe tells of a payment of one of the invoices, of a refund of it, or of a dispute about it; each twice."""
        invoice_id, _ = self.invoices[owner][at % 2]
        found: dict[str, Any] = {"payment_intent": f"pi_{invoice_id}", "amount": minor, "currency": CURRENCIES[owner].lower()}
        if kind == "invoice.paid":
            paid = {"id": f"in_{invoice_id}", "status": "paid", "amount_paid": minor, "status_transitions": {"paid_at": PAID_AT}}
            found |= paid
        elif kind.startswith("refund"):
            found |= {"id": f"re_{invoice_id}", "status": "succeeded"}
        else:
            whole = sa.select(schema_payments.payments.c.amount_minor).where(
                schema_payments.payments.c.external_id == f"stripe/pi_{invoice_id}"
            )
            found |= {"id": f"dp_{invoice_id}", "amount": self.tx.connection.execute(whole).scalar_one_or_none() or minor}
        self._handle(owner, {"type": kind, "api_version": STRIPE_VERSION, "created": PAID_AT, "data": {"object": found}})

    def _handle(self, owner: str, event: dict[str, Any]) -> None:
        with self.acting(owner):
            before = self._sum_told(owner)
            done = stripe_events.handle(self.tx, event, new_id=self.new_id, now=NOW)
            self.owed[owner] += self._sum_told(owner) - before
            if done.outcome is not EventOutcome.IGNORED:
                self.events.append(event)
                own = self.digest(owner)
                again = stripe_events.handle(self.tx, event, new_id=self.new_id, now=NOW)
                assert (again.outcome, self.digest(owner)) == (EventOutcome.KNOWN, own), "an event that comes twice changes nothing"

    def _sum_told(self, owner: str) -> int:
        """Return what an organization owes more by payments."""
        table = schema_payments.payments.c
        query = sa.select(table.kind, table.amount_minor).where(table.organization_id == owner)
        return sum(-row.amount_minor if PaymentKind(row.kind).is_source else row.amount_minor for row in self.tx.connection.execute(query))

    # ---- Again ----------------------------------------------------------------------------------------------------------

    @rule(at=st.integers(0, 50), is_event=st.booleans())
    def replay(self, at: int, is_event: bool) -> None:
        """A file or an event of the past comes again, whatever has happened since."""
        before = [self.digest(owner) for owner in CURRENCIES]
        if is_event and self.events:
            done = stripe_events.handle(self.tx, self.events[at % len(self.events)], new_id=self.new_id, now=NOW)
            assert done.outcome in (EventOutcome.KNOWN, EventOutcome.RECORDED)
        elif self.files:
            text = self.files[at % len(self.files)]
            (told,) = payments.import_statements(self.tx, text, new_id=self.new_id, actor=ACTOR, now=NOW)
            assert (told.payments, told.unmatched, told.known) == ([], 0, 1)
        assert [self.digest(owner) for owner in CURRENCIES] == before


Opened = Callable[[], Any]


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_payments_of_two_organizations_agree_in_every_history(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    template: SqliteTemplate | PostgresTemplate = request.getfixturevalue(f"{kind}_template")
    with template.copied(tmp_path) as url, closing(Database.open(url)) as database:
        issue_all(database, Archive(tmp_path / "archive"))
        histories = settings(max_examples=HISTORIES, stateful_step_count=15, deadline=None)
        with database.platform() as tx:
            run_state_machine_as_test(lambda: Payments(tx), settings=histories)
