"""The tables of what serving costs, on the MetaData of `schema`: the costs of deployments, and what was booked by them.

Rows are append-only (see the migrations). What was booked has its entries in `ledger_entries`.
"""

import sqlalchemy as sa

from tollway.storage.schema import metadata
from tollway.storage.schema_money import Amount, name

deployment_costs = sa.Table(
    "deployment_costs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("deployment_id", sa.String(64), sa.ForeignKey("deployments.id"), nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("hour_pico", sa.BigInteger, nullable=False),
    sa.Column("unit_costs", sa.Text, nullable=False),  # JSON object: pico-currency of a unit by billing class, as text
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("deployment_id", "valid_from"),
    sa.CheckConstraint("hour_pico >= 0", name="hour_not_negative"),
)

serving_costs = sa.Table(  # what a closed billing period brought, and what its units cost
    "serving_costs",
    metadata,
    sa.Column("id", name(64), primary_key=True),  # derived from the period: it is booked once
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("period_at", sa.BigInteger, nullable=False),
    sa.Column("month", sa.String(7), nullable=False),  # YYYY-MM
    sa.Column("margin", sa.Text, nullable=False),  # JSON: domain.serving_costs.PeriodMargin
    sa.Column("booked_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "period_at"], ["billing_periods.organization_id", "billing_periods.start_at"]),
    sa.UniqueConstraint("organization_id", "period_at"),
)
sa.Index(None, serving_costs.c.month, serving_costs.c.organization_id)

capacity_costs = sa.Table(  # what the time of a deployment cost in a calendar month (UTC)
    "capacity_costs",
    metadata,
    sa.Column("id", name(64), primary_key=True),  # derived from the other columns: it is booked once
    sa.Column("deployment_id", sa.String(64), sa.ForeignKey("deployments.id"), nullable=False),
    sa.Column("month", sa.String(7), nullable=False),  # YYYY-MM
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("booked_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("deployment_id", "month", "currency"),
)
sa.Index(None, capacity_costs.c.month)
