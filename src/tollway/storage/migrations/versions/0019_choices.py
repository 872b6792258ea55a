"""Store how many outputs a request asked for of each prompt, and how often an engine counts a prompt of several."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. What was stored before asked for one output, as far as is known."""
    op.add_column("usage_events", sa.Column("choices", sa.Integer(), nullable=False, server_default="1"))
    for name in ("repeated_input", "repeated_cached_input", "forked_input"):
        op.add_column("engine_usage", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("engine_hours", sa.Column("prompt_count", sa.String(length=32), nullable=False, server_default="once"))
