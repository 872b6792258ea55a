"""Add the tables of the audit trail, with triggers that keep what was recorded."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

CUT = "EXISTS (SELECT 1 FROM audit_cuts AS cut WHERE cut.chain = OLD.chain AND cut.sequence >= OLD.sequence)"
SIGNED = "EXISTS (SELECT 1 FROM audit_checkpoints AS signed WHERE signed.chain = NEW.chain AND signed.sequence = NEW.sequence)"


def upgrade() -> None:
    """Create tables and triggers."""
    op.create_table(
        "audit_heads",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_heads")),
    )
    texts = (
        ("id", 64), ("event", 64), ("operation", 64), ("actor_kind", 16), ("actor_id", 64), ("address", 64), ("request_id", 64),
        ("target_kind", 64), ("target_id", 256), ("project_id", 64),
    )  # fmt: skip
    columns = {name: sa.Column(name, sa.String(length=length), nullable=False) for name, length in texts}
    op.create_table(
        "audit_records",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        columns.pop("id"),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        *columns.values(),
        sa.Column("changes", sa.Text(), nullable=False),
        sa.Column("omitted", sa.Integer(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", name=op.f("pk_audit_records")),
        sa.UniqueConstraint("id", name=op.f("uq_audit_records_id")),
    )
    op.create_table(
        "audit_checkpoints",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("signed_at", sa.BigInteger(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("signature", sa.LargeBinary(length=64), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", name=op.f("pk_audit_checkpoints")),
    )
    op.create_table(
        "audit_cuts",
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cut_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "sequence", name=op.f("pk_audit_cuts")),
    )
    refuse_when("audit_records_stay_as_they_are", "UPDATE", "audit_records", "a record of the audit trail is never changed", "1 = 1")
    refuse_when("audit_records_are_kept", "DELETE", "audit_records", "a record of the audit trail is removed by retention", f"NOT {CUT}")
    refuse_when("audit_cuts_at_checkpoints", "INSERT", "audit_cuts", "a chain is cut at a signed checkpoint", f"NOT {SIGNED}")
    for table in ("audit_checkpoints", "audit_cuts"):
        for verb in ("UPDATE", "DELETE"):
            refuse_when(f"{table}_refuse_{verb.lower()}", verb, table, f"{table} is append-only", "1 = 1")
    if op.get_bind().dialect.name == "sqlite":
        for table in ("audit_records", "audit_checkpoints", "audit_cuts"):
            refuse_replacement(table)
    else:
        for table in ("audit_records", "audit_checkpoints", "audit_cuts"):
            op.execute(f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} EXECUTE FUNCTION refuse_change()")


def refuse_when(name: str, verb: str, table: str, said: str, condition: str) -> None:
    """Make `table` refuse to `verb` a row for which `condition` holds."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{said}'); END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{said}'; END IF; RETURN {'OLD' if verb == 'DELETE' else 'NEW'}; END $$"
    )
    op.execute(f"CREATE TRIGGER {name} BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")


def refuse_replacement(table: str) -> None:
    """Make SQLite refuse INSERT OR REPLACE, which deletes a row without firing the triggers of DELETE; the rowid counts as a key."""
    op.execute(
        f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table}"
        f" WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE old.chain = NEW.chain AND old.sequence = NEW.sequence)"
        f" OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))"
        f" BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows'); END"
    )
