"""Store of which projects all logged content is being deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0122"
down_revision = "0086"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Nothing is being deleted."""
    op.create_table(
        "content_deletions",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id"],
            ["projects.organization_id", "projects.id"],
            name=op.f("fk_content_deletions_organization_id_projects"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "project_id", name=op.f("pk_content_deletions")),
    )
