"""Keep grants of credit, what usage draws of them, and the transactions of their accounts; and budgets over them."""

import sqlalchemy as sa
from alembic import op

revision = "0055"
down_revision = "0060"
branch_labels = None
depends_on = None

AMOUNT = sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite")
SEALED = "EXISTS (SELECT 1 FROM credit_transactions AS sealed WHERE sealed.id = NEW.transaction_id)"


def upgrade() -> None:
    """Create the tables, and add the column in words of SQL, because a table of money must not be copied, as SQLite would to alter it."""
    op.create_table(
        "credit_grants",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("category", sa.String(length=16), nullable=False),
        sa.Column("amount_pico", AMOUNT, nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("cost_basis_bp", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("effective_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("reference", sa.String(length=256), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("model", sa.String(length=128), nullable=True),
        sa.Column("models", sa.Text(), nullable=True),
        sa.Column("voided_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("category IN ('paid', 'promotional', 'goodwill')", name=op.f("ck_credit_grants_category_known")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_credit_grants_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_grants")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_credit_grants_organization_id_id")),
    )
    op.create_index(op.f("ix_credit_grants_organization_id_closed_at"), "credit_grants", ["organization_id", "closed_at"])
    op.create_table(
        "credit_draws",
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("grant_id", sa.String(length=64), nullable=False),
        sa.Column("period_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("drawn_pico", AMOUNT, nullable=False),
        sa.Column("is_final", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "grant_id"],
            ["credit_grants.organization_id", "credit_grants.id"],
            name=op.f("fk_credit_draws_organization_id_credit_grants"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "grant_id", "period_at", name=op.f("pk_credit_draws")),
    )
    op.create_table(
        "credit_transactions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("grant_id", sa.String(length=64), nullable=False),
        sa.Column("move", sa.String(length=16), nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=True),
        sa.Column("amount_pico", AMOUNT, nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("move IN ('grant', 'burn', 'expire', 'void')", name=op.f("ck_credit_transactions_move_known")),
        sa.ForeignKeyConstraint(
            ["organization_id", "grant_id"],
            ["credit_grants.organization_id", "credit_grants.id"],
            name=op.f("fk_credit_transactions_organization_id_credit_grants"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_transactions")),
    )
    op.create_index(op.f("ix_credit_transactions_organization_id_id"), "credit_transactions", ["organization_id", "id"])
    op.execute("ALTER TABLE budgets ADD COLUMN is_prepaid BOOLEAN")
    for verb in ("UPDATE", "DELETE"):
        refuse_when(
            f"credit_transactions_refuses_{verb.lower()}", verb, "credit_transactions", "credit_transactions keeps its rows", "1 = 1"
        )
    refuse_when("entry_of_sealed_credit", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", SEALED)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE TRIGGER credit_transactions_refuses_replacement BEFORE INSERT ON credit_transactions"
            " WHEN EXISTS (SELECT 1 FROM credit_transactions AS old WHERE old.id = NEW.id)"
            " OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM credit_transactions AS old WHERE old.rowid = NEW.rowid))"
            " BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: credit_transactions keeps its rows'); END"
        )
    else:
        op.execute(
            "CREATE TRIGGER credit_transactions_refuses_truncate BEFORE TRUNCATE ON credit_transactions EXECUTE FUNCTION refuse_change()"
        )


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
