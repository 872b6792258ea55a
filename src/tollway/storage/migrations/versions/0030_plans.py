"""Add plans, the plan of an organization, and overrides of limits that end."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
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
    """Create the tables and the column."""
    op.create_table(
        "plans",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        sa.UniqueConstraint("name", name=op.f("uq_plans_name")),
    )
    op.create_table(
        "plan_limits",
        sa.Column("plan_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        *list_limit_columns("plan_limits"),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_limits_plan_id_plans")),
        sa.PrimaryKeyConstraint("plan_id", "model", name=op.f("pk_plan_limits")),
    )
    # In words of SQL, because SQLite adds a column with its constraints but no constraint to a table.
    op.execute("ALTER TABLE organizations ADD COLUMN plan_id VARCHAR(64) CONSTRAINT fk_organizations_plan_id_plans REFERENCES plans (id)")
    op.create_index(op.f("ix_organizations_plan_id"), "organizations", ["plan_id"])
    op.create_table(
        "limit_overrides",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("until_at", sa.BigInteger(), nullable=False),
        *list_limit_columns("limit_overrides"),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_limit_overrides_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", "model", name=op.f("pk_limit_overrides")),
    )
    op.create_index(op.f("ix_limit_overrides_until_at"), "limit_overrides", ["until_at"])


def list_limit_columns(table: str) -> list[sa.Column[int] | sa.CheckConstraint]:
    """Return the columns of limits of a new table, with their CHECKs."""
    return [
        *(sa.Column(name, sa.Integer() if name in SMALL else sa.BigInteger(), nullable=True) for name in (*SMALL, *LARGE)),
        *(sa.CheckConstraint(f"{name} > 0", name=op.f(f"ck_{table}_{name}_positive")) for name in (*SMALL, *LARGE)),
    ]
