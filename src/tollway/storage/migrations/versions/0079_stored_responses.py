"""Store responses of organizations that want it."""

import sqlalchemy as sa
from alembic import op

revision = "0079"
down_revision = "0084"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the setting. The organizations that exist store nothing, as before."""
    op.add_column("organizations", sa.Column("response_retention_seconds", sa.BigInteger(), nullable=True))
    op.create_table(
        "stored_responses",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_stored_responses_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_stored_responses")),
    )
    op.create_index(op.f("ix_stored_responses_expires_at"), "stored_responses", ["expires_at"])
