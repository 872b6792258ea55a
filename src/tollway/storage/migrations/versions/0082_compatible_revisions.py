"""Store which revisions' code may run over the schema, so that a version can be taken back after its migrations."""

import sqlalchemy as sa
from alembic import op

revision = "0082"
down_revision = "0077"
branch_labels = None
depends_on = None

breaks_earlier = True
"""Earlier code does not look at the table, and refuses every later revision."""


def upgrade() -> None:
    """Add the table; `Database.migrate` fills it."""
    op.create_table(
        "compatible_revisions",
        sa.Column("revision", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_compatible_revisions")),
    )
