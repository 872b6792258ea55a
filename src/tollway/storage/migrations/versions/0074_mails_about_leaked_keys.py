"""Store which owners of leaked keys are still to be written to."""

import sqlalchemy as sa
from alembic import op

revision = "0074"
down_revision = "0070"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Of reports that exist nobody is written to again."""
    op.add_column("leaked_keys", sa.Column("mail_attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("leaked_keys", sa.Column("mail_due_at", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_leaked_keys_mail_due_at"), "leaked_keys", ["mail_due_at"])
