"""Add people, groups, roles of organizations, who holds them, and invitations; an admin key can be a person's."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and the column."""
    op.create_table(
        "invites",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=False),
        sa.Column("project_roles", sa.Text(), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("invited_by", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=True),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_invites_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invites")),
        sa.UniqueConstraint("digest", name=op.f("uq_invites_digest")),
    )
    op.create_index(
        op.f("ix_invites_organization_id_deleted_at_created_at"), "invites", ["organization_id", "deleted_at", "created_at"], unique=False
    )

    op.create_table(
        "role_assignments",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("holder_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=False),
        sa.Column("is_membership", sa.Boolean(), nullable=False),
        sa.Column("assigned_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_role_assignments_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", "holder_id", "project_id", "role_id", name=op.f("pk_role_assignments")),
    )
    op.create_index(
        op.f("ix_role_assignments_organization_id_project_id_holder_id"),
        "role_assignments",
        ["organization_id", "project_id", "holder_id"],
        unique=False,
    )
    op.create_index(op.f("ix_role_assignments_organization_id_role_id"), "role_assignments", ["organization_id", "role_id"], unique=False)

    op.create_table(
        "user_groups",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_user_groups_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_groups")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_user_groups_organization_id_id")),
    )
    op.create_index(
        op.f("ix_user_groups_organization_id_deleted_at_created_at"),
        "user_groups",
        ["organization_id", "deleted_at", "created_at"],
        unique=False,
    )

    op.create_table(
        "users",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_users_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_users_organization_id_id")),
    )
    op.create_index(
        op.f("ix_users_organization_id_removed_at_added_at"), "users", ["organization_id", "removed_at", "added_at"], unique=False
    )
    op.create_index(
        "uq_users_email_unless_removed",
        "users",
        ["organization_id", "email"],
        unique=True,
        sqlite_where=sa.text("removed_at IS NULL"),
        postgresql_where=sa.text("removed_at IS NULL"),
    )

    op.create_table(
        "custom_roles",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("description", sa.String(length=1024), nullable=False),
        sa.Column("permissions", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id", "project_id"],
            ["projects.organization_id", "projects.id"],
            name=op.f("fk_custom_roles_organization_id_projects"),
        ),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_custom_roles_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_custom_roles")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_custom_roles_organization_id_id")),
    )
    op.create_index(
        op.f("ix_custom_roles_organization_id_deleted_at_created_at"),
        "custom_roles",
        ["organization_id", "deleted_at", "created_at"],
        unique=False,
    )

    op.create_table(
        "group_members",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("added_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["user_groups.organization_id", "user_groups.id"],
            name=op.f("fk_group_members_organization_id_user_groups"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "user_id"], ["users.organization_id", "users.id"], name=op.f("fk_group_members_organization_id_users")
        ),
        sa.PrimaryKeyConstraint("organization_id", "group_id", "user_id", name=op.f("pk_group_members")),
    )
    op.create_index(op.f("ix_group_members_organization_id_user_id"), "group_members", ["organization_id", "user_id"], unique=False)

    op.add_column("api_keys", sa.Column("user_id", sa.String(length=64), nullable=True))
