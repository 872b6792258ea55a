"""Every column of every table of money, changed one at a time: the database refuses the change, or `verify` finds it, or a list says why
it does not matter.

One contract, on SQLite and on PostgreSQL. A change is made in a transaction that is rolled back, and `verify` looks at it from inside,
without the guards of the database: what it says of a change does not depend on them. With them is tried what they must refuse.

On SQLite `verify` is stopped at its first difference, which is all that is asked of it here: what it would say of the rest changes no
answer. A change that does not matter is not looked for, because no answer would be wrong.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from pysqlite3 import dbapi2 as sqlite3
from sqlalchemy.exc import DBAPIError

from tests.control.auditing.test_audit import close_books
from tests.control.invoicing.parties import add_parties
from tests.control.metering.test_collect import fill, take
from tests.control.money.test_corrections import APPROVER
from tests.control.money.test_periods import NOVEMBER, NOW, OCTOBER, SEPTEMBER, declare_lost, ended
from tests.link import samples
from tests.link.samples import EPOCH, NODE, ORGANIZATION, admit, final, frames
from tests.storage.databases import become_owner
from tollway.control.catalog import price_drafts, prices
from tollway.control.invoicing import documents, payments
from tollway.control.invoicing.payments import WantedPayment
from tollway.control.metering import quarantine, rating
from tollway.control.money import budgets, contracts, credits, serving_costs
from tollway.control.money.contracts import WantedContract
from tollway.control.money.credits import WantedGrant
from tollway.control.verification import verify
from tollway.control.verification.verify import compare
from tollway.domain.billing_classes import Quantities
from tollway.domain.budgets import BudgetMode, BudgetWindow
from tollway.domain.contracts import ContractTerms, Fee
from tollway.domain.corrections import AdjustmentKind, AdjustmentState, ApprovalDecision
from tollway.domain.credits import MINUTE_US, CreditMove, GrantCategory
from tollway.domain.ids import BUDGET, BUDGET_RAISE, CONTRACT, COST, CREDIT_GRANT, INVOICE, PAYMENT, PRICE_DRAFT, new_id
from tollway.domain.keys import KeyOrigin
from tollway.domain.money import PICO
from tollway.domain.payments import PaymentKind
from tollway.domain.periods import PeriodState, period_id
from tollway.domain.price_books import DraftLine, DraftState, PriceDraft
from tollway.domain.quotas import DEFAULT_SIZES
from tollway.domain.serving_costs import DeploymentCost
from tollway.domain.usage import Anomaly, Outcome, Record, ServiceTier, Tick, UsageSource
from tollway.storage import (  # noqa: F401
    schema,
    schema_budgets,
    schema_contracts,
    schema_credits,
    schema_invoices,
    schema_money,
    schema_payments,
    schema_periods,
    schema_prices,
    schema_reconcile,
    schema_serving_costs,
)
from tollway.storage.database import Database, PlatformTx
from tollway.storage.record_archive import Archive


@dataclass(frozen=True, slots=True)
class Books:
    """Books of one database, and where they are changed. `unguarded`: where guards are lifted; on SQLite a copy without triggers."""

    database: Database
    unguarded: Database
    archive: Archive


OTHER_TABLES = {
    "projects", "service_accounts", "api_keys", "models", "deployments", "model_limits",  # who may use what; an event names them by id
    "plans", "plan_limits", "limit_overrides",  # how much of it
    "publish_head", "changes", "nodes", "join_tokens", "limit_reports", "gateway_statuses",  # what gateways are told and tell,
    "job_leases",  # and who runs a job
    "credit_topup_rules", "credit_topups",  # what to ask a customer for; what was granted counts
    "credit_redraws", "credit_redraw_usage",  # which draws of open months are made anew
    "bank_statements", "bank_entries", "bank_returns", "dunning_notices", "dunning_letters",  # what banks say, and what is done about
    "dunning_holds", "invoice_syncs",  # payment: in test_payment_tampering
    "direct_debit_files", "direct_debits", "credit_transfer_files", "credit_transfers",
    "legal_entities", "billing_accounts",  # who sells and who is billed; a document has a copy of both
    "compatible_revisions",  # which versions may run over the schema
    "refused_epochs",  # which runs wait for a clock or an operator
    "content_logs", "content_log_totals", "content_deletions", "leaked_keys",  # what requests said, and what was found in public
    "erasures",  # what was destroyed, and by whom
    "outbox_events", "event_counters", "event_searches", "webhook_endpoints", "webhook_deliveries",  # what is told to whom
    "sink_positions", "usage_batches", "telemetry_exports",  # and how far
    "idempotency_keys", "stored_responses", "stored_response_totals",  # what was answered
    "data_keys",  # with which secrets are sealed
    "audit_heads", "audit_records", "audit_checkpoints", "audit_cuts",  # who changed what
    "custom_roles", "users", "user_groups", "group_members", "role_assignments", "invites",  # who may do what
    "scim_users", "scim_groups",  # what a directory says of them
    "token_signing_keys", "identity_providers", "federation_rules", "used_assertions",
    "client_certificates", "certificate_rules",  # whose tokens are accepted
    "user_credentials", "user_sessions", "operators", "operator_sessions",
    "sign_in_links", "operator_sign_in_links", "sign_in_attempts", "device_logins",  # who signed in
    "sign_in_connections", "user_identities",  # and where
    "engine_readings", "engine_hours", "engine_members",  # what engines counted: a second witness, not a bill
}  # fmt: skip
"""Tables without money. Every other one is changed here."""

MONEY_TABLES = [table for table in schema.metadata.sorted_tables if table.name not in OTHER_TABLES]

KINDS = {
    "ledger_transactions": "cause",
    "billing_periods": "state",
    "usage_adjustments": "kind",
    "usage_events": "outcome",
    "usage_rollups": "width_seconds",
    "project_rollups": "width_seconds",
    "organization_rollups": "width_seconds",
    "credit_transactions": "move",
    "credit_draws": "is_final",
    "ledger_accounts": "owner",
}
"""Columns by whose values the rows of a table differ in kind: a row of each kind is changed."""

ENUMS = {
    "state": [*PeriodState, *DraftState, *AdjustmentState],
    "cause": ["usage", "adjustment"],
    "outcome": list(Outcome),
    "source": list(UsageSource),
    "service_tier": list(ServiceTier),
    "tier": list(ServiceTier),
    "anomaly": list(Anomaly),
    "kind": list(AdjustmentKind),
    "decision": list(ApprovalDecision),
    "category": list(GrantCategory),
    "move": list(CreditMove),
    "actor_origin": list(KeyOrigin),
    "approver_origin": list(KeyOrigin),
}

REFUSED = "the database refuses to change it"
OWN_WORDS = f"what the platform alone knows, of itself; {REFUSED}"
NO_MONEY = "no amount, no period and no proof follows from it"
CONTROLS_CLOCK = f"an instant of control's own clock, which the archive does not know; {REFUSED}"
SPENDING_LIMIT = "what gateways may spend from now on; a bill follows from the events, which are compared, and from no budget"
WHICH_BURNS = "which usage burns it from now on; what closed months burned is compared"
PROVISIONAL = "of an open month: computed again from its events when it closes; what closed months drew is compared"
SENT_DOWN = "how far back gateways are told of prices; what was billed follows from valid_from"

HARMLESS = {
    "contracts.created_at": NO_MONEY,
    "deployment_costs.created_at": NO_MONEY,
    "capacity_costs.booked_at": CONTROLS_CLOCK,
    "contracts.valid_until": "an end after the last closed month: what closed months came to is compared",
    "organizations.(data_retention|leaked_key_policy)": NO_MONEY,
    "organizations.(name|.*_at|.*_seconds(_max)?|plan_id|queue_weight|requests_per_minute|concurrent_.*|.*_per_.*)": NO_MONEY,
    "organizations.time_zone": "of periods that are not cut yet; a period keeps its own",
    "balances.(version|changed_at)": "how often and when the sum was written; the sum itself is compared",
    "billing_periods.created_at": NO_MONEY,
    "budgets.(name|mode|window_type|amount_pico|thresholds|is_operators|is_prepaid|created_at|archived_at|plan_id)": SPENDING_LIMIT,
    "budgets.(fallback_model|throttle_requests_per_minute|place_project_id)": SPENDING_LIMIT,
    "budget_raises.*": SPENDING_LIMIT,
    "credit_grants.(reference|closed_at)": NO_MONEY,
    "credit_grants.(created_at|cost_basis_bp|priority|effective_at|expires_at|voided_at|project_id|model|models)": WHICH_BURNS,
    "credit_draws.(grant_id|drawn_pico|is_final)": PROVISIONAL,
    "credit_transactions.booked_at": CONTROLS_CLOCK,
    "budget_windows.end_at": "no request was admitted between the two instants; otherwise what was spent differs",
    "budget_leases.(granted_pico|sequence|renewed_at)": SPENDING_LIMIT + ". A gateway states them itself when it asks the next time",
    "budget_alerts.*": "a message of the past; the spending that it speaks of is compared",
    "book_prices.(carried_from|draft_id)": SENT_DOWN,
    "book_prices.published_at": CONTROLS_CLOCK,
    "compiled_prices.carried_from": SENT_DOWN,
    "price_(books|lists|terms).(name|created_at|carried_from)": NO_MONEY,
    "price_terms.*": "terms under which nothing was admitted yet: what was admitted is compared with them",
    "price_drafts.*": "a draft is not a price: what was published of it stands in book_prices",
    "epochs.(first_seen_at|tick_seen_at)": CONTROLS_CLOCK,
    "epochs.seen_at": "when control heard of it last, which every batch changes",
    "(event_conflicts|quarantined_records).received_at": CONTROLS_CLOCK,
    "quarantined_records.reason": "the obstacle when the record came; whether it can be rated is decided again by its contents",
    "quarantine_resolutions.*": OWN_WORDS,
    "write_off_requests.*": OWN_WORDS,
    "ledger_transactions.booked_at": CONTROLS_CLOCK,
    "invoices.(created_at|issue_at)": CONTROLS_CLOCK,
    "invoices.issued_by": OWN_WORDS,
    "invoice_files.created_at": CONTROLS_CLOCK,
    "payments.(value_on|origin|reference|external_id|actor|created_at)": OWN_WORDS,
    "settlements.(number|amount_minor|settled_at)": OWN_WORDS,
    "ledger_entries.line": "the order in which a transaction's entries are shown",
    "lost_declarations.next_seq": OWN_WORDS + ". Of a closed month it stands in its report, and is compared with that",
    "lost_requests.(id|requested_at)": OWN_WORDS,
    "lost_(requests|decisions).*": OWN_WORDS + ". Those of a declaration are compared with it",
    "usage_adjustments.(reason|actor|actor_origin|created_at)": OWN_WORDS + ". Of a closed month they are part of its digest",
    "adjustment_approvals.(approver|approver_origin|actor|decided_at)": OWN_WORDS,
}
"""Reasons why a change of a column, by a pattern of its name, does not matter if nobody finds it."""


ASKED_FOR = "somebody asks for it, and nothing follows before another person approves it, which is compared"

ROWS_HARMLESS = {
    "organizations": "one that used nothing: " + NO_MONEY,
    "budgets": SPENDING_LIMIT,
    "budget_raises": SPENDING_LIMIT,
    "credit_draws": PROVISIONAL,
    "budget_alerts": "a message of the past; the spending that it speaks of is compared",
    "price_drafts": "a draft is not a price: what was published of it stands in book_prices",
    "price_terms": "terms under which nothing was admitted yet: what was admitted is compared with them",
    "lost_requests": ASKED_FOR,
    "write_off_requests": ASKED_FOR,
}
"""Reasons why a row that is added or missing does not matter if nobody finds it, by table."""


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def books(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """Closed months with all there can be in them, and an open one; every table of money has a row."""
    directory = tmp_path_factory.mktemp("tampering")
    archive = Archive(directory / "archive")
    with request.getfixturevalue(f"{request.param}_template").copied(directory) as url:
        database = Database.open(url)
        fill(database)
        add_credit(database)
        add_contract(database)
        add_cost(database)
        close_books(database, archive)
        add_rest(database, archive)
        with database.platform(write=False) as tx:
            assert compare(tx, archive).differences == []
        unguarded = copy_without_triggers(database, directory / "unguarded.db") if database.is_sqlite else database
        yield Books(database, unguarded, archive)
        unguarded.close()
        database.close()


def copy_without_triggers(database: Database, path: Path) -> Database:
    with contextlib.closing(sqlite3.connect(str(path))) as target, database.platform(write=False) as tx:
        tx.connection.connection.driver_connection.backup(target)
    copy = Database.open(f"sqlite+pysqlite:///{path}")
    with copy.platform() as tx:
        for name in tx.connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
            tx.connection.execute(sa.text(f"DROP TRIGGER {name}"))
    return copy


def add_rest(database: Database, archive: Archive) -> None:
    """Add what `close_books` has nothing of: a discount from November on, a published draft, a budget that was raised, a conflict, a record
    that cannot be read, an epoch that was declared lost, a request of the open month, which reaches a threshold of the budget."""
    with database.tenant(ORGANIZATION) as tx:
        prices.set_terms(tx, book_id=None, discount_bp=1_500, valid_from=None, now=NOVEMBER.start_at)
    line = DraftLine(model="echo", tier=ServiceTier.STANDARD, unit_prices=samples.PRICE.unit_prices)
    draft_id = new_id(PRICE_DRAFT, NOVEMBER.start_at, 1)
    draft = PriceDraft(
        id=draft_id,
        book_id=samples.PRICE.list,
        state=DraftState.OPEN,
        valid_from=None,
        lines=(line,),
        created_at=NOVEMBER.start_at,
        changed_at=NOVEMBER.start_at,
    )
    with database.platform() as tx:
        price_drafts.create_draft(tx, draft, from_book_id=None)
        at = NOVEMBER.start_at + 1
        price_drafts.publish_draft(tx, draft_id, accept_warnings=True, new_id=lambda kind: new_id(kind, at, 2), now=at)
    add_budget(database)
    add_invoices(database)
    serving_costs.book_due_capacity(database, NOW, lambda: False)
    epoch = OCTOBER.end_at
    forged = final(admit(1, admitted_at=epoch + 1), used=Quantities(1))
    records: list[Record | bytes] = [*ended(20, NOVEMBER.start_at + 5), forged.admit, forged, b"{}"]
    records += [*ended(21, NOVEMBER.start_at + 6), Tick(at=NOVEMBER.start_at + 9)]
    take(database, archive, frames(records, epoch=epoch), epoch=epoch)
    with database.platform() as tx:
        declare_lost(tx, now=NOW)
        # Nobody agreed yet, so that the record stays open.
        unreadable = records.index(b"{}") + 1
        quarantine.write_off(tx, NODE, epoch, unreadable, reason="r", actor=APPROVER, limit_pico=0, now=NOW)


def add_contract(database: Database) -> None:
    """Agree on a contract that all closed months are charged by."""
    fees = (Fee(name="Platform", amount_pico=PICO, is_per_seat=False),)
    terms = ContractTerms(name="Plan", currency="EUR", discount_bp=1_000, fees=fees)
    wanted = WantedContract(SEPTEMBER.start_at, NOVEMBER.end_at, terms)
    with database.platform() as tx:
        contracts.create(tx, ORGANIZATION, wanted, id=new_id(CONTRACT, EPOCH, 1), now=EPOCH)


def add_cost(database: Database) -> None:
    """State what the deployment of the samples costs, from before all closed months."""
    with database.platform() as tx:
        deployment = samples.DEPLOYMENT
        values = {"id": deployment, "model": "echo", "base_url": "http://127.0.0.1:1", "engine": "openai", "upstream_model": "echo"}
        tx.connection.execute(schema.deployments.insert().values(**values, tier=0, weight=1, status="active", created_at=0))
        cost = DeploymentCost(
            id=new_id(COST, EPOCH, 1),
            deployment_id=deployment,
            valid_from=SEPTEMBER.start_at,
            created_at=EPOCH,
            currency="EUR",
            hour_pico=PICO,
            unit_costs=samples.PRICE.unit_prices,
        )
        serving_costs.add_cost(tx, cost, EPOCH)


def add_invoices(database: Database) -> None:
    """Issue the documents of both closed months: invoices, corrections of the earlier month, and a credit note."""
    add_parties(database)
    numbers = itertools.count(1)
    new_invoice_id = lambda: new_id(INVOICE, NOW, next(numbers))  # noqa: E731
    with database.platform() as tx:
        for month in (SEPTEMBER, OCTOBER):
            for draft in documents.draft_period(tx, period_id(ORGANIZATION, month.start_at), new_invoice_id, NOW):
                documents.issue(tx, draft.id, actor=APPROVER.key_id, now=NOW)
        wanted = WantedPayment(PaymentKind.PAYMENT, "0.01", None, "2026-12-02", "r", ())
        paid = payments.record_payment(tx, ORGANIZATION, wanted, id=new_id(PAYMENT, NOW, 1), actor=APPROVER.key_id, now=NOW)
        payments.return_payment(
            tx, paid.id, id=new_id(PAYMENT, NOW, 2), value_on="2026-12-03", reference="r", actor=APPROVER.key_id, now=NOW
        )


def add_credit(database: Database) -> None:
    """Grant credit of which something is left in the open month, and credit that a closed month ends."""
    wanted = WantedGrant(
        category=GrantCategory.PAID,
        amount_pico=10**15,
        currency=None,
        cost_basis_bp=None,
        priority=1,
        effective_at=None,
        expires_at=None,
        reference="r",
        project_id=None,
        model="",
    )
    ending = replace(wanted, category=GrantCategory.GOODWILL, amount_pico=10**6, expires_at=EPOCH // MINUTE_US * MINUTE_US + MINUTE_US)
    with database.platform() as tx:
        for number, each in enumerate((wanted, ending)):
            credits.create_grant(tx, ORGANIZATION, each, id=new_id(CREDIT_GRANT, EPOCH, number), now=EPOCH)
        credits.void_grant(tx, ORGANIZATION, new_id(CREDIT_GRANT, EPOCH, 1), EPOCH)


def add_budget(database: Database) -> None:
    """Add a budget, with a raise, and with a threshold that any request reaches. It counts from before the requests of the open month
    were admitted."""
    at = OCTOBER.end_at - budgets.MINUTE_US
    budget_id = new_id(BUDGET, at, 3)
    with database.tenant(ORGANIZATION) as tx:
        budgets.create_budget(
            tx,
            id=budget_id,
            project_id=None,
            key_id=None,
            name="all",
            mode=BudgetMode.HARD,
            window=BudgetWindow.MONTH,
            amount_pico=1,
            currency=None,
            thresholds=[1],
            is_operators=False,
            sizes=DEFAULT_SIZES,
            now=at,
        )
        raised = new_id(BUDGET_RAISE, at, 4)
        budgets.raise_budget(
            tx, budget_id, id=raised, amount_pico=1, starts_at=None, ends_at=NOVEMBER.end_at, by_operator=False, sizes=DEFAULT_SIZES, now=at
        )


def mutations(column: sa.Column[Any], value: Any) -> Iterator[Any]:
    """Other values for a column: near the present one, of its kind, and none where that is allowed."""
    if value is not None and column.nullable:
        yield None
    if column.name == "document":  # any change is found by its digest: those that it fits are tried in tests/control/invoicing
        yield change_text(value)
        return
    if column.name in ENUMS and (value is None or isinstance(value, str)):
        yield from (str(other) for other in ENUMS[column.name] if other != value)
    elif isinstance(column.type, sa.Boolean):
        yield not value
    elif isinstance(column.type, (sa.Integer, schema_money.Amount)):
        yield from (1, 0) if value is None else (value + 1, value - 1)
    elif isinstance(column.type, sa.LargeBinary):
        yield b"x" * 32 if value is None else bytes([value[0] ^ 1]) + value[1:]
    elif value is None:
        yield "x"
    elif value[:1] in "{[":
        yield from (json.dumps(changed, sort_keys=True) for changed in change_json(json.loads(value)))
    elif column.name == "time_zone":
        yield "Europe/Berlin"
    elif column.name in ("currency", "default_of"):
        yield "USD" if value == "EUR" else "EUR"
    else:
        yield change_text(value)


def change_text(value: str) -> str:
    """The same text with another last digit, or one more letter."""
    changed = re.sub(r"[0-9a-f](?=[^0-9a-f]*$)", lambda found: "1" if found.group() != "1" else "2", value)
    return changed if changed != value else f"{value}x"


def change_json(value: Any) -> Iterator[Any]:
    """Each way to change or drop one leaf of a JSON value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (value | {name: changed} for changed in change_json(inner))
            yield {key: kept for key, kept in value.items() if key != name}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], changed, *value[at + 1 :]] for changed in change_json(inner))
            yield value[:at] + value[at + 1 :]
    elif isinstance(value, str):
        yield value[:-1] + ("1" if value[-1:] != "1" else "2")
    elif isinstance(value, int):
        yield value + 1
    else:
        yield 1


@contextmanager
def attempt(books: Books, *, guarded: bool) -> Iterator[PlatformTx]:
    """A transaction that is rolled back; without the guards, as somebody with all rights would begin."""
    database = books.database if guarded else books.unguarded
    with database.platform() as tx:
        if not guarded and database.is_sqlite:
            tx.connection.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
        elif not guarded:
            become_owner(tx)
            tx.connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        yield tx
        tx.connection.rollback()


def is_let_through(books: Books, statement: sa.Executable) -> bool:
    """Return whether the guards let a change of one row through, so that `find` has to find it."""
    with attempt(books, guarded=True) as tx:
        try:
            return tx.connection.execute(statement).rowcount == 1
        except DBAPIError:
            return False


class DifferenceFound(Exception):
    """Stops `verify`."""


class FirstDifference(verify._Findings):
    """Findings of which the first one is enough."""

    def add(self, table: str, text: str) -> None:
        raise DifferenceFound(table, text)


def differs(tx: PlatformTx, archive: Archive) -> bool:
    """Return whether `verify` finds a difference; on SQLite as soon as it finds one."""
    if tx.connection.dialect.name == "postgresql":  # psycopg warns of a server's cursor that is left open
        return bool(compare(tx, archive).differences)
    with mock.patch.object(verify, "_Findings", FirstDifference):
        try:
            return bool(compare(tx, archive).differences)
        except DifferenceFound:
            return True


def find(books: Books, statement: sa.Executable) -> str:
    """Return the result of a change without the guards: "refused", "found", "nothing" if no row was changed, or "missed"."""
    with attempt(books, guarded=False) as tx:
        try:
            if tx.connection.execute(statement).rowcount == 0:
                return "nothing"
        except DBAPIError:
            return "refused"
        return "found" if differs(tx, books.archive) else "missed"


def rows(tx: PlatformTx, table: sa.Table) -> list[Any]:
    """A row of each kind of a table, and for each column one in which it is not null."""
    found = tx.connection.execute(sa.select(table).order_by(*table.primary_key)).all()
    chosen = {getattr(row, KINDS.get(table.name, "_none"), None): row for row in reversed(found)}
    picked = list(chosen.values())
    for column in table.c:
        if all(getattr(row, column.name) is None for row in picked):
            picked += [row for row in found if getattr(row, column.name) is not None][:1]
    return picked


def is_row(table: sa.Table, row: Any) -> Any:
    return sa.and_(*(column == getattr(row, column.name) for column in table.primary_key))


APPEND_ONLY = [*schema_money.APPEND_ONLY, *schema_periods.APPEND_ONLY, *schema_prices.APPEND_ONLY]

GUARDED_TABLES = [
    *APPEND_ONLY,
    schema_credits.credit_transactions,
    schema_invoices.invoices,
    schema_invoices.invoice_files,
    schema_invoices.invoice_transactions,
    schema_payments.payments,
    schema_payments.settlements,
    schema_periods.billing_periods,
    schema_prices.price_drafts,
    schema_money.epochs,
]


@pytest.mark.parametrize("table", GUARDED_TABLES, ids=lambda table: table.name)
def test_a_row_is_not_replaced_on_sqlite(books: Books, table: sa.Table) -> None:
    database = books.database
    if not database.is_sqlite or table.name in ("removed_months", "quarantine_resolutions"):
        pytest.skip("INSERT OR REPLACE is SQLite's; SQLite has no months to remove")
    with database.platform(write=False) as tx:
        row = tx.connection.execute(sa.select(sa.column("rowid", sa.Integer), table)).mappings().first()
    assert row is not None
    keys = {column.name for column in table.primary_key}
    changed = {
        column.name: next(iter(mutations(column, row[column.name])))
        for column in table.c
        if column.name not in keys and not column.foreign_keys and column.name not in ENUMS
    }
    names = [column.name for column in table.c]
    for given in (names, ["rowid", *names]):
        insert = sa.text(f"INSERT OR REPLACE INTO {table.name} ({', '.join(given)}) VALUES ({', '.join(f':{name}' for name in given)})")
        for name, value in changed.items():
            with attempt(books, guarded=True) as tx:
                with suppress(DBAPIError):
                    tx.connection.execute(insert, {**row, name: value})
                now = tx.connection.execute(sa.select(sa.column("rowid", sa.Integer), table).where(sa.column("rowid") == row["rowid"]))
                assert now.mappings().first() == row, name


def test_a_transaction_takes_no_entries_once_it_is_there(books: Books) -> None:
    entries = schema_money.ledger_entries
    with books.database.platform(write=False) as tx:
        first = tx.connection.execute(sa.select(entries).order_by(*entries.primary_key)).first()
    assert first is not None
    more = [
        {"transaction_id": first.transaction_id, "line": 100 + line, "account_id": first.account_id, "amount_pico": pico}
        for line, pico in enumerate((5, -5))
    ]
    with pytest.raises(DBAPIError, match="sealed"), attempt(books, guarded=True) as tx:
        tx.connection.execute(entries.insert(), more)
    with attempt(books, guarded=False) as tx:
        tx.connection.execute(entries.insert(), more)
        assert "ledger_entries" in {difference.table for difference in compare(tx, books.archive).differences}


def test_entries_without_a_transaction_are_found(books: Books) -> None:
    with attempt(books, guarded=True) as tx:
        account_id = tx.connection.execute(sa.select(schema_money.ledger_accounts.c.id)).scalars().first()
        orphan = {"transaction_id": "tx_0", "line": 1, "account_id": account_id, "amount_pico": 0}
        tx.connection.execute(schema_money.ledger_entries.insert().values(orphan))
        assert "ledger_entries" in {difference.table for difference in compare(tx, books.archive).differences}


def test_a_month_that_is_marked_removed_with_its_events_is_refused_and_found(books: Books) -> None:
    events = schema_money.usage_events
    with attempt(books, guarded=False) as tx:
        held = tx.connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()
    mark = schema_money.removed_months.insert().values(start_at=0, events=held, removed_at=NOW)
    with pytest.raises(DBAPIError), attempt(books, guarded=True) as tx:
        tx.connection.execute(mark)
    with attempt(books, guarded=False) as tx:
        tx.connection.execute(mark)
        tx.connection.execute(events.delete())
        assert "removed_months" in {difference.table for difference in compare(tx, books.archive).differences}


def find_reason(name: str) -> str | None:
    """Return why a change of a column does not matter if nobody finds it; None if it does."""
    return next((reason for pattern, reason in HARMLESS.items() if re.fullmatch(pattern, name)), None)


@pytest.mark.parametrize("table", MONEY_TABLES, ids=lambda table: table.name)
def test_a_changed_column_is_refused_or_found(books: Books, table: sa.Table) -> None:
    with books.database.platform(write=False) as tx:
        picked = rows(tx, table)
    assert picked or table.name in ("removed_months", "quarantine_resolutions"), "the sample has no row of this table"
    missed = []
    for column in table.c:
        reason = find_reason(f"{table.name}.{column.name}")
        if reason and REFUSED not in reason:
            continue
        changes = [
            (table.update().where(is_row(table, row)).values({column.name: value}), f"{column.name}: {was!r} -> {value!r}"[:150])
            for row in sorted(picked, key=lambda row: getattr(row, column.name) is not None)
            for was in [getattr(row, column.name)]
            for value in mutations(column, was)
        ]
        if reason:
            missed += [f"let through {shown}" for change, shown in changes if is_let_through(books, change)]
            continue
        # What finds a change is the same code on both engines, reading other types: on PostgreSQL one change of a column shows it, the
        # last, of a value to another one.
        looked_for = changes if books.database.is_sqlite else changes[-1:]
        missed += [f"{found} {shown}" for change, shown in looked_for if (found := find(books, change)) not in ("refused", "found")]
    assert "\n".join(missed) == ""


@pytest.mark.parametrize("table", [schema_prices.book_prices, schema_prices.compiled_prices], ids=lambda table: table.name)
def test_a_default_price_that_is_stated_is_found(books: Books, table: sa.Table) -> None:
    """A cache write costs as much as input where its price is null: the same price, written otherwise than ever."""
    state_default = table.update().where(table.c.cache_write_pico.is_(None)).values(cache_write_pico=table.c.input_pico)
    with attempt(books, guarded=False) as tx:
        assert tx.connection.execute(state_default).rowcount > 0
        assert [each.table for each in compare(tx, books.archive).differences] == [table.name]


def rewrite_price(tx: PlatformTx) -> None:
    """Make a published price cheaper by one pico for each request, and all that follows from it: events, sums, entries and balances."""
    price_id = samples.PRICE.id
    events, entries, balances = schema_money.usage_events, schema_money.ledger_entries, schema_money.balances
    cheaper = samples.PRICE.unit_prices.request - 1
    for table in (schema_prices.book_prices, schema_prices.compiled_prices):
        tx.connection.execute(table.update().where(table.c.id == price_id).values(request_pico=cheaper))
    billed = sa.and_(events.c.price_version == price_id, events.c.request_pico > 0)
    requests = tx.connection.execute(events.update().where(billed).values(request_pico=cheaper)).rowcount
    for rollups in (schema_money.usage_rollups, schema_money.project_rollups, schema_money.organization_rollups):
        names = [name for name in ("request_cost_pico", "total_pico") if name in rollups.c]
        less = {name: rollups.c[name] - rollups.c.requests for name in names}
        tx.connection.execute(rollups.update().where(rollups.c.request_cost_pico > 0).values(less))
    change = {f"{ORGANIZATION}/unbilled/EUR": -requests, "platform/revenue:echo:request/EUR": requests}
    for account_id, pico in change.items():
        for table, column in ((entries, entries.c.amount_pico), (balances, balances.c.posted_pico)):
            old = tx.connection.execute(sa.select(column).where(table.c.account_id == account_id)).scalar_one()
            tx.connection.execute(table.update().where(table.c.account_id == account_id).values({column.name: old + pico}))


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_price_that_is_rewritten_with_all_that_follows_from_it_is_found_from_the_archive(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path / "archive")
    with request.getfixturevalue(f"{engine}_template").copied(tmp_path) as url:
        database = Database.open(url)
        fill(database)
        take(database, archive, frames(samples.exchanges([1, 2, 3])))
        unguarded = copy_without_triggers(database, tmp_path / "unguarded.db") if database.is_sqlite else database
        books = Books(database, unguarded, archive)
        with attempt(books, guarded=False) as tx:
            rewrite_price(tx)
            found = compare(tx, archive).differences
            assert "usage_events" in {difference.table for difference in found}
            assert "price_unproven" in next(each.first for each in found if each.table == "usage_events")
            # The rewrite is consistent: nothing but the hash in the records shows it.
            monkeypatch.setattr(rating, "hash_price", lambda price, _: samples.PRICE_HASHES[price.id])
            assert compare(tx, archive).differences == []
        unguarded.close()
        database.close()


@pytest.mark.parametrize("table", MONEY_TABLES, ids=lambda table: table.name)
def test_a_deleted_row_is_refused_or_found(books: Books, table: sa.Table) -> None:
    with books.database.platform(write=False) as tx:
        picked = rows(tx, table)
    changes = [table.delete().where(is_row(table, row)) for row in picked]
    if table in APPEND_ONLY:
        assert not [change for change in changes if is_let_through(books, change)]
    if table.name not in ROWS_HARMLESS:
        # On PostgreSQL one row shows it, as of the columns.
        changes = changes if books.database.is_sqlite else changes[:1]
        assert [row for row, change in zip(picked, changes, strict=False) if find(books, change) == "missed"] == []


@pytest.mark.parametrize("table", [table for table in MONEY_TABLES if table.name not in ROWS_HARMLESS], ids=lambda table: table.name)
def test_a_row_that_is_added_is_refused_or_found(books: Books, table: sa.Table) -> None:
    """Each row is repeated with another key, near to its own."""
    with books.database.platform(write=False) as tx:
        picked = rows(tx, table)
    missed = []
    for row in picked if books.database.is_sqlite else picked[:1]:  # on PostgreSQL one row shows it, as of the columns
        for key in table.primary_key:
            for value in mutations(key, getattr(row, key.name)):
                twin = row._asdict() | {key.name: value}
                if find(books, table.insert().values(twin)) == "missed":
                    missed.append(twin)
    assert missed == []
