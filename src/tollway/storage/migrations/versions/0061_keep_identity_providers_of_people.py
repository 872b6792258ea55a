"""Keep the identity providers with which people sign in."""

import sqlalchemy as sa
from alembic import op

revision = "0061"
down_revision = "0065"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "sign_in_connections",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("issuer", sa.String(length=2048), nullable=False),
        sa.Column("client_id", sa.String(length=512), nullable=False),
        sa.Column("client_secret", sa.LargeBinary(), nullable=True),
        sa.Column("trusts_addresses", sa.Boolean(), nullable=False),
        sa.Column("domains", sa.Text(), nullable=False),
        sa.Column("role_id", sa.String(length=64), nullable=True),
        sa.Column("groups_claim", sa.String(length=256), nullable=False),
        sa.Column("groups", sa.Text(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_sign_in_connections_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sign_in_connections")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_sign_in_connections_organization_id_id")),
    )
    with op.batch_alter_table("sign_in_connections", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sign_in_connections_organization_id"), ["organization_id"], unique=False)

    op.create_table(
        "user_identities",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("connection_id", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "connection_id"],
            ["sign_in_connections.organization_id", "sign_in_connections.id"],
            name=op.f("fk_user_identities_organization_id_sign_in_connections"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "user_id"], ["users.organization_id", "users.id"], name=op.f("fk_user_identities_organization_id_users")
        ),
        sa.PrimaryKeyConstraint("organization_id", "connection_id", "subject", name=op.f("pk_user_identities")),
    )
    with op.batch_alter_table("user_identities", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_user_identities_organization_id_user_id"), ["organization_id", "user_id"], unique=False)
