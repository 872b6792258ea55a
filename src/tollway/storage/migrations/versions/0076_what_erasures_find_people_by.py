"""Store who accepted an invitation, and let an approved erasure erase subjects at identity providers in targets of the audit trail."""

import sqlalchemy as sa
from alembic import op

revision = "0076"
down_revision = "0103"
branch_labels = None
depends_on = None

KEPT = (
    "chain", "sequence", "id", "recorded_at", "event", "operation", "actor_kind", "actor_id", "request_id", "target_kind", "project_id",
    "omitted", "hash",
)  # fmt: skip
"""Columns of a record that an erasure leaves as they are, beside the target of any but a record about an identity, whose id ended with the
subject. It changes `changes`, `address` and `erasure_id`, and removes the salt."""

APPROVED = "EXISTS (SELECT 1 FROM erasures WHERE erasures.organization_id = OLD.chain AND erasures.state = 'approved')"


def upgrade() -> None:
    """Add the column. A person and the acceptance of their invitation have the same instant in one organization."""
    op.add_column("invites", sa.Column("user_id", sa.String(64), nullable=True))
    op.execute(
        "UPDATE invites SET user_id = (SELECT MIN(users.id) FROM users WHERE users.organization_id = invites.organization_id"
        " AND users.added_at = invites.accepted_at) WHERE accepted_at IS NOT NULL"
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    differs = "{} IS NOT {}" if is_sqlite else "{} IS DISTINCT FROM {}"
    changed = " OR ".join(differs.format(f"NEW.{name}", f"OLD.{name}") for name in KEPT)
    retargeted = f"({differs.format('NEW.target_id', 'OLD.target_id')} AND OLD.target_kind <> 'user_identity')"
    condition = f"NEW.erasure_id IS NULL OR NEW.salt IS NOT NULL OR {changed} OR {retargeted} OR NOT {APPROVED}"
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
