"""Rows that refer to a row which does not exist: for verification.

The database refuses them while its foreign keys are enforced. A query that joins a row with what it refers to passes them over, so without
this check a row that was added or left by somebody with all rights could be seen nowhere.
"""

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from tollway.storage.database import PlatformTx
from tollway.storage.schema import metadata
from tollway.storage.schema_credits import credit_transactions
from tollway.storage.schema_money import ledger_entries, ledger_transactions

Reference = tuple[sa.Table, sa.Table, Sequence[tuple[sa.ColumnElement[str], sa.ColumnElement[str]]]]
"""Tables of the row and of what it refers to, and the pairs of columns by which it does."""


def list_orphans(tx: PlatformTx) -> list[tuple[str, str, int]]:
    """Return for each table with such rows its name, the name of the table that they refer to, and their number."""
    found = []
    for table, target, pairs in _iterate_references():
        is_there = sa.select(1).where(*(theirs == ours for ours, theirs in pairs)).correlate(table).exists()
        query = sa.select(sa.func.count()).select_from(table).where(*(ours.is_not(None) for ours, _ in pairs), ~is_there)
        count = tx.connection.execute(query).scalar_one()
        if count:
            found.append((table.name, target.name, count))
    return found


def _iterate_references() -> Iterator[Reference]:
    """Yield every reference of every table. Entries name their transaction without a foreign key, because they are written before it."""
    for table in metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            target = key.referred_table.alias()  # a table may refer to itself
            yield table, key.referred_table, [(each.parent, target.c[each.column.name]) for each in key.elements]
    transactions = sa.union_all(sa.select(ledger_transactions.c.id), sa.select(credit_transactions.c.id)).subquery()
    yield ledger_entries, ledger_transactions, [(ledger_entries.c.transaction_id, transactions.c.id)]
