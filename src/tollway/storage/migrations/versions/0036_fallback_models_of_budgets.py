"""Let budgets name the model by which requests are served that they would refuse."""

from alembic import op

revision = "0036"
down_revision = "0050"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. In words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.execute("ALTER TABLE budgets ADD COLUMN fallback_model VARCHAR(128)")
