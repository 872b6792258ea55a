"""Let a project narrow the models and the service tiers that its keys may use."""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; null leaves everything as it was."""
    op.add_column("projects", sa.Column("model_permissions", sa.Text(), nullable=True))
    op.add_column("projects", sa.Column("service_tiers", sa.Text(), nullable=True))
