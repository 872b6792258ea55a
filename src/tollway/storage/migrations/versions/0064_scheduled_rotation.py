"""Give keys and organizations a schedule of rotation."""

import sqlalchemy as sa
from alembic import op

revision = "0064"
down_revision = "0056"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; null leaves everything as it was."""
    for table in ("organizations", "api_keys"):
        for name in ("rotation_interval_seconds", "rotation_grace_seconds"):
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("uncollected_secret", sa.LargeBinary(), nullable=True))
    op.add_column("api_keys", sa.Column("rotation_notice", sa.String(16), nullable=True))
    for name, column, condition in (
        ("api_keys_with_schedule", "id", "rotation_interval_seconds IS NOT NULL"),
        ("api_keys_with_previous_secret", "previous_expires_at", "previous_expires_at IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "api_keys", [column], sqlite_where=where, postgresql_where=where)
