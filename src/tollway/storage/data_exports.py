"""Everything that the database has of one organization or of one person in it, table by table, without what is a secret."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from tollway.storage.database import TenantTx
from tollway.storage.row_changes import AUDITED, SECRET
from tollway.storage.schema import metadata, organizations
from tollway.storage.schema_money import ledger_accounts
from tollway.storage.schema_people import users

PAGE_ROWS = 1_000
"""Rows that are read at a time: a few milliseconds of the database's time."""

PERSON_COLUMNS = ("user_id", "holder_id", "created_by", "invited_by", "actor_id", "target_id")
"""Columns that name a person by id, where a table has them."""

Table = sa.Table
Row = sa.Row[Any]

CHAINS = ("audit_records", "audit_heads", "audit_checkpoints", "audit_cuts")
"""Tables of the audit trail, each chain of which is an organization's or the platform's."""

OF_OPERATORS = frozenset({"serving_costs"})
"""Tables whose rows are about an organization and for operators alone: what serving it costs."""

ORDERS = {"usage_events": ("period_at", "event_id"), "ledger_transactions": ("period_at", "id")}
"""Columns by which a large table is read, where an index has the organization and these; any other is read by its primary key."""

assert AUDITED, "the tables of resources are declared by then"


class Child(NamedTuple):
    """A table whose rows are the organization's because they name one of its rows: `columns` have the primary key of that."""

    table: sa.Table
    columns: tuple[str, ...]


_RECORD = ("node_id", "epoch", "seq")
CHILDREN: Mapping[str, tuple[Child, ...]] = {
    parent: tuple(Child(metadata.tables[name], columns) for name, columns in named)
    for parent, named in (
        ("ledger_accounts", [("balances", ("account_id",))]),
        ("ledger_transactions", [("ledger_entries", ("transaction_id",))]),
        ("credit_transactions", [("ledger_entries", ("transaction_id",))]),
        ("invoice_transactions", [("ledger_entries", ("transaction_id",))]),
        ("payments", [("ledger_entries", ("transaction_id",))]),
        ("contract_charges", [("ledger_entries", ("transaction_id",))]),
        ("invoices", [("invoice_files", ("invoice_id",))]),
        ("billing_periods", [("period_blocks", ("period_id",))]),
        ("quarantined_records", [("quarantine_resolutions", _RECORD), ("write_off_requests", _RECORD)]),
        ("usage_adjustments", [("adjustment_approvals", ("adjustment_id",))]),
        ("budgets", [(name, ("budget_id",)) for name in ("budget_windows", "budget_leases", "budget_alerts")]),
        ("price_books", [("price_lists", ("book_id",)), ("book_prices", ("book_id",))]),
    )
}
"""Tables without an organization of their own, by the table that they name. The prices that are compiled of books are left out."""


def list_tables() -> list[sa.Table]:
    """Return the tables with rows of organizations, by name."""
    own = [table for table in metadata.sorted_tables if _find_owner(table) is not None]
    return sorted(own, key=lambda table: table.name)


def read_page(tx: TenantTx, table: sa.Table, user_id: str | None, after: tuple[Any, ...] | None) -> list[sa.Row[Any]]:
    """Return the next PAGE_ROWS rows of the organization in a table, or those that name a person, after the place of a row."""
    owner = _find_owner(table)
    assert owner is not None
    query = sa.select(table).where(owner == tx.organization_id)
    if user_id is not None:
        query = query.where(sa.or_(*_names_person(table, user_id)))
    return _read_after(tx, table, query, after)


def read_children(tx: TenantTx, child: Child, parents: Sequence[tuple[Any, ...]], after: tuple[Any, ...] | None) -> list[sa.Row[Any]]:
    """Return the next PAGE_ROWS rows that name one of the rows with the primary keys `parents`, after the place of a row."""
    query = sa.select(child.table).where(sa.tuple_(*(child.table.c[name] for name in child.columns)).in_(parents))
    return _read_after(tx, child.table, query, after)


def _read_after(tx: TenantTx, table: sa.Table, query: sa.Select[Any], after: tuple[Any, ...] | None) -> list[sa.Row[Any]]:
    order = _list_order(table)
    if after is not None:
        query = query.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(part) for part in after)))
    return list(tx.connection.execute(query.order_by(*order).limit(PAGE_ROWS)).all())


def names_people(table: sa.Table) -> bool:
    """Return whether rows of a table name a person."""
    return bool(_names_person(table, ""))


def show_row(table: sa.Table, row: sa.Row[Any]) -> Mapping[str, Any]:
    """Return a row without digests, sealed texts and parts of secrets."""
    values = row._mapping
    return {
        str(column.name): values[column.name]
        for column in table.c
        if column not in SECRET and not isinstance(values[column.name], bytes | memoryview)
    }


def find_key(table: sa.Table, row: sa.Row[Any]) -> tuple[Any, ...]:
    """Return the primary key of a row."""
    return tuple(row._mapping[column.name] for column in table.primary_key.columns)


def find_place(table: sa.Table, row: sa.Row[Any]) -> tuple[Any, ...]:
    """Return the place of a row in the order in which its table is read."""
    return tuple(row._mapping[column.name] for column in _list_order(table))


def has_person(tx: TenantTx, user_id: str) -> bool:
    """Return whether a person is or was in the organization."""
    query = sa.select(users.c.id).where(users.c.organization_id == tx.organization_id, users.c.id == user_id)
    return tx.connection.execute(query).first() is not None


def _list_order(table: sa.Table) -> list[sa.Column[Any]]:
    named = ORDERS.get(table.name)
    return list(table.primary_key.columns) if named is None else [table.c[name] for name in named]


def _find_owner(table: sa.Table) -> sa.Column[Any] | None:
    if table.name in OF_OPERATORS:
        return None
    if table is organizations:
        return organizations.c.id
    if table.name in CHAINS:
        return table.c.chain
    if table is ledger_accounts:
        return ledger_accounts.c.owner
    owner: sa.Column[Any] | None = table.c.get("organization_id")
    return owner


def _names_person(table: sa.Table, user_id: str) -> list[sa.ColumnElement[bool]]:
    named: Iterator[str] = (name for name in PERSON_COLUMNS if name in table.c)
    found: list[sa.ColumnElement[bool]] = [table.c[name] == user_id for name in named]
    if table.name == "users":
        found.append(table.c.id == user_id)
    return found
