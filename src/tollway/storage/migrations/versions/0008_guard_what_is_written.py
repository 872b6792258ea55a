"""Hash closed periods as a whole, guard rows of money against replacement, and seal transactions and watermarks."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEYS = {
    "price_books": (("id",), ("name",), ("default_of",)),
    "price_lists": (("id",), ("book_id", "discount_bp")),
    "price_drafts": (("id",),),
    "book_prices": (("id",), ("book_id", "model", "tier", "valid_from")),
    "compiled_prices": (("id",), ("model", "list_id", "tier", "valid_from")),
    "price_terms": (("organization_id", "valid_from"),),
    "usage_events": (("event_id",),),
    "removed_months": (("start_at",),),
    "event_conflicts": (("node_id", "epoch", "seq"),),
    "quarantined_records": (("node_id", "epoch", "seq"),),
    "quarantine_resolutions": (("node_id", "epoch", "seq"),),
    "ledger_transactions": (("id",), ("adjustment_id",)),
    "ledger_entries": (("transaction_id", "line"),),
    "usage_adjustments": (("id",),),
    "adjustment_approvals": (("adjustment_id",),),
}
"""The unique keys of tables whose rows are inserted once: a second insert fails."""

REPEATED_KEYS = {
    "epochs": (("node_id", "epoch"),),
    "billing_periods": (("id",), ("organization_id", "start_at")),
    "period_blocks": (("period_id", "number"),),
    "lost_declarations": (("node_id", "epoch"),),
    "ledger_accounts": (("id",), ("owner", "kind", "currency")),
}
"""The unique keys of tables into which the product inserts with ON CONFLICT DO NOTHING: a second insert does nothing."""

SEALED = "EXISTS (SELECT 1 FROM ledger_transactions AS sealed WHERE sealed.id = NEW.transaction_id)"
"""A transaction is inserted after its entries; from then on it takes no more."""

EPOCH_KEPT = ("node_id", "epoch", "first_seen_at")
EPOCH_PROGRESS = ("chain", "archive_bytes", "ticked_at", "closed_at")
"""Columns of epochs that never change, and those that only change together with next_seq."""


def upgrade() -> None:
    """Apply."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("billing_periods", sa.Column("period_hash", sa.LargeBinary(length=32), nullable=True))
    hashless = "(NEW.state = 'closed') = (NEW.period_hash IS NULL)"
    refuse_when("period_closes_with_hash", "UPDATE", "billing_periods", "a billing period has a hash when it is closed", hashless)
    if is_sqlite:
        for repeated, tables in ((False, KEYS), (True, REPEATED_KEYS)):
            for table, keys in tables.items():
                refuse_replacement(table, keys, repeated=repeated)
    guard_accounts(is_sqlite)
    refuse_when("entry_before_transaction", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", SEALED)
    differs = "{} IS NOT {}" if is_sqlite else "{} IS DISTINCT FROM {}"
    kept = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in EPOCH_KEPT)
    moved = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in EPOCH_PROGRESS)
    backwards = (
        f"{kept} OR NEW.next_seq < OLD.next_seq OR NEW.archive_bytes < OLD.archive_bytes"
        f" OR (OLD.closed_at IS NOT NULL AND NEW.next_seq <> OLD.next_seq)"
        f" OR (NEW.next_seq = OLD.next_seq AND ({moved}))"
    )
    refuse_when("epoch_moves_forward", "UPDATE", "epochs", "a watermark only moves forward, and not after CLOSE", backwards)
    refuse_when("epoch_stays", "DELETE", "epochs", "an epoch is never deleted", "1 = 1")
    currency = differs.format("NEW.currency", "OLD.currency") + " OR " + differs.format("NEW.id", "OLD.id")
    refuse_when("organization_keeps_currency", "UPDATE", "organizations", "the currency of an organization never changes", currency)
    refuse_when("balance_stays", "DELETE", "balances", "a balance is never deleted", "1 = 1")
    guard_removed_months(is_sqlite)


def refuse_replacement(table: str, keys: tuple[tuple[str, ...], ...], *, repeated: bool) -> None:
    """Keep rows from being replaced by INSERT OR REPLACE, which deletes without firing the triggers of DELETE.

    A key that is taken is refused before SQLite looks for conflicts. The message begins as SQLite's own does, by which the storage layer
    recognizes a duplicate. The rowid counts as a key: it can be named in an INSERT.
    """
    taken = [f"EXISTS (SELECT 1 FROM {table} AS old WHERE {' AND '.join(f'old.{name} = NEW.{name}' for name in key)})" for key in keys]
    taken.append(f"(NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))")
    action = "RAISE(IGNORE)" if repeated else f"RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows')"
    op.execute(f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table} WHEN {' OR '.join(taken)} BEGIN SELECT {action}; END")


def guard_accounts(is_sqlite: bool) -> None:
    """Make ledger_accounts append-only."""
    if is_sqlite:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER ledger_accounts_refuses_{verb.lower()} BEFORE {verb} ON ledger_accounts"
                " BEGIN SELECT RAISE(ABORT, 'ledger_accounts is append-only'); END"
            )
        return
    op.execute(
        "CREATE TRIGGER ledger_accounts_refuses_change BEFORE UPDATE OR DELETE ON ledger_accounts"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    for table in ("ledger_accounts", "epochs", "balances"):
        op.execute(f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


def guard_removed_months(is_sqlite: bool) -> None:
    """Let a month count as removed only where it is a partition with as many events, is over, and all of its periods are closed."""
    if is_sqlite:
        refuse_when("month_was_removed", "INSERT", "removed_months", "events are removed on PostgreSQL only, month by month", "1 = 1")
        return
    op.execute(
        "CREATE FUNCTION month_was_removed() RETURNS trigger LANGUAGE plpgsql AS $$"
        " DECLARE month text := to_char(to_timestamp(NEW.start_at / 1000000) AT TIME ZONE 'UTC', 'YYYY_MM'); held bigint; open bigint;"
        " BEGIN"
        "  IF to_regclass('usage_events_' || month) IS NULL OR NEW.removed_at < NEW.start_at + 2678400000000"
        "   THEN RAISE EXCEPTION 'this month is not over, or has no events of its own'; END IF;"
        "  EXECUTE 'SELECT count(*) FROM usage_events_' || month INTO held;"
        "  EXECUTE 'SELECT count(*) FROM (SELECT DISTINCT organization_id, period_at FROM usage_events_' || month || ') AS booked"
        "   JOIN billing_periods AS period ON period.organization_id = booked.organization_id AND period.start_at = booked.period_at"
        "   WHERE period.state <> ''closed''' INTO open;"
        "  IF held <> NEW.events OR open > 0 THEN RAISE EXCEPTION 'the month has other events, or periods that are not closed'; END IF;"
        "  RETURN NEW; END $$"
    )
    op.execute("CREATE TRIGGER month_was_removed BEFORE INSERT ON removed_months FOR EACH ROW EXECUTE FUNCTION month_was_removed()")


def refuse_when(name: str, verb: str, table: str, said: str, condition: str) -> None:
    """Make `table` refuse to `verb` a row for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{said}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{said}'; END IF; RETURN {'OLD' if verb == 'DELETE' else 'NEW'}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
