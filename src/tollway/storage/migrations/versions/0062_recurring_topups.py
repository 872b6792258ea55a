"""Ask for credit once in each week or month."""

import sqlalchemy as sa
from alembic import op

revision = "0062"
down_revision = "0081"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the interval of a rule, and the period of a top-up: no rule has one."""
    op.add_column("credit_topup_rules", sa.Column("every", sa.String(length=8), nullable=True))
    op.add_column("credit_topup_rules", sa.Column("next_at", sa.BigInteger(), nullable=True))
    op.add_column("credit_topups", sa.Column("period_at", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_credit_topup_rules_next_at"), "credit_topup_rules", ["next_at"], unique=False)
    op.create_index(op.f("ix_credit_topups_organization_id_period_at"), "credit_topups", ["organization_id", "period_at"], unique=True)
