"""Store the context length of a model."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Nothing is stated for the models that exist."""
    op.add_column("models", sa.Column("context_length", sa.Integer(), nullable=True))
