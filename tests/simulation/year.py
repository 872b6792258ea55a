"""A year of billing in virtual time, from one seed: `python -m tests.simulation.year --seed 1 [--customers 50] [--months 12]`.

Customers in six time zones and three currencies send requests; gateways ship them, late, twice, and after their loss was declared. Prices,
plans and terms change, requests are corrected, credit is granted, burned, voided and expires. Every day the jobs of control run with the
virtual clock: they close months, draft and issue invoices, top up, dun. Operators approve, regenerate, void, cancel, credit; customers pay
in time, late, too little, too much, or not at all, and banks take payments back. All of it is the code of the control plane, on a real
database. What is outside is simulated: gateways, people and banks, who act by the dice.

At the end `year_books` computes the books again from what was sent and paid, and compares everything.
"""

import argparse
import heapq
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tests.simulation import year_books
from tests.simulation.year_customers import (
    BASE_UNITS,
    DAY_US,
    MINOR_UNITS,
    MODELS,
    SCALES,
    SECOND_US,
    YEAR,
    Customer,
    Request,
    Series,
    Tariffs,
    day_name,
    list_agreements,
    list_ends,
    list_price_changes,
    list_sellers,
    make_customers,
    make_line,
    make_quantities,
    make_request,
    month_start,
)
from tests.storage.databases import SqliteTemplate
from tollway.control.catalog import catalog, prices
from tollway.control.gateways import losses
from tollway.control.invoicing import automatic_issue, documents, dunning, parties, payments
from tollway.control.invoicing.documents import InvoiceView
from tollway.control.invoicing.payments import InvoiceStanding, WantedPayment
from tollway.control.metering.collect import ingest
from tollway.control.money import automatic_closing, contracts, corrections, credits
from tollway.control.money.contracts import WantedContract
from tollway.control.money.corrections import WantedAdjustment
from tollway.control.money.credits import WantedGrant
from tollway.control.tenancy import tenants
from tollway.domain import ids
from tollway.domain.catalog import Endpoint, Model
from tollway.domain.corrections import AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.credits import MINUTE_US, CreditGrant, GrantCategory, TopupInterval, TopupRule
from tollway.domain.faults import STATE_CONFLICT, Fault
from tollway.domain.invoices import Document, decode_document, encode_document
from tollway.domain.keys import KeyOrigin, Operator
from tollway.domain.money import format_minor
from tollway.domain.pages import PageWindow
from tollway.domain.payments import PaymentKind
from tollway.domain.prices import PriceVersion
from tollway.domain.proofs import hash_price
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.tenants import Status
from tollway.domain.usage import OUTCOME_POLICY_CURRENT, Admit, Close, Final, Record, Tick, UsageSource, encode
from tollway.storage import schema_invoices, schema_periods
from tollway.storage.database import Database
from tollway.storage.record_archive import Archive
from tollway.wire.segments import extend, first_chain

FIRST = Operator("key_" + "a" * 32, KeyOrigin.FIRST)
SECOND = Operator("key_" + "b" * 32, KeyOrigin.SECOND)
ACTOR = FIRST.key_id

CLOSE_AFTER_DAYS = 2
"""Some gateways bring records only after that, and hold the close up."""

TAIL_DAYS = 110
"""Days after the last request: the last month is closed, invoiced, paid or dunned and written off."""

WRITTEN_OFF = "take the write-off back first"
"""Words by which a credit note about what was written off is refused."""

SHIPPED_DAYS = 10
"""Days after the last request in which the gateways bring what they have."""

SHIP_REPEATED = 0.1
"""Share of batches that are delivered twice."""


class PaymentMade(NamedTuple):
    """A movement of money as the customer or the bank sees it: above zero, towards the seller."""

    customer: Customer
    minor: int
    is_loss: bool = False


class Corrected(NamedTuple):
    """A correction that was booked: what it adds by class, or for a credit what it gives back."""

    request: Request
    by_class: Mapping[str, int]
    credit_pico: int


@dataclass(slots=True)
class History:
    """Record of what happened, as those outside saw it. `grants`: by id."""

    customers: list[Customer]
    requests: list[Request] = field(default_factory=list)
    corrections: list[Corrected] = field(default_factory=list)
    payments: list[PaymentMade] = field(default_factory=list)
    grants: dict[str, CreditGrant] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    """Operations that should not have been refused, and refusals that should have come."""


class Gateway:
    """A gateway that meters: its epoch, and the frames that it has not shipped."""

    def __init__(self, node_id: str, epoch: int) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self._chain, self._seq = first_chain(node_id, epoch), 0
        self._unsent: list[bytes] = []

    def write(self, record: Record) -> None:
        """Append a record to the spool."""
        self._seq += 1
        self._chain, data = extend(self._chain, self._seq, encode(record))
        self._unsent.append(data)

    def take(self) -> tuple[int, bytes]:
        """Return the first record that was not shipped, and all frames from it on; they count as shipped."""
        first_seq, body = self._seq - len(self._unsent) + 1, b"".join(self._unsent)
        self._unsent = []
        return first_seq, body


@dataclass(order=True)
class Task:
    """Something that a customer, a bank or an operator does at an instant."""

    at: int
    number: int
    action: str = field(compare=False)
    invoice_id: str = field(compare=False)
    payment_id: str = field(compare=False, default="")


class Year:
    """A simulated year. `run` lives it; `history` has what those outside know of it."""

    def __init__(self, database: Database, archive: Archive, *, seed: int, customers: int, months: int) -> None:
        self.database, self.archive, self.months = database, archive, months
        self.chance = random.Random(seed)
        self.tariffs = Tariffs()
        self.history = History(make_customers(customers, months, self.chance))
        self.now = month_start("UTC", 0) - 4 * DAY_US
        self._by_id = {each.id: each for each in self.history.customers}
        self._numbers = 0
        self._books: dict[str, str] = {}
        self._compiled: dict[str, PriceVersion] = {}
        self._corrected: set[str] = set()
        self._tasks: list[Task] = []
        self._held_up: list[str] = []
        """Drafts that the job cannot issue, because they credit what was written off."""
        self._written_off: dict[str, list[str]] = {}
        """Payments that are write-offs, by invoice."""
        self._seen_invoices: set[str] = set()
        self._seen_periods: set[str] = set()
        self._changes = list_price_changes(months)
        self._agreements = [(each, one) for one in self.history.customers for each in list_agreements(one)]
        self._gateways: list[Gateway] = []
        self._lost: list[tuple[int, Gateway]] = []
        """Epochs that were declared lost, and when their records turn up."""

    # ---- Small things ---------------------------------------------------------------------------------------------------

    def new_id(self, prefix: str) -> str:
        """Return the next id of a kind: the same for the same seed."""
        self._numbers += 1
        return ids.new_id(prefix, self.now, self._numbers)

    def log(self, line: Mapping[str, object]) -> None:
        """Count the events of the log."""
        self.history.counts[str(line["event"])] += 1
        if line["event"] == "invoice_not_issued" and WRITTEN_OFF in str(line["detail"]):
            self._held_up.append(str(line["invoice_id"]))
        if line["event"] in ("invoice_not_drafted", "invoice_not_dunned", "organization_not_restricted", "restriction_not_lifted"):
            self.history.refused.append(json.dumps(line, default=str))

    def count(self, what: str, number: int = 1) -> None:
        """Count what happened."""
        self.history.counts[what] += number

    # ---- The beginning --------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make models, prices, sellers, customers and gateways."""
        with self.database.platform() as tx:
            for name in MODELS:
                endpoints = tuple(Endpoint)[:1]
                catalog.create_model(tx, Model(name=name, status=Status.ACTIVE, published=True, endpoints=endpoints, created_at=self.now))
            for currency in SCALES:
                book = prices.get_default_book(tx, currency, self.new_id, self.now)
                self._books[currency] = book.id
            for seller in list_sellers(YEAR):
                parties.put_entity(tx, seller, self.now)
        for currency, scale in SCALES.items():
            for series, units in BASE_UNITS.items():
                self._publish(currency, series, {name: unit * scale for name, unit in units.items()}, self.now)
        for one in self.history.customers:
            with self.database.tenant(one.id) as own:
                tenants.create_organization(own, name=f"customer {one.index}", currency=one.currency, time_zone=one.zone, now=self.now)
                for number, project_id in enumerate(one.project_ids):
                    tenants.create_project(own, id=project_id, name=f"project {number}", sizes=DEFAULT_SIZES, now=self.now)
            self.tariffs.agree(one.id, self._books[one.currency], 0, 0)
            with self.database.platform() as tx:
                parties.put_account(tx, one.account(), self.now)
            self._grant_first(one)
        self._gateways = [Gateway(f"node_{number:032x}", self.now + number) for number in range(1, 4)]

    def _publish(self, currency: str, series: Series, units: Mapping[str, int], valid_from: int) -> None:
        with self.database.platform() as tx:
            book = prices.get_book(tx, self._books[currency])
            line = make_line(series, units)
            version = prices.create_price(tx, book, line, valid_from, new_id=self.new_id, now=self.now)
        self.tariffs.publish(book.id, series, valid_from, version.id, units)
        self.count("prices published")

    def _grant_first(self, one: Customer) -> None:
        """Grant what a customer begins with: promotional credit that expires in the middle of the year, of one model for some; goodwill for
        one project; rules by which more is bought."""
        half = month_start(one.zone, max(1, self.months // 2)) // MINUTE_US * MINUTE_US + 10 * DAY_US
        if one.index % 5 == 0:
            model = "whisper" if one.index % 2 else ""
            self._grant(one, GrantCategory.PROMOTIONAL, 25, expires_at=half, model=model)
        if one.index % 7 == 2:
            self._grant(one, GrantCategory.GOODWILL, 5, project_id=one.project_ids[0], priority=3)
            self._grant(one, GrantCategory.PROMOTIONAL, 4_000, expires_at=half, priority=9)
        if one.index % 8 == 7 or one.index % 8 == 0:
            every = TopupInterval.MONTH if one.index % 8 == 7 else None
            rule = TopupRule(one.amount(10), one.amount(20), 3 * 86_400, every)
            with self.database.platform() as tx:
                credits.put_topup_rule(tx, one.id, rule, self.now)

    def _grant(self, one: Customer, category: GrantCategory, euros: float, **changes: Any) -> CreditGrant:
        fields: dict[str, Any] = {
            "cost_basis_bp": None,
            "priority": 0,
            "effective_at": None,
            "expires_at": None,
            "reference": "",
            "project_id": None,
            "model": "",
        }
        wanted = WantedGrant(category=category, amount_pico=one.amount(euros) + 7, currency=one.currency, **fields | changes)
        with self.database.platform() as tx:
            granted = credits.create_grant(tx, one.id, wanted, id=self.new_id(ids.CREDIT_GRANT), now=self.now)
        self.history.grants[granted.id] = granted
        self.count(f"grants, {category}")
        return granted

    # ---- Days -----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live every day: from the day before the first customer's year to the end of the tail."""
        self.set_up()
        day_at, end_at = month_start("UTC", 0) - DAY_US, month_start("UTC", self.months) + DAY_US
        while day_at < end_at + TAIL_DAYS * DAY_US:
            is_served, is_shipped = day_at < end_at, day_at < end_at + SHIPPED_DAYS * DAY_US
            if is_served:
                self._serve(day_at)
            self.now = day_at + DAY_US + 600 * SECOND_US
            if is_shipped:
                self._ship(is_last=day_at + DAY_US >= end_at + SHIPPED_DAYS * DAY_US)
            self._run_jobs()
            self._invoice_by_hand()
            self._plan_payments()
            self._act()
            if is_served:
                self._change_agreements()
                self._correct()
                self._change_credit()
            self._begin_new_series(day_at)
            # Once everything has come, the days on which nobody does anything are few jobs: some of them are left out.
            day_at += DAY_US if is_shipped else 4 * DAY_US

    def _serve(self, day_at: int) -> None:
        ends = sorted((at, one.index) for one in self.history.customers for at in list_ends(one, day_at, self.chance))
        for ended_at, index in ends:
            number = len(self.history.requests) + 1
            request = make_request(number, self.history.customers[index], ended_at, self.tariffs, self.chance)
            self.history.requests.append(request)
            gateway = self.chance.choice(self._gateways)
            admitted = self._admit(request)
            gateway.write(admitted)
            gateway.write(
                Final(
                    admit=admitted,
                    outcome=request.outcome,
                    used=request.used,
                    source=UsageSource.ENGINE_FINAL,
                    ended_at=request.ended_at,
                    attempts=1,
                    first_token_at=request.first_token_at,
                )
            )
        self.count("requests", len(ends))
        for gateway in self._gateways:
            gateway.write(Tick(at=day_at + DAY_US))

    def _admit(self, request: Request) -> Admit:
        offer = request.offer
        version = self._compiled.get(offer.version_id)
        if version is None:
            with self.database.platform(write=False) as tx:
                version = self._compiled[offer.version_id] = prices.get_price(tx, offer.version_id)
        return Admit(
            request_id=request.id,
            admitted_at=request.admitted_at,
            organization_id=request.customer.id,
            project_id=request.project_id,
            key_id=request.customer.key_id,
            model=request.series[0],
            endpoint="chat/completions",
            stream=True,
            price_version=offer.version_id,
            price_hash=hash_price(version, offer.terms_valid_from),
            outcome_policy=OUTCOME_POLICY_CURRENT,
            service_tier=request.series[1],
            test=request.is_test,
        )

    # ---- Gateways -------------------------------------------------------------------------------------------------------

    def _ship(self, *, is_last: bool) -> None:
        """The first gateway ships each day, the second when it can, the third each day until its host is lost."""
        steady, slow, doomed = self._gateways
        self._send(steady)
        if is_last or self.chance.random() < 0.35:
            self._send(slow)
        lost_at = month_start("UTC", self.months // 2) + 14 * DAY_US
        days_left = (lost_at - self.now) // DAY_US
        if not 0 <= days_left < 4:
            self._send(doomed)
        if days_left == 0:  # its disk is gone with the records of the last days; it begins anew
            self._lost.append((lost_at + 32 * DAY_US, doomed))
            self._gateways[2] = Gateway(doomed.node_id, self.now)
            self.count("gateways that lost their disk")
        for turns_up_at, gateway in list(self._lost):
            if (turns_up_at - self.now) // DAY_US == 14:
                self._declare_lost(gateway)
            if turns_up_at <= self.now or is_last:
                self._lost.remove((turns_up_at, gateway))
                gateway.write(Close(at=turns_up_at))
                self._send(gateway)
        if self.chance.random() < 0.03 and not is_last:  # a restart
            self._restart(0)
        if is_last:
            for number in range(3):
                self._restart(number)

    def _restart(self, number: int) -> None:
        gateway = self._gateways[number]
        gateway.write(Close(at=self.now))
        self._send(gateway)
        self._gateways[number] = Gateway(gateway.node_id, self.now + 1)
        self.count("gateways restarted")

    def _send(self, gateway: Gateway) -> None:
        first_seq, body = gateway.take()
        if not body:
            return
        for time_ in range(2 if self.chance.random() < SHIP_REPEATED else 1):
            told = ingest(
                self.database, self.archive, node_id=gateway.node_id, epoch=gateway.epoch, first_seq=first_seq, body=body, now=self.now
            )
            if told.quarantined or told.conflicts or (time_ and told.events):
                self.history.refused.append(f"a batch of {gateway.node_id} was taken as {told}")
        self.count("batches")

    def _declare_lost(self, gateway: Gateway) -> None:
        with self.database.platform() as tx:
            (asked,) = losses.ask(
                tx, node_id=gateway.node_id, epoch=gateway.epoch, reason="disk", actor=FIRST, new_id=self.new_id, now=self.now
            )
            losses.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=SECOND, now=self.now)
        self.count("epochs declared lost")

    # ---- Jobs -----------------------------------------------------------------------------------------------------------

    def _run_jobs(self) -> None:
        now = lambda: self.now  # noqa: E731
        is_stopping = lambda: False  # noqa: E731
        contracts.open_due_periods(self.database, self.now, is_stopping)
        automatic_closing.close_due(self.database, CLOSE_AFTER_DAYS, holder="control", now=now, is_stopping=is_stopping, log=self.log)
        while credits.redraw_one(self.database, is_stopping):
            self.count("credit drawn anew")
        while credits.ask_for_due_topup(self.database, self.now):
            pass
        self._answer_topups()
        automatic_issue.run(*(self.database,) * 3, new_id=lambda: self.new_id(ids.INVOICE), now=now, is_stopping=is_stopping, log=self.log)
        for invoice_id in self._held_up:
            self._issue(invoice_id)
        self._held_up.clear()
        dunning.run(self.database, new_id=lambda: self.new_id(ids.BUDGET), now=now, is_stopping=is_stopping, log=self.log)

    def _answer_topups(self) -> None:
        with self.database.platform(write=False) as tx:
            asked = credits.list_topups(tx, PageWindow(limit=1000), only_open=True).items
        for each in asked:
            one = self._by_id[each.organization_id]
            changes = {"topup_id": each.id, "expires_at": (self.now // MINUTE_US + 60 * 24 * 75) * MINUTE_US}
            self._grant(one, GrantCategory.PAID, 20, **changes)
            try:
                self._grant(one, GrantCategory.PAID, 20, **changes)
            except Fault as fault:
                self._expect(fault, "granted already")
            else:
                self.history.refused.append(f"top-up {each.id} was granted twice")
            self.count("top-ups")

    def _expect(self, fault: Fault, words: str) -> None:
        if fault.kind is not STATE_CONFLICT or words not in fault.message:
            self.history.refused.append(f"{fault.kind.code}: {fault.message}")

    # ---- Invoices -------------------------------------------------------------------------------------------------------

    def _select(self, query: sa.Select[Any]) -> list[Any]:
        with self.database.platform(write=False) as tx:
            return list(tx.connection.execute(query))

    def _invoice_by_hand(self) -> None:
        """The seller without a grace period drafts and approves: some drafts are looked at first, made again, or voided."""
        periods = schema_periods.billing_periods.c
        query = sa.select(periods.id, periods.organization_id).where(periods.state == "closed").order_by(periods.id)
        manual = {one.id for one in self.history.customers if one.currency == "USD"}
        for period_id, organization_id in self._select(query):
            if period_id in self._seen_periods or organization_id not in manual:
                continue
            self._seen_periods.add(period_id)
            drafts = self._draft(period_id)
            if drafts and self.chance.random() < 0.2:
                again = self._draft(period_id)
                if [_without_ids(each) for each in again] != [_without_ids(each) for each in drafts]:
                    self.history.refused.append(f"the drafts of {period_id} are not the same when they are made again")
                with self.database.platform() as tx:
                    documents.void_draft(tx, again[0].id, self.now)
                drafts = self._draft(period_id)
                self.count("drafts made again")
            for each in drafts:
                self._issue(each.id)

    def _draft(self, period_id: str) -> list[Document]:
        try:
            with self.database.platform() as tx:
                made = documents.draft_period(tx, period_id, lambda: self.new_id(ids.INVOICE), self.now)
        except Fault as fault:
            self._expect(fault, "nothing to invoice")
            return []
        return [InvoiceView.of(each).document for each in made]

    def _issue(self, invoice_id: str) -> None:
        """Issue a draft. What was written off of the invoice that it credits is taken back before."""
        try:
            with self.database.platform() as tx:
                documents.issue(tx, invoice_id, actor=ACTOR, now=self.now)
        except Fault as fault:
            self._expect(fault, WRITTEN_OFF)
            self._take_write_offs_back(invoice_id)
            with self.database.platform() as tx:
                documents.issue(tx, invoice_id, actor=ACTOR, now=self.now)

    def _take_write_offs_back(self, invoice_id: str) -> None:
        with self.database.platform(write=False) as tx:
            corrected_id = documents.get_invoice(tx, invoice_id).corrects_id or ""
        for payment_id in self._written_off.pop(corrected_id, []):
            self._return(payment_id, is_loss=True)
            self._plan(1, "write off", corrected_id)

    # ---- Payments -------------------------------------------------------------------------------------------------------

    def _plan_payments(self) -> None:
        """Decide for each new invoice how it is paid."""
        table = schema_invoices.invoices.c
        query = sa.select(table.id, table.document).where(table.state == "issued", table.kind == "invoice").order_by(table.id)
        known = self._seen_invoices
        for invoice_id, text in self._select(query.where(table.issued_at >= self.now - 2 * DAY_US)):
            if invoice_id in known:
                continue
            known.add(invoice_id)
            if decode_document(text).totals.gross_minor:
                plan = self.chance.choice(PLANS)
                self.count(f"invoices, {plan[0][1]}")
                for days, action in plan:
                    self._plan(days, action, invoice_id)

    def _plan(self, days: int, action: str, invoice_id: str, payment_id: str = "") -> None:
        self._numbers += 1
        heapq.heappush(self._tasks, Task(self.now + days * DAY_US, self._numbers, action, invoice_id, payment_id))

    def _act(self) -> None:
        while self._tasks and self._tasks[0].at <= self.now:
            task = heapq.heappop(self._tasks)
            with self.database.platform(write=False) as tx:
                invoice = documents.get_invoice(tx, task.invoice_id)
                account = payments.get_account(tx, invoice.organization_id)
            one = self._by_id[invoice.organization_id]
            standing = next((each for each in account.open if each.id == task.invoice_id), None)
            match task.action:
                case "return":
                    self._return(task.payment_id)
                case "refund":
                    if account.balance_minor > 1:
                        self._pay(one, PaymentKind.REFUND, account.balance_minor // 2)
                case _ if standing is None:
                    self.count("invoices that were settled before")
                case "pay" | "late":
                    self._receive(one, standing, standing.open_minor)
                case "partial":
                    self._receive(one, standing, standing.open_minor // 2 or 1)
                    self._plan(20, "pay", standing.id)
                case "over":
                    self._receive(one, standing, standing.open_minor + one.amount(13) // one.step)
                    self._plan(3, "refund", standing.id)
                case "bounce":
                    paid = self._receive(one, standing, standing.open_minor)
                    self._plan(5, "return", standing.id, paid)
                    self._plan(17, "pay", standing.id)
                case "write off":
                    lost = self._pay(one, PaymentKind.WRITE_OFF, standing.open_minor, standing.id)
                    self._written_off.setdefault(standing.id, []).append(lost)
                case "dispute":
                    self._dispute(standing)
                case "settle":
                    self._settle_dispute(one, standing)
                case "cancel":
                    self._cancel(standing)

    def _receive(self, one: Customer, standing: InvoiceStanding, minor: int) -> str:
        """Money comes: by a statement of the bank in euros, otherwise an operator records it."""
        if one.currency != "EUR" or self.chance.random() < 0.3:
            return self._pay(one, PaymentKind.PAYMENT, minor, standing.id)
        text = _write_statement(standing.document, minor, reference=f"A{self._numbers}", day=day_name(self.now))
        with self.database.platform() as tx:
            (told,) = payments.import_statements(tx, text, new_id=self.new_id, actor=ACTOR, now=self.now)
        with self.database.platform() as tx:
            (again,) = payments.import_statements(tx, text, new_id=self.new_id, actor=ACTOR, now=self.now)
        if len(told.payments) != 1 or again.payments:
            self.history.refused.append(f"a statement for {standing.document.number} was taken as {told}, and then as {again}")
            return ""
        self.history.payments.append(PaymentMade(one, minor))
        self.count("payments by statement")
        return told.payments[0].id

    def _pay(self, one: Customer, kind: PaymentKind, minor: int, *invoice_ids: str) -> str:
        wanted = WantedPayment(kind, format_minor(minor, MINOR_UNITS[one.currency]), one.currency, day_name(self.now), "r", invoice_ids)
        id = self.new_id(ids.PAYMENT)
        with self.database.platform() as tx:
            payments.record_payment(tx, one.id, wanted, id=id, actor=ACTOR, now=self.now)
        is_loss = kind is PaymentKind.WRITE_OFF
        self.history.payments.append(PaymentMade(one, -minor if kind is PaymentKind.REFUND else minor, is_loss))
        self.count(f"payments, {kind}")
        return id

    def _return(self, payment_id: str, *, is_loss: bool = False) -> None:
        """The bank takes a payment back, or an operator a write-off."""
        id = self.new_id(ids.PAYMENT)
        with self.database.platform() as tx:
            returned = payments.return_payment(
                tx, payment_id, id=id, value_on=day_name(self.now), reference="AM04", actor=ACTOR, now=self.now
            )
        one = self._by_id[returned.organization_id]
        self.history.payments.append(PaymentMade(one, -returned.amount_minor, is_loss))
        self.count("write-offs taken back" if is_loss else "payments returned")

    def _dispute(self, standing: InvoiceStanding) -> None:
        with self.database.platform() as tx:
            dunning.set_hold(tx, standing.id, "disputed", self.now)
        self._plan(25, "settle", standing.id)

    def _settle_dispute(self, one: Customer, standing: InvoiceStanding) -> None:
        """A tenth of the invoice is credited, the rest is paid."""
        with self.database.platform() as tx:
            dunning.set_hold(tx, standing.id, None, self.now)
        tenth = standing.document.totals.net_minor // 10
        if tenth:
            with self.database.platform() as tx:
                note = documents.draft_credit_note(
                    tx, standing.id, amount_pico=tenth * one.step, reason="as agreed", id=self.new_id(ids.INVOICE), now=self.now
                )
            self._issue(note.id)
            self.count("credit notes about an amount")
        self._plan(1, "pay", standing.id)

    def _cancel(self, standing: InvoiceStanding) -> None:
        """The invoice is taken back, and its month is invoiced again; what others correct is paid instead."""
        self._plan(1, "pay", standing.id)
        try:
            with self.database.platform() as tx:
                note = documents.draft_credit_note(
                    tx, standing.id, amount_pico=None, reason="wrong order", id=self.new_id(ids.INVOICE), now=self.now
                )
        except Fault as fault:
            self._expect(fault, "was corrected by other documents")
            return
        self._issue(note.id)
        self.count("invoices cancelled")
        period = standing.document.period
        if period is not None:
            for each in self._draft(period.id):
                self._issue(each.id)

    # ---- Changes --------------------------------------------------------------------------------------------------------

    def _change_agreements(self) -> None:
        """Publish prices, begin and end contracts, give discounts, on the days on which operators do."""
        for change in [each for each in self._changes if each.at <= self.now]:
            self._changes.remove(change)
            for currency in SCALES:
                for series, units in self.tariffs.list_last(self._books[currency]).items():
                    changed = {name: unit * change.percent // 100 + change.odd for name, unit in units.items()}
                    self._publish(currency, series, changed, change.valid_from)
        for agreement, one in [each for each in self._agreements if each[0].agreed_at <= self.now]:
            self._agreements.remove((agreement, one))
            with self.database.platform() as tx:
                before = one.contracts[-1] if one.contracts else None
                if before is not None and before.valid_until != agreement.valid_from:
                    contracts.end(tx, one.id, before.id, agreement.valid_from, now=self.now)
                wanted = WantedContract(agreement.valid_from, agreement.valid_until, agreement.terms)
                one.contracts.append(contracts.create(tx, one.id, wanted, id=self.new_id(ids.CONTRACT), now=self.now))
            self.count("contracts")
        for one in self.history.customers:
            begins_at = month_start("UTC", self.months // 3) + (9 + one.index % 11) * DAY_US
            if one.index % 3 == 1 and 0 <= self.now - begins_at < DAY_US:
                with self.database.tenant(one.id) as tx_:
                    terms = prices.set_terms(tx_, book_id=None, discount_bp=1_500, valid_from=self.now + 77, now=self.now)
                self.tariffs.agree(one.id, self._books[one.currency], 1_500, terms.valid_from)
                self.count("terms changed")

    def _change_credit(self) -> None:
        """Void a grant now and then; at the end of the year nothing is topped up any more."""
        if self.chance.random() < 0.02 and self.history.grants:
            granted = self.chance.choice(list(self.history.grants.values()))
            try:
                with self.database.platform() as tx:
                    credits.void_grant(tx, granted.organization_id, granted.id, self.now)
                self.count("grants voided")
            except Fault as fault:
                self._expect(fault, "ended already")
        if self.now >= month_start("UTC", self.months) - DAY_US:
            for one in self.history.customers:
                with self.database.platform() as tx:
                    credits.delete_topup_rule(tx, one.id)

    def _correct(self) -> None:
        """Correct a few requests of the last three months."""
        for _ in range(self.chance.choice((0, 0, 0, 1, 2)) if self.history.requests else 0):
            request = self.chance.choice(self.history.requests[-6000:])
            cost = sum(request.amounts.values())
            if request.id in self._corrected or not cost:
                continue
            kind = self.chance.choice(list(AdjustmentKind))
            replacement, credit_pico, by_class = None, None, dict[str, int]()
            if kind is AdjustmentKind.CREDIT:
                credit_pico = max(1, cost * self.chance.randrange(1, 100) // 100)
            else:
                after: dict[str, int] = {}
                if kind is AdjustmentKind.REPLACE:
                    quantities = make_quantities(request.series[0], self.chance)
                    replacement = request._replace(quantities=quantities).used
                    after = {name: number * request.offer.units.get(name, 0) for name, number in quantities.items()}
                names = {*request.amounts, *after}
                by_class = {name: after.get(name, 0) - request.amounts.get(name, 0) for name in names}
                by_class = {name: pico for name, pico in by_class.items() if pico}
            wanted = WantedAdjustment(event_id=request.id, kind=kind, reason="wrong", replacement=replacement, credit_pico=credit_pico)
            try:
                with self.database.platform() as tx:
                    asked = corrections.ask(
                        tx,
                        wanted,
                        random_bits=self._numbers,
                        actor=FIRST,
                        limit_pico=request.customer.amount(2),
                        now=self.now,
                    )
                    if asked.state is AdjustmentState.PENDING:
                        corrections.decide(tx, asked.id, ApprovalDecision.APPROVED, approver=SECOND, now=self.now)
                        self.count("corrections that a second person approved")
            except Fault as fault:
                if "has not arrived yet" not in fault.message:
                    self.history.refused.append(f"a correction: {fault.message}")
                continue
            self._numbers += 1
            self._corrected.add(request.id)
            self.history.corrections.append(Corrected(request, by_class, credit_pico or 0))
            self.count(f"corrections, {kind}")

    def _begin_new_series(self, day_at: int) -> None:
        if day_name(day_at) == f"{YEAR + 1}-01-01":
            with self.database.platform() as tx:
                for seller in list_sellers(YEAR + 1):
                    parties.put_entity(tx, seller, self.now)


PLANS = (
    *[((14, "pay"),)] * 6,
    ((10, "pay"),),
    ((14, "partial"),),
    ((13, "over"),),
    ((14, "bounce"),),
    ((24, "late"),),
    ((50, "late"),),
    ((60, "write off"),),
    ((12, "dispute"),),
    ((6, "cancel"),),
)
"""Ways in which an invoice is paid or not, by days after its issue. Those that are late are dunned meanwhile."""


def _without_ids(document: Document) -> bytes:
    """Return a draft without its own id and that of a draft that it corrects: what two of the same contents have in common."""
    corrects = document.corrects if document.corrects is None or document.corrects.number else None
    return encode_document(msgspec.structs.replace(document, id="", corrects=corrects))


def _write_statement(document: Document, minor: int, *, reference: str, day: str) -> str:
    """Return a statement of the seller's bank with one credit that names an invoice."""
    amount = format_minor(minor, MINOR_UNITS[document.currency])
    return (
        "<?xml version='1.0'?><Document xmlns='urn:iso:std:iso:20022:tech:xsd:camt.053.001.08'><BkToCstmrStmt><Stmt>"
        f"<Id>{reference}</Id><Acct><Id><IBAN>{document.bank_account.iban}</IBAN></Id></Acct>"
        f"<Ntry><Amt Ccy='{document.currency}'>{amount}</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts><Cd>BOOK</Cd></Sts>"
        f"<ValDt><Dt>{day}</Dt></ValDt><AcctSvcrRef>{reference}</AcctSvcrRef><NtryDtls><TxDtls>"
        f"<RltdPties><Dbtr><Pty><Nm>Customer</Nm></Pty></Dbtr></RltdPties><RmtInf><Ustrd>Invoice {document.number}</Ustrd></RmtInf>"
        "</TxDtls></NtryDtls></Ntry></Stmt></BkToCstmrStmt></Document>"
    )


# ---- A run ----------------------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """Outcome of a year: what happened, what does not agree, and a digest over all documents and accounts, the same for a seed on every
    database."""

    counts: Mapping[str, int]
    differences: list[str]
    digest: str
    statement: Mapping[str, Mapping[str, int]]
    seconds: float


def simulate(database: Database, directory: Path, *, seed: int, customers: int, months: int) -> Report:
    """Live a year on an empty, migrated database, and check it. `directory`: for the archive and for exports."""
    began = time.perf_counter()
    archive = Archive(directory / "archive")
    year = Year(database, archive, seed=seed, customers=customers, months=months)
    year.run()
    lived = time.perf_counter() - began
    checked = year_books.check(database, archive, year.history, directory, year.now)
    counts = {**dict(sorted(year.history.counts.items())), **checked.counts, "seconds lived": round(lived)}
    differences = [*year.history.refused, *checked.differences]
    return Report(counts, differences, checked.digest, checked.statement, time.perf_counter() - began)


@contextmanager
def empty_database(url: str | None, directory: Path) -> Iterator[Database]:
    """Open an empty, migrated database: a file in a directory, or what a URL names, which must be empty."""
    if url is None:
        with SqliteTemplate(directory).copied(directory) as copied:
            database = Database.open(copied)
            try:
                yield database
            finally:
                database.close()
        return
    database = Database.open(url)
    try:
        database.migrate()
        yield database
    finally:
        database.close()


def main(arguments: list[str]) -> int:
    """Run a year and print what it came to. Returns the exit status: 1 if anything does not agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.year", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--customers", type=int, default=50)
    parser.add_argument("--months", type=int, default=12, help="2 to 12")
    parser.add_argument("--database", help="the URL of an empty PostgreSQL database (default: SQLite in memory)")
    told = parser.parse_args(arguments)
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="tollway-year-", dir=memory if memory.is_dir() else None))
    print(f"seed {told.seed}", flush=True)
    try:
        with empty_database(told.database, directory) as database:
            report = simulate(database, directory, seed=told.seed, customers=told.customers, months=told.months)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(describe(report))
    return 1 if report.differences else 0


def describe(report: Report) -> str:
    """Return a report as text."""
    lines = [f"{count:>9,} {what}" for what, count in report.counts.items()]
    for currency, sums in report.statement.items():
        lines.append(f"{currency}: " + ", ".join(f"{name} {pico / 10**12:,.2f}" for name, pico in sums.items()))
    lines += [f"DIFFERENCE: {each}" for each in report.differences[:50]]
    return "\n".join([*lines, f"digest {report.digest}", f"{len(report.differences)} differences, {report.seconds:.0f} s"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
