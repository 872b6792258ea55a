"""The tables of the audit trail, on the MetaData of `schema`. Rows of `audit_records` lose what an erasure erases, are not
changed otherwise, and are removed only up to a signed checkpoint that retention has stored in `audit_cuts`; triggers see to it (see the
migrations)."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

audit_heads = sa.Table(  # the end of each chain; its lock orders whoever writes to the chain
    "audit_heads",
    metadata,
    sa.Column("chain", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
)

audit_records = sa.Table(
    "audit_records",
    metadata,
    sa.Column("chain", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("event", sa.String(64), nullable=False),
    sa.Column("operation", sa.String(64), nullable=False),
    sa.Column("actor_kind", sa.String(16), nullable=False),
    sa.Column("actor_id", sa.String(64), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("target_kind", sa.String(64), nullable=False),
    sa.Column("target_id", sa.String(256), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("changes", sa.Text, nullable=False),  # JSON array of domain.audit.RowChange
    sa.Column("omitted", sa.Integer, nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("salt", sa.LargeBinary(16)),  # under the hash, so that nobody confirms what was erased by guessing; null in older records
    sa.Column("erasure_id", sa.String(64)),  # of the record of the erasure that states the hash of what is left; null for a whole record
)

# What a list of the trail is filtered by. Records that match a filter may be rare, and the chain is long.
sa.Index(None, audit_records.c.chain, audit_records.c.event, audit_records.c.sequence)
sa.Index(None, audit_records.c.chain, audit_records.c.actor_id, audit_records.c.sequence)
sa.Index(None, audit_records.c.chain, audit_records.c.project_id, audit_records.c.sequence)
sa.Index(None, audit_records.c.chain, audit_records.c.target_id, audit_records.c.sequence)
sa.Index(None, audit_records.c.chain, audit_records.c.recorded_at, audit_records.c.sequence)

audit_checkpoints = sa.Table(
    "audit_checkpoints",
    metadata,
    sa.Column("chain", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("signed_at", sa.BigInteger, nullable=False),
    sa.Column("public_key", sa.LargeBinary(32), nullable=False),  # Ed25519, RFC 8032
    sa.Column("signature", sa.LargeBinary(64), nullable=False),
)

audit_cuts = sa.Table(  # up to which record each chain was removed by retention
    "audit_cuts",
    metadata,
    sa.Column("chain", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cut_at", sa.BigInteger, nullable=False),
)
