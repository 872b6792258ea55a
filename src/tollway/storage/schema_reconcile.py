"""The tables of reconciliation, on the MetaData of `schema`: what engines counted, by hour, and what requests used of them.

An engine is known by its address (a deployment's base_url): deployments at one address share its counters. Hours are UTC; instants
are BIGINT UTC microseconds.
"""

import sqlalchemy as sa

from tollway.storage.schema import metadata

ADDRESS_CHARACTERS_MAX = 2048
"""As in `deployments.base_url`."""

engine_readings = sa.Table(  # the latest reading of each engine: what the next one is compared with, whoever takes it
    "engine_readings",
    metadata,
    sa.Column("address", sa.String(ADDRESS_CHARACTERS_MAX), primary_key=True),
    sa.Column("read_at", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
)

engine_hours = sa.Table(
    "engine_hours",
    metadata,
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("address", sa.String(ADDRESS_CHARACTERS_MAX), primary_key=True),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("counts_cached", sa.Boolean, nullable=False),
    sa.Column("covered_us", sa.BigInteger, nullable=False),
    sa.Column("is_estimated", sa.Boolean, nullable=False),
    sa.Column("resets", sa.Integer, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("prompt_count", sa.String(32), nullable=False, server_default="once"),
    sa.Column("warned_at", sa.BigInteger),  # when its drift was reported; once is enough
    sa.CheckConstraint("prompt_tokens >= 0 AND output_tokens >= 0 AND covered_us >= 0", name="counts_not_negative"),
)

engine_members = sa.Table(  # deployments that had an address at some time in an hour
    "engine_members",
    metadata,
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("address", sa.String(ADDRESS_CHARACTERS_MAX), primary_key=True),
    sa.Column("deployment_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), nullable=False),
)

USAGE_COUNTS = ("requests", "incomplete", "retried", "anomalous", "input", "cached_input", "output")
REPEATED_COUNTS = ("repeated_input", "repeated_cached_input", "forked_input")
"""Names of the counts of requests for several choices; see `domain.reconciliation.EngineUsage`."""

engine_usage = sa.Table(  # the collector's: tokens used (not billed) by the deployment that served them, "" for an unknown one
    "engine_usage",
    metadata,
    sa.Column("start_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("deployment_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in USAGE_COUNTS),
    *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in REPEATED_COUNTS),
)
