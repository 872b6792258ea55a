"""Keep legal entities, billing accounts, invoices with their files, numbers and transactions."""

import sqlalchemy as sa
from alembic import op

revision = "0103"
down_revision = "0074"
branch_labels = None
depends_on = None

SEALED = "EXISTS (SELECT 1 FROM invoice_transactions AS sealed WHERE sealed.id = NEW.transaction_id)"
APPEND_ONLY = {"invoice_files": "old.invoice_id = NEW.invoice_id AND old.format = NEW.format", "invoice_transactions": "old.id = NEW.id"}
KEPT = ("invoices", "number_series", *APPEND_ONLY)


def upgrade() -> None:
    """Create the tables and their guards: an issued or void document never changes, and a series never counts back."""
    op.create_table(
        "legal_entities",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("grace_days", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_legal_entities")),
    )
    op.create_table(
        "billing_accounts",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_billing_accounts_organization_id_organizations")),
        sa.ForeignKeyConstraint(
            ["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_billing_accounts_legal_entity_id_legal_entities")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_billing_accounts")),
    )
    op.create_table(
        "number_series",
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("series", sa.String(length=32), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_number_series_legal_entity_id_legal_entities")),
        sa.PrimaryKeyConstraint("legal_entity_id", "series", name=op.f("pk_number_series")),
    )
    op.create_table(
        "invoices",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("period_id", sa.String(length=64), nullable=True),
        sa.Column("corrects_id", sa.String(length=64), nullable=True),
        sa.Column("cancels", sa.Boolean(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("issue_at", sa.BigInteger(), nullable=True),
        sa.Column("voided_at", sa.BigInteger(), nullable=True),
        sa.Column("series", sa.String(length=32), nullable=True),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("issued_at", sa.BigInteger(), nullable=True),
        sa.Column("issued_by", sa.String(length=64), nullable=True),
        sa.Column("due_on", sa.String(length=10), nullable=True),
        sa.CheckConstraint("kind IN ('invoice', 'credit_note')", name=op.f("ck_invoices_kind_known")),
        sa.CheckConstraint("state IN ('draft', 'issued', 'void')", name=op.f("ck_invoices_state_known")),
        sa.CheckConstraint(
            "(state = 'issued') = (number IS NOT NULL) AND (number IS NULL) = (series IS NULL) AND (number IS NULL) = (digest IS NULL)"
            " AND (number IS NULL) = (issued_at IS NULL) AND (number IS NULL) = (issued_by IS NULL)"
            " AND (number IS NULL) = (due_on IS NULL)",
            name=op.f("ck_invoices_issued_with_number"),
        ),
        sa.CheckConstraint("(state = 'void') = (voided_at IS NOT NULL)", name=op.f("ck_invoices_void_with_instant")),
        sa.CheckConstraint("number IS NULL OR number > 0", name=op.f("ck_invoices_number_above_zero")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_invoices_organization_id_organizations")),
        sa.ForeignKeyConstraint(["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_invoices_legal_entity_id_legal_entities")),
        sa.ForeignKeyConstraint(["period_id"], ["billing_periods.id"], name=op.f("fk_invoices_period_id_billing_periods")),
        sa.ForeignKeyConstraint(["corrects_id"], ["invoices.id"], name=op.f("fk_invoices_corrects_id_invoices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint("legal_entity_id", "series", "number", name=op.f("uq_invoices_legal_entity_id_series_number")),
    )
    op.create_index(op.f("ix_invoices_organization_id_id"), "invoices", ["organization_id", "id"])
    op.create_index(op.f("ix_invoices_period_id"), "invoices", ["period_id"])
    op.create_index(op.f("ix_invoices_corrects_id"), "invoices", ["corrects_id"])
    op.create_table(
        "invoice_files",
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_files_invoice_id_invoices")),
        sa.PrimaryKeyConstraint("invoice_id", "format", name=op.f("pk_invoice_files")),
    )
    op.create_table(
        "invoice_transactions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_transactions_invoice_id_invoices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoice_transactions")),
        sa.UniqueConstraint("invoice_id", name=op.f("uq_invoice_transactions_invoice_id")),
    )
    op.create_index(op.f("ix_invoice_transactions_organization_id_id"), "invoice_transactions", ["organization_id", "id"])
    guard()


def guard() -> None:
    """Have the database refuse what no program may do."""
    for table in KEPT:
        refuse_when(f"{table}_refuses_delete", "DELETE", table, f"{table} keeps its rows", "1 = 1")
    for table in APPEND_ONLY:
        refuse_when(f"{table}_refuses_update", "UPDATE", table, f"{table} keeps its rows", "1 = 1")
    refuse_when("final_invoice_refuses_update", "UPDATE", "invoices", "an issued or void document never changes", "OLD.state <> 'draft'")
    refuse_when(
        "number_series_counts_up",
        "UPDATE",
        "number_series",
        "a series counts by ones",
        "NEW.last_number <> OLD.last_number + 1 OR NEW.series <> OLD.series OR NEW.legal_entity_id <> OLD.legal_entity_id",
    )
    refuse_when("entry_of_sealed_invoice", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", SEALED)
    if op.get_bind().dialect.name == "sqlite":
        same = {**APPEND_ONLY, "invoices": "old.id = NEW.id AND old.state <> 'draft'"}
        for table, condition in same.items():
            op.execute(
                f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table}"
                f" WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE {condition})"
                f" OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))"
                f" BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows'); END"
            )
    else:
        for table in KEPT:
            op.execute(f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


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
