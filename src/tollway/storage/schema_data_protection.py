"""The tables of data protection, on the MetaData of `schema`: secrets that leaked, logged content, erasures."""

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
    sa.Column("mail_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("mail_due_at", sa.BigInteger, index=True),  # when its owners are written to again; null: they were, or need not be
    sa.Column("mail_told", sa.Text, nullable=False, server_default=""),  # ids of owners who were written to, while others are left
    sa.ForeignKeyConstraint(["organization_id", "key_id"], ["api_keys.organization_id", "api_keys.id"]),
    sa.UniqueConstraint("organization_id", "key_id", "redacted"),
)

content_logs = sa.Table(  # what requests of projects said and were answered, where these want it
    "content_logs",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),  # of the request
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("key_id", sa.String(64), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("content", sa.LargeBinary, nullable=False),  # sealed by the gateway, and once more under the organization's data key
    sa.ForeignKeyConstraint(["organization_id", "project_id"], ["projects.organization_id", "projects.id"]),
    sa.Index(None, "organization_id", "project_id", "id"),
)

content_deletions = sa.Table(  # projects of which all content above is being deleted, and none is read any more
    "content_deletions",
    metadata,
    sa.Column("organization_id", sa.String(64), primary_key=True),
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.ForeignKeyConstraint(["organization_id", "project_id"], ["projects.organization_id", "projects.id"]),
)

content_log_totals = sa.Table(  # bytes of the content of an organization above
    "content_log_totals",
    metadata,
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

erasures = sa.Table(  # of people and of organizations, which two operators agree on
    "erasures",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("organization_id", sa.String(64), sa.ForeignKey("organizations.id"), nullable=False),
    sa.Column("user_id", sa.String(64)),  # null for the whole organization
    sa.Column("reason", sa.String(1024), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # domain.erasures.ErasureState
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("actor_origin", sa.String(16), nullable=False),
    sa.Column("requested_at", sa.BigInteger, nullable=False),
    sa.Column("approver", sa.String(64)),
    sa.Column("approver_origin", sa.String(16)),
    sa.Column("decided_at", sa.BigInteger),
    sa.Column("are_rows_erased", sa.Boolean, nullable=False),
    sa.Column("records_erased", sa.Integer, nullable=False),
    sa.Column("finished_at", sa.BigInteger),
    sa.Column("addresses", sa.Text, nullable=False),  # JSON array: that the person had; empty again when it is done
    sa.Column("erased_until", sa.BigInteger, nullable=False),  # number of the latest record of the audit trail that was looked at
    sa.CheckConstraint("state IN ('pending', 'rejected') OR approver_origin <> actor_origin", name="two_persons"),
    sa.Index(None, "organization_id", "state"),
)
