"""Keep when control received the latest TICK of an epoch: a TICK covers nothing beyond that instant."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, which only changes together with the watermark."""
    op.add_column("epochs", sa.Column("tick_seen_at", sa.BigInteger(), nullable=True))
    said = "a watermark only moves forward, and not after CLOSE"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER epoch_keeps_tick_seen BEFORE UPDATE ON epochs"
            f" WHEN NEW.next_seq = OLD.next_seq AND NEW.tick_seen_at IS NOT OLD.tick_seen_at BEGIN SELECT RAISE(ABORT, '{said}'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION epoch_keeps_tick_seen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.next_seq = OLD.next_seq AND NEW.tick_seen_at IS DISTINCT FROM OLD.tick_seen_at"
        f" THEN RAISE EXCEPTION '{said}'; END IF; RETURN NEW; END $$"
    )
    op.execute("CREATE TRIGGER epoch_keeps_tick_seen BEFORE UPDATE ON epochs FOR EACH ROW EXECUTE FUNCTION epoch_keeps_tick_seen()")
