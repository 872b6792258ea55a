"""Entry point of Alembic. `Database.migrate` hands its connection in; `make migration` passes the URL as `-x url=...`."""

from typing import Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from tollway.storage import (
    schema,
    schema_audit,
    schema_budgets,
    schema_contracts,
    schema_credits,
    schema_data_protection,
    schema_events,
    schema_idempotency,
    schema_invoices,
    schema_jobs,
    schema_money,
    schema_payments,
    schema_people,
    schema_periods,
    schema_prices,
    schema_reconcile,
    schema_responses,
    schema_serving_costs,
    schema_sign_in,
    schema_tokens,
)
from tollway.storage.database import Database

TABLES = (
    schema,
    schema_audit,
    schema_budgets,
    schema_contracts,
    schema_credits,
    schema_data_protection,
    schema_events,
    schema_idempotency,
    schema_invoices,
    schema_jobs,
    schema_money,
    schema_payments,
    schema_people,
    schema_periods,
    schema_prices,
    schema_reconcile,
    schema_responses,
    schema_serving_costs,
    schema_sign_in,
    schema_tokens,
)
"""The modules whose tables stand on the one MetaData, once they are imported."""


def render_item(kind: str, item: object, _context: AutogenContext) -> str | Literal[False]:
    """Return how generated migrations write our own column type: frozen, so that a later change of the type leaves them alone."""
    if kind == "type" and isinstance(item, schema_money.Amount):
        return 'sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite")'
    return False


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Return whether a table of the database is compared with those of the code: partitions come and go (see storage.partitions)."""
    return kind != "table" or name is None or not name.startswith("usage_events_")


def run(connection: sa.Connection) -> None:
    """Migrate (or compare) over `connection`, inside its transaction."""
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        compare_type=True,
        render_as_batch=True,  # SQLite cannot alter a table in place
        render_item=render_item,
        include_name=include_name,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


connection = context.config.attributes.get("connection")
if connection is not None:
    run(connection)
else:
    database = Database.open(context.get_x_argument(as_dictionary=True)["url"])
    with database.platform() as tx:
        run(tx.connection)
    database.close()
