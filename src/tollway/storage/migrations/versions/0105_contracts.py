"""Keep contracts of organizations, and what closed periods came to by them."""

import sqlalchemy as sa
from alembic import op

revision = "0105"
down_revision = "0111"
branch_labels = None
depends_on = None

breaks_earlier = True
"""The version before would close a period without what its contracts add."""

SEALED = "EXISTS (SELECT 1 FROM contract_charges AS sealed WHERE sealed.id = NEW.transaction_id)"
NOT_CLOSING = (
    "NOT EXISTS (SELECT 1 FROM billing_periods AS period WHERE period.organization_id = NEW.organization_id"
    " AND period.start_at = NEW.period_at AND period.state = 'closing')"
)
SAME_TERMS = (
    "NEW.id = OLD.id AND NEW.organization_id = OLD.organization_id AND NEW.valid_from = OLD.valid_from AND NEW.terms = OLD.terms"
    " AND NEW.created_at = OLD.created_at AND NEW.valid_until IS NOT NULL"
    " AND (OLD.valid_until IS NULL OR NEW.valid_until < OLD.valid_until)"
)
KEPT = ("contracts", "contract_charges")


def upgrade() -> None:
    """Create the tables and their guards: terms never change, a contract only ends earlier, and a period is charged while it is closed."""
    op.create_table(
        "contracts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=True),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("valid_until IS NULL OR valid_until > valid_from", name=op.f("ck_contracts_ends_after_beginning")),
        sa.ForeignKeyConstraint(["organization_id"], ["organizations.id"], name=op.f("fk_contracts_organization_id_organizations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contracts")),
    )
    op.create_index(op.f("ix_contracts_organization_id_valid_from"), "contracts", ["organization_id", "valid_from"])
    op.create_table(
        "contract_charges",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.Text(), nullable=False),
        sa.Column("billed_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "period_at"],
            ["billing_periods.organization_id", "billing_periods.start_at"],
            name=op.f("fk_contract_charges_organization_id_period_at_billing_periods"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contract_charges")),
        sa.UniqueConstraint("organization_id", "period_at", name=op.f("uq_contract_charges_organization_id_period_at")),
    )
    op.add_column("billing_periods", sa.Column("contracts_digest", sa.LargeBinary(length=32), nullable=True))
    guard()


def guard() -> None:
    """Have the database refuse what no program may do."""
    for table in KEPT:
        refuse_when(f"{table}_refuses_delete", "DELETE", table, f"{table} keeps its rows", "1 = 1")
    refuse_when("contract_charges_refuses_update", "UPDATE", "contract_charges", "contract_charges keeps its rows", "1 = 1")
    refuse_when("contracts_keep_terms", "UPDATE", "contracts", "the terms of a contract never change", f"NOT ({SAME_TERMS})")
    refuse_when("contract_charge_of_closing_period", "INSERT", "contract_charges", "only a period that is closing is charged", NOT_CLOSING)
    refuse_when(
        "entry_of_sealed_contract_charge", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", SEALED
    )
    if op.get_bind().dialect.name == "sqlite":
        for table in KEPT:
            op.execute(
                f"CREATE TRIGGER {table}_refuses_replacement BEFORE INSERT ON {table}"
                f" WHEN EXISTS (SELECT 1 FROM {table} AS old WHERE old.id = NEW.id)"
                f" OR (NEW.rowid > 0 AND EXISTS (SELECT 1 FROM {table} AS old WHERE old.rowid = NEW.rowid))"
                f" BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: {table} keeps its rows'); END"
            )
    else:
        for table in KEPT:
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
