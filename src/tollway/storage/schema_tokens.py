"""The tables of access tokens, on the MetaData of `schema`: the keys that sign them."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

token_signing_keys = sa.Table(
    "token_signing_keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # the key id in headers of tokens
    sa.Column("issuer", sa.String(2048), nullable=False),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False),  # Ed25519
    sa.Column("private_key", sa.LargeBinary, nullable=False),  # sealed by the vault
    sa.Column("created_at", sa.BigInteger, nullable=False),
)
