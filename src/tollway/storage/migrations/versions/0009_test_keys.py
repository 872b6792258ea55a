"""Mark deployments that serve test keys, and events of test keys, which are not billed."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Deployments serve live keys as before, and what was billed stays billed."""
    op.add_column("deployments", sa.Column("test", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("usage_events", sa.Column("test", sa.Boolean(), nullable=False, server_default=sa.false()))
