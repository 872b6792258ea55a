"""Budgets, their windows, and what gateways are granted of them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "budgets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("window_type", sa.String(length=16), nullable=False),
        sa.Column("amount_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("thresholds", sa.Text(), nullable=False),
        sa.Column("is_operators", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("counts_from", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("level IN ('api_key', 'project', 'organization')", name=op.f("ck_budgets_level_known")),
        sa.CheckConstraint("mode IN ('hard', 'soft')", name=op.f("ck_budgets_mode_known")),
        sa.CheckConstraint("window_type IN ('day', 'week', 'month', 'total')", name=op.f("ck_budgets_window_type_known")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_budgets_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_budgets_organization_id_id")),
    )
    op.create_table(
        "budget_raises",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("amount_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("starts_at < ends_at", name=op.f("ck_budget_raises_time_forward")),
        sa.ForeignKeyConstraint(
            ["organization_id", "budget_id"],
            ["budgets.organization_id", "budgets.id"],
            name=op.f("fk_budget_raises_organization_id_budgets"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_raises")),
    )
    op.create_index(op.f("ix_budget_raises_budget_id"), "budget_raises", ["budget_id"])
    op.create_table(
        "budget_windows",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("spent_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.CheckConstraint("start_at < end_at", name=op.f("ck_budget_windows_time_forward")),
        sa.ForeignKeyConstraint(["budget_id"], ["budgets.id"], name=op.f("fk_budget_windows_budget_id_budgets")),
        sa.PrimaryKeyConstraint("budget_id", "start_at", name=op.f("pk_budget_windows")),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("threshold", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("spent_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("limit_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("crossed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id", "start_at"],
            ["budget_windows.budget_id", "budget_windows.start_at"],
            name=op.f("fk_budget_alerts_budget_id_budget_windows"),
        ),
        sa.PrimaryKeyConstraint("budget_id", "start_at", "threshold", name=op.f("pk_budget_alerts")),
    )
    op.create_table(
        "budget_leases",
        sa.Column("budget_id", sa.String(length=64), nullable=False),
        sa.Column("start_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("granted_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("drawn_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("renewed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id", "start_at"],
            ["budget_windows.budget_id", "budget_windows.start_at"],
            name=op.f("fk_budget_leases_budget_id_budget_windows"),
        ),
        sa.PrimaryKeyConstraint("budget_id", "start_at", "node_id", "epoch", name=op.f("pk_budget_leases")),
        postgresql_with={"fillfactor": 50},
    )
