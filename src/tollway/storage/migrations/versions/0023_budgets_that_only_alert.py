"""Let budgets only alert, and let a threshold alert anew in a window whose limit changed."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

MODES = "mode IN ('hard', 'soft', 'alert')"
ALERT_KEY = ("budget_id", "start_at", "threshold", "limit_pico")
CHILDREN_FIRST = ("budget_alerts", "budget_leases", "budget_windows", "budget_raises", "budgets")
"""The tables in an order in which rows can be deleted while foreign keys are enforced. None of them has triggers."""


def upgrade() -> None:
    """Change the CHECK of the mode and the key of alerts."""
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_on_sqlite()
        return
    op.drop_constraint(op.f("ck_budgets_mode_known"), "budgets", type_="check")
    op.create_check_constraint(op.f("ck_budgets_mode_known"), "budgets", MODES)
    op.drop_constraint(op.f("pk_budget_alerts"), "budget_alerts", type_="primary")
    op.create_primary_key(op.f("pk_budget_alerts"), "budget_alerts", list(ALERT_KEY))


def _rebuild_on_sqlite() -> None:
    """Replace the two tables. What refers to them is set aside meanwhile: SQLite alters no constraint, and enforces foreign keys while a
    referenced table is dropped."""
    for table in CHILDREN_FIRST:
        op.execute(f"CREATE TEMPORARY TABLE kept_{table} AS SELECT * FROM {table}")
        op.execute(f"DELETE FROM {table}")
    op.drop_table("budget_alerts")
    op.drop_table("budgets")
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("window_type", sa.String(length=16), nullable=False),
        sa.Column("amount_pico", sa.String(39), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("thresholds", sa.Text(), nullable=False),
        sa.Column("is_operators", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("counts_from", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("level IN ('api_key', 'project', 'organization')", name=op.f("ck_budgets_level_known")),
        sa.CheckConstraint(MODES, name=op.f("ck_budgets_mode_known")),
        sa.CheckConstraint("window_type IN ('day', 'week', 'month', 'total')", name=op.f("ck_budgets_window_type_known")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_budgets_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_budgets_organization_id_id")),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("threshold", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("spent_pico", sa.String(39), nullable=False),
        sa.Column("limit_pico", sa.String(39), nullable=False),
        sa.Column("crossed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id", "start_at"],
            ["budget_windows.budget_id", "budget_windows.start_at"],
            name=op.f("fk_budget_alerts_budget_id_budget_windows"),
        ),
        sa.PrimaryKeyConstraint(*ALERT_KEY, name=op.f("pk_budget_alerts")),
    )
    for table in reversed(CHILDREN_FIRST):
        op.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
        op.execute(f"DROP TABLE kept_{table}")
