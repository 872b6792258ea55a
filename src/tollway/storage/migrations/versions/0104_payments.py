"""Keep payments, what they settle, imported bank statements, and dunning."""

import sqlalchemy as sa
from alembic import op

revision = "0104"
down_revision = "0082"
branch_labels = None
depends_on = None

SEALED = "EXISTS (SELECT 1 FROM payments AS sealed WHERE sealed.id = NEW.transaction_id)"
APPEND_ONLY = {
    "payments": "old.id = NEW.id OR old.external_id = NEW.external_id OR old.returns_id = NEW.returns_id",
    "settlements": "old.number = NEW.number AND old.source_id = NEW.source_id AND old.target_id = NEW.target_id",
    "bank_statements": "old.id = NEW.id OR (old.iban = NEW.iban AND old.digest = NEW.digest)",
    "dunning_notices": "old.invoice_id = NEW.invoice_id AND old.step = NEW.step",
}


def upgrade() -> None:
    """Create the tables and their guards."""
    op.create_table(
        "payments",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("value_on", sa.String(length=10), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("reference", sa.String(length=512), nullable=False),
        sa.Column("external_id", sa.String(length=128), nullable=True),
        sa.Column("returns_id", sa.String(length=64), nullable=True),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('payment', 'refund', 'return', 'write_off')", name=op.f("ck_payments_kind_known")),
        sa.CheckConstraint("origin IN ('manual', 'bank_statement', 'stripe')", name=op.f("ck_payments_origin_known")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_payments_amount_above_zero")),
        sa.CheckConstraint("(kind = 'return') = (returns_id IS NOT NULL)", name=op.f("ck_payments_return_of_a_payment")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_payments_organization_id_organizations")),
        sa.ForeignKeyConstraint(["returns_id"], ["payments.id"], name=op.f("fk_payments_returns_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("external_id", name=op.f("uq_payments_external_id")),
        sa.UniqueConstraint("returns_id", name=op.f("uq_payments_returns_id")),
    )
    op.create_index(op.f("ix_payments_organization_id_id"), "payments", ["organization_id", "id"])
    op.create_table(
        "settlements",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source_id", sa.String(length=64), nullable=False),
        sa.Column("target_id", sa.String(length=64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("amount_minor <> 0 AND number > 0", name=op.f("ck_settlements_amount_not_zero")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_settlements_organization_id_organizations")),
        sa.PrimaryKeyConstraint("number", "source_id", "target_id", name=op.f("pk_settlements")),
    )
    op.create_index(op.f("ix_settlements_organization_id"), "settlements", ["organization_id"])
    op.create_index(op.f("ix_settlements_target_id"), "settlements", ["target_id"])
    op.create_table(
        "bank_statements",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("iban", sa.String(length=34), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("imported_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bank_statements")),
        sa.UniqueConstraint("iban", "digest", name=op.f("uq_bank_statements_iban_digest")),
    )
    op.create_table(
        "bank_entries",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("statement_id", sa.String(length=64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("value_on", sa.String(length=10), nullable=False),
        sa.Column("debtor", sa.String(length=256), nullable=False),
        sa.Column("text", sa.String(length=512), nullable=False),
        sa.Column("payment_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["statement_id"], ["bank_statements.id"], name=op.f("fk_bank_entries_statement_id_bank_statements")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_bank_entries_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bank_entries")),
    )
    op.create_index(op.f("ix_bank_entries_payment_id"), "bank_entries", ["payment_id"])
    op.create_table(
        "dunning_notices",
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("noticed_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("action IN ('remind', 'restrict')", name=op.f("ck_dunning_notices_action_known")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_dunning_notices_invoice_id_invoices")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_dunning_notices_organization_id_organizations")),
        sa.PrimaryKeyConstraint("invoice_id", "step", name=op.f("pk_dunning_notices")),
    )
    op.create_index(op.f("ix_dunning_notices_organization_id"), "dunning_notices", ["organization_id"])
    op.create_table(
        "dunning_holds",
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.Column("held_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_dunning_holds_invoice_id_invoices")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_dunning_holds_organization_id_organizations")),
        sa.PrimaryKeyConstraint("invoice_id", name=op.f("pk_dunning_holds")),
    )
    for table in APPEND_ONLY:
        for verb in ("UPDATE", "DELETE"):
            refuse_when(f"{table}_refuses_{verb.lower()}", verb, table, f"{table} keeps its rows", "1 = 1")
    refuse_when("entry_of_sealed_payment", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", SEALED)
    for table, condition in APPEND_ONLY.items():
        if op.get_bind().dialect.name == "sqlite":
            op.execute(
                f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table}"
                f" WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE {condition})"
                f" OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))"
                f" BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows'); END"
            )
        else:
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
