"""Store which epochs were refused, and who accepted them."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "refused_epochs",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("first_refused_at", sa.BigInteger(), nullable=False),
        sa.Column("refused_at", sa.BigInteger(), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=True),
        sa.Column("accepted_by", sa.String(length=64), nullable=True),
        sa.Column("accepted_because", sa.String(length=1024), nullable=True),
        sa.CheckConstraint("reason IN ('future', 'before_node')", name=op.f("ck_refused_epochs_reason_known")),
        sa.CheckConstraint("(accepted_at IS NULL) = (accepted_by IS NULL)", name=op.f("ck_refused_epochs_accepted_by_somebody")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_refused_epochs_node_id_nodes")),
        sa.PrimaryKeyConstraint("node_id", "epoch", name=op.f("pk_refused_epochs")),
    )
