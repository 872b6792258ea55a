"""Let a deployment do without pooled connections.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; connections stay pooled where they were."""
    op.add_column("deployments", sa.Column("pooling", sa.Boolean(), nullable=False, server_default=sa.true()))
