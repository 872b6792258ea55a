"""Keep a digest of the grants that a closed period could burn, and of what was booked on them."""

import sqlalchemy as sa
from alembic import op

revision = "0063"
down_revision = "0062"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, which is written when a period is closed."""
    op.add_column("billing_periods", sa.Column("credits_digest", sa.LargeBinary(length=32), nullable=True))
