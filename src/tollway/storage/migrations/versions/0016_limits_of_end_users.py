"""Limits of each end user of a project."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

SMALL = ("requests_per_minute", "concurrent_requests")
LARGE = (
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "requests_per_day",
    "tokens_per_day",
    "input_tokens_per_day",
    "output_tokens_per_day",
)


def upgrade() -> None:
    """Add the columns, with their CHECKs: SQLite can add a column with a constraint, but no constraint alone."""
    for name in (*SMALL, *LARGE):
        column = f"end_user_{name}"
        check = sa.CheckConstraint(f"{column} > 0", name=op.f(f"ck_projects_{column}_positive"))
        op.add_column("projects", sa.Column(column, sa.Integer() if name in SMALL else sa.BigInteger(), check, nullable=True))
