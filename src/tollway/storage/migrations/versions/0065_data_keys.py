"""Give each organization a data key, wrapped."""

import sqlalchemy as sa
from alembic import op

revision = "0065"
down_revision = "0064"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; data keys are made when they are first needed."""
    op.create_table(
        "data_keys",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("kek", sa.String(512), nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("wrapped_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_data_keys_organization_id_organizations")),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_data_keys")),
    )
