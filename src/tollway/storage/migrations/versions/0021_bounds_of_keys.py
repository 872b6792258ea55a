"""Bound keys by endpoints, addresses and output tokens, give them tags, and organizations a longest lifetime of keys."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. The tables are not rebuilt, which on SQLite would drop their triggers."""
    for name in ("endpoints", "addresses", "tags"):
        op.add_column("api_keys", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("output_tokens_max", sa.Integer(), nullable=True))
    op.add_column("organizations", sa.Column("key_lifetime_seconds_max", sa.BigInteger(), nullable=True))
