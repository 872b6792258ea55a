"""Limits on tokens and on days, at four levels, and on single models."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OLD = ("requests_per_minute", "concurrent_requests")
NEW = (
    "tokens_per_minute",
    "input_tokens_per_minute",
    "output_tokens_per_minute",
    "requests_per_day",
    "tokens_per_day",
    "input_tokens_per_day",
    "output_tokens_per_day",
)
LEVELS = ("organizations", "projects", "service_accounts", "api_keys")


def limit(table: str, name: str) -> sa.Column[int]:
    """Return the column of one limit, with its CHECK: SQLite can add a column with a constraint, but no constraint alone."""
    type = sa.Integer() if name in OLD else sa.BigInteger()
    return sa.Column(name, type, sa.CheckConstraint(f"{name} > 0", name=op.f(f"ck_{table}_{name}_positive")), nullable=True)


def upgrade() -> None:
    """Apply."""
    for table in LEVELS:
        for name in (*OLD, *NEW) if table == "service_accounts" else NEW:
            op.add_column(table, limit(table, name))
    op.create_table(
        "model_limits",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("subject_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        *(limit("model_limits", name) for name in (*OLD, *NEW)),
        sa.CheckConstraint("level IN ('api_key', 'service_account', 'project', 'organization')", name=op.f("ck_model_limits_level_known")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_model_limits_organization_id_organizations")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_model_limits_model_models")),
        sa.PrimaryKeyConstraint("organization_id", "level", "subject_id", "model", name=op.f("pk_model_limits")),
    )
