"""The tables of stored responses, on the MetaData of `schema`."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

stored_responses = sa.Table(
    "stored_responses",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("content", sa.LargeBinary, nullable=False),  # sealed by the gateway under the organization's key
)

stored_response_totals = sa.Table(  # what the rows of an organization above come to
    "stored_response_totals",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("responses", sa.BigInteger, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)
