"""Keep the client certificates that organizations trust, and their rules."""

import sqlalchemy as sa
from alembic import op

revision = "0086"
down_revision = "0095"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "client_certificates",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=True),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("is_authority", sa.Boolean(), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("project_ids", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_client_certificates_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client_certificates")),
        sa.UniqueConstraint("organization_id", "fingerprint", name=op.f("uq_client_certificates_organization_id_fingerprint")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_client_certificates_organization_id_id")),
    )
    op.create_table(
        "certificate_rules",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("certificate_id", sa.String(64), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("service_account_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=True),
        sa.Column("matchers", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "certificate_id"],
            ["client_certificates.organization_id", "client_certificates.id"],
            name=op.f("fk_certificate_rules_organization_id_client_certificates"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "key_id"],
            ["api_keys.organization_id", "api_keys.id"],
            name=op.f("fk_certificate_rules_organization_id_api_keys"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificate_rules")),
    )
    op.create_index(op.f("ix_certificate_rules_organization_id_certificate_id"), "certificate_rules", ["organization_id", "certificate_id"])
