"""Rows that refer to a row which does not exist: for verification.

The database refuses them while its foreign keys are enforced. A query that joins a row with what it refers to passes them over, so without
this check a row that was added or left by somebody with all rights could be seen nowhere.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import sqlalchemy as sa

from tollway.storage.database import PlatformTx
from tollway.storage.schema import metadata
from tollway.storage.schema_contracts import contract_charges
from tollway.storage.schema_credits import credit_transactions
from tollway.storage.schema_invoices import invoice_transactions
from tollway.storage.schema_money import ledger_entries, ledger_transactions
from tollway.storage.schema_payments import payments
from tollway.storage.schema_serving_costs import capacity_costs, serving_costs

Reference = tuple[sa.Table, sa.Table, Sequence[tuple[sa.ColumnElement[str], sa.ColumnElement[str]]]]
"""Tables of the row and of what it refers to, and the pairs of columns by which it does."""


def list_orphans(tx: PlatformTx) -> list[tuple[str, str, int]]:
    """Return for each table with such rows its name, the name of the table that they refer to, and their number."""
    found = []
    for table, target, query in _make_queries(frozenset(metadata.tables)):
        count = tx.connection.execute(query).scalar_one()
        if count:
            found.append((table, target, count))
    return found


@cache
def _make_queries(_tables: frozenset[str]) -> list[tuple[str, str, sa.Select[int]]]:
    """Return for each reference the names of both tables and the query that counts such rows. `_tables`: names of all tables that are known
    by now; making the queries takes longer than a small database takes to answer them."""
    queries = []
    for table, target, pairs in _iterate_references():
        is_there = sa.select(1).where(*(theirs == ours for ours, theirs in pairs)).correlate(table).exists()
        query = sa.select(sa.func.count()).select_from(table).where(*(ours.is_not(None) for ours, _ in pairs), ~is_there)
        queries.append((table.name, target.name, query))
    return queries


def _iterate_references() -> Iterator[Reference]:
    """Yield every reference of every table. Entries name their transaction without a foreign key, because they are written before it."""
    for table in metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            target = key.referred_table.alias()  # a table may refer to itself
            yield table, key.referred_table, [(each.parent, target.c[each.column.name]) for each in key.elements]
    beside = (credit_transactions, invoice_transactions, payments, contract_charges, serving_costs, capacity_costs)
    booking = (ledger_transactions, *beside)
    ids = [sa.select(table.c.id) for table in booking]
    transactions = sa.union_all(*ids).subquery()
    yield ledger_entries, ledger_transactions, [(ledger_entries.c.transaction_id, transactions.c.id)]
