"""Store what becomes of secrets that are reported as leaked."""

import sqlalchemy as sa
from alembic import op

revision = "0090"
down_revision = "0073"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the policy of organizations. The organizations that exist have leaked secrets revoked."""
    op.add_column("organizations", sa.Column("leaked_key_policy", sa.String(16), server_default="revoke", nullable=False))
    op.create_table(
        "leaked_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("redacted", sa.String(64), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reported_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "key_id"],
            ["api_keys.organization_id", "api_keys.id"],
            name=op.f("fk_leaked_keys_organization_id_api_keys"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leaked_keys")),
        sa.UniqueConstraint("organization_id", "key_id", "redacted", name=op.f("uq_leaked_keys_organization_id_key_id_redacted")),
    )
