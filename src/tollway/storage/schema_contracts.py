"""The tables of contracts, on the MetaData of `schema`: what was agreed, and what closed periods came to by it.

The terms of a contract never change, and it only ever ends earlier: triggers refuse anything else on both engines (see the migrations).
"""

import sqlalchemy as sa

from tollway.storage.schema import metadata
from tollway.storage.schema_money import Amount

contracts = sa.Table(
    "contracts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("valid_from", sa.BigInteger, nullable=False),
    sa.Column("valid_until", sa.BigInteger),  # exclusive; null for no end
    sa.Column("terms", sa.Text, nullable=False),  # JSON: domain.contracts.ContractTerms
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.CheckConstraint("valid_until IS NULL OR valid_until > valid_from", name="ends_after_beginning"),
)
sa.Index(None, contracts.c.organization_id, contracts.c.valid_from)

contract_charges = sa.Table(  # append-only; what contracts added to a closed period, with its entries in ledger_entries
    "contract_charges",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # derived from the period: it is booked once
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("period_at", sa.BigInteger, nullable=False),
    sa.Column("parts", sa.Text, nullable=False),  # JSON array of domain.contracts.ContractPart
    sa.Column("billed_pico", Amount, nullable=False),
    sa.Column("booked_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "period_at"], ["billing_periods.organization_id", "billing_periods.start_at"]),
    sa.UniqueConstraint("organization_id", "period_at"),
)
