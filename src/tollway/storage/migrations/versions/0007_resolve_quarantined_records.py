"""Quarantined records say whose they are, and are rated after all or written off."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    # Records that are there already stay without both: they may belong to anybody, so they keep all periods open.
    op.add_column("quarantined_records", sa.Column("organization_id", sa.String(length=64), nullable=True))
    op.add_column("quarantined_records", sa.Column("served_at", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_quarantined_records_event_id"), "quarantined_records", ["event_id"])
    op.create_table(
        "quarantine_resolutions",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("resolved_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('rated', 'written_off')", name=op.f("ck_quarantine_resolutions_state_final")),
        sa.ForeignKeyConstraint(
            ["node_id", "epoch", "seq"],
            ["quarantined_records.node_id", "quarantined_records.epoch", "quarantined_records.seq"],
            name=op.f("fk_quarantine_resolutions_node_id_quarantined_records"),
        ),
        sa.PrimaryKeyConstraint("node_id", "epoch", "seq", name=op.f("pk_quarantine_resolutions")),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER quarantine_resolutions_refuses_{verb.lower()} BEFORE {verb} ON quarantine_resolutions"
                " BEGIN SELECT RAISE(ABORT, 'quarantine_resolutions is append-only'); END"
            )
        return
    op.execute(
        "CREATE TRIGGER quarantine_resolutions_refuses_change BEFORE UPDATE OR DELETE ON quarantine_resolutions"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER quarantine_resolutions_refuses_truncate BEFORE TRUNCATE ON quarantine_resolutions EXECUTE FUNCTION refuse_change()"
    )
