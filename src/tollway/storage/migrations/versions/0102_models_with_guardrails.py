"""Store whether the guardrail checks the requests and answers of a model."""

import sqlalchemy as sa
from alembic import op

revision = "0102"
down_revision = "0085"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Nothing of the models that exist is checked."""
    op.add_column("models", sa.Column("guardrail", sa.String(16), server_default="off", nullable=False))
    op.add_column("models", sa.Column("guardrail_stages", sa.String(16), server_default="both", nullable=False))
