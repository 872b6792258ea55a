"""Check entries of the ledger against sealed transactions by one trigger, on PostgreSQL once for each statement.

A batch of usage adds up to twenty thousand entries, and there were seven triggers that looked at each of them. On SQLite the triggers of
what a batch inserts also made it keep a copy of every page that a row changes, to undo that row alone, until the batch was stored.
"""

from alembic import op

revision = "0147"
down_revision = "0150"
branch_labels = None
depends_on = None

SEALED_BY = (
    "ledger_transactions",
    "credit_transactions",
    "invoice_transactions",
    "payments",
    "contract_charges",
    "serving_costs",
    "capacity_costs",
)
"""The tables whose rows seal a transaction: inserted after its entries, and from then on it takes no more."""

REPLACED = (
    "entry_before_transaction",
    "entry_of_sealed_credit",
    "entry_of_sealed_invoice",
    "entry_of_sealed_payment",
    "entry_of_sealed_contract_charge",
    "entry_of_sealed_serving_costs",
    "entry_of_sealed_capacity_costs",
)
"""Triggers of which each looked into one of these tables."""

NAME = "entry_of_sealed_transaction"
SAID = "the transaction is sealed: it takes no more entries"


def upgrade() -> None:
    """Put one trigger in place of seven. On PostgreSQL it sees the entries of a statement together, after they were added: none of them is
    in a transaction that is there."""
    if op.get_bind().dialect.name == "sqlite":
        for name in REPLACED:
            op.execute(f"DROP TRIGGER {name}")
        sealed = " OR ".join(f"EXISTS (SELECT 1 FROM {table} AS sealed WHERE sealed.id = NEW.transaction_id)" for table in SEALED_BY)
        op.execute(f"CREATE TRIGGER {NAME} BEFORE INSERT ON ledger_entries WHEN {sealed} BEGIN SELECT RAISE(FAIL, '{SAID}'); END")
        fail_at_once()
        return
    for name in REPLACED:
        op.execute(f"DROP TRIGGER {name} ON ledger_entries")
        op.execute(f"DROP FUNCTION {name}()")
    sealed = " OR ".join(f"EXISTS (SELECT 1 FROM {table} AS sealed WHERE sealed.id = ANY (named))" for table in SEALED_BY)
    op.execute(
        f"CREATE FUNCTION {NAME}() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE named text[]; BEGIN"
        " named := ARRAY(SELECT DISTINCT transaction_id FROM added);"
        f" IF {sealed} THEN RAISE EXCEPTION '{SAID}'; END IF; RETURN NULL; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {NAME} AFTER INSERT ON ledger_entries REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION {NAME}()"
    )


def fail_at_once() -> None:
    """Let the triggers of what a batch inserts end a statement where it stands (FAIL) instead of undoing it (ABORT). They are asked before
    a row is written, so a statement of one row has done nothing; whoever runs a longer one rolls back what it did."""
    tables = "('usage_events', 'ledger_entries', 'ledger_transactions')"
    query = f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN {tables} AND sql LIKE '%BEFORE INSERT%'"
    for name, definition in op.get_bind().exec_driver_sql(query).all():
        op.execute(f"DROP TRIGGER {name}")
        op.execute(definition.replace("RAISE(ABORT,", "RAISE(FAIL,"))
