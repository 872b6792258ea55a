"""Store the regions that may serve a project."""

import sqlalchemy as sa
from alembic import op

revision = "0048"
down_revision = "0034"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. The projects that exist are served in any region, as before."""
    op.add_column("projects", sa.Column("residency", sa.Text(), nullable=True))
