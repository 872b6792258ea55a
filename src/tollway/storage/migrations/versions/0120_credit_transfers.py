"""Keep files of SEPA credit transfers, and the account and outcome of the transfer of each refund."""

import sqlalchemy as sa
from alembic import op

revision = "0120"
down_revision = "0132"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "credit_transfer_files",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("execute_on", sa.String(length=10), nullable=False),
        sa.Column("transfers", sa.Integer(), nullable=False),
        sa.Column("total_minor", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_credit_transfer_files_legal_entity_id_legal_entities")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_transfer_files")),
    )
    op.create_table(
        "credit_transfers",
        sa.Column("payment_id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("legal_entity_id", sa.String(length=64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("end_to_end_id", sa.String(length=35), nullable=False),
        sa.Column("iban", sa.String(length=34), nullable=False),
        sa.Column("bic", sa.String(length=11), nullable=False),
        sa.Column("holder", sa.String(length=256), nullable=False),
        sa.Column("text", sa.String(length=140), nullable=False),
        sa.Column("file_id", sa.String(length=64), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.CheckConstraint("outcome IN ('waiting', 'open', 'paid', 'returned')", name=op.f("ck_credit_transfers_outcome_known")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_credit_transfers_amount_above_zero")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_credit_transfers_payment_id_payments")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_credit_transfers_organization_id_organizations")),
        sa.ForeignKeyConstraint(
            ["legal_entity_id"], ["legal_entities.id"], name=op.f("fk_credit_transfers_legal_entity_id_legal_entities")
        ),
        sa.ForeignKeyConstraint(["file_id"], ["credit_transfer_files.id"], name=op.f("fk_credit_transfers_file_id_credit_transfer_files")),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_credit_transfers")),
    )
    for column in ("organization_id", "legal_entity_id", "end_to_end_id", "file_id"):
        op.create_index(op.f(f"ix_credit_transfers_{column}"), "credit_transfers", [column])
