"""Everything that the database has of one organization or of one person in it, table by table, without what is a secret."""

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from tollway.storage.database import TenantTx
from tollway.storage.row_changes import AUDITED, SECRET
from tollway.storage.schema import metadata, organizations
from tollway.storage.schema_audit import audit_records

PAGE_ROWS = 1_000
"""Rows that are read at a time: a few milliseconds of the database's time."""

PERSON_COLUMNS = ("user_id", "holder_id", "created_by", "invited_by", "actor_id", "target_id")
"""Columns that name a person by id, where a table has them."""

assert AUDITED, "the tables of resources are declared by then"


def list_tables() -> list[sa.Table]:
    """Return the tables with rows of organizations, by name."""
    own = [table for table in metadata.sorted_tables if _find_owner(table) is not None]
    return sorted(own, key=lambda table: table.name)


def read_page(tx: TenantTx, table: sa.Table, user_id: str | None, after: tuple[Any, ...] | None) -> list[sa.Row[Any]]:
    """Return the next PAGE_ROWS rows of the organization in a table, or those that name a person, after a primary key."""
    owner = _find_owner(table)
    assert owner is not None
    key = list(table.primary_key.columns)
    query = sa.select(table).where(owner == tx.organization_id)
    if user_id is not None:
        query = query.where(sa.or_(*_names_person(table, user_id)))
    if after is not None:
        query = query.where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(part) for part in after)))
    return list(tx.connection.execute(query.order_by(*key).limit(PAGE_ROWS)).all())


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


def _find_owner(table: sa.Table) -> sa.Column[Any] | None:
    if table is organizations:
        return organizations.c.id
    if table is audit_records:
        return audit_records.c.chain
    owner: sa.Column[Any] | None = table.c.get("organization_id")
    return owner


def _names_person(table: sa.Table, user_id: str) -> list[sa.ColumnElement[bool]]:
    named: Iterator[str] = (name for name in PERSON_COLUMNS if name in table.c)
    found: list[sa.ColumnElement[bool]] = [table.c[name] == user_id for name in named]
    if table.name == "users":
        found.append(table.c.id == user_id)
    return found
