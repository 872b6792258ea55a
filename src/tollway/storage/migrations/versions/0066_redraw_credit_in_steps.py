"""Keep which open periods are to draw on credit anew, and what is booked in them meanwhile."""

import sqlalchemy as sa
from alembic import op

from tollway.storage.schema_money import Amount

revision = "0066"
down_revision = "0063"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables. The draws of open periods are right."""
    op.create_table(
        "credit_redraws",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("period_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.Column("uncovered_pico", Amount(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_credit_redraws_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", "period_at", name=op.f("pk_credit_redraws")),
    )
    op.create_table(
        "credit_redraw_usage",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=False),
        sa.Column("usage", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "period_at"],
            ["credit_redraws.organization_id", "credit_redraws.period_at"],
            name=op.f("fk_credit_redraw_usage_organization_id_credit_redraws"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "number", name=op.f("pk_credit_redraw_usage")),
    )
