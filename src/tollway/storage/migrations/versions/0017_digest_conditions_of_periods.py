"""Keep a digest of the prices, terms and outcome policies of a closed period."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, which is written when a period is closed."""
    op.add_column("billing_periods", sa.Column("conditions_digest", sa.LargeBinary(length=32), nullable=True))
    said = "a billing period has a digest of conditions when it is closed"
    wrong = "(NEW.state = 'closed') = (NEW.conditions_digest IS NULL)"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER period_closes_with_conditions BEFORE UPDATE ON billing_periods WHEN {wrong}"
            f" BEGIN SELECT RAISE(ABORT, '{said}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION period_closes_with_conditions() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {wrong} THEN RAISE EXCEPTION '{said}'; END IF; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER period_closes_with_conditions BEFORE UPDATE ON billing_periods"
        " FOR EACH ROW EXECUTE FUNCTION period_closes_with_conditions()"
    )
