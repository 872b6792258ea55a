"""Store when requests of a model are hedged, its latency goal, and the costs and priorities of its deployments."""

import sqlalchemy as sa
from alembic import op

revision = "0071"
down_revision = "0079"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Models that exist are not hedged and have no goal; their deployments are told no priority."""
    op.add_column("models", sa.Column("hedge_after_ms", sa.Integer()))
    op.add_column("models", sa.Column("hedge_percent", sa.Integer(), server_default="5", nullable=False))
    op.add_column("models", sa.Column("latency_goal_ms", sa.Integer()))
    op.add_column("deployments", sa.Column("priorities", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("deployments", sa.Column("relative_cost", sa.Integer()))
