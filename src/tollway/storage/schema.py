"""The tables of tenants, keys, catalog and publication. Prices are in `schema_prices`, usage and money in `schema_money`, on the same
MetaData.

Every table of a tenant carries `organization_id`, and foreign keys between such tables include it: a row can never point into another
organization. Instants are BIGINT UTC microseconds, amounts BIGINT pico-currency; no column is a float. Enumerations are text with
a CHECK, because both engines can read them in a dump. Append-only tables are guarded by triggers (see the migrations).
"""

from collections.abc import Iterable
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy.schema import SchemaItem

from tollway.domain.catalog import HEDGE_PERCENT_FIRST, CacheIsolation, Engine, UnknownParameters
from tollway.domain.epochs import RefusalReason
from tollway.domain.keys import KeyType
from tollway.domain.limits import DIMENSIONS, LimitLevel
from tollway.domain.tenants import Status

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
"""Named constraints, so that a later migration can change one on either engine."""


def one_of(column: str, values: Iterable[StrEnum]) -> sa.CheckConstraint:
    """A CHECK that `column` holds one of `values`, such as those of an enumeration."""
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(str(value)) for value in values)})", name=f"{column}_known")


END_USER_PREFIX = "end_user_"
"""Prefix of the columns of a project that limit each of its end users."""


def limit_columns(prefix: str = "") -> tuple[SchemaItem, ...]:
    """Return the columns of one level's limits (domain.limits.Limits): null is not limited."""
    columns = [sa.Column(prefix + each.name, sa.Integer if each.size_max <= 1_000_000 else sa.BigInteger) for each in DIMENSIONS]
    checks = [sa.CheckConstraint(f"{prefix}{each.name} > 0", name=f"{prefix}{each.name}_positive") for each in DIMENSIONS]
    return (*columns, *checks)


# ---- Tenants ----------------------------------------------------------------------------------------------------------

plans = sa.Table(  # named sets of limits that organizations subscribe to
    "plans",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False, unique=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("monthly_budgets", sa.Text, nullable=False, server_default="{}"),  # JSON object of pico-currency by currency
)

plan_limits = sa.Table(
    "plan_limits",
    metadata,
    sa.Column("plan_id", sa.String(64), sa.ForeignKey("plans.id"), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),  # empty for all models together
    *limit_columns(),
)

organizations = sa.Table(
    "organizations",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("time_zone", sa.String(64), nullable=False, server_default="UTC"),  # IANA; of periods that are not cut yet
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("archived_at", sa.BigInteger),
    sa.Column("key_lifetime_seconds_max", sa.BigInteger),
    sa.Column("rotation_interval_seconds", sa.BigInteger),
    sa.Column("rotation_grace_seconds", sa.BigInteger),
    sa.Column("plan_id", sa.String(64), sa.ForeignKey("plans.id"), index=True),
    sa.Column("queue_weight", sa.Integer, nullable=False, server_default="1"),
    sa.CheckConstraint("queue_weight > 0", name="queue_weight_positive"),
    sa.Column("response_retention_seconds", sa.BigInteger),  # null: responses are not stored
    sa.Column("data_retention", sa.String(64), nullable=False, server_default="modified_abuse_monitoring"),
    sa.Column("leaked_key_policy", sa.String(16), nullable=False, server_default="revoke"),  # domain.leaked_keys.LeakPolicy
    *limit_columns(),
    one_of("status", Status),
)

limit_overrides = sa.Table(  # limits of organizations that hold until an instant; a job removes those that have ended
    "limit_overrides",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),  # empty for all models together
    sa.Column("until_at", sa.BigInteger, nullable=False, index=True),
    *limit_columns(),
)

data_keys = sa.Table(  # of organizations, wrapped under a key that is not in the database
    "data_keys",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("kek", sa.String(512), nullable=False),  # name of the key that wrapped it
    sa.Column("wrapped", sa.LargeBinary),  # null once it was destroyed
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("wrapped_at", sa.BigInteger, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("archived_at", sa.BigInteger),
    sa.Column("residency", sa.Text),  # JSON array of regions
    sa.Column("model_permissions", sa.Text),  # JSON of domain.project_policies.ModelPermissions; null for every published model
    sa.Column("data_retention", sa.String(64), nullable=False, server_default="organization_default"),
    sa.Column("content_retention_seconds", sa.BigInteger),  # null: content is not logged
    sa.Column("service_tiers", sa.Text),  # JSON of domain.project_policies.ServiceTiers; null for all, with the standard one as the default
    *limit_columns(),
    *limit_columns(END_USER_PREFIX),
    one_of("status", Status),
    sa.UniqueConstraint("organization_id", "id"),
)

service_accounts = sa.Table(
    "service_accounts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("deleted_at", sa.BigInteger),
    *limit_columns(),
    sa.ForeignKeyConstraint(["organization_id", "project_id"], ["projects.organization_id", "projects.id"]),
    sa.UniqueConstraint("organization_id", "project_id", "id"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("type", sa.String(16), nullable=False),
    # Null for keys of the platform and of nodes, which belong to no organization.
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id")),
    sa.Column("project_id", sa.String(64)),
    sa.Column("service_account_id", sa.String(64)),
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id"), index=True),  # the node that a key of type "node" identifies
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("redacted", sa.String(64), nullable=False),
    sa.Column("models", sa.Text),  # JSON array of names; null for every model of the project
    sa.Column("endpoints", sa.Text),  # JSON array of domain.catalog.Endpoint; null for all
    sa.Column("addresses", sa.Text),  # JSON array of ranges (domain.networks); null for any
    sa.Column("output_tokens_max", sa.Integer),
    sa.Column("tags", sa.Text),  # JSON object of texts; null for none
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("created_by", sa.String(64)),  # the key with which it was made; null for keys of the settings
    sa.Column("origin", sa.String(16)),  # domain.keys.KeyOrigin of operators' keys; never changes, by trigger
    sa.Column("role_id", sa.String(64)),  # of admins' and operators' keys: built in (domain.roles), or of custom_roles
    sa.Column("role_project_id", sa.String(64)),  # the project in which the role is held; null for the whole organization
    sa.Column("user_id", sa.String(64)),  # the person whose admin key it is; it has their roles, and none of its own
    sa.Column("last_used_at", sa.BigInteger),  # of the secret with `digest`
    sa.Column("rotated_at", sa.BigInteger),
    # The secret before the latest rotation, until it is retired.
    sa.Column("previous_pepper_version", sa.Integer),
    sa.Column("previous_digest", sa.LargeBinary(32)),
    sa.Column("previous_redacted", sa.String(64)),
    sa.Column("previous_expires_at", sa.BigInteger),
    sa.Column("previous_last_used_at", sa.BigInteger),
    # The schedule of its rotation, and the secret that it made, sealed, until that is collected.
    sa.Column("rotation_interval_seconds", sa.BigInteger),
    sa.Column("rotation_grace_seconds", sa.BigInteger),
    sa.Column("uncollected_secret", sa.LargeBinary),
    sa.Column("rotation_notice", sa.String(16)),  # control.scheduled_rotation.Notice, the latest that was given of this rotation
    *limit_columns(),
    one_of("type", KeyType),
    sa.CheckConstraint("(type IN ('platform', 'node')) = (organization_id IS NULL)", name="organization_unless_platform"),
    sa.CheckConstraint("(type IN ('live', 'test')) = (project_id IS NOT NULL)", name="project_if_inference"),
    sa.CheckConstraint("service_account_id IS NULL OR project_id IS NOT NULL", name="service_account_in_project"),
    sa.CheckConstraint("(type = 'node') = (node_id IS NOT NULL)", name="node_if_of_node"),
    sa.ForeignKeyConstraint(["organization_id", "project_id"], ["projects.organization_id", "projects.id"]),
    sa.ForeignKeyConstraint(
        ["organization_id", "project_id", "service_account_id"],
        ["service_accounts.organization_id", "service_accounts.project_id", "service_accounts.id"],
    ),
    sa.UniqueConstraint("organization_id", "id"),
)

sa.Index(
    "api_keys_with_schedule",
    api_keys.c.id,
    sqlite_where=api_keys.c.rotation_interval_seconds.is_not(None),
    postgresql_where=api_keys.c.rotation_interval_seconds.is_not(None),
)
sa.Index(
    "api_keys_with_previous_secret",
    api_keys.c.previous_expires_at,
    sqlite_where=api_keys.c.previous_expires_at.is_not(None),
    postgresql_where=api_keys.c.previous_expires_at.is_not(None),
)

# ---- Catalog ----------------------------------------------------------------------------------------------------------

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Column("endpoints", sa.Text, nullable=False),  # JSON array of domain.catalog.Endpoint
    sa.Column("output_tokens_max", sa.Integer),
    sa.Column("context_length", sa.Integer),  # most tokens of a prompt
    sa.Column("unknown_parameters", sa.String(16), nullable=False),
    sa.Column("retry_started", sa.Boolean, nullable=False),
    sa.Column("share_cache", sa.Boolean, nullable=False),
    sa.Column("model_groups", sa.Text, nullable=False, server_default="[]"),  # JSON array of names
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("fallbacks", sa.Text, nullable=False, server_default="[]"),  # JSON array of names of models
    sa.Column("hedge_after_ms", sa.Integer),
    sa.Column("hedge_percent", sa.Integer, nullable=False, server_default=str(HEDGE_PERCENT_FIRST)),
    sa.Column("latency_goal_ms", sa.Integer),
    sa.Column("response_cache_seconds", sa.Integer, nullable=False, server_default="0"),
    sa.Column("guardrail", sa.String(16), nullable=False, server_default="off"),  # domain.catalog.Guardrail
    sa.Column("guardrail_stages", sa.String(16), nullable=False, server_default="both"),  # domain.catalog.GuardrailStages
    one_of("status", Status),
    one_of("unknown_parameters", UnknownParameters),
    sa.CheckConstraint("output_tokens_max > 0", name="output_tokens_max_positive"),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), sa.ForeignKey("models.name"), nullable=False),
    sa.Column("base_url", sa.String(2048), nullable=False),
    sa.Column("engine", sa.String(16), nullable=False),
    sa.Column("upstream_model", sa.String(256), nullable=False),
    sa.Column("tier", sa.Integer, nullable=False),
    sa.Column("weight", sa.Integer, nullable=False),
    sa.Column("region", sa.String(64)),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("credential", sa.LargeBinary),  # sealed by the vault
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("cache_isolation", sa.String(16), nullable=False, server_default=CacheIsolation.ENGINE.value),
    sa.Column("pooling", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("translated_endpoints", sa.Text, nullable=False, server_default="[]"),  # JSON array of domain.catalog.Endpoint
    sa.Column("test", sa.Boolean, nullable=False, server_default=sa.false()),  # serves test keys, and only these
    sa.Column("priorities", sa.Boolean, nullable=False, server_default=sa.false()),  # the engine schedules by priority
    sa.Column("relative_cost", sa.Integer),
    sa.Column("grpc_port", sa.Integer),
    sa.Column("archived_at", sa.BigInteger),  # null while it is active, and where it was archived before this was kept
    one_of("engine", Engine),
    one_of("cache_isolation", CacheIsolation),
    one_of("status", Status),
    sa.CheckConstraint("tier >= 0 AND weight >= 0", name="rank_not_negative"),
)

model_limits = sa.Table(  # limits of one level on a model or a group of models; those on all models are columns of the level's own table
    "model_limits",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("level", sa.String(16), primary_key=True),
    sa.Column("subject_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), primary_key=True),
    *limit_columns(),
    one_of("level", LimitLevel),  # of an end user: the limits of each end user of the project that is the subject
)

# ---- Publication ------------------------------------------------------------------------------------------------------

publish_head = sa.Table(  # one row, made by the migration; its lock orders all publications
    "publish_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)

changes = sa.Table(
    "changes",
    metadata,
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("entity_id", sa.String(128), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # the encoded domain.snapshot.Change, as it goes on the wire
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

nodes = sa.Table(  # gateways; their keys are rows of api_keys
    "nodes",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("acked_version", sa.BigInteger, nullable=False),
    sa.Column("first_seen_at", sa.BigInteger),
    sa.Column("seen_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
)

refused_epochs = sa.Table(  # runs of gateways that cannot have begun when they say, and who accepted them
    "refused_epochs",
    metadata,
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id"), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("first_refused_at", sa.BigInteger, nullable=False),
    sa.Column("refused_at", sa.BigInteger, nullable=False),
    sa.Column("accepted_at", sa.BigInteger),
    sa.Column("accepted_by", sa.String(64)),  # the operator's key
    sa.Column("accepted_because", sa.String(1024)),
    one_of("reason", RefusalReason),
    sa.CheckConstraint("(accepted_at IS NULL) = (accepted_by IS NULL)", name="accepted_by_somebody"),
)

limit_reports = sa.Table(  # what each gateway that counts limits in its own memory said of them last
    "limit_reports",
    metadata,
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id"), primary_key=True),
    sa.Column("reported_at", sa.BigInteger, nullable=False),
    sa.Column("uses", sa.Text, nullable=False),  # JSON
)

gateway_statuses = sa.Table(  # what each gateway said of itself and of its deployments last
    "gateway_statuses",
    metadata,
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id"), primary_key=True),
    sa.Column("reported_at", sa.BigInteger, nullable=False),
    sa.Column("gateway", sa.Text, nullable=False),  # JSON
    sa.Column("deployments", sa.Text, nullable=False),  # JSON, bounded by domain.gateway_statuses
)

join_tokens = sa.Table(
    "join_tokens",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("pepper_version", sa.Integer, nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("redacted", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.BigInteger),
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id")),
    sa.CheckConstraint("(used_at IS NULL) = (node_id IS NULL)", name="node_if_used"),
)

# Lists page by id (ids sort by time of creation) within their owner; keys are also looked up by owner when it is archived.
sa.Index(None, api_keys.c.organization_id, api_keys.c.project_id, api_keys.c.id)
sa.Index(None, api_keys.c.previous_digest, unique=True)
sa.Index(None, deployments.c.model)

# Quotas count what is in force, and what was created lately; rows that ended long ago are many, and not read.
sa.Index(None, projects.c.organization_id, projects.c.archived_at, projects.c.created_at)
sa.Index(None, service_accounts.c.organization_id, service_accounts.c.deleted_at, service_accounts.c.created_at)
sa.Index(None, api_keys.c.organization_id, api_keys.c.revoked_at, api_keys.c.created_at)
