"""Weights of organizations in the queues of models."""

from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. In words of SQL, because SQLite adds a column with its constraints but no constraint to a table."""
    op.execute(
        "ALTER TABLE organizations ADD COLUMN queue_weight INTEGER DEFAULT 1 NOT NULL"
        " CONSTRAINT ck_organizations_queue_weight_positive CHECK (queue_weight > 0)"
    )
