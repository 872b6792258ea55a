"""Keep the rules by which credit is topped up, and the top-ups that they asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0056"
down_revision = "0080"
branch_labels = None
depends_on = None

AMOUNT = sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "credit_topup_rules",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("threshold_pico", AMOUNT, nullable=False),
        sa.Column("amount_pico", AMOUNT, nullable=False),
        sa.Column("cooloff_seconds", sa.Integer(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_credit_topup_rules_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_credit_topup_rules")),
    )
    op.create_table(
        "credit_topups",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("amount_pico", AMOUNT, nullable=False),
        sa.Column("usable_pico", AMOUNT, nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("grant_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_credit_topups_organization_id_organizations")),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_grants.id"], name=op.f("fk_credit_topups_grant_id_credit_grants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_topups")),
    )
    op.create_index(op.f("ix_credit_topups_organization_id_requested_at"), "credit_topups", ["organization_id", "requested_at"])
