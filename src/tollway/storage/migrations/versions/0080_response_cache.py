"""Store for how long answers of a model can be given again from the cache of responses."""

import sqlalchemy as sa
from alembic import op

revision = "0080"
down_revision = "0055"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. The models that exist give no answer again."""
    op.add_column("models", sa.Column("response_cache_seconds", sa.Integer(), server_default="0", nullable=False))
