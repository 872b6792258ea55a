"""Add the role of a key: what admins and operators may do with it."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Keys that exist keep what they could do: everything in their organization, or on the platform."""
    op.add_column("api_keys", sa.Column("role_id", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("role_project_id", sa.String(length=64), nullable=True))
    op.execute("UPDATE api_keys SET role_id = 'role_owner' WHERE type = 'admin'")
    op.execute("UPDATE api_keys SET role_id = 'role_operator' WHERE type = 'platform'")
