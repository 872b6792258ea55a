"""Store erasures, salt the records of the audit trail, and let an approved erasure erase values in them."""

import sqlalchemy as sa
from alembic import op

revision = "0070"
down_revision = "0066"
branch_labels = None
depends_on = None

KEPT = (
    "chain", "sequence", "id", "recorded_at", "event", "operation", "actor_kind", "actor_id", "request_id", "target_kind", "target_id",
    "project_id", "omitted", "hash",
)  # fmt: skip
"""Columns of a record that an erasure leaves as they are. It changes `changes`, `address` and `erasure_id`, and removes the salt."""

APPROVED = "EXISTS (SELECT 1 FROM erasures WHERE erasures.organization_id = OLD.chain AND erasures.state = 'approved')"


def upgrade() -> None:
    """Add the table and the columns. Records that exist have no salt, and their hashes stay."""
    op.create_table(
        "erasures",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("organization_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(64), nullable=True),
        sa.Column("reason", sa.String(1024), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_origin", sa.String(16), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("approver", sa.String(64), nullable=True),
        sa.Column("approver_origin", sa.String(16), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("are_rows_erased", sa.Boolean(), nullable=False),
        sa.Column("records_erased", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("addresses", sa.Text(), nullable=False),
        sa.Column("erased_until", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('pending', 'rejected') OR approver_origin <> actor_origin", name=op.f("ck_erasures_two_persons")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_erasures_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_organization_id_state"), "erasures", ["organization_id", "state"])
    op.add_column("audit_records", sa.Column("salt", sa.LargeBinary(16), nullable=True))
    op.add_column("audit_records", sa.Column("erasure_id", sa.String(64), nullable=True))
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    differs = "{} IS NOT {}" if is_sqlite else "{} IS DISTINCT FROM {}"
    changed = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in KEPT)
    condition = f"NEW.erasure_id IS NULL OR NEW.salt IS NOT NULL OR {changed} OR NOT {APPROVED}"
    said = "a record of the audit trail is never changed, but by an approved erasure"
    name = "audit_records_stay_as_they_are"
    if is_sqlite:
        op.execute(f"DROP TRIGGER {name}")
        op.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON audit_records WHEN {condition} BEGIN SELECT RAISE(ABORT, '{said}'); END")
        return
    op.execute(
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF {condition} THEN RAISE EXCEPTION '{said}'; END IF; RETURN NEW; END $$"
    )
