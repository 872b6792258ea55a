"""Have PostgreSQL refuse rollups of versions that do not know those of projects and organizations."""

from alembic import op

revision = "0146"
down_revision = "0135"
branch_labels = None
depends_on = None

breaks_earlier = True
"""Versions before migration 0145 do not name the column whose default goes, and can add no usage any more."""


def upgrade() -> None:
    """Take the default of the newest class away. A control process of a version before 0133 that still runs does not name its column: it
    answers gateways with an error, and they keep their records. Otherwise the sums of projects and organizations would lack that usage.
    SQLite cannot do it without a copy of the table."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("usage_rollups", "pixels", server_default=None)
