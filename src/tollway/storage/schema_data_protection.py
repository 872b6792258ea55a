"""The tables of data protection, on the MetaData of `schema`: secrets that leaked."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

leaked_keys = sa.Table(
    "leaked_keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("redacted", sa.String(64), nullable=False),  # the part of the secret that may be shown
    sa.Column("source", sa.String(16), nullable=False),  # domain.leaked_keys.LeakSource
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),  # domain.leaked_keys.LeakAction
    sa.Column("reported_at", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["organization_id", "key_id"], ["api_keys.organization_id", "api_keys.id"]),
    sa.UniqueConstraint("organization_id", "key_id", "redacted"),
)
