"""Have the database keep the reference of a mandate to one organization of a seller."""

import sqlalchemy as sa
from alembic import op

revision = "0141"
down_revision = "0140"
branch_labels = None
depends_on = None

REFERENCE = {"sqlite": "json_extract({}.details, '$.mandate.reference')", "postgresql": "{}.details::json #>> '{{mandate,reference}}'"}


def upgrade() -> None:
    """Copy the references, but for those that several organizations have: the one whose account changed last keeps it."""
    op.add_column("billing_accounts", sa.Column("mandate_reference", sa.String(length=35), nullable=True))
    name = op.get_bind().dialect.name
    own, other = (REFERENCE[name].format(table) for table in ("billing_accounts", "other"))
    op.execute(
        f"UPDATE billing_accounts SET mandate_reference = {own} WHERE NOT EXISTS (SELECT 1 FROM billing_accounts AS other"
        f" WHERE other.legal_entity_id = billing_accounts.legal_entity_id AND {other} = {own}"
        " AND (other.changed_at, other.organization_id) > (billing_accounts.changed_at, billing_accounts.organization_id))"
    )
    op.create_index(
        op.f("ix_billing_accounts_legal_entity_id_mandate_reference"),
        "billing_accounts",
        ["legal_entity_id", "mandate_reference"],
        unique=True,
    )
