"""Isolation of the prefix cache, chosen for each deployment."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    known = sa.CheckConstraint(
        "cache_isolation IN ('engine', 'prompt', 'dedicated', 'accepted')", name=op.f("ck_deployments_cache_isolation_known")
    )
    op.add_column("deployments", sa.Column("cache_isolation", sa.String(length=16), known, nullable=False, server_default="engine"))
