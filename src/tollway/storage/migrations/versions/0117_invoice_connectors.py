"""Keep where invoices stand at the connectors that collect them."""

import sqlalchemy as sa
from alembic import op

revision = "0117"
down_revision = "0104"
branch_labels = None
depends_on = None

STATES = "'draft.sync', 'draft.ready', 'issuing.sync', 'payment_processing.pending', 'settled'"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "invoice_syncs",
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("connector", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("external_id", sa.String(length=128), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.String(length=512), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("connector IN ('none', 'stripe')", name=op.f("ck_invoice_syncs_connector_known")),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("ck_invoice_syncs_state_known")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_syncs_invoice_id_invoices")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_invoice_syncs_organization_id_organizations")),
        sa.PrimaryKeyConstraint("invoice_id", name=op.f("pk_invoice_syncs")),
    )
    for column in ("organization_id", "next_at", "external_id"):
        op.create_index(op.f(f"ix_invoice_syncs_{column}"), "invoice_syncs", [column])
