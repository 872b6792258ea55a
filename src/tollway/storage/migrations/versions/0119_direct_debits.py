"""Keep files of SEPA direct debits, and what became of each debit."""

import sqlalchemy as sa
from alembic import op

revision = "0119"
down_revision = "0105"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "direct_debit_files",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("collect_on", sa.String(length=10), nullable=False),
        sa.Column("debits", sa.Integer(), nullable=False),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_direct_debit_files_legal_entity_id_legal_entities")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_direct_debit_files")),
    )
    op.create_table(
        "direct_debits",
        sa.Column("file_id", sa.String(length=64), nullable=False),
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("end_to_end_id", sa.String(length=35), nullable=False),
        sa.Column("debtor", sa.String(length=256), nullable=False),
        sa.Column("sequence", sa.String(length=4), nullable=False),
        sa.Column("mandate_reference", sa.String(length=35), nullable=False),
        sa.Column("mandate", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("payment_id", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.CheckConstraint("sequence IN ('FRST', 'RCUR')", name=op.f("ck_direct_debits_sequence_known")),
        sa.CheckConstraint("outcome IN ('open', 'paid', 'returned', 'cancelled')", name=op.f("ck_direct_debits_outcome_known")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_direct_debits_amount_above_zero")),
        sa.ForeignKeyConstraint(["file_id"], ["direct_debit_files.id"], name=op.f("fk_direct_debits_file_id_direct_debit_files")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_direct_debits_invoice_id_invoices")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_direct_debits_organization_id_organizations")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_direct_debits_payment_id_payments")),
        sa.PrimaryKeyConstraint("file_id", "invoice_id", name=op.f("pk_direct_debits")),
    )
    for column in ("organization_id", "end_to_end_id", "mandate_reference", "payment_id"):
        op.create_index(op.f(f"ix_direct_debits_{column}"), "direct_debits", [column])
    is_open = sa.text("outcome = 'open'")
    op.create_index("ix_direct_debits_open", "direct_debits", ["invoice_id"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
