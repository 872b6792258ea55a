"""Keep how far sinks have got, and which usage the collector stored while they follow it."""

import sqlalchemy as sa
from alembic import op

revision = "0132"
down_revision = "0126"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables. There is no sink yet."""
    op.create_table(
        "sink_positions",
        sa.Column("sink", sa.String(64), nullable=False),
        sa.Column("stream", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("moved_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("stream IN ('events', 'audit', 'usage')", name=op.f("ck_sink_positions_stream_known")),
        sa.PrimaryKeyConstraint("sink", "stream", "owner", name=op.f("pk_sink_positions")),
    )
    op.create_table(
        "usage_batches",
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_id", sa.String(64), nullable=False),
        sa.Column("last_id", sa.String(64), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("node_id", "epoch", "first_seq", "last_seq", name=op.f("pk_usage_batches")),
        sa.UniqueConstraint("sequence", name=op.f("uq_usage_batches_sequence")),
    )
