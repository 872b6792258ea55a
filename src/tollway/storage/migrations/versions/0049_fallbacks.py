"""Store the models that serve in the place of one that cannot."""

import sqlalchemy as sa
from alembic import op

revision = "0049"
down_revision = "0048"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. The models that exist have no fallbacks."""
    op.add_column("models", sa.Column("fallbacks", sa.Text(), server_default="[]", nullable=False))
