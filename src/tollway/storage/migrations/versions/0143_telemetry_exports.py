"""Keep where organizations have their usage and audit trail sent."""

import sqlalchemy as sa
from alembic import op

revision = "0143"
down_revision = "0133"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. There is no export yet."""
    op.create_table(
        "telemetry_exports",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("format", sa.String(16), nullable=False),
        sa.Column("signals", sa.Text(), nullable=False),
        sa.Column("header_names", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("usage_position", sa.BigInteger(), nullable=True),
        sa.Column("audit_position", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("paused_until", sa.BigInteger(), nullable=False),
        sa.Column("succeeded_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.String(64), nullable=True),
        sa.Column("waiting_since", sa.BigInteger(), nullable=True),
        sa.Column("missed_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("disabled_reason", sa.String(16), nullable=True),
        sa.CheckConstraint("format IN ('otlp', 'json')", name=op.f("ck_telemetry_exports_format_known")),
        sa.CheckConstraint("disabled_reason IN ('failing', 'gone')", name=op.f("ck_telemetry_exports_disabled_reason_known")),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name=op.f("ck_telemetry_exports_disabled_with_reason")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_telemetry_exports_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_telemetry_exports")),
    )
    op.create_index(op.f("ix_telemetry_exports_organization_id_id"), "telemetry_exports", ["organization_id", "id"])
    op.create_index(
        "ix_telemetry_exports_following_usage",
        "telemetry_exports",
        ["usage_position"],
        sqlite_where=sa.text("usage_position IS NOT NULL"),
        postgresql_where=sa.text("usage_position IS NOT NULL"),
    )
