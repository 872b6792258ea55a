"""Record who made a key and from which key of the settings an operator's key descends, and hold approvals to it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

RULES = {
    # What may not be, as a condition on the row NEW: (verb, table, message, condition).
    "approver_of_another_origin": (
        "INSERT",
        "adjustment_approvals",
        "a correction is approved with a key of another origin",
        "NEW.decision = 'approved' AND NOT EXISTS (SELECT 1 FROM usage_adjustments AS asked"
        " WHERE asked.id = NEW.adjustment_id AND asked.actor_origin <> NEW.approver_origin)",
    ),
    "write_off_by_two_origins": (
        "INSERT",
        "quarantine_resolutions",
        "a record is written off by the operators who asked for it",
        "NEW.state = 'written_off' AND NOT EXISTS (SELECT 1 FROM write_off_requests AS asked"
        " LEFT JOIN write_off_requests AS agreed ON agreed.node_id = NEW.node_id AND agreed.epoch = NEW.epoch AND agreed.seq = NEW.seq"
        " AND agreed.actor = NEW.approver AND agreed.actor_origin <> asked.actor_origin"
        " WHERE asked.node_id = NEW.node_id AND asked.epoch = NEW.epoch AND asked.seq = NEW.seq AND asked.actor = NEW.actor"
        " AND CASE WHEN NEW.approver IS NULL THEN asked.amount_pico IS NOT NULL ELSE agreed.actor IS NOT NULL END)",
    ),
    "operator_key_has_origin": (
        "INSERT",
        "api_keys",
        "a key of an operator has an origin, and no other key has one",
        "(NEW.type = 'platform') = (NEW.origin IS NULL)",
    ),
}


def upgrade() -> None:
    """Apply. Operators' keys that exist count as of one origin, because it is not known who made them."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("api_keys", sa.Column("created_by", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("origin", sa.String(length=16), nullable=True))
    op.execute("UPDATE api_keys SET origin = 'first' WHERE type = 'platform'")
    op.add_column("usage_adjustments", sa.Column("actor_origin", sa.String(length=16), nullable=False, server_default="first"))
    op.add_column("adjustment_approvals", sa.Column("approver_origin", sa.String(length=16), nullable=False, server_default="first"))
    add_write_offs(is_sqlite)
    op.create_index(op.f("ix_usage_adjustments_actor_origin_created_at"), "usage_adjustments", ["actor_origin", "created_at"])
    for name, (verb, table, message, condition) in RULES.items():
        refuse_when(name, verb, table, message, condition)
    differs = "{} IS NOT {}" if is_sqlite else "{} IS DISTINCT FROM {}"
    moved = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in ("id", "type", "created_by", "origin"))
    refuse_when("key_keeps_its_origin", "UPDATE", "api_keys", "what a key is and who made it never changes", moved)


def add_write_offs(is_sqlite: bool) -> None:
    """Add the requests to write records off, which two operators make, and make them append-only."""
    op.add_column("quarantine_resolutions", sa.Column("approver", sa.String(length=64), nullable=True))
    op.create_table(
        "write_off_requests",
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("actor_origin", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=1024), nullable=False),
        sa.Column("amount_pico", sa.BigInteger(), nullable=True),
        sa.Column("currency", sa.String(length=3), nullable=True),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(amount_pico IS NULL) = (currency IS NULL)", name=op.f("ck_write_off_requests_amount_in_currency")),
        sa.ForeignKeyConstraint(
            ["node_id", "epoch", "seq"],
            ["quarantined_records.node_id", "quarantined_records.epoch", "quarantined_records.seq"],
            name=op.f("fk_write_off_requests_node_id_quarantined_records"),
        ),
        sa.PrimaryKeyConstraint("node_id", "epoch", "seq", "actor", name=op.f("pk_write_off_requests")),
    )
    op.create_index(op.f("ix_write_off_requests_actor_origin_requested_at"), "write_off_requests", ["actor_origin", "requested_at"])
    if is_sqlite:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER write_off_requests_refuses_{verb.lower()} BEFORE {verb} ON write_off_requests"
                " BEGIN SELECT RAISE(ABORT, 'write_off_requests is append-only'); END"
            )
        key = " AND ".join(f"old.{name} = NEW.{name}" for name in ("node_id", "epoch", "seq", "actor"))
        op.execute(
            "CREATE TRIGGER write_off_requests_refuses_replacement BEFORE INSERT ON write_off_requests"
            f" WHEN EXISTS (SELECT 1 FROM write_off_requests AS old WHERE {key})"
            " OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM write_off_requests AS old WHERE old.rowid = NEW.rowid))"
            " BEGIN SELECT RAISE(IGNORE); END"
        )
        return
    op.execute(
        "CREATE TRIGGER write_off_requests_refuses_change BEFORE UPDATE OR DELETE ON write_off_requests"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute("CREATE TRIGGER write_off_requests_refuses_truncate BEFORE TRUNCATE ON write_off_requests EXECUTE FUNCTION refuse_change()")


def refuse_when(name: str, verb: str, table: str, message: str, condition: str) -> None:
    """Make `table` refuse to `verb` a row for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END")
        return

    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{message}'; END IF; RETURN NEW; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
