"""Name the endpoints that a deployment serves by translation to chat completions."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Everything is relayed as before."""
    op.add_column("deployments", sa.Column("translated_endpoints", sa.Text(), nullable=False, server_default="[]"))
