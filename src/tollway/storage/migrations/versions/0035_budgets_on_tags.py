"""Let budgets count the requests that carry a tag."""

from alembic import op

revision = "0035"
down_revision = "0049"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. In words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.execute("ALTER TABLE budgets ADD COLUMN tag VARCHAR(600)")
