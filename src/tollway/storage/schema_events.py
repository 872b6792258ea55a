"""The tables of events, webhooks, sinks and telemetry exports, on the MetaData of `schema`: the outbox, endpoints and the deliveries of
events to them; what sinks and the receivers of organizations have got."""

import sqlalchemy as sa

from tollway.domain.sinks import Stream
from tollway.domain.telemetry_exports import ExportFormat
from tollway.domain.webhooks import DeliveryState, DisabledReason
from tollway.storage.schema import metadata, one_of

outbox_events = sa.Table(  # written in the transaction of the change
    "outbox_events",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id")),  # null for the platform's own
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("data", sa.Text, nullable=False),  # JSON object
    sa.Column("sequence", sa.BigInteger),  # null until the job has numbered it
)
_UNNUMBERED = outbox_events.c.sequence.is_(None)
sa.Index("ix_outbox_events_unnumbered", outbox_events.c.id, sqlite_where=_UNNUMBERED, postgresql_where=_UNNUMBERED)
sa.Index(None, outbox_events.c.organization_id, outbox_events.c.sequence, unique=True)
sa.Index(None, outbox_events.c.organization_id, outbox_events.c.id)

event_counters = sa.Table(  # the last number of each organization's events; the lock of the row "" orders whoever numbers
    "event_counters",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),  # an organization, "platform", "usage" for batches of it, or ""
    sa.Column("sequence", sa.BigInteger, nullable=False),
)

event_searches = sa.Table(  # up to which instant what happens by time alone was looked for
    "event_searches",
    metadata,
    sa.Column("type", sa.String(64), primary_key=True),
    sa.Column("searched_until", sa.BigInteger, nullable=False),
)

webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id")),  # null for the operators'
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("event_types", sa.Text, nullable=False),  # JSON array
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("secret_hint", sa.String(32), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("sealed_before", sa.LargeBinary),
    sa.Column("before_until", sa.BigInteger),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failing_since", sa.BigInteger),
    sa.Column("paused_until", sa.BigInteger, nullable=False),
    sa.Column("disabled_at", sa.BigInteger),
    sa.Column("disabled_reason", sa.String(16)),
    sa.Column("told_at", sa.BigInteger),  # when the owners were written to that it was disabled
    one_of("disabled_reason", DisabledReason),
    sa.CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled_with_reason"),
)
sa.Index(None, webhook_endpoints.c.organization_id, webhook_endpoints.c.id)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("endpoint_id", sa.String(64), sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("event_id", sa.String(64), sa.ForeignKey("outbox_events.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("organization_id", sa.String(64)),  # of the endpoint
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("since_at", sa.BigInteger, nullable=False),
    sa.Column("next_at", sa.BigInteger, nullable=False),
    sa.Column("attempted_at", sa.BigInteger),
    sa.Column("status", sa.Integer),
    sa.Column("error", sa.String(64)),
    one_of("state", DeliveryState),
)
_PENDING = webhook_deliveries.c.state == DeliveryState.PENDING.value
sa.Index(
    "ix_webhook_deliveries_pending",
    webhook_deliveries.c.endpoint_id,
    webhook_deliveries.c.next_at,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)
sa.Index(None, webhook_deliveries.c.event_id)

usage_batches = sa.Table(  # which events the collector stored, in parts, while somebody follows them
    "usage_batches",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last_seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first_id", sa.String(64), nullable=False),  # the ids of its events lie between these two
    sa.Column("last_id", sa.String(64), nullable=False),
    sa.Column("recorded_at", sa.BigInteger, nullable=False),
    sa.Column("sequence", sa.BigInteger, unique=True),  # null until it was numbered
)

sink_positions = sa.Table(  # up to which number each sink got each owner's records of a stream
    "sink_positions",
    metadata,
    sa.Column("sink", sa.String(64), primary_key=True),
    sa.Column("stream", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), primary_key=True),  # an organization, "platform", or "" for usage and the service
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("moved_at", sa.BigInteger, nullable=False),  # of "": when the sink was last served
    one_of("stream", Stream),
)

telemetry_exports = sa.Table(
    "telemetry_exports",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("url", sa.String(2048), nullable=False),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("signals", sa.Text, nullable=False),  # JSON array
    sa.Column("header_names", sa.Text, nullable=False),  # JSON array
    sa.Column("sealed", sa.LargeBinary, nullable=False),  # the headers
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("usage_position", sa.BigInteger),  # number of a batch of usage; null while it is not followed
    sa.Column("audit_position", sa.BigInteger),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failing_since", sa.BigInteger),
    sa.Column("paused_until", sa.BigInteger, nullable=False),
    sa.Column("succeeded_at", sa.BigInteger),
    sa.Column("last_error", sa.String(64)),
    sa.Column("waiting_since", sa.BigInteger),
    sa.Column("missed_at", sa.BigInteger),
    sa.Column("disabled_at", sa.BigInteger),
    sa.Column("disabled_reason", sa.String(16)),
    one_of("format", ExportFormat),
    one_of("disabled_reason", DisabledReason),
    sa.CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled_with_reason"),
)
sa.Index(None, telemetry_exports.c.organization_id, telemetry_exports.c.id)
_FOLLOWS_USAGE = telemetry_exports.c.usage_position.is_not(None)
sa.Index(
    "ix_telemetry_exports_following_usage",
    telemetry_exports.c.usage_position,
    sqlite_where=_FOLLOWS_USAGE,
    postgresql_where=_FOLLOWS_USAGE,
)
