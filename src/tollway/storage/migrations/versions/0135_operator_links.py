"""Keep one-time links with which operators sign in."""

import sqlalchemy as sa
from alembic import op

revision = "0135"
down_revision = "0141"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "operator_sign_in_links",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("operator_id", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["operator_id"], ["operators.id"], name=op.f("fk_operator_sign_in_links_operator_id_operators")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_operator_sign_in_links")),
        sa.UniqueConstraint("operator_id", name=op.f("uq_operator_sign_in_links_operator_id")),
    )
    op.create_index(op.f("ix_operator_sign_in_links_expires_at"), "operator_sign_in_links", ["expires_at"], unique=False)
