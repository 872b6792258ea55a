"""Keep with each event the hash of the price and terms under which it was admitted."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Events that are there already were admitted without one."""
    op.add_column("usage_events", sa.Column("price_hash", sa.String(length=64), nullable=False, server_default=""))
