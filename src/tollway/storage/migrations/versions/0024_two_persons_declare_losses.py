"""Let an epoch be declared lost only by a request that a second person approved."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

RULES = {
    # What may not be, as a condition on the row NEW: (table, message, condition).
    "loss_approved_by_another_origin": (
        "lost_decisions",
        "a loss is approved with a key of another origin",
        "NEW.decision = 'approved' AND NOT EXISTS (SELECT 1 FROM lost_requests AS asked"
        " WHERE asked.id = NEW.request_id AND asked.actor_origin <> NEW.approver_origin)",
    ),
    "loss_declared_by_approval": (
        "lost_declarations",
        "a loss is declared by a request that a second person approved",
        "NOT EXISTS (SELECT 1 FROM lost_requests AS asked JOIN lost_decisions AS decided ON decided.request_id = asked.id"
        " WHERE asked.node_id = NEW.node_id AND asked.epoch = NEW.epoch AND asked.actor = NEW.actor"
        " AND decided.decision = 'approved' AND decided.approver = NEW.approver)",
    ),
}


def upgrade() -> None:
    """Apply. A declaration that exists names no approver."""
    op.create_table(
        "lost_requests",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("actor_origin", sa.String(length=16), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lost_requests")),
    )
    op.create_index(op.f("ix_lost_requests_node_id_epoch"), "lost_requests", ["node_id", "epoch"])
    op.create_table(
        "lost_decisions",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("approver", sa.String(length=64), nullable=False),
        sa.Column("approver_origin", sa.String(length=16), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("decision IN ('approved', 'rejected')", name=op.f("ck_lost_decisions_decision_known")),
        sa.ForeignKeyConstraint(["request_id"], ["lost_requests.id"], name=op.f("fk_lost_decisions_request_id_lost_requests")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_lost_decisions")),
    )
    op.add_column("lost_declarations", sa.Column("approver", sa.String(length=64), nullable=False, server_default=""))
    for table, key in (("lost_requests", "id"), ("lost_decisions", "request_id")):
        keep_rows(table, key)
    for name, (table, message, condition) in RULES.items():
        refuse_insert(name, table, message, condition)


def keep_rows(table: str, key: str) -> None:
    """Make `table`, whose primary key is `key`, append-only."""
    if op.get_bind().dialect.name != "sqlite":
        op.execute(
            f"CREATE TRIGGER {table}_refuses_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_refuses_{verb.lower()} BEFORE {verb} ON {table}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    # INSERT OR REPLACE deletes without firing the triggers of DELETE, and the rowid counts as a key.
    op.execute(
        f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table}"
        f" WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE old.{key} = NEW.{key})"
        f" OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))"
        f" BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows'); END"
    )


def refuse_insert(name: str, table: str, message: str, condition: str) -> None:
    """Make `table` refuse a new row for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} BEFORE INSERT ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{message}'; END IF; RETURN NEW; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
