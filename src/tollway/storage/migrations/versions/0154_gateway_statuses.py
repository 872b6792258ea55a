"""Keep what each gateway last reported of itself and of its deployments."""

import sqlalchemy as sa
from alembic import op

revision = "0154"
down_revision = "0146"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table: one row for each gateway, replaced with every report."""
    op.create_table(
        "gateway_statuses",
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("reported_at", sa.BigInteger(), nullable=False),
        sa.Column("gateway", sa.Text(), nullable=False),
        sa.Column("deployments", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_gateway_statuses")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_gateway_statuses_node_id_nodes")),
    )
