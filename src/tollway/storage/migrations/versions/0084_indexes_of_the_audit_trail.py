"""Index the audit trail by what its lists are filtered by, because the records that match may be rare and a chain is long."""

from alembic import op

revision = "0084"
down_revision = "0054"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create an index for each filter, in the order of a chain."""
    for column in ("event", "actor_id", "project_id", "target_id", "recorded_at"):
        op.create_index(op.f(f"ix_audit_records_chain_{column}_sequence"), "audit_records", ["chain", column, "sequence"], unique=False)
