"""Keep the project of a place at which credit with a scope is used."""

from alembic import op

revision = "0073"
down_revision = "0072"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. In words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.execute("ALTER TABLE budgets ADD COLUMN place_project_id VARCHAR(64)")
