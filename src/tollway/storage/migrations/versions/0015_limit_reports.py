"""Keep what each gateway that counts limits in its own memory last reported of them."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table: one row for each gateway, replaced with every report."""
    op.create_table(
        "limit_reports",
        sa.Column("node_id", sa.String(64), nullable=False),
        sa.Column("reported_at", sa.BigInteger(), nullable=False),
        sa.Column("uses", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_limit_reports")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_limit_reports_node_id_nodes")),
    )
