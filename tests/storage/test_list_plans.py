"""Lists of an organization, or with a filter that few rows match, are read by an index and not through everything that others wrote."""

import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.storage.databases import SqliteTemplate
from tollway.domain.pages import PageWindow
from tollway.storage import audit, direct_debits, ledger, open_items, payments
from tollway.storage.audit import AuditFilter
from tollway.storage.database import Database, PlatformTx

ORGANIZATION = "org_a"


@pytest.fixture
def database(sqlite_template: SqliteTemplate, tmp_path: Path) -> Iterator[Database]:
    """A migrated database with two billing periods of one organization. SQLite alone: its plans do not depend on how much is stored."""
    with sqlite_template.copied(tmp_path) as url:
        opened = Database.open(url)
        with sqlite3.connect(url.partition(":///")[2]) as connection:
            for start_at in (1, 2):
                period = {"id": f"period_{start_at}", "organization_id": ORGANIZATION, "start_at": start_at, "end_at": start_at + 1}
                row = period | {"time_zone": "UTC", "state": "open", "created_at": 0}
                connection.execute(f"INSERT INTO billing_periods ({','.join(row)}) VALUES ({','.join('?' * len(row))})", [*row.values()])
        yield opened
        opened.close()


def plans(database: Database, table: str, read: Callable[[PlatformTx], object]) -> list[str]:
    """Run `read` in a transaction; return how SQLite found the rows of `table` in each of its statements."""
    found: list[str] = []

    def explain(connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if not statement.startswith("EXPLAIN"):
            steps = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters).all()
            found.extend(step[3] for step in steps if table in step[3])

    with database.platform() as tx:
        sa.event.listen(tx.connection, "before_cursor_execute", explain)
        read(tx)
    return found


def test_transactions_of_an_organization_are_read_by_its_periods(database: Database) -> None:
    for window in (PageWindow(None, 20), PageWindow("txn_5", 20), PageWindow("txn_5", 20, descending=True)):
        read = partial(ledger.list_transactions, window=window, organization_id=ORGANIZATION)
        found = plans(database, "ledger_transactions", read)
        by_period = [step for step in found if "organization_id=? AND period_at=?" in step]
        assert len(by_period) == 2, found
        assert not [step for step in found if step.startswith("SCAN")], found


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (AuditFilter(events=("api_key.created",)), "event=?"),
        (AuditFilter(actor_ids=("user_1",)), "actor_id=?"),
        (AuditFilter(project_ids=("proj_1",)), "project_id=?"),
        (AuditFilter(target_ids=("key_1",)), "target_id=?"),
    ],
    ids=["event", "actor", "project", "target"],
)
def test_records_of_the_audit_trail_are_found_by_what_they_are_filtered_by(database: Database, wanted: AuditFilter, index: str) -> None:
    (step,) = plans(database, "audit_records", lambda tx: audit.list_records(tx, "org/a", wanted, after=None, before=None, limit=20))
    assert index in step, step


OPEN = {
    "ix_open_items_of_organization (organization_id=? AND kind=?": [
        partial(open_items.list_open, organization_id=ORGANIZATION, after="inv_1", limit=20),
        partial(open_items.list_sources, organization_id=ORGANIZATION),
    ],
    "ix_open_items_of_organization (organization_id=?": [partial(open_items.sum_open, organization_id=ORGANIZATION)],
    "ix_open_items_by_id (kind=? AND id>?": [partial(payments.list_overdue_ids, today="2026-12-01", after="inv_1", limit=20)],
    "ix_open_items_of_seller (legal_entity_id=? AND kind=? AND due_on<?": [
        partial(direct_debits.list_candidates, entity_id="entity_1", collect_on="2026-12-01", invoice_ids=(), limit=20)
    ],
}
"""Lists of what is open, by the index and the columns by which they are read."""


@pytest.mark.parametrize(("read", "index"), [(read, index) for index, lists in OPEN.items() for read in lists])
def test_what_is_open_is_found_without_what_is_settled(database: Database, read: Callable[[PlatformTx], object], index: str) -> None:
    """The indexes have only what is left, so a list costs what is open, however many invoices were paid."""
    found = [step for step in plans(database, "open_items", read) if "PRIMARY KEY" not in step and "(id=?)" not in step]
    assert found and all(index in step for step in found), found


def test_settlements_are_found_by_their_source_and_target(database: Database) -> None:
    for column, read in (("source_id", payments.list_settlements_by), ("target_id", payments.list_settlements_of)):
        (step,) = plans(database, "settlements", partial(read, organization_id=ORGANIZATION, **{f"{column}s": ["id_1"]}))
        assert f"(organization_id=? AND {column}=?)" in step, step
