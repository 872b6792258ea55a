"""Tables of what concerns the processes of control, on the MetaData of `schema`: who runs each periodic job, and until which period it is
done; which versions may run over this schema."""

import sqlalchemy as sa

from tollway.storage.schema import metadata

job_leases = sa.Table(
    "job_leases",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),  # the control process that took the lease last
    sa.Column("until_at", sa.BigInteger, nullable=False),  # nobody takes the lease before this instant
    sa.Column("done_period_at", sa.BigInteger),  # start of the latest period in which the job succeeded
    sa.Column("succeeded_at", sa.BigInteger),
    sa.Column("failures", sa.Integer, nullable=False),  # since the latest success
    sa.CheckConstraint("failures >= 0", name="failures_not_negative"),
)

compatible_revisions = sa.Table(  # the revisions whose code may run over this schema, written by whoever migrates
    "compatible_revisions",
    metadata,
    sa.Column("revision", sa.String(32), primary_key=True),
)
