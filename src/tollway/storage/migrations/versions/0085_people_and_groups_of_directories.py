"""Keep what the directory of an organization says of people and groups."""

import sqlalchemy as sa
from alembic import op

revision = "0085"
down_revision = "0068"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two tables. The people and groups that exist have no directory."""
    op.create_table(
        "scim_users",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("user_name", sa.String(320), nullable=False),
        sa.Column("folded_user_name", sa.String(640), nullable=False),
        sa.Column("external_id", sa.String(320), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "user_id"], ["users.organization_id", "users.id"], name=op.f("fk_scim_users_organization_id_users")
        ),
        sa.PrimaryKeyConstraint("organization_id", "user_id", name=op.f("pk_scim_users")),
        sa.UniqueConstraint("organization_id", "folded_user_name", name=op.f("uq_scim_users_organization_id_folded_user_name")),
    )
    op.create_index(op.f("ix_scim_users_organization_id_external_id"), "scim_users", ["organization_id", "external_id"])
    op.create_table(
        "scim_groups",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("group_id", sa.String(64), nullable=False),
        sa.Column("external_id", sa.String(320), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["user_groups.organization_id", "user_groups.id"],
            name=op.f("fk_scim_groups_organization_id_user_groups"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "group_id", name=op.f("pk_scim_groups")),
    )
