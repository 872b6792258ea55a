"""Keep letters of dunning until they are sent."""

import sqlalchemy as sa
from alembic import op

revision = "0118"
down_revision = "0117"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "dunning_letters",
        sa.Column("invoice_id", sa.String(length=64), nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.CheckConstraint("action IN ('remind', 'restrict')", name=op.f("ck_dunning_letters_action_known")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_dunning_letters_invoice_id_invoices")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_dunning_letters_organization_id_organizations")),
        sa.PrimaryKeyConstraint("invoice_id", "step", name=op.f("pk_dunning_letters")),
    )
    op.create_index(op.f("ix_dunning_letters_organization_id"), "dunning_letters", ["organization_id"])
