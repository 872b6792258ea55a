"""Store which owners of leaked keys were written to while others are left."""

import sqlalchemy as sa
from alembic import op

revision = "0077"
down_revision = "0076"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Where owners are still to be written to, all of them are."""
    op.add_column("leaked_keys", sa.Column("mail_told", sa.Text(), server_default="", nullable=False))
