"""The tables of credits, on the MetaData of `schema`: what was granted, what usage has drawn of it, and transactions of its accounts."""

import sqlalchemy as sa

from tollway.domain.credits import CreditMove, GrantCategory
from tollway.storage.schema import metadata, one_of
from tollway.storage.schema_money import Amount

credit_grants = sa.Table(
    "credit_grants",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("category", sa.String(16), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("cost_basis_bp", sa.Integer, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("effective_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("reference", sa.String(256), nullable=False),
    sa.Column("project_id", sa.String(64)),  # whose requests alone use it; null for all
    sa.Column("model", sa.String(128)),  # a model or a group of models, as it was asked for; null for all
    sa.Column("models", sa.Text),  # the models that these were when it was granted, one a line
    sa.Column("voided_at", sa.BigInteger),  # from then on no request can use it
    sa.Column("closed_at", sa.BigInteger),  # when nothing was left of it after a period was closed
    one_of("category", GrantCategory),
    sa.UniqueConstraint("organization_id", "id"),
)
sa.Index(None, credit_grants.c.organization_id, credit_grants.c.closed_at)

credit_draws = sa.Table(  # what the usage of a period has burned of a grant
    "credit_draws",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("grant_id", sa.String(64), primary_key=True),
    sa.Column("period_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("drawn_pico", Amount, nullable=False),  # provisional until the period is closed
    sa.Column("is_final", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "grant_id"], ["credit_grants.organization_id", "credit_grants.id"]),
)

credit_redraws = (
    sa.Table(  # open periods whose draws are to be made anew, because the close of one before them burned otherwise than was drawn
        "credit_redraws",
        metadata,
        sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
        sa.Column("period_at", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("closed_at", sa.BigInteger, nullable=False),  # the start of the period whose close is the cause
        sa.Column("uncovered_pico", Amount, nullable=False),  # what it has drawn beyond what is left of grants
    )
)

credit_redraw_usage = sa.Table(  # what was booked in such a period meanwhile, one row for each batch
    "credit_redraw_usage",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("period_at", sa.BigInteger, nullable=False),
    sa.Column("usage", sa.Text, nullable=False),  # JSON array of [minute, project, model, pico as a string]
    sa.ForeignKeyConstraint(["organization_id", "period_at"], ["credit_redraws.organization_id", "credit_redraws.period_at"]),
)

credit_transactions = sa.Table(  # append-only; each with two entries in ledger_entries
    "credit_transactions",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # derived from the cause: a replay cannot book twice
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("grant_id", sa.String(64), nullable=False),
    sa.Column("move", sa.String(16), nullable=False),
    sa.Column("period_at", sa.BigInteger),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("booked_at", sa.BigInteger, nullable=False),
    one_of("move", CreditMove),
    sa.ForeignKeyConstraint(["organization_id", "grant_id"], ["credit_grants.organization_id", "credit_grants.id"]),
)
sa.Index(None, credit_transactions.c.organization_id, credit_transactions.c.id)

credit_topup_rules = sa.Table(  # when more credit is asked for
    "credit_topup_rules",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("threshold_pico", Amount, nullable=False),  # 0 for none
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("cooloff_seconds", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
    sa.Column("every", sa.String(8)),  # the interval at which it is asked for too; null for none
    sa.Column("next_at", sa.BigInteger),  # the start of the next period of that interval for which nothing was asked for
)
sa.Index(None, credit_topup_rules.c.next_at)

credit_topups = sa.Table(  # top-ups that a rule asked for, and the grant that answered each
    "credit_topups",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("amount_pico", Amount, nullable=False),
    sa.Column("usable_pico", Amount, nullable=False),  # what was usable then
    sa.Column("requested_at", sa.BigInteger, nullable=False),
    sa.Column("grant_id", sa.String(64), sa.ForeignKey("credit_grants.id")),
    sa.Column("period_at", sa.BigInteger),  # of the period for which it was asked; null if too little was usable
)
sa.Index(None, credit_topups.c.organization_id, credit_topups.c.requested_at)
sa.Index(None, credit_topups.c.organization_id, credit_topups.c.period_at, unique=True)
