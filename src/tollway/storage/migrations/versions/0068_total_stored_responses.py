"""Keep what the stored responses of an organization come to, so that nobody counts them to bound them."""

import sqlalchemy as sa
from alembic import op

revision = "0068"
down_revision = "0061"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of totals, with those of the responses that are stored."""
    op.create_table(
        "stored_response_totals",
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("responses", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_stored_response_totals_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_stored_response_totals")),
    )
    op.execute(
        "INSERT INTO stored_response_totals (organization_id, responses, bytes)"
        " SELECT organization_id, count(*), sum(length(content)) FROM stored_responses GROUP BY organization_id"
    )
