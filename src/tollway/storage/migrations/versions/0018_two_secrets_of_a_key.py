"""Keep two secrets of a key, the one before a rotation until it is retired, and the latest use of each."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

INSTANTS = ("last_used_at", "rotated_at", "previous_expires_at", "previous_last_used_at")


def upgrade() -> None:
    """Add the columns. The table is not rebuilt, which on SQLite would drop its triggers."""
    for name in INSTANTS:
        op.add_column("api_keys", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_pepper_version", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_digest", sa.LargeBinary(length=32), nullable=True))
    op.add_column("api_keys", sa.Column("previous_redacted", sa.String(length=64), nullable=True))
    op.create_index(op.f("ix_api_keys_previous_digest"), "api_keys", ["previous_digest"], unique=True)
