"""Add the billing classes of audio, images and cache writes. Where a column is null, the class has none, or its default price."""

import sqlalchemy as sa
from alembic import op

revision = "0050"
down_revision = "0035"
branch_labels = None
depends_on = None

CLASSES = (
    "cache_write",
    "audio_input",
    "image_input",
    "audio_output",
    "image_output",
    "seconds",
    "characters",
    "images",
)


def upgrade() -> None:
    """Add the columns: nullable in tables whose rows never change, 0 in sums."""
    for name in CLASSES:
        for table in ("book_prices", "compiled_prices"):
            op.add_column(table, sa.Column(f"{name}_pico", sa.BigInteger(), nullable=True))
        op.add_column("usage_events", sa.Column(name, sa.BigInteger(), nullable=True))
        op.add_column("usage_events", sa.Column(f"{name}_pico", sa.BigInteger(), nullable=True))
        op.add_column("usage_adjustments", sa.Column(f"replacement_{name}", sa.BigInteger(), nullable=True))
        for column in (name, f"{name}_cost_units", f"{name}_cost_pico"):
            op.add_column("usage_rollups", sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))
