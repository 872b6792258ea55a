"""Add groups of models, on which limits and budgets can be set."""

from alembic import op

revision = "0033"
down_revision = "0037"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and let limits name a group in place of a model.

    In words of SQL, because a table of money must not be copied, as SQLite would to alter it.
    """
    op.execute("ALTER TABLE models ADD COLUMN model_groups TEXT DEFAULT '[]' NOT NULL")
    op.execute("ALTER TABLE budgets ADD COLUMN model VARCHAR(128)")
    with op.batch_alter_table("model_limits") as batch:
        batch.drop_constraint("fk_model_limits_model_models", type_="foreignkey")
