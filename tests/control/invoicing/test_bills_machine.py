"""Usage, corrections, credit, invoices and payments of two organizations in any order, on each database: what is billed is what was rated
and corrected to the last digit, numbers have no gaps, no credit is used twice, and nobody's books depend on what the other one does."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.control.invoicing.parties import BUYER, SELLER
from tests.control.money.test_credits import frames_of
from tests.control.money.test_periods import ACTOR, NOVEMBER, NOW, OCTOBER, SEPTEMBER
from tests.link.samples import EPOCH, NODE, ORGANIZATION, OTHER_ORGANIZATION, OTHER_PRICE, PRICE, admit, final, request_id
from tests.storage.databases import PostgresTemplate, SqliteTemplate, fill
from tollway.control.invoicing import documents, parties, payments
from tollway.control.invoicing.payments import WantedPayment
from tollway.control.metering.collect import collect
from tollway.control.money import corrections, credits, periods
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.money.credits import WantedGrant
from tollway.control.money.periods import Blocked
from tollway.control.verification.verify import verify
from tollway.domain.billing_classes import Quantities
from tollway.domain.corrections import AdjustmentKind
from tollway.domain.credits import GrantCategory, TopupRule
from tollway.domain.faults import Fault
from tollway.domain.ids import CREDIT_GRANT, INVOICE, PAYMENT, new_id
from tollway.domain.invoices import InvoiceState, decode_document, list_movements
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.money import format_minor
from tollway.domain.pages import PageWindow
from tollway.domain.payments import PaymentKind
from tollway.domain.periods import period_id
from tollway.domain.usage import Tick
from tollway.storage import schema_credits, schema_invoices, schema_money, schema_payments, schema_periods
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive

MONTHS = (SEPTEMBER, OCTOBER, NOVEMBER)
PERSON = Operator(ACTOR, KeyOrigin.FIRST)
CURRENCIES = {ORGANIZATION: "EUR", OTHER_ORGANIZATION: "USD"}
OWNED = (
    schema_money.usage_events,
    schema_money.usage_rollups,
    schema_periods.usage_adjustments,
    schema_periods.billing_periods,
    schema_credits.credit_grants,
    schema_credits.credit_transactions,
    schema_invoices.invoices,
    schema_payments.payments,
    schema_payments.settlements,
)
"""Tables of which each organization has rows of its own, by the column `organization_id`."""

owners = st.sampled_from([ORGANIZATION, OTHER_ORGANIZATION])
months = st.sampled_from(MONTHS)

Opened = Callable[[], Any]


class Bills(RuleBasedStateMachine):
    """Model of the books: what was rated and corrected of each organization so far."""

    def __init__(self, open_database: Opened, directory: Path) -> None:
        super().__init__()
        self.stack, self.numbers = ExitStack(), itertools.count(1)
        self.database: Database = self.stack.enter_context(open_database())
        self.archive = Archive(directory / f"archive-{id(self)}")
        self.now, self.seq, self.requests = NOW, 1, dict.fromkeys(CURRENCIES, 0)
        self.chain = frames_of()
        self.rated = dict.fromkeys(CURRENCIES, 0)
        fill(self.database)
        with self.database.platform() as tx:
            parties.put_entity(tx, SELLER, now=10)
            for owner in CURRENCIES:
                parties.put_account(tx, msgspec.structs.replace(BUYER, organization_id=owner), now=10)
                credits.put_topup_rule(tx, owner, TopupRule(10**13, 10**9, 60), now=10)

    def teardown(self) -> None:
        """Bill all that can be closed: nothing is left, and everything is found right."""
        for owner in CURRENCIES:
            for month in MONTHS:
                self.close(owner, month)
                self.draft(owner, month)
            for _ in self.list_documents(owner, InvoiceState.DRAFT):
                self.issue(owner)
            self.check(owner)
            assert self.read_balances(owner).get(f"{owner}/unbilled/{CURRENCIES[owner]}", 0) == 0, "all of it is billed"
        assert verify(self.database, self.archive).differences == []
        self.stack.close()

    def new_id(self, prefix: str) -> str:
        return new_id(prefix, self.now, next(self.numbers))

    @contextmanager
    def acting(self, owner: str) -> Iterator[None]:
        """Do something of one organization: the other one's books stay as they are. What is refused changes nothing."""
        (other,) = CURRENCIES.keys() - {owner}
        before, own = self.digest(other), self.digest(owner)
        self.now += 61_000_000
        try:
            yield
        except (Fault, Blocked):
            assert self.digest(owner) == own, "what is refused changes nothing"
        assert self.digest(other) == before, "nobody's operations change another's books"

    def digest(self, owner: str) -> str:
        found = hashlib.sha256(repr(sorted(self.read_balances(owner).items())).encode())
        with self.database.platform(write=False) as tx:
            for table in OWNED:
                for row in tx.connection.execute(sa.select(table).where(table.c.organization_id == owner).order_by(*table.primary_key)):
                    found.update(repr(tuple(row)).encode())
        return found.hexdigest()

    def read_balances(self, owner: str) -> dict[str, int]:
        with self.database.platform(write=False) as tx:
            table = schema_money.balances.c
            found = tx.connection.execute(sa.select(table.account_id, table.posted_pico).where(table.account_id.startswith(owner + "/")))
            return {row.account_id: int(row.posted_pico) for row in found}

    # ---- Usage ----------------------------------------------------------------------------------------------------------

    @rule(owner=owners, month=months, tokens=st.integers(0, 2_000_000_000))
    def use(self, owner: str, month: Any, tokens: int) -> None:
        """A request ended in whatever month, closed or not, and a gateway brings it."""
        with self.acting(owner):
            number = self.requests[owner] + 1
            price = PRICE if owner == ORGANIZATION else OTHER_PRICE
            place = f"{1 + (owner == OTHER_ORGANIZATION)}{number:07d}"
            at = max(month.start_at, EPOCH) + number * 60_000_000
            of = admit(int(place), organization_id=owner, price_version=price.id, admitted_at=at)
            done = final(of, used=Quantities(tokens, 3, 5, 7), ended_at=at + 1000, first_token_at=None)
            frames = [self.chain.send(each) for each in (of, done, Tick(at=NOVEMBER.end_at))]
            with self.database.platform() as tx:
                collect(tx, self.archive, node_id=NODE, epoch=EPOCH, first_seq=self.seq, body=b"".join(frames), now=self.now)
            self.seq += len(frames)
            self.requests[owner] = number
            units = price.unit_prices
            self.rated[owner] += tokens * units.input + 3 * units.cached_input + 5 * units.output + 7 * units.reasoning + units.request

    @rule(owner=owners, number=st.integers(1, 6), kind=st.sampled_from(AdjustmentKind), amount=st.integers(1, 10**13))
    def correct(self, owner: str, number: int, kind: AdjustmentKind, amount: int) -> None:
        with self.acting(owner):
            event_id = request_id(int(f"{1 + (owner == OTHER_ORGANIZATION)}{number:07d}"))
            replacement = Quantities(amount % 10**9, 0, 1, 0, 1) if kind is AdjustmentKind.REPLACE else None
            credit_pico = amount if kind is AdjustmentKind.CREDIT else None
            wanted = WantedAdjustment(event_id=event_id, kind=kind, reason="r", replacement=replacement, credit_pico=credit_pico)
            with self.database.platform() as tx:
                made = corrections.ask(tx, wanted, random_bits=next(self.numbers), actor=PERSON, limit_pico=10**18, now=self.now)
            self.rated[owner] += made.amount_pico

    # ---- Credit ---------------------------------------------------------------------------------------------------------

    @rule(owner=owners, euros=st.integers(1, 500), category=st.sampled_from(GrantCategory))
    def grant(self, owner: str, euros: int, category: GrantCategory) -> None:
        """Credit is granted; a top-up that waits is answered by it, and answering it again changes nothing."""
        with self.database.platform(write=False) as tx:
            asked = [
                each.id for each in credits.list_topups(tx, PageWindow(limit=100), only_open=True).items if each.organization_id == owner
            ]
        wanted = WantedGrant(
            category=category,
            amount_pico=euros * 10**12,
            currency=None,
            cost_basis_bp=None,
            priority=0,
            effective_at=None,
            expires_at=None,
            reference="",
            project_id=None,
            model="",
            topup_id=asked[0] if asked else None,
        )
        for _ in range(2 if asked else 1):
            before = self.digest(owner)
            with self.acting(owner), self.database.platform() as tx:
                credits.create_grant(tx, owner, wanted, id=self.new_id(CREDIT_GRANT), now=self.now)
        assert not asked or self.digest(owner) == before

    # ---- Invoices and payments ------------------------------------------------------------------------------------------

    @rule(owner=owners, month=months)
    def close(self, owner: str, month: Any) -> None:
        with self.acting(owner):
            periods.close(self.database, period_id(owner, month.start_at), actor=ACTOR, now=self.now)
            while credits.redraw_one(self.database, lambda: False):
                pass

    @rule(owner=owners, month=months)
    def draft(self, owner: str, month: Any) -> None:
        with self.acting(owner), self.database.platform() as tx:
            documents.draft_period(tx, period_id(owner, month.start_at), lambda: self.new_id(INVOICE), self.now)

    @rule(owner=owners)
    def issue(self, owner: str) -> None:
        """Issue the oldest draft."""
        for each in self.list_documents(owner, InvoiceState.DRAFT)[:1]:
            with self.acting(owner), self.database.platform() as tx:
                documents.issue(tx, each.id, actor=ACTOR, now=self.now)

    @rule(owner=owners, at=st.integers(0, 5), whole=st.booleans())
    def credit(self, owner: str, at: int, whole: bool) -> None:
        """Give a cent or all of an invoice back."""
        found = self.list_documents(owner, InvoiceState.ISSUED)
        if found:
            with self.acting(owner), self.database.platform() as tx:
                amount_pico = None if whole else 10**10
                invoice_id = found[at % len(found)].id
                documents.draft_credit_note(tx, invoice_id, amount_pico=amount_pico, reason="r", id=self.new_id(INVOICE), now=self.now)

    @rule(owner=owners, minor=st.integers(1, 100_000), kind=st.sampled_from([PaymentKind.PAYMENT, PaymentKind.REFUND]))
    def pay(self, owner: str, minor: int, kind: PaymentKind) -> None:
        with self.acting(owner), self.database.platform() as tx:
            wanted = WantedPayment(kind, format_minor(minor, 2), None, "2026-12-02", "r", ())
            payments.record_payment(tx, owner, wanted, id=self.new_id(PAYMENT), actor=ACTOR, now=self.now)

    def list_documents(self, owner: str, state: InvoiceState) -> list[Any]:
        with self.database.platform(write=False) as tx:
            return list(documents.list_invoices(tx, PageWindow(limit=1000), organization_id=owner, state=state).items)

    # ---- What holds -----------------------------------------------------------------------------------------------------

    def check(self, owner: str) -> None:
        """Compare what is unbilled with what was rated and corrected, less what credit paid and what issued documents bill exactly."""
        issued = [decode_document(each.document) for each in self.list_documents(owner, InvoiceState.ISSUED)]
        billed = sum(each.amount_pico for document in issued for each in list_movements(document) if each.account == "unbilled")
        table = schema_credits.credit_transactions.c
        with self.database.platform(write=False) as tx:
            query = sa.select(table.grant_id, table.move, table.amount_pico).where(table.organization_id == owner)
            booked = list(tx.connection.execute(query))
            left = credits.list_standings(tx, owner)
            account = payments.get_account(tx, owner)
        burned = sum(int(row.amount_pico) for row in booked if row.move == "burn")
        balances = self.read_balances(owner)
        assert balances.get(f"{owner}/unbilled/{CURRENCIES[owner]}", 0) == self.rated[owner] - burned + billed
        granted = {row.grant_id: int(row.amount_pico) for row in booked if row.move == "grant"}
        for grant_id, pico in granted.items():
            used = sum(int(row.amount_pico) for row in booked if row.grant_id == grant_id and row.move != "grant")
            assert 0 <= used <= pico and balances[f"{owner}/credit:{grant_id}/{CURRENCIES[owner]}"] == used - pico
        assert all(0 <= each.left_pico <= each.grant.amount_pico for each in left)
        owed = sum(each.open_minor for each in account.open) - account.balance_minor
        assert balances.get(f"{owner}/receivable/{CURRENCIES[owner]}", 0) == owed * 10**10

    @invariant()
    def books_agree(self) -> None:
        for owner in CURRENCIES:
            self.check(owner)
        numbers: dict[str, list[int]] = {}
        with self.database.platform(write=False) as tx:
            table = schema_invoices.invoices.c
            for row in tx.connection.execute(sa.select(table.series, table.number).where(table.state == "issued").order_by(table.number)):
                numbers.setdefault(row.series, []).append(row.number)
        assert all(found == list(range(1, len(found) + 1)) for found in numbers.values()), numbers


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_books_of_two_organizations_agree_in_every_history(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    template: SqliteTemplate | PostgresTemplate = request.getfixturevalue(f"{kind}_template")

    @contextmanager
    def open_database() -> Iterator[Database]:
        with template.copied(tmp_path) as url, closing(Database.open(url)) as database:
            yield database

    run_state_machine_as_test(
        lambda: Bills(open_database, tmp_path), settings=settings(max_examples=5, stateful_step_count=20, deadline=None)
    )
