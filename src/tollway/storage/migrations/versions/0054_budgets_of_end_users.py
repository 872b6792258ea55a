"""Let budgets count single end users, and throttle requests once they are spent."""

from alembic import op

revision = "0054"
down_revision = "0043"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. In words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.execute("ALTER TABLE budgets ADD COLUMN end_user VARCHAR(512)")
    op.execute("ALTER TABLE budgets ADD COLUMN throttle_requests_per_minute INTEGER")
    op.execute("ALTER TABLE budgets ADD COLUMN parent_id VARCHAR(64)")
    op.create_index(op.f("ix_budgets_parent_id"), "budgets", ["parent_id"], unique=False)
