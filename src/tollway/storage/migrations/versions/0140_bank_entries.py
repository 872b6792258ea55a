"""Keep all credits and returned debits of bank statements, and the balances of these."""

import sqlalchemy as sa
from alembic import op

revision = "0140"
down_revision = "0145"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, empty in statements that were imported before, and the table."""
    for name, kind in (
        ("credits", sa.Integer()),
        ("credits_minor", sa.BigInteger()),
        ("returns", sa.Integer()),
        ("opening_minor", sa.BigInteger()),
        ("closing_minor", sa.BigInteger()),
        ("closing_on", sa.String(length=10)),
        ("others_minor", sa.BigInteger()),
        ("follows_id", sa.String(length=64)),
    ):
        op.add_column("bank_statements", sa.Column(name, kind, nullable=True))
    op.create_table(
        "bank_returns",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("statement_id", sa.String(length=64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("value_on", sa.String(length=10), nullable=False),
        sa.Column("end_to_end_id", sa.String(length=512), nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.Column("payment_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["statement_id"], ["bank_statements.id"], name=op.f("fk_bank_returns_statement_id_bank_statements")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_bank_returns_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bank_returns")),
    )
    op.create_index(op.f("ix_bank_returns_end_to_end_id"), "bank_returns", ["end_to_end_id"])
