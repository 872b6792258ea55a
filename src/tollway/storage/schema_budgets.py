"""The tables of budgets, on the MetaData of `schema`: what may be spent, what was spent in each window, and what gateways were granted."""

import sqlalchemy as sa

from tollway.domain.budgets import BudgetLevel, BudgetMode, BudgetWindow
from tollway.storage.schema import metadata, one_of
from tollway.storage.schema_money import Amount

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("subject_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("window_type", sa.String(16), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("thresholds", sa.Text, nullable=False),  # JSON array of percentages
    sa.Column("is_operators", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("counts_from", sa.BigInteger, nullable=False),
    sa.Column("archived_at", sa.BigInteger),
    sa.Column("model", sa.String(128)),  # a model or a group of models; null for all
    sa.Column("tag", sa.String(600)),  # a key and its value in the metadata of requests; null for all requests
    sa.Column("fallback_model", sa.String(128)),  # that serves what the budget would refuse; null for none
    sa.Column("plan_id", sa.String(64)),  # of the plan that the organization has it by
    sa.Column("end_user", sa.String(512)),  # whose requests alone are counted, `*` for each by itself; null for all requests
    sa.Column("throttle_requests_per_minute", sa.Integer),  # that each gateway lets through once it is spent; null refuses them
    sa.Column("is_prepaid", sa.Boolean),  # its limit is the organization's credit; null for no
    sa.Column("parent_id", sa.String(64)),  # of a row that stands for one end user or one place: the budget whose terms hold
    sa.Column("place_project_id", sa.String(64)),  # of a row that stands for one place, beside its model; null for any other
    one_of("level", BudgetLevel),
    one_of("mode", BudgetMode),
    one_of("window_type", BudgetWindow),
    sa.UniqueConstraint("organization_id", "id"),
)

budget_raises = sa.Table(
    "budget_raises",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("budget_id", sa.String(64), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("starts_at", sa.BigInteger, nullable=False),
    sa.Column("ends_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "budget_id"], ["budgets.organization_id", "budgets.id"]),
    sa.CheckConstraint("starts_at < ends_at", name="time_forward"),
)
sa.Index(None, budget_raises.c.budget_id)
sa.Index(None, budget_raises.c.organization_id, budget_raises.c.ends_at, budget_raises.c.created_at)
sa.Index(None, budgets.c.organization_id, budgets.c.archived_at, budgets.c.created_at)
sa.Index(None, budgets.c.parent_id)

budget_windows = sa.Table(  # one row for each window in which something was leased or spent; its lock orders grants and charges
    "budget_windows",
    metadata,
    sa.Column("budget_id", sa.String(64), sa.ForeignKey("budgets.id"), primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("end_at", sa.BigInteger, nullable=False),
    sa.Column("spent_pico", Amount, nullable=False),  # by rated events
    sa.CheckConstraint("start_at < end_at", name="time_forward"),
)

budget_leases = sa.Table(  # what a run of a gateway may spend of a window; it counts until the epoch is closed or declared lost
    "budget_leases",
    metadata,
    sa.Column("budget_id", sa.String(64), primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("granted_pico", Amount, nullable=False),  # in all
    sa.Column("drawn_pico", Amount, nullable=False),  # of that, spent by events of this epoch
    sa.Column("sequence", sa.BigInteger, nullable=False),  # of the latest request that changed it
    sa.Column("renewed_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["budget_id", "start_at"], ["budget_windows.budget_id", "budget_windows.start_at"]),
    postgresql_with={"fillfactor": 50},
)

budget_alerts = sa.Table(  # thresholds that were reached, once in each window for the same limit
    "budget_alerts",
    metadata,
    sa.Column("budget_id", sa.String(64), primary_key=True),
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("threshold", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("spent_pico", Amount, nullable=False),
    sa.Column("limit_pico", Amount, primary_key=True),
    sa.Column("crossed_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["budget_id", "start_at"], ["budget_windows.budget_id", "budget_windows.start_at"]),
)
