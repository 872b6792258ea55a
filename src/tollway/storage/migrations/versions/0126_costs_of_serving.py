"""Keep what deployments cost, what closed periods and past months cost by it, and when deployments were archived."""

import sqlalchemy as sa
from alembic import op

revision = "0126"
down_revision = "0119"
branch_labels = None
depends_on = None

breaks_earlier = True
"""The version before would close a period without what serving it cost, which nothing books afterwards."""

KEPT = ("deployment_costs", "serving_costs", "capacity_costs")
BOOKED = ("serving_costs", "capacity_costs")
NOT_CLOSED = (
    "NOT EXISTS (SELECT 1 FROM billing_periods AS period WHERE period.organization_id = NEW.organization_id"
    " AND period.start_at = NEW.period_at AND period.state = 'closed' AND period.closed_at = NEW.booked_at)"
)


def upgrade() -> None:
    """Create the tables and their guards. Deployments that are archived already keep no instant: they have no costs either."""
    op.add_column("deployments", sa.Column("archived_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "deployment_costs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("hour_pico", sa.BigInteger(), nullable=False),
        sa.Column("unit_costs", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("hour_pico >= 0", name=op.f("ck_deployment_costs_hour_not_negative")),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_deployment_costs_deployment_id_deployments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment_costs")),
        sa.UniqueConstraint("deployment_id", "valid_from", name=op.f("uq_deployment_costs_deployment_id_valid_from")),
    )
    name = sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql")
    op.create_table(
        "serving_costs",
        sa.Column("id", name, nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("period_at", sa.BigInteger(), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("margin", sa.Text(), nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "period_at"],
            ["billing_periods.organization_id", "billing_periods.start_at"],
            name=op.f("fk_serving_costs_organization_id_period_at_billing_periods"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_serving_costs")),
        sa.UniqueConstraint("organization_id", "period_at", name=op.f("uq_serving_costs_organization_id_period_at")),
    )
    op.create_index(op.f("ix_serving_costs_month_organization_id"), "serving_costs", ["month", "organization_id"])
    op.create_table(
        "capacity_costs",
        sa.Column("id", name, nullable=False),
        sa.Column("deployment_id", sa.String(length=64), nullable=False),
        sa.Column("month", sa.String(length=7), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("amount_pico", sa.Numeric(38, 0).with_variant(sa.String(39), "sqlite"), nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployments.id"], name=op.f("fk_capacity_costs_deployment_id_deployments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_capacity_costs")),
        sa.UniqueConstraint("deployment_id", "month", "currency", name=op.f("uq_capacity_costs_deployment_id_month_currency")),
    )
    op.create_index(op.f("ix_capacity_costs_month"), "capacity_costs", ["month"])
    guard()


def guard() -> None:
    """Have the database refuse what no program may do: rows stay as they are, and a transaction takes no more entries."""
    for table in KEPT:
        for verb in ("UPDATE", "DELETE"):
            refuse_when(f"{table}_refuses_{verb.lower()}", verb, table, f"{table} keeps its rows", "1 = 1")
    for table in BOOKED:
        sealed = f"EXISTS (SELECT 1 FROM {table} AS sealed WHERE sealed.id = NEW.transaction_id)"
        refuse_when(f"entry_of_sealed_{table}", "INSERT", "ledger_entries", "the transaction is sealed: it takes no more entries", sealed)
    refuse_when("serving_cost_of_closing_period", "INSERT", "serving_costs", "a period is booked as it closes", NOT_CLOSED)
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
