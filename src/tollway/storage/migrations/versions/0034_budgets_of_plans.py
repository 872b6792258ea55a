"""Add the monthly budgets of plans, and by which plan an organization has a budget."""

from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. In words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.execute("ALTER TABLE plans ADD COLUMN monthly_budgets TEXT DEFAULT '{}' NOT NULL")
    op.execute("ALTER TABLE budgets ADD COLUMN plan_id VARCHAR(64)")
