"""Log the content of requests of projects that want it, and store what may be kept of content."""

import sqlalchemy as sa
from alembic import op

revision = "0091"
down_revision = "0090"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and the settings. The projects that exist log nothing, as before."""
    op.add_column("organizations", sa.Column("data_retention", sa.String(64), server_default="modified_abuse_monitoring", nullable=False))
    op.add_column("projects", sa.Column("data_retention", sa.String(64), server_default="organization_default", nullable=False))
    op.add_column("projects", sa.Column("content_retention_seconds", sa.BigInteger(), nullable=True))
    op.create_table(
        "content_logs",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id"],
            ["projects.organization_id", "projects.id"],
            name=op.f("fk_content_logs_organization_id_projects"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_content_logs")),
    )
    op.create_index(op.f("ix_content_logs_expires_at"), "content_logs", ["expires_at"])
    op.create_index(op.f("ix_content_logs_organization_id_project_id_id"), "content_logs", ["organization_id", "project_id", "id"])
    op.create_table(
        "content_log_totals",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_content_log_totals_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_content_log_totals")),
    )
