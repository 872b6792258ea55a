"""Add the billing class of pixels. Where a column is null, the class has none, or its default price."""

import sqlalchemy as sa
from alembic import op

revision = "0145"
down_revision = "0143"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns: nullable in tables whose rows never change, 0 in sums."""
    for table in ("book_prices", "compiled_prices"):
        op.add_column(table, sa.Column("pixels_pico", sa.BigInteger(), nullable=True))
    op.add_column("usage_events", sa.Column("pixels", sa.BigInteger(), nullable=True))
    op.add_column("usage_events", sa.Column("pixels_pico", sa.BigInteger(), nullable=True))
    op.add_column("usage_adjustments", sa.Column("replacement_pixels", sa.BigInteger(), nullable=True))
    for table in ("usage_rollups", "project_rollups", "organization_rollups"):
        for column in ("pixels", "pixels_cost_units", "pixels_cost_pico"):
            op.add_column(table, sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))
