"""The tables of billing periods, corrections and lost epochs, on the MetaData of `schema`.

A period's row moves forward only: from open to closing to closed; its bounds never change and a closed row never changes at all.
Nothing may be booked into a period that is not open. Both are enforced by triggers on both engines (see the migration); the locks of
`storage.periods` ensure that the triggers never decide by rows that another transaction is about to change.
"""

import sqlalchemy as sa

from tollway.domain.billing_classes import OTHER_CLASSES, QUANTITY_CLASSES
from tollway.domain.corrections import AdjustmentKind, ApprovalDecision
from tollway.domain.keys import KeyOrigin
from tollway.domain.periods import PeriodState
from tollway.storage.schema import metadata, one_of
from tollway.storage.schema_money import name

billing_periods = sa.Table(
    "billing_periods",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # follows from organization and start
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("start_at", sa.BigInteger, nullable=False),
    sa.Column("end_at", sa.BigInteger, nullable=False),
    sa.Column("time_zone", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    # From here on: written when closing begins.
    sa.Column("frozen_at", sa.BigInteger),
    sa.Column("closed_by", sa.String(64)),  # the operator's key, or "automatic"
    sa.Column("watermark_digest", sa.LargeBinary(32)),
    sa.Column("report", sa.Text),  # JSON: how it is known that nothing is missing
    # From here on: written when it is closed.
    sa.Column("closed_at", sa.BigInteger),
    sa.Column("events", sa.BigInteger),
    sa.Column("merkle_root", sa.LargeBinary(32)),
    sa.Column("adjustments", sa.BigInteger),
    sa.Column("adjustments_digest", sa.LargeBinary(32)),
    sa.Column("amounts", sa.Text),  # JSON: what it comes to, by billing class
    sa.Column("conditions_digest", sa.LargeBinary(32)),  # of the prices, terms and outcome policies of what is booked in it
    sa.Column("credits_digest", sa.LargeBinary(32)),  # of grants and of what its close booked on them; null if there were none
    sa.Column("contracts_digest", sa.LargeBinary(32)),  # of contracts and of what its close booked by them; null if there were none
    sa.Column("period_hash", sa.LargeBinary(32)),  # over all of it: the one that is published
    sa.UniqueConstraint("organization_id", "start_at"),
    one_of("state", PeriodState),
    sa.CheckConstraint("start_at < end_at", name="not_empty"),
    sa.CheckConstraint(
        "(state = 'open') = (frozen_at IS NULL) AND (frozen_at IS NULL) = (watermark_digest IS NULL)"
        " AND (frozen_at IS NULL) = (report IS NULL) AND (frozen_at IS NULL) = (closed_by IS NULL)",
        name="frozen_with_report",
    ),
    sa.CheckConstraint(
        "(state = 'closed') = (closed_at IS NOT NULL) AND (closed_at IS NULL) = (merkle_root IS NULL)"
        " AND (closed_at IS NULL) = (events IS NULL) AND (closed_at IS NULL) = (adjustments IS NULL)"
        " AND (closed_at IS NULL) = (adjustments_digest IS NULL) AND (closed_at IS NULL) = (amounts IS NULL)",
        name="closed_with_digests",
    ),
)

period_blocks = sa.Table(  # append-only; subtrees of a period's Merkle tree, in order
    "period_blocks",
    metadata,
    sa.Column("period_id", sa.String(64), sa.ForeignKey("billing_periods.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("events", sa.Integer, nullable=False),
    sa.Column("first_event_id", name(64), nullable=False),
    sa.Column("last_event_id", name(64), nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
    sa.Column("amounts", sa.Text, nullable=False),  # JSON: of its events, by billing class
    sa.CheckConstraint("events > 0 AND number >= 0", name="counts_in_range"),
)

# An operator's request to declare that the rest of an epoch will never arrive. No foreign key: a run of a gateway of which not one record
# has arrived can be lost too, and is then named by the instant of the gateway's last report.
lost_requests = sa.Table(  # append-only
    "lost_requests",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("node_id", sa.String(64), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),  # the operator's key
    sa.Column("actor_origin", sa.String(16), nullable=False),
    sa.Column("requested_at", sa.BigInteger, nullable=False),
)
sa.Index(None, lost_requests.c.node_id, lost_requests.c.epoch)

lost_decisions = sa.Table(  # append-only; what the second person said
    "lost_decisions",
    metadata,
    sa.Column("request_id", sa.String(64), sa.ForeignKey("lost_requests.id"), primary_key=True),
    sa.Column("approver", sa.String(64), nullable=False),
    sa.Column("approver_origin", sa.String(16), nullable=False),  # of an approval not the actor's, by trigger
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("decided_at", sa.BigInteger, nullable=False),
    one_of("decision", ApprovalDecision),
)

# The declaration itself, which only an approved request makes, by trigger.
lost_declarations = sa.Table(  # append-only
    "lost_declarations",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("next_seq", sa.BigInteger, nullable=False),  # the watermark then; what came above it came after all
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),  # the operator's key
    sa.Column("declared_at", sa.BigInteger, nullable=False),
    sa.Column("approver", sa.String(64), nullable=False, server_default=""),  # the second person's key
)

REPLACEMENTS = (*(f"replacement_{billing_class}" for billing_class in QUANTITY_CLASSES), "replacement_requests")
"""Columns of the quantities that are billed instead, in the order of the billing classes."""

OTHER_REPLACEMENTS = frozenset(f"replacement_{billing_class}" for billing_class in OTHER_CLASSES)
"""Those that are null where nothing of their class is billed."""

usage_adjustments = sa.Table(  # append-only
    "usage_adjustments",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    # Of the event that is corrected, so that costs can be grouped by project, key and model without it.
    sa.Column("event_id", sa.String(64), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("amount_pico", sa.BigInteger, nullable=False),  # what it adds to the event's cost
    *(sa.Column(name, sa.BigInteger) for name in REPLACEMENTS),
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("needs_approval", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("actor_origin", sa.String(16), nullable=False, server_default=KeyOrigin.FIRST.value),
    sa.UniqueConstraint("id", "actor"),
    one_of("kind", AdjustmentKind),
    sa.CheckConstraint(
        " AND ".join(
            ["(kind = 'replace') = (replacement_input IS NOT NULL)"]
            + [f"(replacement_input IS NULL) = ({name} IS NULL)" for name in REPLACEMENTS[1:] if name not in OTHER_REPLACEMENTS]
        ),
        name="replaced_by_all_classes",
    ),
    sa.CheckConstraint("kind = 'replace' OR amount_pico < 0", name="gives_back"),
    sa.CheckConstraint("replacement_requests IN (0, 1)", name="one_request"),
)
sa.Index(None, usage_adjustments.c.event_id)
sa.Index(None, usage_adjustments.c.organization_id, usage_adjustments.c.id)
sa.Index(None, usage_adjustments.c.actor_origin, usage_adjustments.c.created_at)

adjustment_approvals = sa.Table(  # append-only
    "adjustment_approvals",
    metadata,
    sa.Column("adjustment_id", sa.String(64), primary_key=True),
    sa.Column("actor", sa.String(64), nullable=False),  # who asked for the correction, by foreign key
    sa.Column("approver", sa.String(64), nullable=False),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("decided_at", sa.BigInteger, nullable=False),
    sa.Column("approver_origin", sa.String(16), nullable=False, server_default=KeyOrigin.FIRST.value),  # not the actor's, by trigger
    sa.ForeignKeyConstraint(["adjustment_id", "actor"], ["usage_adjustments.id", "usage_adjustments.actor"]),
    one_of("decision", ApprovalDecision),
    sa.CheckConstraint("approver <> actor OR decision = 'rejected'", name="four_eyes"),
)

APPEND_ONLY = (period_blocks, lost_requests, lost_decisions, lost_declarations, usage_adjustments, adjustment_approvals)
"""Tables whose rows, once written, stay as they are."""
