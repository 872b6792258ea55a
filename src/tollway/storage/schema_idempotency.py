"""The table of idempotency keys, on the MetaData of `schema`: which requests were carried out, and what they were answered."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),  # of sender, method, path and key
    sa.Column("body_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("status", sa.Integer),  # of the answer; null until it is stored
    sa.Column("answer", sa.LargeBinary),  # sealed by the vault, because answers may hold new secrets
)
