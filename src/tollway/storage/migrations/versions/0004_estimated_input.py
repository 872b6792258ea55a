"""Let usage events say that their input was estimated.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BEFORE = "source IN ('engine_final', 'engine_continuous', 'counted', 'recovered', 'none')"
AFTER = "source IN ('engine_final', 'engine_continuous', 'counted', 'estimated', 'recovered', 'none')"
CONSTRAINT = "ck_usage_events_source_known"


def upgrade() -> None:
    """Widen the constraint. On SQLite its text is edited in place (SQLite, "ALTER TABLE", section 7): the table is append-only, and a
    rebuild would have to lift its guards."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.drop_constraint(op.f(CONSTRAINT), "usage_events", type_="check")
        op.create_check_constraint(op.f(CONSTRAINT), "usage_events", AFTER)
        return
    version = connection.execute(sa.text("PRAGMA schema_version")).scalar_one()
    connection.execute(sa.text("PRAGMA writable_schema = ON"))
    changed = connection.execute(
        sa.text("UPDATE sqlite_schema SET sql = replace(sql, :before, :after) WHERE name = 'usage_events' AND instr(sql, :before)"),
        {"before": BEFORE, "after": AFTER},
    )
    connection.execute(sa.text(f"PRAGMA schema_version = {version + 1}"))
    connection.execute(sa.text("PRAGMA writable_schema = OFF"))
    assert changed.rowcount == 1
